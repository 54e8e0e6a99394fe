"""A registry's repository, against a registry in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelbake.credentials import Secret
from modelbake.dockerconfig import RegistryCredentials
from modelbake.errors import ReadBackMismatch, RegistryAuthError, RegistryError
from modelbake.manifest import Descriptor, digest_of
from modelbake.registry import Registry
from modelbake.stream.flow import TAR
from modelbake.stream.layout import LayoutRepository
from modelbake.stream.repository import RegistryRepository, checked, read_document
from modelbake.stream.weights import OCI_CONFIG, image_manifest
from tests.servers.upload_registry import PASSWORD, USER, UploadRegistry
from tests.unit.stream.material import bytes_of, content, flow_of

FILES = {"config.json": b"{}", "model.safetensors": content(400_000)}
WHOLE = bytes_of(FILES)
BLOB = Descriptor(TAR, digest_of(WHOLE), len(WHOLE))


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[UploadRegistry, Registry]]:
    credentials = RegistryCredentials(USER, Secret(PASSWORD))
    with (
        UploadRegistry() as server,
        Registry(server.host, credentials, timeout=5, sleep=lambda seconds: None) as registry,
    ):
        yield server, registry


@pytest.fixture(params=[True, False], ids=["mounts", "mounts nothing"])
def server(request: pytest.FixtureRequest, running: tuple[UploadRegistry, Registry]) -> UploadRegistry:
    running[0].reset(mounts=request.param)
    return running[0]


@pytest.fixture
def registry(server: UploadRegistry, running: tuple[UploadRegistry, Registry]) -> Registry:
    return running[1]


@pytest.fixture
def model(registry: Registry) -> RegistryRepository:
    return RegistryRepository(registry, "ml/model")


@pytest.fixture
def weights(registry: Registry) -> RegistryRepository:
    return RegistryRepository(registry, "ml/weights")


def test_a_layer_is_uploaded_and_read(server: UploadRegistry, weights: RegistryRepository) -> None:
    assert not weights.has(BLOB)
    weights.upload(flow_of(FILES))
    assert weights.has(BLOB)
    assert b"".join(weights.read(BLOB)) == WHOLE
    assert weights.name == f"{server.host}/ml/weights"


def test_a_sibling_mounts_it_or_copies_it(
    server: UploadRegistry, weights: RegistryRepository, model: RegistryRepository
) -> None:
    weights.upload(flow_of(FILES))
    before = server.received()
    sent = model.bring(BLOB, weights)
    assert server.blobs("ml/model") == {BLOB.digest: WHOLE}
    assert sent == server.received() - before == (0 if server.mounts else len(WHOLE))
    assert server.sessions == {}, "what the mount had begun is cancelled"
    assert model.bring(BLOB, weights) == 0


def test_it_comes_from_a_layout_too(
    server: UploadRegistry, model: RegistryRepository, tmp_path: Path
) -> None:
    layout = LayoutRepository.create(tmp_path)
    layout.upload(flow_of(FILES))
    assert model.bring(BLOB, layout) == len(WHOLE)
    assert server.blobs("ml/model") == {BLOB.digest: WHOLE}


def test_and_goes_to_one(weights: RegistryRepository, tmp_path: Path) -> None:
    weights.upload(flow_of(FILES))
    layout = LayoutRepository.create(tmp_path)
    assert layout.bring(BLOB, weights) == len(WHOLE)
    assert b"".join(layout.read(BLOB)) == WHOLE


def test_a_tampered_blob_is_not_passed_on(
    server: UploadRegistry, weights: RegistryRepository, model: RegistryRepository, tmp_path: Path
) -> None:
    weights.upload(flow_of(FILES))
    server.blobs("ml/weights")[BLOB.digest] = b"x" + WHOLE[1:]
    with pytest.raises(ReadBackMismatch):
        for _ in weights.read(BLOB):
            pass
    layout = LayoutRepository.create(tmp_path)
    with pytest.raises(ReadBackMismatch):
        layout.bring(BLOB, weights)
    assert not layout.has(BLOB)
    if not server.mounts:
        with pytest.raises(ReadBackMismatch):
            model.bring(BLOB, weights)
        assert server.blobs("ml/model") == {} and server.sessions == {}


def test_a_small_blob_is_sent_once(server: UploadRegistry, model: RegistryRepository) -> None:
    blob = model.put(b"{}", OCI_CONFIG)
    assert blob == Descriptor(OCI_CONFIG, digest_of(b"{}"), 2)
    assert model.put(b"{}", OCI_CONFIG) == blob
    assert server.received() == 2 and server.count("commit") == 1
    assert read_document(model, blob) == b"{}"


def test_what_is_here_is_asked_for_once(server: UploadRegistry, model: RegistryRepository) -> None:
    server.blobs("ml/model")[BLOB.digest] = WHOLE
    assert model.has(BLOB) and model.has(BLOB)
    assert server.count("head") == 1
    other = Descriptor(TAR, BLOB.digest, 5)
    assert not RegistryRepository(model.registry, "ml/model").has(other), "another size is another blob"


def test_a_blob_that_is_not_there_is_an_error(model: RegistryRepository) -> None:
    with pytest.raises(RegistryError, match="404"):
        list(model.read(BLOB))
    with pytest.raises(RegistryError):
        model.bring(BLOB, RegistryRepository(model.registry, "ml/nothing"))


def test_a_manifest_is_put_and_read_back(server: UploadRegistry, model: RegistryRepository) -> None:
    model.put(b"{}", OCI_CONFIG)
    manifest = image_manifest(b"{}", [], {})
    assert model.manifest("1.0.0") is None
    model.put_manifest("1.0.0", manifest)
    assert model.manifest("1.0.0") == model.manifest(manifest.digest) == manifest
    assert server.count("put-manifest") == 1


def test_not_before_its_blobs(server: UploadRegistry, model: RegistryRepository) -> None:
    with pytest.raises(RegistryError, match="MANIFEST_BLOB_UNKNOWN"):
        model.put_manifest("1.0.0", image_manifest(b"{}", [], {}))
    assert server.repository("ml/model").tags == {}


def test_a_manifest_that_is_another_afterwards(server: UploadRegistry, model: RegistryRepository) -> None:
    model.put(b"{}", OCI_CONFIG)
    server.trouble("manifest", status=404)
    with pytest.raises(ReadBackMismatch, match="gives something else back"):
        model.put_manifest("1.0.0", image_manifest(b"{}", [], {}))


@pytest.mark.parametrize("what", [{"status": 503}, {"status": 429, "retry_after": 3}, {"lose": True}])
def test_a_manifest_is_put_again_after_trouble(
    server: UploadRegistry, model: RegistryRepository, what: dict[str, Any]
) -> None:
    model.put(b"{}", OCI_CONFIG)
    server.trouble("put-manifest", **what)
    manifest = image_manifest(b"{}", [], {})
    model.put_manifest("1.0.0", manifest)
    assert model.manifest("1.0.0") == manifest


def test_what_may_not_be_written_is_an_auth_error(server: UploadRegistry, model: RegistryRepository) -> None:
    model.put(b"{}", OCI_CONFIG)
    server.trouble("put-manifest", times=99, status=403, code="DENIED")
    with pytest.raises(RegistryAuthError, match="DENIED"):
        model.put_manifest("1.0.0", image_manifest(b"{}", [], {}))
    assert server.count("put-manifest") == 1 and server.repository("ml/model").tags == {}


@pytest.mark.parametrize("wrong", [b"", b"abd", b"ab", b"abcd"])
def test_checked_hands_on_no_more_than_the_blob_has(wrong: bytes) -> None:
    blob = Descriptor(TAR, digest_of(b"abc"), 3)
    assert b"".join(checked(blob, iter((b"a", b"bc")), "x")) == b"abc"
    read = b""
    with pytest.raises(ReadBackMismatch, match=blob.digest):
        for piece in checked(blob, iter((wrong[:2], wrong[2:])), "x"):
            read += piece
    assert len(read) <= 3
