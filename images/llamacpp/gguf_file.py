"""Which GGUF file is the model, and what its header says: enough to refuse a wrong one before it is loaded.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from serving import LoadError

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # of the format; these two have the same header
MOST_ENTRIES = 1_000_000
LONGEST_TEXT = 64 * 1024 * 1024  # bytes
SHARD = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")

STRING, ARRAY = 8, 9
# The types of values that have a fixed size, by their number.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def find_model(weights: Path) -> Path:
    """The one model among the weights: its only file, or the first of its shards.

    LoadError where there is none, where there are several, and where shards are missing.
    """
    if not weights.is_dir():
        raise LoadError(f"no such folder: {weights}")
    files = sorted(path for path in weights.rglob("*.gguf") if path.is_file())
    if not files:
        raise LoadError("there is no .gguf file among the weights")
    first = files[0]
    shard = SHARD.fullmatch(first.name)
    whole = [first]
    if shard is not None:
        count = int(shard["count"])
        names = [f"{shard['name']}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]
        whole = [first.with_name(name) for name in names]
    others = [path for path in files if path not in whole]
    if others:
        words = ", ".join(str(path.relative_to(weights)) for path in (first, *others))
        raise LoadError(f"expected one model, found several: {words}; let `include` name one"[:1000])
    missing = [path.name for path in whole if path not in files]
    if missing:
        raise LoadError(f"the model is split, and shards are missing: {', '.join(missing)}"[:1000])
    return whole[0]


def read_header(path: Path) -> dict[str, Any]:
    """The metadata of a GGUF file; arrays (the vocabulary, mostly) are passed over.

    LoadError where it is no GGUF, of an unknown version, or ends too early.
    """
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise LoadError(f"{path.name}: no GGUF file")
        try:
            (version,) = unpack(file, "I")
            if version not in VERSIONS:
                raise LoadError(f"{path.name}: GGUF version {version} is unknown; 2 and 3 are known")
            _tensors, entries = unpack(file, "QQ")
            if entries > MOST_ENTRIES:
                raise LoadError(f"{path.name}: the header is damaged: {entries} entries")
            header = {}
            for _ in range(entries):
                name = read_text(file)
                (kind,) = unpack(file, "I")
                header[name] = read_value(file, kind)
            return header
        except (EOFError, ValueError, RecursionError) as error:  # arrays may hold arrays
            raise LoadError(f"{path.name}: the header is damaged: {error}") from error


def read_value(file: BinaryIO, kind: int) -> Any:
    """One value; None for an array."""
    if kind == STRING:
        return read_text(file)
    if kind == ARRAY:
        inner, count = unpack(file, "IQ")
        skip = skipper(inner)
        if isinstance(skip, int):
            file.seek(count * skip, 1)
        else:
            for _ in range(count):
                skip(file)
        return None
    if kind not in SCALARS:
        raise ValueError(f"a value of type {kind}")
    return unpack(file, SCALARS[kind])[0]


def skipper(kind: int) -> int | Callable[[BinaryIO], object]:
    """How to pass over one item of an array: its size, or what reads it."""
    if kind in SCALARS:
        return struct.calcsize("<" + SCALARS[kind])
    if kind in (STRING, ARRAY):
        return lambda file: read_value(file, kind)
    raise ValueError(f"an array of type {kind}")


def read_text(file: BinaryIO) -> str:
    """A length, and as many bytes of UTF-8."""
    (length,) = unpack(file, "Q")
    if length > LONGEST_TEXT:
        raise ValueError(f"a text of {length} bytes")
    return read_exactly(file, length).decode("utf-8", "replace")


def unpack(file: BinaryIO, form: str) -> tuple[Any, ...]:
    """Read little-endian numbers."""
    return struct.unpack("<" + form, read_exactly(file, struct.calcsize("<" + form)))


def read_exactly(file: BinaryIO, size: int) -> bytes:
    """Read that many bytes; EOFError where the file has fewer."""
    data = file.read(size)
    if len(data) < size:
        raise EOFError("it ends too early")
    return data
