"""What is compressed inside a file, unpacked as it streams by: gzip, zlib, bzip2, xz, and zip's deflate.

Nothing is unpacked beyond a piece at a time, and not without an end: a file that grows more than a
thousandfold beyond the first GiB is given up, and the audit says so.
"""

from __future__ import annotations

import bz2
import lzma
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

ZIP_HEADER = b"PK\x03\x04"
_ZIP_FIELDS = struct.Struct("<4s5H3I2H")
_LONGEST_NAME = 4096
_PIECE = 1 << 20  # bytes
_SLICE = 16 << 10  # bytes that are given to a machine at once: it copies what is left of them at its end
_LARGEST_WINDOW = 128 << 20  # bytes that lzma may keep; `xz -9` asks for 64 MiB
_MAGIC = 10  # bytes by which all of them are told
_LZMA_IN_ZIP = re.compile(rb"[\x00-\x40][\x00-\x40]\x05\0(.{5})", re.DOTALL)
_FREE, _MOST_TIMES = 1 << 30, 1000
_TOO_MUCH = "Memory usage limit"  # liblzma's words
_BROKEN = (zlib.error, OSError, EOFError, ValueError, lzma.LZMAError)


class Reader(Protocol):
    """What unpacked bytes go to."""

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""


class ZipEntry(NamedTuple):
    """A file of a zip archive, by its local header; its data begins `data` bytes after the buffer's start."""

    name: str
    data: int


def zip_entry(buffer: bytes, at: int) -> ZipEntry | None:
    """Return the entry whose local header is at a place of a buffer, None where the buffer ends in it.

    What the header says of version and method is not looked at: readers believe the archive's directory.

    Source: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3.7.
    """
    if at + _ZIP_FIELDS.size > len(buffer):
        return None
    fields = _ZIP_FIELDS.unpack_from(buffer, at)
    name_size, extra_size = fields[9], fields[10]
    start = at + _ZIP_FIELDS.size
    name = buffer[start : start + min(name_size, _LONGEST_NAME)]
    return ZipEntry(name.decode(errors="replace"), start + name_size + extra_size)


def unpacker(head: bytes) -> Any | None:
    """Return what unpacks a file that begins so, None for a file that is not compressed."""
    if head[:1] == b"\x78" and head[1:2] in (b"\x01", b"\x5e", b"\x9c", b"\xda"):
        return zlib.decompressobj()
    return _of_several(head)


def of_zip(head: bytes) -> list[Any]:
    """Return what may unpack the data of a zip's entry that begins so; it is stored where none can."""
    machines: list[Any] = [zlib.decompressobj(-15)]
    if (machine := _of_several(head)) is not None:
        machines.append(machine)
    if properties := _LZMA_IN_ZIP.match(head):
        machines.append(_LzmaInZip(properties[1]))
    return machines


def _of_several(head: bytes) -> Any | None:
    """Return what unpacks formats of which several parts may follow each other."""
    if head.startswith(b"\x1f\x8b\x08"):
        return zlib.decompressobj(31)
    if head.startswith(b"BZh") and head[4:10] == b"1AY&SY":
        return bz2.BZ2Decompressor()
    if head.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor(memlimit=_LARGEST_WINDOW)
    return None


class _LzmaInZip:
    """Unpacks what a zip has packed with lzma: its header is its own. Source: as above, 5.8.8."""

    def __init__(self, properties: bytes) -> None:
        rest, self.eof = properties[0], False
        literal, rest = rest % 9, rest // 9
        window = int.from_bytes(properties[1:], "little")
        self._problem = ""
        if window > _LARGEST_WINDOW:
            self._problem = _TOO_MUCH
        elif rest // 5 > 4 or literal + rest % 5 > 4:
            self._problem = "no such properties"
        else:
            coder = {"id": lzma.FILTER_LZMA1, "lc": literal, "lp": rest % 5, "pb": rest // 5}
            self._machine = lzma.LZMADecompressor(
                lzma.FORMAT_RAW, filters=[{**coder, "dict_size": max(window, 4096)}]
            )
        self._skipped = 0

    def decompress(self, data: bytes, most: int) -> bytes:
        if self._problem:
            raise lzma.LZMAError(self._problem)
        skip = min(9 - self._skipped, len(data))
        self._skipped += skip
        made = self._machine.decompress(data[skip:], most)
        self.eof = self._machine.eof
        return made

    @property
    def needs_input(self) -> bool:
        return self._machine.needs_input

    @property
    def unused_data(self) -> bytes:
        return b""


class Unpacking:
    """A compressed stream on its way to a reader. `given_up`: it grew beyond all measure."""

    def __init__(self, reader: Reader, machine: Any) -> None:
        self._reader = reader
        self._machine: Any | None = machine
        self._between = b""  # what came after a part, until it is known what it is
        self._taken = self._given = 0
        self.done = False
        self.given_up = False

    def feed(self, data: bytes | memoryview) -> None:
        """Take compressed bytes; what is no such stream ends it without a word."""
        view = memoryview(data)
        for at in range(0, len(view), _SLICE):
            if self.done:
                return
            self._take(bytes(view[at : at + _SLICE]))

    def _take(self, data: bytes) -> None:
        self._taken += len(data)
        while data and not self.done:
            if self._machine is None:
                data = (self._between + data).lstrip(b"\0")  # some fill up with zeros
                if len(data) < _MAGIC:
                    self._between = data
                    return
                self._between, self._machine = b"", _of_several(data)
                if self._machine is None:
                    self.done = True
                    return
            data = self._unpack(data)

    def _unpack(self, data: bytes) -> bytes:
        """Unpack a part; return what is behind its end."""
        machine = self._machine
        assert machine is not None
        try:
            for piece in _pieces(machine, data):
                self._given += len(piece)
                self._reader.feed(piece)
                if self._given > max(_FREE, _MOST_TIMES * self._taken):
                    self.done = self.given_up = True
                    return b""
        except _BROKEN as error:
            self.given_up = _TOO_MUCH in str(error)
            self.done = True
            return b""
        if not machine.eof:
            return b""
        self._machine = None
        rest: bytes = machine.unused_data
        return rest


def _pieces(machine: Any, data: bytes) -> Iterator[bytes]:
    if hasattr(machine, "unconsumed_tail"):
        while data and not machine.eof:
            yield machine.decompress(data, _PIECE)
            data = machine.unconsumed_tail
        return
    yield machine.decompress(data, _PIECE)
    while not machine.needs_input and not machine.eof:
        yield machine.decompress(b"", _PIECE)
