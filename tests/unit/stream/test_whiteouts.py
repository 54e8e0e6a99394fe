"""What of a runtime's layers would hide weights below them, in tars of every kind."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
import zstandard

from modelbake.errors import ReadBackMismatch, RegistryError
from modelbake.manifest import Descriptor, digest_of
from modelbake.stream.flow import TAR, TAR_ZSTD
from modelbake.stream.repository import checked
from modelbake.stream.whiteouts import names_of, over_weights
from tests.unit.stream.material import DOCKER_GZIP, content, tar_of

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
NAMES = ["etc/", "etc/passwd", "models/", "models/.wh.old.bin", "opt/.wh..wh..opq", "usr/" + "x" * 150]
KINDS: list[tuple[str, Callable[[bytes], bytes]]] = [
    (TAR, bytes),
    ("application/vnd.docker.image.rootfs.diff.tar", bytes),
    (GZIP, gzip.compress),
    (DOCKER_GZIP, gzip.compress),
    (TAR_ZSTD, zstandard.ZstdCompressor(level=1).compress),
]


def pieces(data: bytes, size: int = 700) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


@pytest.mark.parametrize(
    "name",
    [
        "models",
        "models/",
        "./models/",
        "/models",
        "models/x.bin",
        "./models/deep/x.bin",
        "models/.wh.x.bin",
        "models/.wh..wh..opq",
        "models//x",
        "./.wh.models",
        ".wh.models",
        ".wh..wh..opq",
        "./.wh..wh..opq",
    ],
)
def test_what_hides_weights(name: str) -> None:
    assert over_weights(["etc/passwd", name, "usr/"]) == [
        name.removeprefix("./").strip("/").replace("//", "/")
    ]


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "./",
        "/",
        "model",
        "models2",
        "models.json",
        "Models/",
        "opt/models/",
        "opt/models/x.bin",
        "opt/.wh.models",
        "opt/.wh..wh..opq",
        ".wh.models2",
        ".wh.model",
        ".wh.opt",
        ".wh..wh.aufs",
    ],
)
def test_what_does_not(name: str) -> None:
    assert over_weights([name]) == []


def test_a_few_are_listed_and_the_rest_is_not_read() -> None:
    endless = (f"models/{number}" for number in iter(int, 1))
    assert len(over_weights(endless)) == 5


@pytest.mark.parametrize(("media_type", "squeeze"), KINDS)
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_names_are_read_from_a_tar(media_type: str, squeeze: Callable[[bytes], bytes], form: int) -> None:
    data = squeeze(tar_of(NAMES, form))
    names = list(names_of(pieces(data), media_type, "registry/runtime"))
    assert names == [name.rstrip("/") for name in NAMES]
    assert over_weights(names) == ["models", "models/.wh.old.bin"]


@pytest.mark.parametrize(("media_type", "squeeze"), KINDS)
def test_an_empty_layer_has_no_names(media_type: str, squeeze: Callable[[bytes], bytes]) -> None:
    assert list(names_of(pieces(squeeze(bytes(1024))), media_type, "x")) == []


def test_contents_are_passed_over() -> None:
    for media_type, squeeze in KINDS:
        assert list(names_of(pieces(squeeze(two_files())), media_type, "x")) == ["a", "models/b"]


def test_several_zstd_frames_and_gzip_members_are_one_tar() -> None:
    data = tar_of(NAMES)
    halves = (data[:2048], data[2048:])
    zstd = b"".join(zstandard.ZstdCompressor().compress(half) for half in halves)
    expected = [name.rstrip("/") for name in NAMES]
    assert list(names_of(pieces(zstd), TAR_ZSTD, "x")) == expected
    assert list(names_of(pieces(b"".join(map(gzip.compress, halves))), GZIP, "x")) == expected


def two_files() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for number, name in enumerate(("a", "models/b")):
            data = content(50_000, number).hex().encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return made.getvalue()


@pytest.mark.parametrize(("media_type", "squeeze"), KINDS)
@pytest.mark.parametrize("damage", ["cut", "cut early", "turned", "other", "nothing"])
def test_what_is_no_readable_tar_is_refused(
    media_type: str, squeeze: Callable[[bytes], bytes], damage: str
) -> None:
    data = squeeze(two_files())
    damaged = {
        "cut": data[: len(data) * 3 // 4],
        "cut early": data[:100],
        "turned": b"\x07" * 200 + data[200:],
        "other": b"<html>" * 500,
        "nothing": b"",
    }[damage]
    with pytest.raises(RegistryError, match="no readable tar") as caught:
        list(names_of(pieces(damaged), media_type, "registry/runtime"))
    assert caught.value.subject == "registry/runtime"


@pytest.mark.parametrize(("media_type", "squeeze"), [KINDS[0], KINDS[2], KINDS[4]])
def test_no_foreign_exception_comes_of_a_flipped_bit(
    media_type: str, squeeze: Callable[[bytes], bytes]
) -> None:
    data = squeeze(two_files())
    for seed in range(80):
        chosen = random.Random(seed)
        flipped = bytearray(data)
        flipped[chosen.randrange(len(data))] ^= 1 << chosen.randrange(8)
        with suppress(RegistryError):  # most are of contents, which only the digest tells
            list(names_of(pieces(bytes(flipped), 9000), media_type, "x"))


@pytest.mark.parametrize(("media_type", "squeeze"), KINDS)
def test_a_blob_is_read_to_its_end_so_that_its_digest_is_compared(
    media_type: str, squeeze: Callable[[bytes], bytes]
) -> None:
    data = squeeze(tar_of(NAMES)) + b"\0" * 5000
    blob = Descriptor(media_type, digest_of(data), len(data))
    if media_type == TAR_ZSTD:
        data = squeeze(tar_of(NAMES))
        blob = Descriptor(media_type, digest_of(data), len(data))
    assert list(names_of(checked(blob, pieces(data), "x"), media_type, "x"))
    other = Descriptor(media_type, digest_of(b"other"), len(data))
    with pytest.raises(ReadBackMismatch):
        list(names_of(checked(other, pieces(data), "x"), media_type, "x"))
