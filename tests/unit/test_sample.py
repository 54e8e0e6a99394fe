"""A large file's sample: the same whoever takes it, and what it finds."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import stat
import sys
from pathlib import Path
from types import ModuleType

import pytest

from modelbake.locked import LockedFile
from modelbake.sample import BLOCK, BLOCKS, FOLDER, SAMPLED_ABOVE, Sampler, sample_files, sampled

IMAGES = Path(__file__).parents[2] / "images"
SIZES = (SAMPLED_ABOVE + 1, SAMPLED_ABOVE + BLOCKS - 1, 5_000_011, 3 * SAMPLED_ABOVE, 40_000_000)


@pytest.fixture(scope="module")
def weight_sample() -> ModuleType:
    """The module that images have."""
    return loaded("start", "weight_sample")


def loaded(folder: str, name: str) -> ModuleType:
    sys.path.insert(0, str(IMAGES / folder))
    try:
        return __import__(name)
    finally:
        sys.path.pop(0)
        sys.modules.pop(name)


def sample(data: bytes, seed: int = 0, largest: int = 3_000_000) -> str:
    """Return the sample as it is taken of bytes on their way, in pieces of random sizes."""
    sampler, sizes, position = Sampler(len(data)), random.Random(seed), 0
    while position < len(data):
        size = sizes.randint(1, largest)
        sampler.update(memoryview(data)[position : position + size])
        position += size
    return sampler.hexdigest()


@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_same_on_its_way_and_on_a_disk(
    size: int, weight_sample: ModuleType, tmp_path: Path
) -> None:
    data = random.Random(size).randbytes(size)
    (tmp_path / "file").write_bytes(data)
    places = weight_sample.places(size)
    with (tmp_path / "file").open("rb") as file:
        taken = weight_sample.sample_of(file.fileno(), size)
    by_hand = hashlib.sha256(b"".join(data[place : place + BLOCK] for place in places)).hexdigest()
    assert taken == by_hand
    assert {sample(data, seed, largest) for seed, largest in enumerate((BLOCK, 100_000, size))} == {taken}


@pytest.mark.parametrize("size", [*SIZES, 5 * 1024**3])
def test_the_blocks_lie_side_by_side_from_the_first_byte_to_the_last(
    size: int, weight_sample: ModuleType
) -> None:
    places = weight_sample.places(size)
    assert (len(places), places[0], places[-1] + BLOCK) == (BLOCKS, 0, size)
    distances = [after - before for before, after in itertools.pairwise(places)]
    assert min(distances) >= BLOCK and max(distances) - min(distances) <= 1
    assert max(distances) <= size / (BLOCKS - 1), "what runs over more than that is found"


@pytest.mark.parametrize("seed", range(20))
def test_damage_that_runs_over_a_63rd_is_found_wherever_it_begins(seed: int) -> None:
    chosen = random.Random(seed)
    data = bytearray(chosen.randbytes(20_000_000))
    good = sample(bytes(data))
    length = len(data) // (BLOCKS - 1) + 1
    start = chosen.randrange(len(data) - length)
    data[start : start + length] = bytes(byte ^ 1 for byte in data[start : start + length])
    assert sample(bytes(data)) != good


def test_a_byte_between_two_blocks_is_not_found() -> None:
    """Control of the tests above, and what the documentation says of it."""
    data = bytearray(random.Random(0).randbytes(20_000_000))
    good = sample(bytes(data))
    data[BLOCK] ^= 1
    assert sample(bytes(data)) == good
    data[BLOCK - 1] ^= 1
    assert sample(bytes(data)) != good


def test_a_file_that_is_shorter_has_none(weight_sample: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(5_000_000))
    with (tmp_path / "file").open("rb") as file, pytest.raises(OSError, match="no more bytes"):
        weight_sample.sample_of(file.fileno(), 5_000_001)


def test_both_sides_mean_the_same_files(weight_sample: ModuleType) -> None:
    assert (weight_sample.BLOCK, weight_sample.BLOCKS) == (BLOCK, BLOCKS)
    assert weight_sample.SAMPLED_ABOVE == SAMPLED_ABOVE
    files = [LockedFile("a", SAMPLED_ABOVE, "0" * 64), LockedFile("b", SAMPLED_ABOVE + 1, "1" * 64)]
    assert sampled(files) == files[1:]


def test_both_lanes_write_the_same_files(tmp_path: Path) -> None:
    samples = {"1" * 64: "ab" * 32, "2" * 64: "cd" * 32}
    write_samples = loaded("builder", "samples").write_samples
    before = os.umask(0o077)
    try:
        write_samples(tmp_path / FOLDER, samples)
        write_samples(tmp_path / "none/samples", {})
    finally:
        os.umask(before)
    found = {
        path.relative_to(tmp_path).as_posix(): path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file()
    }
    assert found == sample_files(samples)
    for path in (tmp_path / FOLDER, (tmp_path / FOLDER).parent, *(tmp_path / FOLDER).iterdir()):
        assert path.stat().st_mtime_ns == 0
        assert stat.S_IMODE(path.stat().st_mode) == (0o644 if path.is_file() else 0o755)
    assert not (tmp_path / "none").exists()
