"""What `verify` says of an image, for every way in which it may not be what it should be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelbake.audit.findings import Findings
from modelbake.audit.judging import Expected
from modelbake.credentials import Secret
from modelbake.dockerconfig import RegistryCredentials
from modelbake.errors import LockMissing
from modelbake.manifest import OCI_MANIFEST, Manifest
from modelbake.output import Output
from modelbake.referrers import Document, attach, list_by_tag
from modelbake.registry import Registry
from modelbake.release.audits import keep_audit
from modelbake.release.documents import SBOM_TYPE
from modelbake.release.entries import ChannelEntry, SoakEntry
from modelbake.release.publickey import PublicKey, parse_key
from modelbake.release.signing import Signing
from modelbake.release.verification import Check, Locked, Verification, as_document, as_lines
from modelbake.release.weightsignature import bundle, sign_weights, statement
from modelbake.stream.repository import RegistryRepository
from tests.servers.signed_images import MemoryKey, locked_model, payload_about, put_image, put_signatures
from tests.servers.upload_registry import PASSWORD, USER, UploadRegistry

KEY = MemoryKey.generate()
OTHER_WEIGHTS = {"config.json": b"{}\n", "model.safetensors": b"\x08" * 70_000}


@pytest.fixture
def server() -> Iterator[UploadRegistry]:
    with UploadRegistry() as running:
        yield running


@pytest.fixture
def repository(server: UploadRegistry, monkeypatch: pytest.MonkeyPatch) -> Iterator[RegistryRepository]:
    credentials = RegistryCredentials(USER, Secret(PASSWORD))
    monkeypatch.setenv("MODELBAKE_REGISTRY", server.host)
    monkeypatch.setenv("MODELBAKE_REGISTRY_USER", USER)
    monkeypatch.setenv("MODELBAKE_REGISTRY_PASSWORD", PASSWORD)
    with Registry(server.host, credentials, timeout=5, sleep=lambda seconds: None) as registry:
        yield RegistryRepository(registry, "ml/tiny")


@pytest.fixture
def signing(tmp_path: Path) -> Signing:
    (tmp_path / "cosign.pub").write_bytes(KEY.public)
    return Signing.by_key(str(tmp_path / "cosign.pub"), Output())


def sign(repository: RegistryRepository, image: Manifest) -> None:
    payload = payload_about(image.digest)
    put_signatures(repository, image.digest, [(payload, KEY.sign(payload))])


def checks(
    repository: RegistryRepository,
    reference: str = "1.0.0",
    *,
    signing: Signing | None = None,
    locked: Locked | None = None,
    channel: tuple[str, ChannelEntry] | None = None,
) -> dict[str, Check]:
    manifest = repository.manifest(reference)
    assert manifest is not None
    found = Verification(repository, reference, manifest, Output(), signing, locked, channel).checks()
    return {each.name: each for each in found}


def states(found: dict[str, Check]) -> dict[str, str]:
    return {name: check.state for name, check in found.items() if check.state != "not checked"}


def facts(version: str = "1.0.0") -> Locked:
    return Locked(version, locked_model)


def test_an_image_that_is_right(repository: RegistryRepository, signing: Signing) -> None:
    image = put_image(repository, "1.0.0", locked_model())
    sign(repository, image)
    found = checks(repository, signing=signing, locked=facts())
    right = dict.fromkeys(("digest", "content", "version", "signature", "lock"), "ok")
    assert states(found) == right
    assert found["sbom"].said == "there is none beside it"
    verification = Verification(repository, "1.0.0", image, Output())
    document = as_document(verification, list(found.values()))
    assert document["passed"] is True and document["image"].endswith(image.digest)
    assert as_lines(list(found.values()))[0].split() == ["CHECK", "RESULT", "WHAT"]


def test_nobody_says_whose_signature_counts(repository: RegistryRepository) -> None:
    put_image(repository, "1.0.0", locked_model())
    found = checks(repository)
    assert found["signature"].state == "not checked"
    assert found["lock"].state == "not checked" and "3 files" in found["lock"].said
    assert "unsigned image" in found["base"].said


def test_missing_and_short_layers(server: UploadRegistry, repository: RegistryRepository) -> None:
    image = put_image(repository, "1.0.0", locked_model())
    held = server.repository("ml/tiny").blobs
    layer, config = image.layers[0], image.config
    held[layer.digest] = held[layer.digest][:-1]
    found = checks(repository)
    assert found["content"].state == "failed" and "not 2,560" in found["content"].said
    del held[layer.digest]
    assert f"{layer.digest} is missing" in checks(repository)["content"].said
    del held[config.digest]
    found = checks(repository, locked=facts())
    assert found["content"].state == "failed" and config.digest in found["content"].said
    assert found["lock"].state == "failed", "what cannot be read is not passed over"


def test_a_changed_layer_with_the_manifest_is_found(
    server: UploadRegistry, repository: RegistryRepository
) -> None:
    image = put_image(repository, "1.0.0", locked_model())
    held = server.repository("ml/tiny").blobs
    top = image.layers[-1].digest
    held[top] = held[top].replace(b"model.safetensors", b"other.safetensors")
    assert checks(repository)["lock"].state == "failed"


def test_versions(server: UploadRegistry, repository: RegistryRepository) -> None:
    first = put_image(repository, "1.0.0", locked_model())
    second = put_image(repository, "1.1.0", locked_model())
    tags = server.repository("ml/tiny").tags
    assert checks(repository, first.digest)["version"].state == "ok"
    tags["1.0.0"] = second.digest
    assert "names an image of version 1.1.0" in checks(repository)["version"].said
    assert "was released as another image" in checks(repository, first.digest)["version"].said
    del tags["1.0.0"]
    assert checks(repository, first.digest)["version"].state == "note"


@pytest.mark.promise("signature")
def test_a_signed_image_under_a_name_of_another(
    server: UploadRegistry, repository: RegistryRepository, signing: Signing
) -> None:
    """The signature is right, and the name is not: an older version, or another model of the same key."""
    image = put_image(repository, "1.0.0", locked_model())
    put_image(repository, "1.4.2", locked_model())
    sign(repository, image)
    tags = server.repository("ml/tiny").tags
    tags["1.0"] = tags["1"] = tags["1.4"] = image.digest
    for reference in ("1.0.0", "1.0", "1", image.digest):
        assert checks(repository, reference, signing=signing)["version"].state == "ok", "control"
    found = checks(repository, "1.4", signing=signing)
    assert found["signature"].state == "ok" and found["version"].state == "failed"
    server.repositories["ml/chat"] = server.repository("ml/tiny")
    other = RegistryRepository(repository.registry, "ml/chat")
    assert checks(other, signing=signing)["version"].state == "note"
    found = checks(other, signing=signing, locked=facts("2.0.0"))
    assert found["version"].state == "failed" and "it is tiny, not chat" in found["version"].said


@pytest.mark.promise("signature")
def test_documents_about_another_image_are_none_of_this(
    repository: RegistryRepository, signing: Signing
) -> None:
    """The lists under tags can be written by whoever may push: here with the signed SBOM of another image."""
    image = put_image(repository, "1.0.0", locked_model())
    other = put_image(repository, "1.1.0", locked_model())
    for each in (image, other):
        digests = [{"alg": "SHA-256", "content": other.digest.removeprefix("sha256:")}]
        sbom = {"bomFormat": "CycloneDX", "metadata": {"component": {"hashes": digests}}}
        document = Document(json.dumps(sbom).encode(), SBOM_TYPE, "x.json", {})
        attached = attach(repository, each, document)
    theirs = repository.manifest(attached)
    assert theirs is not None
    sign(repository, theirs)
    list_by_tag(repository, image.digest, theirs)
    found = checks(repository, "1.1.0", signing=signing)
    assert found["sbom"].state == "ok" and "; signed" in found["sbom"].said, "control"
    assert checks(repository, signing=signing)["sbom"].state == "not checked"


def test_locks(repository: RegistryRepository) -> None:
    put_image(repository, "1.0.0", locked_model(weights=OTHER_WEIGHTS))
    found = checks(repository, locked=facts())["lock"]
    assert found.state == "failed"
    assert "model.safetensors" in found.said and "config.json" not in found.said
    assert "is at 2.0.0" in checks(repository, locked=facts("2.0.0"))["lock"].said

    def absent() -> object:
        raise LockMissing("is not in models.lock")

    found = checks(repository, locked=Locked("1.0.0", absent))["lock"]  # type: ignore[arg-type]
    assert (found.state, found.said) == ("not checked", "is not in models.lock")


def test_a_label_that_the_image_contradicts(server: UploadRegistry, repository: RegistryRepository) -> None:
    image = put_image(repository, "1.0.0", locked_model())
    config = json.loads(server.repository("ml/tiny").blobs[image.config.digest])
    config["config"]["Labels"]["io.modelbake.lock"] = "sha256:" + "0" * 64
    blob = repository.put(json.dumps(config).encode(), image.config.media_type)
    document = image.document()
    document["config"] = {"mediaType": blob.media_type, "digest": blob.digest, "size": blob.size}
    repository.put_manifest("1.0.0", Manifest.of(OCI_MANIFEST, json.dumps(document).encode()))
    assert "its label says" in checks(repository, locked=facts())["lock"].said


def test_an_image_of_others(repository: RegistryRepository, signing: Signing) -> None:
    blob = repository.put(b"{}", "application/vnd.oci.image.config.v1+json")
    config = {"mediaType": blob.media_type, "digest": blob.digest, "size": 2}
    body = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": []}
    image = Manifest.of(OCI_MANIFEST, json.dumps(body).encode())
    repository.put_manifest("latest", image)
    sign(repository, image)
    found = checks(repository, "latest", signing=signing)
    assert states(found) == {"digest": "ok", "content": "ok", "signature": "ok"}
    assert "no image of this toolkit" in found["lock"].said


def test_bases(server: UploadRegistry, repository: RegistryRepository, signing: Signing) -> None:
    base = RegistryRepository(repository.registry, "base/python")
    old, new = put_image(base, "3.11", locked_model()), put_image(base, "0.0.1", locked_model())
    name, port = f"{server.host}/base/python:3.11@{old.digest}", server.host.rpartition(":")[2]
    image = put_image(repository, "1.0.0", locked_model(), name)
    assert "not followed" in checks(repository)["base"].said
    sign(repository, image)
    assert checks(repository, signing=signing)["base"].state == "ok"
    server.repository("base/python").tags["3.11"] = new.digest
    found = checks(repository, signing=signing)["base"]
    assert found.state == "note" and "rebuild" in found.said
    del server.repository("base/python").tags["3.11"]
    assert "no longer" in checks(repository, signing=signing)["base"].said
    put_image(repository, "1.0.0", locked_model(), f"localhost:{port}/base/python:3.11@{old.digest}")
    found = checks(repository, locked=facts())["base"]  # a name for which there is no password
    assert found.state == "not checked" and "wants credentials" in found.said
    put_image(repository, "1.0.0", locked_model(), f"{server.host}/base/python@{old.digest}")
    assert "no tag" in checks(repository, locked=facts())["base"].said


def test_channels(server: UploadRegistry, repository: RegistryRepository, signing: Signing) -> None:
    image = put_image(repository, "1.0.0", locked_model())
    soak = SoakEntry(channel="staging", hours=24)
    entry = ChannelEntry(require=("signature", "gpu_report", "audit"), soak=soak)
    asked = {"signing": signing, "channel": ("production", entry)}
    assert "nothing in production" in checks(repository, **asked)["channel"].said  # type: ignore[arg-type]
    other = put_image(repository, "1.1.0", locked_model())
    server.repository("ml/tiny").tags["production"] = other.digest
    assert "another image" in checks(repository, **asked)["channel"].said  # type: ignore[arg-type]
    server.repository("ml/tiny").tags["production"] = image.digest
    assert checks(repository, **asked)["channel"].state == "note", "put by hand"  # type: ignore[arg-type]
    verification = Verification(repository, "1.0.0", image, Output(), signing, None, asked["channel"])  # type: ignore[arg-type]
    policies = [each.state for each in verification.checks() if each.name == "policy"]
    assert policies == ["failed", "failed", "failed", "not checked"]
    sign(repository, image)
    policies = [each.state for each in verification.checks() if each.name == "policy"]
    assert policies == ["ok", "failed", "failed", "not checked"]
    digest = keep_audit(repository, image, Expected({}), Findings("tiny", image.digest, 1, 1, 1, ()))
    policies = [each.state for each in verification.checks() if each.name == "policy"]
    assert policies == ["ok", "failed", "failed", "not checked"], "whoever may push could have written it"
    audit = repository.manifest(digest)
    assert audit is not None
    sign(repository, audit)
    policies = [each.state for each in verification.checks() if each.name == "policy"]
    assert policies == ["ok", "failed", "ok", "not checked"]


def test_the_signature_of_the_weights(
    repository: RegistryRepository, signing: Signing, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = put_image(repository, "1.0.0", locked_model())
    sign(repository, image)
    assert checks(repository, signing=signing)["weights signature"].state == "not checked"
    monkeypatch.setattr(
        Signing, "signature_of", lambda self, content, subject: MemoryKey.generate().sign(content)
    )
    sign_weights(repository, image, signing)
    assert "another key" in checks(repository, signing=signing)["weights signature"].said
    monkeypatch.setattr(Signing, "signature_of", lambda self, content, subject: KEY.sign(content))
    assert sign_weights(repository, image, signing)
    assert checks(repository, signing=signing)["weights signature"].state == "ok"
    assert not sign_weights(repository, image, signing), "signed twice, it is there once"


def test_the_statement_about_weights_is_what_model_signing_reads() -> None:
    from model_signing._signing.signing import dsse_payload_to_manifest

    weights = {"b/x": b"1", "a.txt": b"2", ".gitattributes": b"3", "b-x": b"4", "b": b"", "ä": b"5"}
    files = locked_model(weights=weights).weights
    manifest = dsse_payload_to_manifest(json.loads(statement("tiny", files)))
    names = [each.identifier for each in manifest.resource_descriptors()]
    assert sorted(names) == sorted({*weights} - {".gitattributes"})
    assert statement("tiny", files) == statement("tiny", files[::-1])
    assert json.loads(bundle(b"{}", b"s", _key()))["verificationMaterial"]["publicKey"]["hint"]


def _key() -> PublicKey:
    found = parse_key(KEY.public, "test")
    assert found is not None

    return found
