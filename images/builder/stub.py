"""A small shared library in the place of a large one that others are linked with, and never call.

It has the same name and the same functions, so that whatever is linked with the large one loads as before.
Each function fails: it returns 3, which is an error of NCCL ("internal error") and of cuSPARSELt ("invalid
value"); a function that returns text returns the reason. So a call that nobody expected becomes the
caller's own clear error, not a wrong result.

Sources: the System V ABI's "Object Files" and "Program Loading and Dynamic Linking", AMD64 supplement.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

_FAILURE = 3
_TEXT = re.compile(r"(?:ErrorString|ErrorName|LastError)$")  # functions that return `const char *`
_PAGE = 0x1000
_X86_64 = 62
_PT_LOAD, _PT_DYNAMIC, _PT_GNU_STACK = 1, 2, 0x6474E551
_DT_NULL, _DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_SYMENT, _DT_SONAME = 0, 4, 5, 6, 10, 11, 14
_DT_VERDEF = 0x6FFFFFFC
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_ENTRY = struct.Struct("<qQ")
_SHT_DYNSYM, _SHT_DYNAMIC = 11, 6
_FUNCTION, _DATA = 2, 1
_IDENT = b"\x7fELF\x02\x01\x01" + bytes(9)


class StubError(Exception):
    """The library is none that a stub can take the place of."""


@dataclass(frozen=True)
class Library:
    """What a shared library is to others: its name, and the functions that it has for them, sorted."""

    soname: str
    functions: tuple[str, ...]


def stub_of(library: bytes, reason: str) -> bytes:
    """Return the stub of a shared library. The same library and reason give the same bytes.

    Raises:
        StubError: it is no shared library for 64-bit x86, or has more than functions without versions.
    """
    read = read_library(library)
    return make_stub(read.soname, read.functions, f"not in this image: {reason}")


def read_library(content: bytes) -> Library:
    """Read what a shared library is called and which functions it has. Raises StubError."""
    try:
        return _read(content)
    except (struct.error, IndexError, UnicodeDecodeError, ValueError) as error:
        raise StubError("its tables cannot be read") from error


def _read(content: bytes) -> Library:
    ident, kind, machine, _, _, _, sections_at, _, _, _, _, size, count, _ = _HEADER.unpack_from(content)
    if ident[:6] != _IDENT[:6] or kind != 3 or machine != _X86_64:
        raise StubError("it is no shared library for 64-bit x86")
    sections = [_SECTION.unpack_from(content, sections_at + number * size) for number in range(count)]
    symbols = next((section for section in sections if section[1] == _SHT_DYNSYM), None)
    dynamic = next((section for section in sections if section[1] == _SHT_DYNAMIC), None)
    if symbols is None or dynamic is None:
        raise StubError("it has no table of dynamic symbols")
    names_at = sections[symbols[6]][4]
    entries = dict(_ENTRY.iter_unpack(content[dynamic[4] : dynamic[4] + dynamic[5]]))
    if _DT_VERDEF in entries:
        raise StubError("its symbols have versions")
    functions = []
    for name, info, other, section, _, _ in _SYMBOL.iter_unpack(
        content[symbols[4] : symbols[4] + symbols[5]]
    ):
        if not section or info >> 4 not in (1, 2) or other & 3 not in (0, 3):
            continue  # it is another library's, or its own
        if info & 15 == _DATA:
            raise StubError(f"it has data for others ({_text(content, names_at + name)})")
        if info & 15 == _FUNCTION:
            functions.append(_text(content, names_at + name))
    if _DT_SONAME not in entries or not functions:
        raise StubError("it has no name, or no functions")
    return Library(_text(content, names_at + entries[_DT_SONAME]), tuple(sorted(set(functions))))


def make_stub(soname: str, functions: Sequence[str], text: str) -> bytes:
    """Return a shared library with functions that fail; those that return text return `text`. Pure."""
    names = bytearray(b"\0")
    offsets = []
    for name in (*functions, soname):
        offsets.append(len(names))
        names += name.encode() + b"\0"
    count = len(functions) + 1  # the first symbol is none
    hash_at = _HEADER.size + 4 * _SEGMENT.size
    buckets = _hash_table(functions)
    symbols_at = _aligned(hash_at + len(buckets), 8)
    names_at = symbols_at + count * _SYMBOL.size
    code_at = _aligned(names_at + len(names), 16)
    message_at = code_at + 16 * len(functions)
    read_only = _aligned(message_at + len(text.encode()) + 1, _PAGE)
    code, symbols = bytearray(), bytearray(_SYMBOL.size)
    for number, name in enumerate(functions):
        at = code_at + 16 * number
        code += _function(name, at, message_at).ljust(16, b"\xcc")
        symbols += _SYMBOL.pack(offsets[number], 1 << 4 | _FUNCTION, 0, 1, at, 16)
    dynamic = b"".join(
        _ENTRY.pack(*entry)
        for entry in (
            (_DT_SONAME, offsets[-1]),
            (_DT_HASH, hash_at),
            (_DT_STRTAB, names_at),
            (_DT_SYMTAB, symbols_at),
            (_DT_STRSZ, len(names)),
            (_DT_SYMENT, _SYMBOL.size),
            (_DT_NULL, 0),
        )
    )
    header = _HEADER.pack(
        _IDENT, 3, _X86_64, 1, 0, _HEADER.size, 0, 0, _HEADER.size, _SEGMENT.size, 4, 0, 0, 0
    )
    size = len(dynamic)
    segments = (
        _SEGMENT.pack(_PT_LOAD, 5, 0, 0, 0, read_only, read_only, _PAGE)
        # The loader writes addresses into it.
        + _SEGMENT.pack(_PT_LOAD, 6, read_only, read_only, read_only, size, size, _PAGE)
        + _SEGMENT.pack(_PT_DYNAMIC, 6, read_only, read_only, read_only, size, size, 8)
        + _SEGMENT.pack(_PT_GNU_STACK, 6, 0, 0, 0, 0, 0, 16)
    )
    parts = [(0, header + segments), (hash_at, buckets), (symbols_at, symbols), (names_at, names)]
    parts += [(code_at, code), (message_at, text.encode() + b"\0"), (read_only, dynamic)]
    library = bytearray(read_only + size)
    for at, part in parts:
        library[at : at + len(part)] = part
    return bytes(library)


def _function(name: str, at: int, message_at: int) -> bytes:
    if _TEXT.search(name):
        return b"\x48\x8d\x05" + struct.pack("<i", message_at - (at + 7)) + b"\xc3"  # lea rax, [rip + n]; ret
    return b"\xb8" + struct.pack("<I", _FAILURE) + b"\xc3"  # mov eax, n; ret


def _hash_table(functions: Sequence[str]) -> bytes:
    """Return the DT_HASH table of symbols 1, 2, ... of these names."""
    size = max(1, len(functions))
    buckets, chains = [0] * size, [0] * (len(functions) + 1)
    for number, name in enumerate(functions, 1):
        place = _hash(name) % size
        chains[number], buckets[place] = buckets[place], number
    return struct.pack(f"<{2 + size + len(chains)}I", size, len(chains), *buckets, *chains)


def _hash(name: str) -> int:
    value = 0
    for byte in name.encode():
        value = (value << 4) + byte
        high = value & 0xF0000000
        value = (value ^ high >> 24) & ~high & 0xFFFFFFFF
    return value


def _aligned(position: int, unit: int) -> int:
    return -(-position // unit) * unit


def _text(content: bytes, at: int) -> str:
    return content[at : content.index(b"\0", at)].decode("ascii")
