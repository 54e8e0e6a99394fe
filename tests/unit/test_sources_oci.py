"""What the layers of artifacts and images hold, and what a registry may answer instead."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import ExitStack, closing
from typing import Any

import pytest

from modelbake.credentials import Secret
from modelbake.dockerconfig import RegistryCredentials, split_reference
from modelbake.errors import RevisionNotFound, SourceAuthError, SourceError, SourceNotFound
from modelbake.locked import LockedFile
from modelbake.manifest import OCI_INDEX, OCI_MANIFEST, Manifest
from modelbake.registry import Registry
from modelbake.sources.oci import OciStore
from modelbake.sources.ocicontent import Content, FileTree, Place, contents_of, place_of
from modelbake.sources.ocierrors import translated
from modelbake.sources.store import StoredFile
from tests.servers.oci_content import packed
from tests.servers.token_registry import TokenRegistry

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"
CNCF = "application/vnd.cncf.model.weight.v1."
IMAGE = "application/vnd.oci.image.config.v1+json"


def manifest(layers: list[dict[str, Any]], config: str = "application/vnd.oci.empty.v1+json") -> Manifest:
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": config, "digest": DIGEST, "size": 2},
        "layers": [{"digest": DIGEST, "size": 7, **layer} for layer in layers],
    }
    return Manifest.of(OCI_MANIFEST, json.dumps(document).encode())


@pytest.mark.parametrize(
    ("media_type", "notes", "config", "expected"),
    [
        (f"{CNCF}raw", {"org.cncf.model.filepath": "a/b"}, "x", Content(DIGEST, 7, "a/b")),
        (
            f"{CNCF}tar+gzip",
            {"org.cncf.model.filepath": "a/b"},
            "x",
            Content(DIGEST, 7, compression="gzip"),
        ),
        (f"{CNCF}tar", {"org.cncf.model.filepath": "a/b"}, "x", Content(DIGEST, 7)),
        (
            "application/vnd.cnai.model.doc.v1.raw",
            {"org.cnai.model.filepath": "r"},
            "x",
            Content(DIGEST, 7, "r"),
        ),
        (
            "application/vnd.oci.image.layer.v1.tar",  # what ORAS calls any file
            {"org.opencontainers.image.title": "m.bin"},
            "x",
            Content(DIGEST, 7, "m.bin"),
        ),
        (
            "application/vnd.oci.image.layer.v1.tar+gzip",
            {"org.opencontainers.image.title": "m", "io.deis.oras.content.unpack": "true"},
            "x",
            Content(DIGEST, 7, compression="gzip"),
        ),
        ("application/vnd.oci.image.layer.v1.tar", {}, IMAGE, Content(DIGEST, 7, rooted=True)),
        (
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            {},
            "application/vnd.docker.container.image.v1+json",
            Content(DIGEST, 7, compression="gzip", rooted=True),
        ),
        (
            "application/vnd.oci.image.layer.v1.tar+zstd",
            {},
            IMAGE,
            Content(DIGEST, 7, compression="zstd", rooted=True),
        ),
    ],
)
def test_what_a_layer_is(media_type: str, notes: dict[str, str], config: str, expected: Content) -> None:
    made = manifest([{"mediaType": media_type, "annotations": notes}], config)
    assert contents_of(made, "m") == [expected]


def test_of_our_own_images_the_layers_of_weights_count() -> None:
    layer = {"mediaType": "application/vnd.oci.image.layer.v1.tar"}
    ours = {**layer, "size": 8, "annotations": {"io.modelbake.group": HEX}}
    assert [each.size for each in contents_of(manifest([layer, ours], IMAGE), "m")] == [8]


def test_a_layer_that_names_no_file() -> None:
    with pytest.raises(SourceError, match="names no file"):
        contents_of(manifest([{"mediaType": "application/vnd.docker.ai.gguf.v3"}]), "m")


@pytest.mark.parametrize(
    ("content", "offset", "version", "place"),
    [
        (Content(DIGEST, 7, "a"), 0, DIGEST, Place(DIGEST, False, None, "")),
        (Content(DIGEST, 7), 512, f"{DIGEST}!tar+512", Place(DIGEST, False, 512, "")),
        (Content(DIGEST, 7, compression="gzip"), 0, f"{DIGEST}!gzip", Place(DIGEST, False, None, "gzip")),
        (
            Content(DIGEST, 7, compression="zstd", rooted=True),
            0,
            f"{DIGEST}/models!zstd",
            Place(DIGEST, True, None, "zstd"),
        ),
    ],
)
def test_versions_name_places(content: Content, offset: int, version: str, place: Place) -> None:
    assert content.version(offset) == version
    assert place_of(version) == place


@pytest.mark.parametrize("text", ["", "1", "sha256:0", f"{DIGEST}!gzip+1", f"{DIGEST}/etc!gzip", "../x"])
def test_other_texts_are_no_places(text: str) -> None:
    assert place_of(text) is None


def paths_of(*layers: list[str], links: tuple[str, ...] = ()) -> list[str]:
    tree = FileTree("m")
    content = Content(DIGEST, 7, rooted=True)
    for number, names in enumerate(layers):
        told = links if number == len(layers) - 1 else ()
        tree.apply(content, [(name, number, 512) for name in names], lambda told=told: told)  # type: ignore[misc]
    return [f"{file.path} {file.size}" for file in tree.files()]


@pytest.mark.parametrize(
    ("layers", "left"),
    [
        ([["etc/x", "models/a"], ["models/b"]], ["a 0", "b 1"]),
        ([["models/a"], ["models/a"]], ["a 1"]),
        ([["models/a", "models/b"], ["models/.wh.a"]], ["b 0"]),
        ([["models/d/a", "models/da"], ["models/.wh.d"]], ["da 0"]),
        ([["models/d/a", "models/b"], ["models/d/.wh..wh..opq", "models/d/c"]], ["b 0", "d/c 1"]),
        ([["models/a"], [".wh.models", "models/b"]], ["b 1"]),
        ([["models/a"], [".wh..wh..opq"]], []),
        ([["models/a"], ["models/.wh.a", "models/a"]], ["a 1"]),
        ([["models/a"], ["models/a/b"]], ["a/b 1"]),
        ([["models/a/b"], ["models/a"]], ["a 1"]),
    ],
)
def test_layers_lie_on_each_other(layers: list[list[str]], left: list[str]) -> None:
    assert paths_of(*layers) == left


def test_links_are_refused_unless_they_are_hidden() -> None:
    with pytest.raises(SourceError, match="link"):
        paths_of(["models/a"], links=("models/b",))
    assert paths_of(["models/a"], links=("etc/link",)) == ["a 0"]


# --- a registry that wants tokens ---------------------------------------------------------------------------

FILES = {"models/config.json": b"{}", "models/a.bin": b"a" * 100_000, "etc/passwd": b"root"}


def store_of(registry: TokenRegistry, tag: str = "1", password: str = "") -> OciStore:
    credentials = RegistryCredentials("me", Secret(password or registry.password))
    reference = split_reference(f"{registry.host}/base:{tag}")
    return OciStore(Registry(registry.host, credentials, attempts=1), reference, "m: oci", "m")


def listed(registry: TokenRegistry, tag: str = "1", password: str = "") -> list[StoredFile]:
    with closing(store_of(registry, tag, password)) as store:
        return list(store.listing())


def read(store: OciStore, file: StoredFile, start: int = 0) -> bytes:
    locked = LockedFile(file.path, file.size, "", file.version)
    return b"".join(store.reader(threading.Event()).read(locked, start))


def test_files_of_an_image_by_token() -> None:
    with TokenRegistry(packed(FILES), "me", "pass-word") as registry, ExitStack() as stack:
        store = stack.enter_context(closing(store_of(registry)))
        config, large = sorted(store.listing(), key=lambda file: file.size)
        assert (config.path, large.path) == ("config.json", "a.bin")
        assert large.version.endswith("/models!gzip")
        assert read(store, large) == FILES["models/a.bin"]
        assert read(store, large, 99_990) == b"a" * 10
        assert read(store, config) == b"{}"
        digest = large.version.partition("/")[0]
        address = store.address(LockedFile("x", 1, "", digest))
        assert address.headers == {"Authorization": "Bearer t0ken"}
        scopes = [given for path, given in registry.seen if path == "/token"]
        assert scopes and all(given.startswith("Basic ") for given in scopes)
        blobs = {given for path, given in registry.seen if "/blobs/" in path}
        assert blobs <= {"Bearer t0ken", ""}, "the password goes to the token service alone"
        with pytest.raises(RevisionNotFound, match="no longer"):
            store.address(LockedFile("x", 1, "", DIGEST))
        with pytest.raises(SourceError, match="no place"):
            store.address(LockedFile("x", 1, "", "1"))


def test_a_registry_that_refuses() -> None:
    with TokenRegistry(packed(FILES), "me", "pass-word") as registry:
        with pytest.raises(SourceAuthError, match="credHelpers, credsStore, auths") as caught:
            listed(registry, password="wrong-password")
        assert "docker login" in caught.value.hint
        assert "wrong-password" not in str(caught.value)
        with pytest.raises(SourceNotFound, match="no such repository, tag"):
            listed(registry, "2")
        listed(registry)  # control


def test_bytes_that_are_not_those_of_the_digest() -> None:
    with TokenRegistry(packed(FILES), "me", "pass-word") as registry:
        file = max(listed(registry), key=lambda each: each.size)
        path = f"/v2/base/blobs/{file.version.partition('/')[0]}"
        kind, data = registry.content[path]
        registry.content[path] = (kind, data[:200] + bytes([data[200] ^ 1]) + data[201:])
        with pytest.raises(SourceError):
            listed(registry)


def test_an_index_without_this_platform() -> None:
    with TokenRegistry(packed(FILES), "me", "pass-word") as registry:
        kind, body = registry.content["/v2/base/manifests/1"]
        inner = {"mediaType": kind, "digest": f"sha256:{hashlib.sha256(body).hexdigest()}", "size": len(body)}

        def index(*platforms: str) -> None:
            entries = [
                {**inner, "platform": dict(zip(("os", "architecture"), each.split("/"), strict=True))}
                if each
                else inner
                for each in platforms
            ]
            document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
            registry.content["/v2/base/manifests/2"] = (OCI_INDEX, json.dumps(document).encode())

        index("linux/arm64", "linux/s390x", "unknown/unknown")
        with pytest.raises(SourceError, match="there are: linux/arm64, linux/s390x"):
            listed(registry, "2")
        for platforms in (("linux/arm64", "linux/amd64"), ("", "unknown/unknown")):
            index(*platforms)
            assert len(listed(registry, "2")) == 2


def test_a_wrong_tar_is_a_clear_error() -> None:
    with pytest.raises(SourceError, match="no readable tar"), translated("m", split_reference("a.b/c:1")):
        raise EOFError("cut")
