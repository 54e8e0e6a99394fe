"""Weight layers are the same bytes everywhere; golden digests notice a change of Python's tarfile."""

from __future__ import annotations

import hashlib
import io
import random
import tarfile
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelbake.locked import LockedFile
from modelbake.plan import WeightGroup
from modelbake.stream.layers import WeightLayer, small_layer
from modelbake.weightpath import path_problem
from tests.unit.stream.material import MemoryReader, bytes_of, content, group_of, layer_of

LONG = f"{'deep-folder/' * 9}model-00001-of-00002.safetensors"  # 140 bytes
ACCENTED = "modèles/größe-重み.bin"
SHORT = {"config.json": b'{"a": 1}\n', "model.safetensors": bytes(range(256)) * 5}
NESTED = {
    "1_Pooling/config.json": b"{}",
    "a-b/x": b"x" * 512,
    "a/b/c/d.bin": b"d" * 513,
    "a/b/e.bin": b"e" * 511,
    "z": b"z",
}
MIXED = {**SHORT, **NESTED, LONG: b"l", ACCENTED: b"a", "empty.txt": b""}
GOLDEN: Mapping[str, Mapping[str, bytes]] = {
    "0e8113877b8b82c57e01a3ce4a3c1e303ab4f76db243cbbbbd41ae7ed6f8f35d": SHORT,
    "d99ec5f9b9afd0ad4923c91a498016b9c2a134db649ded6402d30d459c37fe7c": NESTED,
    "d696993e463f63fece46bf76d8e2ffcdd85978bc680f31ff60b7ad2d1a7c1ba9": {LONG: b"weights" * 100},
    "3cd8d44b249e6e912713b57c7bd6319b6124566fe6f37d68ac24609e065f09a6": {ACCENTED: b"weights"},
    "5dab301a4abd30a3fc38469be13030a7ef0a76d32f374f1ecda4ca96c0e16519": {"empty.txt": b""},
    "be6679143f6ea8a04662d783a2816c762a197a2c47f0dab3d71db947bca9e81c": MIXED,
}
NAMES = ("short", "nested", "long", "accented", "empty", "mixed")


@pytest.mark.parametrize(("digest", "contents"), GOLDEN.items(), ids=NAMES)
def test_a_layer_has_the_digest_it_always_had(digest: str, contents: Mapping[str, bytes]) -> None:
    assert hashlib.sha256(bytes_of(contents)).hexdigest() == digest


@pytest.mark.parametrize("contents", GOLDEN.values(), ids=NAMES)
def test_a_layer_is_read_back_by_tarfile(contents: Mapping[str, bytes]) -> None:
    whole = bytes_of(contents)
    assert len(whole) == layer_of(contents).size
    folders = {
        "/".join(parts[:depth])
        for path in contents
        for parts in [["models", *path.split("/")]]
        for depth in range(1, len(parts))
    }
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        members = archive.getmembers()
        assert [member.name for member in members] == [
            *sorted(folders),
            *(f"models/{path}" for path in sorted(contents)),
        ]
        for member in members:
            assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")
            assert member.mtime == 0 and not member.linkname
            if member.isdir():
                assert (member.mode, member.size) == (0o555, 0)
            else:
                assert member.isreg() and member.mode == 0o444
                read = archive.extractfile(member)
                assert read is not None
                assert read.read() == contents[member.name.removeprefix("models/")]


def test_folders_come_before_what_is_in_them() -> None:
    with tarfile.open(fileobj=io.BytesIO(bytes_of(NESTED))) as archive:
        names = archive.getnames()
    for number, name in enumerate(names):
        parent = name.rpartition("/")[0]
        assert not parent or parent in names[:number]


def test_a_short_header_is_plain_ustar() -> None:
    data = b"{}"
    header = bytearray(512)
    for offset, field in (
        (0, b"models/config.json"),
        (100, b"0000444\0"),
        (108, b"0000000\0"),
        (116, b"0000000\0"),
        (124, b"00000000002\0"),
        (136, b"00000000000\0"),
        (148, b" " * 8),
        (156, b"0"),
        (257, b"ustar\x0000"),
    ):
        header[offset : offset + len(field)] = field
    header[148:156] = b"%06o\0 " % sum(header)
    whole = bytes_of({"config.json": data})
    assert whole[512:1024] == header  # after that of the folder
    assert whole[1024:] == data + bytes(510) + bytes(1024)


def test_no_two_machines_make_another_layer() -> None:
    contents = {f"shard-{number}": content(700 + number, number) for number in range(5)}
    turned = dict(sorted(contents.items(), reverse=True))
    assert bytes_of(contents) == bytes_of(turned)
    by_pieces = [
        b"".join(read(contents, seed, largest=largest)) for seed, largest in ((1, 1), (2, 511), (3, 1 << 20))
    ]
    assert set(by_pieces) == {bytes_of(contents)}


