"""A layer on its way: hashed once, compared with the lock before its last byte, continued anywhere."""

from __future__ import annotations

import hashlib
import io
import random
import tarfile
import threading
from collections.abc import Iterator

import pytest
import zstandard

from modelbake.errors import Interrupted, WrongBytes
from modelbake.locked import LockedFile
from modelbake.plan import WeightGroup
from modelbake.sample import SAMPLED_ABOVE, Sampler
from modelbake.stream.flow import (
    TAR,
    TAR_ZSTD,
    FileBytes,
    LayerFlow,
    Verified,
    refuse_wrong_empty_files,
)
from modelbake.stream.layers import WeightLayer
from tests.unit.stream.material import (
    MemoryFile,
    MemoryReader,
    bytes_of,
    content,
    flow_of,
    group_of,
    layer_of,
    locked,
)

FILES = {
    "config.json": b'{"a": 1}',
    "empty.txt": b"",
    "model-1.safetensors": content(40_000, 1),
    "model-2.safetensors": content(30_721, 2),
    "nested/deep/vocab.txt": b"word\n" * 600,
}
LARGE = {
    "a.safetensors": content(SAMPLED_ABOVE + 1, 3),
    "b.json": b"{}",
    "c.safetensors": content(SAMPLED_ABOVE, 4),
    "d.safetensors": content(SAMPLED_ABOVE + 700_000, 5),
}


def sample_of(data: bytes) -> str:
    sampler = Sampler(len(data))
    sampler.update(memoryview(data))
    return sampler.hexdigest()


