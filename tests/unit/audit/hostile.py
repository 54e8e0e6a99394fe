"""Hostile pickles that do nothing here: they would call `print`, or a shell's `true`, and nobody loads them.

They are put together opcode by opcode, because pickle itself writes none of the older forms.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import struct
import tarfile
import zipfile
import zlib
from typing import Any

_LEGACY_TORCH = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)


class _Calls:
    """Is pickled as a call."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("inert",)


class _State(_Calls):
    def __reduce__(self) -> tuple[object, tuple[str], dict[str, str]]:  # type: ignore[override]
        return print, ("inert",), {"a": "b"}


class _New:
    def __reduce__(self) -> Any:
        import copyreg

        return copyreg.__newobj__, (_New,)  # type: ignore[attr-defined]


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def zipped(name: str, content: bytes, method: int = zipfile.ZIP_STORED, prefix: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("archive/version", b"3\n")
        archive.writestr(name, content)
    return prefix + buffer.getvalue()


def tarred(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for each, data in (("readme", b"nothing"), (name, content)):
            entry = tarfile.TarInfo(each)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


GLOBAL = b"cos\nsystem\n(S'true'\ntR."
INST = b"(S'true'\nios\nsystem\n."
OBJ = b"(cos\nsystem\nS'true'\no."
STACK_GLOBAL = b"\x80\x04" + text("os") + text("system") + b"\x93" + text("true") + b"\x85R."
NO_HEADER = STACK_GLOBAL[2:]
BUILD = b"\x80\x02cfoo\nBar\n)\x81}X\x03\0\0\0cmdX\x04\0\0\0trueb."
NEWOBJ = b"\x80\x02csubprocess\nPopen\n(U\x04truet\x81."
MEMOIZED = b"\x80\x04" + text("system") + b"\x940" + text("os") + b"h\0\x93" + text("true") + b"\x85R."
LONG_BEFORE = b"\x80\x04B" + struct.pack("<I", 3 << 20) + bytes(3 << 20) + b"0" + GLOBAL
BROKEN = GLOBAL[:-1] + b"\xff\xff\xff"
NUMPY = (
    b"\x93NUMPY\x01\0v\0{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(127)
    + b"\n"
    + STACK_GLOBAL
)


def disguised_in_zip(method: int) -> bytes:
    """Return an archive whose local header lies; readers believe the directory at its end."""
    archive = bytearray(zipped("notes.txt", GLOBAL + b"\n" * 99, method))
    header = archive.rfind(b"PK\x03\x04")
    archive[header + 4], archive[header + 8] = 255, 0
    return bytes(archive)


def far_in_zip() -> bytes:
    """Return an archive with 60 KB between a header and what it is of, where a stream is cut."""
    archive = zipped("notes.txt", GLOBAL + b"\n" * 99, zipfile.ZIP_DEFLATED)
    header = archive.rfind(b"PK\x03\x04", 0, archive.find(b"PK\x01\x02"))
    name = header + 30 + int.from_bytes(archive[header + 26 : header + 28], "little")
    extra = (60_000).to_bytes(2, "little")
    return (
        bytes(1 << 20)
        + archive[: header + 28]
        + extra
        + archive[header + 30 : name]
        + bytes(60_000)
        + archive[name:]
    )


HOSTILE = {
    "protocol 0": pickle.dumps(_Calls(), 0),
    "protocol 1": pickle.dumps(_Calls(), 1),
    "protocol 2": pickle.dumps(_Calls(), 2),
    "protocol 3": pickle.dumps(_Calls(), 3),
    "protocol 4": pickle.dumps(_Calls(), 4),
    "protocol 5": pickle.dumps(_Calls(), 5),
    "with a state": pickle.dumps(_State(), 4),
    "a class": pickle.dumps(_New(), 4),
    "GLOBAL": GLOBAL,
    "GLOBAL, header of protocol 0": b"\x80\0" + GLOBAL,
    "INST": INST,
    "OBJ": OBJ,
    "STACK_GLOBAL": STACK_GLOBAL,
    "STACK_GLOBAL, no header": NO_HEADER,
    "BUILD": BUILD,
    "NEWOBJ": NEWOBJ,
    "a name from the memo": MEMOIZED,
    "an extension": b"\x80\x02\x82\x01)R.",
    "broken after the call": BROKEN,
    "the call after 3 MB": LONG_BEFORE,
    "in a list": pickle.dumps([1, {"a": [_Calls()]}], 4),
    "in another pickle": pickle.dumps({"inner": GLOBAL}, 4),
    "without an import": pickle.dumps({"a": [1, 2, 3], "b": "text"}, 2),
    "without an import, protocol 0": pickle.dumps({"a": [1, 2, 3], "b": "text"}, 0),
    "torch, zipped": zipped("archive/data.pkl", STACK_GLOBAL),
    "torch, deflated": zipped("archive/data.pkl", STACK_GLOBAL, zipfile.ZIP_DEFLATED),
    "torch, old": _LEGACY_TORCH + pickle.dumps(1001, 2) + STACK_GLOBAL,
    "zipped under another name": zipped("notes.txt", GLOBAL),
    "deflated under another name": zipped("notes.txt", GLOBAL, zipfile.ZIP_DEFLATED),
    "zipped, after a prefix": zipped("archive/data.pkl", STACK_GLOBAL, prefix=b"GIF89a" * 9000),
    "in a tar": tarred("weights", GLOBAL),
    "in a gzipped tar": gzip.compress(tarred("weights", GLOBAL)),
    "gzip": gzip.compress(STACK_GLOBAL),
    "joblib, compressed": zlib.compress(STACK_GLOBAL),
    "joblib, old": b"ZF0x12      " + zlib.compress(STACK_GLOBAL),
    "NumPy objects": NUMPY,
    "NumPy objects in an archive": zipped("arr_0.npy", NUMPY),
    "packed by bzip2 in a zip": zipped("notes.txt", GLOBAL, zipfile.ZIP_BZIP2),
    "packed by lzma in a zip": zipped("notes.txt", GLOBAL, zipfile.ZIP_LZMA),
    "deflated, and said to be stored": disguised_in_zip(zipfile.ZIP_DEFLATED),
    "packed by lzma, and said to be stored": disguised_in_zip(zipfile.ZIP_LZMA),
    "in a zip, far from its header": far_in_zip(),
    "in the second part of gzip": gzip.compress(b"nothing") + gzip.compress(GLOBAL),
    "in the second part of bzip2": bz2.compress(b"nothing") + bz2.compress(GLOBAL),
    "in the second part of xz": lzma.compress(b"nothing") + bytes(4) + lzma.compress(GLOBAL),
    "no header, the call after 20 KB": b"S'" + b"a" * 20_000 + b"'\n0" + GLOBAL,
    "no header, the call after 9,000 others": b"N0" * 9000 + GLOBAL,
    "after a picture's header": b"GIF89a\x01\0\x01\0" + STACK_GLOBAL,
    "after a text": b"# the weights\n\n" + GLOBAL,
    "broken, after a text": b"# the weights\n\n" + BROKEN,
    "INST after a text": b"# the weights\n\n" + INST,
    "after 40 MB": bytes(40 << 20) + STACK_GLOBAL,
    "after a safetensors header": struct.pack("<Q", 2) + b"{}" + STACK_GLOBAL,
}

# Under what a model repository's file may be called; the first ones are refused by their names alone.
BY_NAME = ("pytorch_model.bin", "model.pt", "rng_state.PTH", "v1.ckpt", "scaler.pkl", "x.pickle", "x.joblib")
DISGUISED = ("model.safetensors", "config.json", "vocab.txt", "weights", "README.md", "model.gguf", ".hidden")
