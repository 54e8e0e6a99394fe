"""Packed bytes as files that are read forward only, whatever they come from."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterator
from typing import IO, Any, cast

import zstandard

_PIECE = 1 << 20  # bytes
_LARGEST_READ = 1 << 20  # bytes: of a header with names and extended attributes, or a piece of data
_LARGEST_WINDOW = 1 << 27  # bytes that zstd may look back, as much as its own program takes


class Joined(io.RawIOBase):
    """Pieces of bytes as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill some of a buffer; return how many bytes, 0 at the end."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


class Forward:
    """A file that is read forward only, and by reads that fit into memory: for tarfile."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._position = 0
        self.last = b""  # what was read last

    def tell(self) -> int:
        """Return the bytes read so far."""
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Return `size` bytes, fewer at the end. Raises tarfile.ReadError for more than 1 MiB."""
        if not 0 <= size <= _LARGEST_READ:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        self.last = self._file.read(size)
        self._position += len(self.last)
        return self.last

    def seek(self, position: int) -> None:
        """Skip to a position; to the end if that comes first."""
        if position < self._position:
            raise tarfile.ReadError("a header before the last one")
        while self._position < position and self.read(min(_PIECE, position - self._position)):
            pass


def unpacked(pieces: Iterator[bytes], compression: str) -> IO[bytes]:
    """Return what `tar`, `gzip` or `zstd` has packed. Their errors are raised as it is read."""
    buffered = io.BufferedReader(Joined(pieces), _PIECE)
    if compression == "gzip":
        return cast(IO[bytes], gzip.GzipFile(fileobj=buffered, mode="rb"))
    if compression == "zstd":
        unpacker = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
        return unpacker.stream_reader(buffered, read_across_frames=True)
    return buffered