def read(contents: Mapping[str, bytes], seed: int, *, largest: int, offset: int = 0) -> list[bytes]:
    """Return a layer's bytes from `offset` on as `parts` gives them, without anything of `flow`."""
    reader = MemoryReader(contents, seed=seed, largest=largest)
    found = []
    for segment, inner in layer_of(contents).parts(offset):
        if segment.literal is not None:
            found.append(segment.literal[inner:])
        else:
            assert segment.file is not None
            found.extend(reader.read(segment.file, inner))
    return found


@pytest.mark.parametrize("seed", range(50))
def test_reading_from_any_offset_gives_the_rest(seed: int) -> None:
    chosen = random.Random(seed)
    contents = {
        f"{'folder/' * chosen.randint(0, 20)}file-{number}": content(
            chosen.choice((0, 1, 511, 512, 513, chosen.randint(0, 4000))), seed + number
        )
        for number in range(chosen.randint(1, 8))
    }
    whole = bytes_of(contents)
    edges = {segment.start + step for segment in layer_of(contents).segments for step in (-1, 0, 1)}
    offsets = {0, len(whole), len(whole) - 1, *(chosen.randint(0, len(whole)) for _ in range(10)), *edges}
    for offset in sorted(offsets & set(range(len(whole) + 1))):
        assert b"".join(read(contents, seed, largest=1500, offset=offset)) == whole[offset:]


PARTS = st.text(st.characters(exclude_categories=("Cc", "Cf", "Cs", "Zl", "Zp")), min_size=1, max_size=60)
PATHS = st.lists(PARTS, min_size=1, max_size=6).map("/".join).filter(lambda path: path_problem(path) is None)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(PATHS, st.binary(max_size=600), min_size=1, max_size=4))
def test_any_allowed_path_survives(contents: dict[str, bytes]) -> None:
    folders = {path[:end] for path in contents for end, char in enumerate(path) if char == "/"}
    if folders & set(contents):
        return  # a file below a file: the lock has none
    with tarfile.open(fileobj=io.BytesIO(bytes_of(contents))) as archive:
        files = [member.name for member in archive if member.isreg()]
    assert files == [f"models/{path}" for path in sorted(contents)]


@pytest.mark.parametrize(
    ("size", "octal"),
    [(8 * 2**30 - 1, b"77777777777\0"), (8 * 2**30, b"00000000000\0"), (60 * 10**9, b"00000000000\0")],
)
def test_sizes_over_8_gib_stand_in_a_pax_header(size: int, octal: bytes) -> None:
    file = LockedFile("model.safetensors", size, "ab" * 32)
    layer = WeightLayer(WeightGroup((file,)))
    head, body, tail = layer.segments
    assert head.literal is not None and tail.literal is not None
    assert (body.file, body.start, body.size) == (file, len(head.literal), size)
    assert tail.literal == bytes(-size % 512 + 1024)
    assert layer.size == len(head.literal) + size + len(tail.literal)
    assert head.literal[-512 + 124 : -512 + 136] == octal
    # tarfile agrees: the file begins where we put it, and what follows begins where it looks for it.
    info = tarfile.TarInfo.frombuf(head.literal[-512:], "utf-8", "strict")
    assert info.name == "models/model.safetensors"
    large = size >= 8 * 2**30
    assert (f"size={size}\n".encode() in head.literal) == large
    assert len(head.literal) == (2 if not large else 4) * 512


def test_the_golden_head_of_a_file_over_8_gib() -> None:
    layer = WeightLayer(WeightGroup((LockedFile(LONG, 9 * 2**30 + 1, "ab" * 32),)))
    head = layer.segments[0].literal
    assert head is not None
    assert (
        hashlib.sha256(head).hexdigest() == "8e3d160d23be63c8237050d5dbed25983998ced0b0723fd9b83e320ebb42fd3d"
    )
    assert list(layer.parts(layer.size)) == []
    ((segment, inner), _) = layer.parts(len(head) + 2**33)
    assert segment.file is not None and inner == 2**33


def test_segments_touch_each_other() -> None:
    layer = layer_of(MIXED)
    position = 0
    for segment in layer.segments:
        assert segment.start == position
        assert (segment.literal is None) != (segment.file is None)
        position += segment.size
    assert position == layer.size and layer.size % 512 == 0


def test_what_is_read_follows_from_the_group_alone() -> None:
    assert layer_of(SHORT) == WeightLayer(group_of(SHORT)) != layer_of(NESTED)


def test_a_small_layer_has_the_modes_of_a_copy() -> None:
    files = {"modelbake/manifest.json": b"{}", "modelbake/a/b": b"x" * 512}
    made = small_layer(files)
    assert (
        hashlib.sha256(made).hexdigest() == "6275a15f2136a1076620e75743926edf4bf9a1e8b3a40d566064320521488d7a"
    )
    with tarfile.open(fileobj=io.BytesIO(made)) as archive:
        assert [(member.name, oct(member.mode), member.mtime) for member in archive] == [
            ("modelbake", "0o755", 0),
            ("modelbake/a", "0o755", 0),
            ("modelbake/a/b", "0o644", 0),
            ("modelbake/manifest.json", "0o644", 0),
        ]
