"""Signatures in a registry, where whoever may push can have put any: read without cosign, by two readers."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelbake.credentials import Secret
from modelbake.dockerconfig import RegistryCredentials
from modelbake.errors import SignatureError
from modelbake.manifest import Manifest
from modelbake.referrers import Document, attach
from modelbake.registry import Registry
from modelbake.release.publickey import PublicKey, envelope_content, parse_key
from modelbake.release.signatures import BUNDLE, STATEMENT, signature_tag, verify_by_key
from modelbake.stream.repository import RegistryRepository
from tests.servers.signed_images import MemoryKey, locked_model, payload_about, put_image, put_signatures
from tests.servers.upload_registry import PASSWORD, USER, UploadRegistry
from tests.unit.release.verifier import verify_image

KEY, OTHER = MemoryKey.generate(), MemoryKey.generate()
Verify = Callable[[], None]


def public(key: MemoryKey) -> PublicKey:
    found = parse_key(key.public, "test")
    assert found is not None
    return found


@pytest.fixture
def server() -> Iterator[UploadRegistry]:
    with UploadRegistry() as running:
        yield running


@pytest.fixture
def repository(server: UploadRegistry) -> Iterator[RegistryRepository]:
    credentials = RegistryCredentials(USER, Secret(PASSWORD))
    with Registry(server.host, credentials, timeout=5, sleep=lambda seconds: None) as registry:
        yield RegistryRepository(registry, "ml/tiny")


@pytest.fixture
def image(repository: RegistryRepository) -> Manifest:
    return put_image(repository, "1.0.0", locked_model())


@pytest.fixture(params=["toolkit", "one file"])
def verify(
    request: pytest.FixtureRequest,
    repository: RegistryRepository,
    image: Manifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Verify:
    """Verifies the image by KEY; raises where it is not signed by it."""
    pair = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {repository.registry.host: {"auth": pair}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))

    def by_toolkit() -> None:
        verify_by_key(repository, image, public(KEY))

    def by_file() -> None:
        registry = verify_image.Registry(verify_image.parse_reference(f"{repository.name}:1.0.0"), None)
        found = registry.manifest("1.0.0")
        assert found is not None and found[1] == image.digest
        verify_image.verify(registry, found[1], verify_image.parse_key(KEY.public.decode()))

    return by_toolkit if request.param == "toolkit" else by_file


UNSIGNED = (SignatureError, verify_image.Unsigned)


@pytest.mark.promise("signature")
def test_a_signature_by_the_key_is_enough_among_others(
    repository: RegistryRepository, image: Manifest, verify: Verify
) -> None:
    with pytest.raises(UNSIGNED, match="not signed"):
        verify()
    payload = payload_about(image.digest)
    put_signatures(repository, image.digest, [(payload, OTHER.sign(payload))])
    with pytest.raises(UNSIGNED, match="none of "):
        verify()
    put_signatures(
        repository,
        image.digest,
        [(b"no JSON", KEY.sign(b"no JSON")), (payload, OTHER.sign(payload)), (payload, KEY.sign(payload))],
    )
    verify()


@pytest.mark.promise("signature")
@pytest.mark.parametrize(
    "payload",
    [
        payload_about("sha256:" + "0" * 64),
        payload_about("sha256:" + "0" * 64, "atomic container signature"),
        b"[]",
        b"{}",
        b'{"critical": []}',
        b'{"critical": {"type": "cosign container image signature", "image": {"docker-manifest-digest": 1}}}',
        b"[" * 50_000,
    ],
    ids=["another image", "another kind", "a list", "nothing", "no object", "a number", "deeply nested"],
)
def test_a_good_signature_over_something_else_is_none(
    repository: RegistryRepository, image: Manifest, verify: Verify, payload: bytes
) -> None:
    put_signatures(repository, image.digest, [(payload, KEY.sign(payload))])
    with pytest.raises(UNSIGNED):
        verify()
    good = payload_about(image.digest)
    put_signatures(repository, image.digest, [(payload, KEY.sign(payload)), (good, KEY.sign(good))])
    verify()  # control


@pytest.mark.promise("signature")
def test_another_kind_about_this_image_is_none(
    repository: RegistryRepository, image: Manifest, verify: Verify
) -> None:
    payload = payload_about(image.digest, "something else")
    put_signatures(repository, image.digest, [(payload, KEY.sign(payload))])
    with pytest.raises(UNSIGNED):
        verify()


@pytest.mark.promise("signature")
def test_what_is_no_list_of_signatures_is_none(
    server: UploadRegistry, repository: RegistryRepository, image: Manifest, verify: Verify
) -> None:
    server.repository("ml/tiny").tags[signature_tag(image.digest)] = image.digest
    with pytest.raises(UNSIGNED):
        verify()


def test_changed_bytes_of_a_manifest_are_found(
    server: UploadRegistry, repository: RegistryRepository, image: Manifest
) -> None:
    held = server.repository("ml/tiny")
    media_type, body = held.manifests[image.digest]
    held.manifests[image.digest] = (media_type, body + b" ")
    registry = verify_image.Registry(verify_image.parse_reference(f"{repository.name}@{image.digest}"), None)
    registry.login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    with pytest.raises(verify_image.Problem, match="gives sha256:"):
        registry.manifest(image.digest)


def bundle(statement: object, key: MemoryKey, **changes: object) -> bytes:
    payload = json.dumps(statement).encode()
    signature = key.sign(envelope_content(STATEMENT, payload))
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": STATEMENT,
        "signatures": [{"sig": base64.b64encode(signature).decode()}],
        **changes,
    }
    return json.dumps({"mediaType": BUNDLE, "dsseEnvelope": envelope}).encode()


def statement(digest: str, **changes: object) -> dict[str, object]:
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "tiny", "digest": {"sha256": digest.removeprefix("sha256:")}}],
        "predicateType": "https://sigstore.dev/cosign/sign/v1",
        "predicate": {},
        **changes,
    }


@pytest.mark.promise("signature")
def test_bundles_count_where_they_are_signatures_of_this_image(
    repository: RegistryRepository, image: Manifest
) -> None:
    zero = "sha256:" + "0" * 64
    two = [{"digest": {"sha256": image.digest[7:]}}, {"digest": {"sha256": zero[7:]}}]
    wrong = [
        bundle(statement(image.digest), OTHER),
        bundle(statement(zero), KEY),
        bundle(statement(image.digest, predicateType="https://slsa.dev/provenance/v1"), KEY),
        bundle(statement(image.digest, subject=two), KEY),
        bundle(statement(image.digest, subject=[]), KEY),
        bundle(statement(image.digest, _type="else"), KEY),
        bundle(statement(image.digest), KEY, payloadType="text/plain"),
        bundle(statement(image.digest), KEY, signatures=[]),
        bundle(statement(image.digest), KEY, payload="%"),
        b"[]",
        b"no JSON",
    ]
    for number, each in enumerate(wrong):
        attach(repository, image, Document(each, BUNDLE, f"{number}.json"))
    with pytest.raises(SignatureError):
        verify_by_key(repository, image, public(KEY))
    attach(repository, image, Document(bundle(statement(image.digest), KEY), BUNDLE, "good.json"))
    assert verify_by_key(repository, image, public(KEY)) == 1
