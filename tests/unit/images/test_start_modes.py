"""start.py with `verify: quick` and `off`: what is looked at, what is not, and that the log says so."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from modelbake.sample import BLOCK, BLOCKS, Sampler
from tests.unit.images.test_start import FILES, Image, describe, names

LARGE = 257 * 1024 * 1024  # more than a quick verification hashes


def safetensors(*tensors: tuple[int, int], header: bytes = b"") -> bytes:
    """Return the beginning of a file with tensors at these places."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for number, (start, stop) in enumerate(tensors):
        entries[f"t{number}"] = {"dtype": "U8", "shape": [stop - start], "data_offsets": [start, stop]}
    header = header or json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header


# The header is as long whatever number of so many digits stands in it.
GOOD = safetensors((0, 1000), (1000, LARGE - len(safetensors((0, 1000), (1000, LARGE)))))


class LargeImage(Image):
    """An image with a weight file that a quick verification does not hash; it is sparse."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.place("large.safetensors", GOOD)

    def place(self, name: str, start: bytes, size: int = LARGE) -> None:
        with (self.weights / name).open("wb") as stream:
            stream.write(start)
            stream.truncate(size)
        # Its sha256 is wrong: whoever compares it with the bytes finds that out.
        large = {"path": name, "size": size, "sha256": "0" * 64}
        self.write([*(describe(path, data) for path, data in FILES.items()), large], verify="quick")
        self.sample = self.manifest.parent / "samples" / ("0" * 64)
        self.sample.parent.mkdir(exist_ok=True)
        sampler, zeros = Sampler(size), memoryview(bytes(1 << 20))
        sampler.update(memoryview(start))
        for place in range(len(start), size, len(zeros)):
            sampler.update(zeros[: size - place])
        self.sample.write_text(f"{sampler.hexdigest()}\n")

    def bake(self, mode: str) -> None:
        self.manifest.write_text(json.dumps({**json.loads(self.manifest.read_text()), "verify": mode}))


@pytest.fixture
def image(tmp_path: Path) -> LargeImage:
    return LargeImage(tmp_path)


def test_quick_hashes_what_is_small_and_says_what_it_did_not(image: LargeImage) -> None:
    code, (verified, served) = image.run()
    assert (code, served) == (0, {"event": "served"})
    small = sum(len(data) for data in FILES.values())
    assert (verified["event"], verified["verify"]) == ("verified", "quick")
    assert (verified["files"], verified["bytes"]) == (5, small + LARGE)
    assert (verified["files_sampled"], verified["bytes_not_compared"]) == (1, LARGE - BLOCKS * BLOCK)

    image.bake("full")
    code, (event,) = image.run()
    assert (code, event["file"]) == (65, "large.safetensors"), "control: its sha256 is wrong indeed"


def test_a_model_that_is_small_is_hashed_whole_by_quick(image: LargeImage) -> None:
    (image.weights / "large.safetensors").unlink()
    image.write([describe(path, data) for path, data in FILES.items()], verify="quick")
    code, (verified, _) = image.run()
    assert code == 0
    assert verified["verify"] == "quick" and "files_sampled" not in verified


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(place)
        (byte,) = stream.read(1)
        stream.seek(place)
        stream.write(bytes([byte ^ 1]))


@pytest.mark.promise("start")
@pytest.mark.parametrize("number", [1, 31, BLOCKS - 1])
def test_quick_finds_a_byte_that_differs_in_the_sample(image: LargeImage, number: int) -> None:
    place = number * (LARGE - BLOCK) // (BLOCKS - 1)
    for offset in (0, BLOCK - 1):
        flip(image.weights / "large.safetensors", place + offset)
        code, (event,) = image.run()
        assert (code, event["event"], event["file"]) == (65, "mismatch", "large.safetensors")
        assert event["expected"] == f"a file whose sample has sha256:{image.sample.read_text().strip()}"
        flip(image.weights / "large.safetensors", place + offset)
    assert image.run()[0] == 0, "the byte is as it was"


@pytest.mark.control("start")
def test_quick_does_not_find_a_byte_outside_of_the_sample(image: LargeImage) -> None:
    """As the documentation says; `full` is what finds it."""
    flip(image.weights / "large.safetensors", LARGE // 2)
    code, (verified, _) = image.run()
    assert code == 0 and verified["bytes_not_compared"] > 0


@pytest.mark.promise("start")
@pytest.mark.parametrize("text", [None, "0" * 63, "0" * 64 + "\n\n", "\xff" * 64])
def test_quick_needs_its_samples(image: LargeImage, text: str | None) -> None:
    image.sample.unlink()
    if text is not None:
        image.sample.write_text(text, encoding="latin-1")
    code, (event,) = image.run()
    assert (code, event["event"]) == (66, "manifest_unusable")
    assert "large.safetensors" in event["error"] and str(image.sample) in event["error"]
    assert image.run(MODELBAKE_VERIFY="off")[0] == 0, "control: who needs none goes on"


def test_files_no_larger_than_a_sample_are_hashed_whatever_their_number(image: LargeImage) -> None:
    (image.weights / "large.safetensors").unlink()
    data = bytes(BLOCK * BLOCKS)
    files = {f"{number}.bin": data for number in range(LARGE // len(data) + 1)}
    for path in files:
        with (image.weights / path).open("wb") as stream:
            stream.truncate(len(data))
    small = [describe(path, data) for path, data in FILES.items()]
    sha256 = hashlib.sha256(data).hexdigest()
    entries = [{"path": path, "size": len(data), "sha256": sha256} for path in files]
    image.write([*small, *entries], verify="quick")
    code, (verified, _) = image.run()
    assert code == 0 and "files_sampled" not in verified and verified["bytes"] > LARGE
    flip(image.weights / "7.bin", 5)
    assert image.run()[0] == 65


@pytest.mark.parametrize("mode", ["quick", "full"])
def test_names_sizes_and_small_files_are_compared_in_either_mode(image: LargeImage, mode: str) -> None:
    (image.weights / "config.json").write_bytes(b'{"hidden_size": 385}')
    (image.weights / "more.py").write_bytes(b"")
    with (image.weights / "large.safetensors").open("r+b") as stream:
        stream.truncate(LARGE - 1)
    image.bake(mode)
    code, events = image.run()
    assert code == 65
    assert names(events) == [
        ("mismatch", "config.json"),
        ("mismatch", "large.safetensors"),
        ("extra", "more.py"),
    ]


@pytest.mark.parametrize(
    ("start", "actual"),
    [
        (b"", "a header that is not JSON"),
        (struct.pack("<Q", LARGE), f"a header of {LARGE} bytes in a file of {LARGE} bytes"),
        (safetensors(header=b"[]"), "a header that is not a JSON object"),
        (safetensors(header=b"[" * 100_000), "a header that is not JSON"),
        (safetensors(header=b'{"a": 1}'), "a header in which a tensor has no place"),
        (safetensors(header=b'{"a": {"data_offsets": [0, "1"]}}'), "a header in which a tensor has no place"),
        (safetensors((0, 10), (20, 30)), "a header with a gap or an overlap of tensors at byte 10"),
        (safetensors((0, 10), (5, 30)), "a header with a gap or an overlap of tensors at byte 10"),
        (safetensors((0, 10)), f"a header of a file of {len(safetensors((0, 10))) + 10} bytes"),
    ],
)
def test_quick_finds_a_wrong_beginning(image: LargeImage, start: bytes, actual: str) -> None:
    image.place("large.safetensors", start)
    code, (event,) = image.run()
    assert code == 65
    assert (event["event"], event["file"], event["actual"]) == ("mismatch", "large.safetensors", actual)


@pytest.mark.parametrize(
    ("start", "actual"),
    [
        (b"GGUF\3\0\0\0", None),
        (b"GGUF\0\0\0\3", None),
        (b"GGUF\4\0\0\0", "a GGUF file of an unknown version"),
        (b"", "a file that does not begin with GGUF"),
    ],
)
def test_quick_knows_the_beginning_of_gguf(image: LargeImage, start: bytes, actual: str | None) -> None:
    (image.weights / "large.safetensors").unlink()
    image.place("q4.gguf", start)
    code, events = image.run()
    assert code == (65 if actual else 0)
    assert events[0].get("actual") == actual


def test_an_unknown_format_is_taken_by_its_size(image: LargeImage) -> None:
    (image.weights / "large.safetensors").unlink()
    image.place("weights.onnx", b"")
    assert image.run()[0] == 0


def test_off_looks_at_nothing_and_warns_at_every_start(image: LargeImage) -> None:
    (image.weights / "config.json").unlink()
    image.bake("off")
    for _ in range(2):
        code, (warning, served) = image.run()
        assert (code, served) == (0, {"event": "served"})
        assert (warning["event"], warning["level"], warning["verify"]) == ("unverified", "warning", "off")
        assert warning["files"] == 5
    image.bake("quick")
    assert image.run()[0] == 65, "control: a file is missing"


@pytest.mark.parametrize(
    ("baked", "asked", "weaker"),
    [
        ("full", "quick", True),
        ("full", "off", True),
        ("quick", "off", True),
        ("quick", "quick", False),
        ("off", "quick", False),
    ],
)
def test_the_environment_wins_and_is_warned_of_where_it_asks_for_less(
    image: LargeImage, baked: str, asked: str, weaker: bool
) -> None:
    image.bake(baked)
    code, events = image.run(MODELBAKE_VERIFY=asked)
    assert code == 0
    assert events[-2]["verify"] == asked
    warned = [event for event in events if event["event"] == "verify_weakened"]
    assert len(warned) == weaker
    if weaker:
        assert (warned[0]["level"], warned[0]["baked"], warned[0]["verify"]) == ("warning", baked, asked)


@pytest.mark.parametrize("mode", ["quick", "off"])
def test_verification_alone_is_of_everything(image: LargeImage, mode: str) -> None:
    image.bake(mode)
    assert image.run(MODELBAKE_VERIFY=mode)[0] == 0, "control: a server would start"
    code, (event,) = image.run("--verify", MODELBAKE_VERIFY=mode)
    assert (code, event["event"], event["file"]) == (65, "mismatch", "large.safetensors")


@pytest.mark.parametrize("baked", ["quick", "off"])
def test_the_environment_may_ask_for_more(image: LargeImage, baked: str) -> None:
    image.bake(baked)
    code, (event,) = image.run(MODELBAKE_VERIFY="full")
    assert (code, event["event"], event["file"]) == (65, "mismatch", "large.safetensors")


@pytest.mark.parametrize("asked", ["", "Full", "none", "0"])
def test_an_unknown_mode_starts_nothing(image: LargeImage, asked: str) -> None:
    code, (event,) = image.run(MODELBAKE_VERIFY=asked)
    assert (code, event["event"]) == (66, "cannot_start")
    assert event["error"] == f"MODELBAKE_VERIFY has to be one of full, quick, off, and is {asked!r}"


@pytest.mark.parametrize("baked", ["", "Full", None, 1, ["full"]])
def test_an_unknown_mode_in_the_manifest_starts_nothing(image: LargeImage, baked: Any) -> None:
    image.bake(baked)
    code, (event,) = image.run(MODELBAKE_VERIFY="full")
    assert (code, event["event"]) == (66, "manifest_unusable")


@pytest.mark.promise("start")
def test_full_also_compares_the_samples_that_other_starts_will(image: LargeImage) -> None:
    """So that a smoke run, which reads everything, passes no image that would not start afterwards."""
    with (image.weights / "large.safetensors").open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    manifest = json.loads(image.manifest.read_text())
    manifest["files"][-1]["sha256"] = sha256
    image.manifest.write_text(json.dumps(manifest))
    image.sample = image.sample.rename(image.sample.with_name(sha256))
    assert image.run(MODELBAKE_VERIFY="full")[0] == 0, "control: all of it is right"
    image.sample.write_text("1" * 64 + "\n")
    code, (event,) = image.run(MODELBAKE_VERIFY="full")
    assert (code, event["event"], event["file"]) == (65, "mismatch", "large.safetensors")
    assert event["expected"] == f"a file whose sample has sha256:{'1' * 64}"