SAMPLES = (sample_of(LARGE["a.safetensors"]), sample_of(LARGE["d.safetensors"]))


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class TestPlain:
    def test_digest_size_and_type_are_those_of_what_was_read(self) -> None:
        flow = flow_of(FILES)
        whole = b"".join(flow.read())
        assert whole == bytes_of(FILES)
        assert flow.digest == flow.diff_id == sha256(whole)
        assert flow.sent == flow.size == layer_of(FILES).size == len(whole)
        assert flow.media_type == TAR and flow.can_continue

    def test_each_file_is_verified_once_and_each_byte_told_once(self) -> None:
        told: list[int] = []
        verified: list[Verified] = []
        flow = flow_of(FILES, on_bytes=told.append, on_verified=verified.append)
        for _ in flow.read():
            pass
        assert sum(told) == flow.size
        assert [each.file for each in verified] == [file for file in locked(FILES) if file.size]
        assert all(each.attempts == 1 and each.seconds >= 0 for each in verified)

    def test_read_from_the_beginning_begins_anew(self) -> None:
        told: list[int] = []
        flow = flow_of(FILES, on_bytes=told.append)
        first = b"".join(flow.read())
        assert flow.sent == len(first)
        again = flow.read()
        next(again)
        assert flow.sent < len(first)
        for _ in again:
            pass
        assert (flow.digest, flow.sent) == (sha256(first), len(first))
        assert sum(told) == len(first), "progress tells no byte twice"

    @pytest.mark.parametrize("seed", range(50))
    def test_continued_at_earlier_offsets_the_digests_are_right(self, seed: int) -> None:
        chosen = random.Random(seed)
        whole = bytes_of(FILES)
        told: list[int] = []
        verified: list[Verified] = []
        flow = LayerFlow(
            layer_of(FILES),
            MemoryReader(FILES, seed=seed, largest=chosen.choice((100, 3000, 1 << 20))),
            on_bytes=told.append,
            on_verified=verified.append,
        )
        kept = bytearray()
        for _ in range(chosen.randint(1, 6)):
            wanted = chosen.randint(0, len(whole))
            for piece in flow.read(len(kept)):
                kept += piece
                if len(kept) > wanted:
                    break
            assert flow.sent >= len(kept)
            del kept[chosen.randint(len(kept) // 2, len(kept)) :]  # what never arrived
        for piece in flow.read(len(kept)):
            kept += piece
        assert kept == whole
        assert flow.digest == flow.diff_id == sha256(whole)
        assert flow.sent == len(whole)
        assert sorted(each.file.path for each in verified)[-1] == "nested/deep/vocab.txt"
        if kept:
            assert sum(told) == len(whole)

    def test_what_is_read_again_is_not_hashed_again(self) -> None:
        told: list[int] = []
        verified: list[Verified] = []
        flow = flow_of(FILES, on_bytes=told.append, on_verified=verified.append)
        for _ in flow.read():
            pass
        digest, count = flow.digest, len(verified)
        assert len(b"".join(flow.read(1000))) == flow.sent - 1000
        assert (flow.digest, len(verified), sum(told)) == (digest, count, flow.size)

    def test_continuing_reads_only_the_files_that_are_left(self) -> None:
        reader = MemoryReader(FILES)
        flow = LayerFlow(layer_of(FILES), reader)
        for _ in flow.read():
            pass
        reader.reads.clear()
        segment = next(
            each for each in layer_of(FILES).segments if each.file and each.file.path == "model-2.safetensors"
        )
        rest = b"".join(flow.read(segment.start + 700))
        assert rest == bytes_of(FILES)[segment.start + 700 :]
        assert sorted(reader.reads) == [("model-2.safetensors", 700), ("nested/deep/vocab.txt", 0)]

    @pytest.mark.parametrize("compression", ["none", "zstd"])
    def test_large_files_have_a_sample_in_the_order_of_the_group(self, compression: str) -> None:
        flow = flow_of(LARGE, compression=compression)
        for _ in flow.read():
            pass
        assert flow.samples == SAMPLES
        assert flow_of(FILES).samples == ()

    @pytest.mark.parametrize("seed", range(6))
    def test_continued_at_earlier_offsets_the_samples_are_right(self, seed: int) -> None:
        chosen = random.Random(seed)
        flow = LayerFlow(layer_of(LARGE), MemoryReader(LARGE, seed=seed, largest=200_000))
        offset = 0
        for _ in range(5):
            end = chosen.randint(offset, flow.layer.size)
            for piece in flow.read(offset):
                offset += len(piece)
                if offset > end:
                    break
            offset = chosen.randint(offset // 2, offset)  # what never arrived
        for _ in flow.read(offset):
            pass
        assert flow.samples == SAMPLES
        for _ in flow.read():
            pass
        assert flow.samples == SAMPLES, "from the beginning, it begins anew"

    def test_nothing_is_left_at_the_end(self) -> None:
        flow = flow_of(FILES)
        for _ in flow.read():
            pass
        assert list(flow.read(flow.sent)) == []
        assert flow.digest == sha256(bytes_of(FILES))


class TestWrongBytes:
    @pytest.mark.parametrize("path", [path for path, data in FILES.items() if data])
    @pytest.mark.parametrize("where", ["first", "middle", "last"])
    @pytest.mark.parametrize("compression", ["none", "zstd"])
    def test_a_flipped_bit_ends_the_flow_before_the_last_piece(
        self, path: str, where: str, compression: str
    ) -> None:
        data = bytearray(FILES[path])
        data[{"first": 0, "middle": len(data) // 2, "last": -1}[where]] ^= 1
        verified: list[Verified] = []
        flow = flow_of(
            FILES,
            served={**FILES, path: bytes(data)},
            compression=compression,
            on_verified=verified.append,
        )
        passed = bytearray()
        with pytest.raises(WrongBytes, match="sha256") as caught:
            for piece in flow.read():
                passed += piece
        assert caught.value.subject == path and "not committed" in caught.value.hint
        assert path not in {each.file.path for each in verified}
        if compression == "none":
            segment = next(each for each in layer_of(FILES).segments if each.file and each.file.path == path)
            assert len(passed) < segment.start + segment.size, "its last byte was never handed on"
        else:
            with pytest.raises(zstandard.ZstdError):
                zstandard.ZstdDecompressor().decompress(bytes(passed), max_output_size=1 << 20)

    def test_it_is_noticed_in_a_continued_flow_too(self) -> None:
        data = bytearray(FILES["model-2.safetensors"])
        data[-1] ^= 1
        flow = flow_of(FILES, served={**FILES, "model-2.safetensors": bytes(data)})
        kept = 0
        for piece in flow.read():
            kept += len(piece)
            if kept > 60_000:
                break
        with pytest.raises(WrongBytes):
            for _ in flow.read(kept - 10_000):
                pass

    def test_a_path_that_cannot_be_printed_is_escaped(self) -> None:
        file = LockedFile("a\u202eb", 1, "00" * 32)
        flow = LayerFlow(WeightLayer(WeightGroup((file,))), MemoryReader({file.path: b"x"}))
        with pytest.raises(WrongBytes) as caught:
            list(flow.read())
        assert caught.value.subject == "a\\u202eb"

    def test_an_empty_file_with_another_sha256_is_refused(self) -> None:
        refuse_wrong_empty_files(layer_of(FILES))
        wrong = LockedFile("empty.txt", 0, "00" * 32)
        with pytest.raises(WrongBytes, match="empty file") as caught:
            refuse_wrong_empty_files(WeightLayer(WeightGroup((wrong,))))
        assert caught.value.subject == "empty.txt"


class TestZstd:
    def test_it_decompresses_to_the_tar(self) -> None:
        flow = flow_of(FILES, compression="zstd")
        squeezed = b"".join(flow.read())
        plain = zstandard.ZstdDecompressor().decompressobj().decompress(squeezed)
        assert plain == bytes_of(FILES)
        assert flow.digest == sha256(squeezed) and flow.diff_id == sha256(plain)
        assert flow.sent == len(squeezed)
        assert flow.media_type == TAR_ZSTD and flow.size is None and not flow.can_continue
        with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
            assert len([member for member in archive if member.isreg()]) == len(FILES)

    def test_the_same_layer_has_the_same_bytes_whatever_the_pieces(self) -> None:
        compressible = {**FILES, "zeros": bytes(300_000)}
        made = set()
        for seed, largest in ((1, 17), (2, 4096), (3, 1 << 20)):
            reader = MemoryReader(compressible, seed=seed, largest=largest)
            flow = LayerFlow(layer_of(compressible), reader, compression="zstd")
            made.add(b"".join(flow.read()))
        assert len(made) == 1
        assert len(made.pop()) < 120_000

    def test_it_is_of_the_pinned_library(self) -> None:
        # Another zstandard may compress otherwise: then all compressed layers are sent once more.
        flow = flow_of({"config.json": b'{"a": 1}' * 1000}, compression="zstd")
        for _ in flow.read():
            pass
        assert flow.digest == "sha256:e2597366fa0895bb6a7749665bbcee5f24bbaca6025ebcd8077b6a3f9c99b54e"

    def test_begun_anew_it_is_the_same(self) -> None:
        told: list[int] = []
        flow = flow_of(FILES, compression="zstd", on_bytes=told.append)
        first = b"".join(flow.read())
        pieces = flow.read()
        next(pieces)
        assert b"".join(flow.read()) == first
        assert (flow.digest, flow.sent) == (sha256(first), len(first))
        assert sum(told) == layer_of(FILES).size


def test_a_stopped_flow_ends_within_a_piece() -> None:
    stop = threading.Event()
    flow = LayerFlow(layer_of(FILES), MemoryReader(FILES, largest=100), stop=stop)
    passed = 0

    def read() -> Iterator[bytes]:
        yield from flow.read()

    with pytest.raises(Interrupted) as caught:
        for piece in read():
            passed += len(piece)
            if passed > 20_000:
                stop.set()
    assert isinstance(caught.value, Interrupted)
    assert passed < 20_000 + 600


def test_the_requests_of_a_file_are_counted() -> None:
    verified: list[Verified] = []

    class Repeating(MemoryReader):
        def read(self, file: LockedFile, start: int = 0) -> FileBytes:
            pieces = super().read(file, start)
            assert isinstance(pieces, MemoryFile)
            pieces.attempts = 2
            return pieces

    flow = LayerFlow(WeightLayer(group_of(FILES)), Repeating(FILES), on_verified=verified.append)
    for _ in flow.read():
        pass
    assert {each.attempts for each in verified} == {3}
