"""What is compressed inside a file, unpacked as it streams by: gzip, zlib, bzip2, xz, and zip's deflate.

Nothing is unpacked beyond a piece at a time, and not without an end: a file that grows more than a
thousandfold beyond the first GiB is given up, and the audit says so.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

ZIP_HEADER = b"PK\x03\x04"
_ZIP_FIELDS = struct.Struct("<4s5H3I2H")
_LONGEST_NAME = 4096
_PIECE = 1 << 20  # bytes
_FREE, _MOST_TIMES = 1 << 30, 1000
_BROKEN = (zlib.error, OSError, EOFError, ValueError, lzma.LZMAError)


class Reader(Protocol):
    """What unpacked bytes go to."""

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""


class ZipEntry(NamedTuple):
    """A file of a zip archive, by its local header; its data begins `data` bytes after the buffer's start."""

    name: str
    data: int
    deflated: bool


def zip_entry(buffer: bytes, at: int) -> ZipEntry | None:
    """Return the entry whose local header is at a place of a buffer, None where there is none in truth.

    Source: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3.7.
    """
    if at + _ZIP_FIELDS.size > len(buffer):
        return None
    fields = _ZIP_FIELDS.unpack_from(buffer, at)
    version, method, name_size, extra_size = fields[1], fields[3], fields[9], fields[10]
    start = at + _ZIP_FIELDS.size
    name = buffer[start : start + name_size]
    if version & 0xFF > 63 or method not in (0, 8, 9, 12, 14, 93, 95) or not 0 < name_size <= _LONGEST_NAME:
        return None
    if len(name) < name_size or any(code < 32 for code in name):
        return None
    return ZipEntry(name.decode(errors="replace"), start + name_size + extra_size, method == 8)


def unpacker(head: bytes) -> Any | None:
    """Return what unpacks a file that begins so, None for a file that is not compressed."""
    if head.startswith(b"\x1f\x8b\x08"):
        return zlib.decompressobj(31)
    if head.startswith(b"BZh") and head[4:10] == b"1AY&SY":
        return bz2.BZ2Decompressor()
    if head.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor()
    if head[:1] == b"\x78" and head[1:2] in (b"\x01", b"\x5e", b"\x9c", b"\xda"):
        return zlib.decompressobj()
    return None


def inflater() -> Any:
    """Return what unpacks a deflated entry of a zip archive."""
    return zlib.decompressobj(-15)


class Unpacking:
    """A compressed stream on its way to a reader. `given_up`: it grew beyond all measure."""

    def __init__(self, reader: Reader, machine: Any) -> None:
        self._reader = reader
        self._machine = machine
        self._taken = self._given = 0
        self.done = False
        self.given_up = False

    def feed(self, data: bytes) -> None:
        """Take compressed bytes; what is no such stream ends it without a word."""
        self._taken += len(data)
        try:
            for piece in self._pieces(data):
                self._given += len(piece)
                self._reader.feed(piece)
                if self._given > max(_FREE, _MOST_TIMES * self._taken):
                    self.done = self.given_up = True
                    return
        except _BROKEN:
            self.done = True
        if self._machine.eof:
            self.done = True

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        machine = self._machine
        if hasattr(machine, "unconsumed_tail"):
            while data and not machine.eof:
                yield machine.decompress(data, _PIECE)
                data = machine.unconsumed_tail
            return
        yield machine.decompress(data, _PIECE)
        while not machine.needs_input and not machine.eof:
            yield machine.decompress(b"", _PIECE)
