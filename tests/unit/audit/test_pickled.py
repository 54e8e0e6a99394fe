"""Hostile pickles are found by their bytes, under whatever name; other files are not taken for pickles."""

from __future__ import annotations

import base64
import io
import json
import random
import struct
import zipfile
from pathlib import Path

import pytest

from modelbake.audit.content import Content, Hit
from modelbake.audit.pickled import HEAD, at_start
from modelbake.audit.tokens import Canaries
from modelbake.config import ModelSpec
from modelbake.pickles import pickle_objections
from tests.unit.audit.hostile import BY_NAME, DISGUISED, GLOBAL, HOSTILE, STACK_GLOBAL, tarred, zipped


def scan(data: bytes, step: int = 1 << 20) -> dict[str, Hit]:
    content = Content(Canaries())
    for at in range(0, len(data), step):
        content.feed(data[at : at + step])
    return {hit.rule: hit for hit in content.close()}


def test_there_are_enough_of_them() -> None:
    assert len(HOSTILE) >= 16
    assert len(set(HOSTILE.values())) == len(HOSTILE)


@pytest.mark.promise("pickles")
@pytest.mark.promise("audit")
@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("step", [1 << 20, 70_001])
def test_a_hostile_pickle_is_found_by_its_bytes(name: str, step: int) -> None:
    assert "pickle-content" in scan(HOSTILE[name], step)


@pytest.mark.promise("pickles")
@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("folder", ["", "sub/folder/"])
def test_what_is_a_pickle_by_its_name_is_refused_before_anything_is_built(name: str, folder: str) -> None:
    spec = ModelSpec(name="m", version="1.0.0", source="hf://a/b", runtime="r")
    (found,) = pickle_objections(spec, ["model.safetensors", folder + name])
    assert folder + name in found.message


@pytest.mark.control("pickles")
@pytest.mark.parametrize("name", DISGUISED)
def test_a_disguised_name_passes_lock_and_check_so_that_only_the_bytes_can_tell(name: str) -> None:
    spec = ModelSpec(name="m", version="1.0.0", source="hf://a/b", runtime="r")
    assert pickle_objections(spec, [name]) == []


def harmless() -> dict[str, bytes]:
    header = json.dumps({"weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    words = [w for w in Path(__file__).read_text().split() if w.isidentifier()]
    lists = {f"words {n}": "\n".join(sorted(words, key=lambda w: hash((w, n)))).encode() for n in range(20)}
    return {
        **lists,
        "nothing": b"",
        "safetensors": struct.pack("<Q", len(header)) + header + bytes(16),
        "json": json.dumps({"architectures": ["BertModel"], "vocab_size": 30522}).encode(),
        "python": Path(__file__).read_bytes(),
        "text with the letters of opcodes": b"cat\ndog\n.gitignore\n(tRuce)\nimages\nicons\n.git\n",
        "a word list": b"cos\ncosine\nsystem\nRome\nVienna\nNRA\n.\n",
        "another word list": b"images\nicons\n.\nios\nsystem\n.\n",
        "prose": b"Only on AIX (i.e. 32 and 64 bit), in c\nfor svr4 (i\nonly one ABI is there.\n",
        "a certificate": base64.encodebytes(random.Random(3).randbytes(3000)),
        **{f"base64 {n}": base64.encodebytes(random.Random(n).randbytes(6000)) for n in range(40)},
        "a configuration": b"continue\nimport\nI\nL\nS'\n",
        "an index": json.dumps({"weight_map": {"a": "pytorch_model.bin", "b": "data.pkl"}}).encode(),
        "a zip": zipped("a.txt", b"hello " * 99),
        "a deflated zip": zipped("a.txt", b"hello " * 99, zipfile.ZIP_DEFLATED),
        "a tar": tarred("a.txt", b"hello"),
        "numbers of NumPy": b"\x93NUMPY\x01\0v\0{'descr': '<f4', 'fortran_order': False, }\n" + bytes(64),
        "GGUF": b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + bytes(99),
        "numbers that are opcodes": b"x" * 9000 + b"\x80\0" + b"(K\0" * 5000,
        "a font": b"\x80\x01\x0d\x15\0\0%!PS-AdobeFont-1.0",
        "a number": b"N.",
        "ones": b"\xff" * 9999,
        "an elf": b"\x7fELF\x02\x01\x01" + bytes(999),
    }


@pytest.mark.parametrize("name", harmless())
def test_other_files_are_no_pickles(name: str) -> None:
    assert scan(harmless()[name]) == {}


def test_random_beginnings_are_no_pickles() -> None:
    rng = random.Random(5)
    assert [each for each in range(3000) if at_start(rng.randbytes(600), whole=False)] == []
    heads = [bytes((0x80, rng.randrange(6))) + rng.randbytes(HEAD) for _ in range(300)]
    taken = sum(at_start(head, whole=False) is not None for head in heads)
    assert taken < 30, "even with a header, random bytes are hardly ever opcodes"


def test_where_and_what_is_said() -> None:
    hit = scan(bytes(5 << 20) + STACK_GLOBAL)["pickle-content"]
    assert (hit.message, hit.offset) == ("a pickle of protocol 4 that imports os.system", 5 << 20)
    hit = scan(zipped("notes.txt", GLOBAL, zipfile.ZIP_DEFLATED))["pickle-content"]
    assert hit.inside == "notes.txt"
    assert "imports os.system" in hit.message


@pytest.mark.promise("audit")
def test_what_grows_beyond_all_measure_is_not_passed_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    import gzip

    from modelbake.audit import packed

    bomb = gzip.compress(bytes(32 << 20))
    assert scan(bomb) == {}, "control: it is harmless up to the measure"
    monkeypatch.setattr(packed, "_FREE", 4 << 20)
    monkeypatch.setattr(packed, "_MOST_TIMES", 10)
    assert "unreadable" in scan(bomb)


@pytest.mark.promise("audit")
def test_a_file_made_of_pickle_headers_ends_and_is_not_passed_in_silence() -> None:
    assert set(scan(b"x" + b"\x80\x04((" * 200_000)) & {"unreadable", "pickle-content"}


def test_packed_files_of_all_kinds_are_looked_into() -> None:
    import bz2
    import gzip
    import lzma
    import zlib

    for pack in (gzip.compress, bz2.compress, lzma.compress, zlib.compress):
        assert "pickle-content" in scan(pack(bytes(9 << 20) + STACK_GLOBAL))
        assert scan(pack(b"nothing to see" * 99)) == {}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(40):
            archive.writestr(f"{number}.txt", random.Random(number).randbytes(200_000))
        archive.writestr("last", STACK_GLOBAL)
    assert set(scan(buffer.getvalue())) == {"pickle-content"}
