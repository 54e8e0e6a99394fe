"""A layer's tar, read as engines read it: what Python and Go understand differently is refused.

Python's tarfile is lenient where Go's archive/tar, with which engines unpack, is strict or decides otherwise:
the name, size or kind of an entry could then be one thing to an audit and another one to a container. No
writer of layers makes such a tar. Memory stays flat for any number of entries.

Sources: https://github.com/golang/go/blob/go1.23.0/src/archive/tar/reader.go,
https://github.com/python/cpython/blob/3.11/Lib/tarfile.py; POSIX.1-2017, pax.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any

_LARGEST_HEADER = 4 << 20  # bytes of a tar header; it is read at once
_LONGEST_NAME = 4096  # characters; Linux takes no longer path
_BLOCK = 512
_BUFFER = 1 << 20  # bytes
_MAGIC, _USTAR = slice(257, 263), b"ustar\0"
_NAME, _PREFIX, _STAR = slice(0, 100), slice(345, 500), slice(508, 512)
_KIND = 156
_NUMBERS = (slice(100, 108), slice(108, 116), slice(116, 124), slice(124, 136), slice(148, 156))
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_LONG_HEADERS = (*_PAX, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_DECIDING = frozenset(("path", "linkpath", "size", "uid", "gid"))
_NUMBER = re.compile(r"-?[0-9]{1,19}", re.ASCII)


class LayerTar(tarfile.TarFile):
    """An archive of `Member`s, read once from its beginning to its end: see `members_of`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Types of the long headers before the one that is read now; the first is read in here.
        self.pending: list[bytes] = []
        super().__init__(*args, **kwargs)


class Member(tarfile.TarInfo):
    """An entry that every reader takes for the same. Raises tarfile.ReadError for others."""

    seventh_edition = False  # its type is a NUL: whether it is a folder depends on its name

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Member:
        """Read a header block."""
        member = super().frombuf(buf, encoding, errors)
        raw = bytes(buf)
        member.seventh_edition = raw[_KIND : _KIND + 1] == tarfile.AREGTYPE
        if any(raw[field][:1] == b"\0" and raw[field].strip(b" \0") for field in _NUMBERS):
            # Python takes it for 0, and Go for the number.
            raise tarfile.ReadError("a tar header with a number that begins with a NUL")
        if raw[_PREFIX].strip(b"\0"):
            # Only POSIX's own format has a prefix there; GNU's has times, which Python takes for one.
            if raw[_MAGIC] != _USTAR:
                name = raw[_NAME].partition(b"\0")[0].decode(encoding, errors)
                member.name = name.rstrip("/") if member.isdir() else name
            elif raw[_STAR] == b"tar\0":
                raise tarfile.ReadError("a tar of the format of star, which readers understand differently")
        return member

    def _proc_member(self, archive: Any) -> Any:
        before = archive.pending
        if self.type in _LONG_HEADERS:
            if self.size > _LARGEST_HEADER:
                raise tarfile.ReadError(f"a tar header of {self.size:,} bytes")
            if self.type != tarfile.XGLTYPE:
                # Of two long headers of an entry Python believes the first, and Go the last, or GNU's.
                if self.type in before or (before and (self.type in _PAX or before[0] in _PAX)):
                    raise tarfile.ReadError("an entry with two long headers")
                before.append(self.type)
        else:
            if before and self.seventh_edition:
                raise tarfile.ReadError("an entry of the seventh edition with a long header")
            before.clear()
            if _DECIDING.intersection(archive.pax_headers):
                raise tarfile.ReadError("a global header that names entries, which engines ignore")
        return super()._proc_member(archive)  # type: ignore[misc]

    def _apply_pax_info(self, pax_headers: Mapping[str, str], encoding: str, errors: str) -> None:
        if any(key.startswith("GNU.sparse.") for key in pax_headers):
            raise tarfile.ReadError("a file with holes, which readers understand differently")
        for key in _DECIDING.intersection(pax_headers):
            value = pax_headers[key]
            if not value or (key not in ("path", "linkpath") and not _NUMBER.fullmatch(value)):
                raise tarfile.ReadError(f"a long header whose {key} is {value[:40]!r}")
        super()._apply_pax_info(pax_headers, encoding, errors)  # type: ignore[misc]
        if len(self.name) > _LONGEST_NAME or len(self.linkname) > _LONGEST_NAME:
            raise tarfile.ReadError("a name that is longer than any path")

    def _holes(self, *_: Any) -> None:
        raise tarfile.ReadError("a file with holes, which readers understand differently")

    # Python reads the maps of holes without an end where a tar is cut off.
    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _proc_sparse = _holes

    def _proc_gnulong(self, archive: Any) -> Any:
        member = super()._proc_gnulong(archive)  # type: ignore[misc]
        if len(member.name) > _LONGEST_NAME or len(member.linkname) > _LONGEST_NAME:
            raise tarfile.ReadError("a name that is longer than any path")
        return member


def opened(stream: Any) -> tarfile.TarFile:
    """Return a layer's tar for `members_of`. Raises tarfile.ReadError where it is none."""
    return LayerTar.open(fileobj=stream, mode="r|", bufsize=_BUFFER, tarinfo=Member)


def members_of(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the entries, and forget each. Raises tarfile.TarError where readers would differ."""
    for member in archive:
        archive.members.clear()  # type: ignore[attr-defined]  # else it remembers every one of them
        yield member


def has_content(member: tarfile.TarInfo) -> bool:
    """Tell whether bytes follow an entry's header: those of a file, or of what only its writer knows."""
    return member.isreg() or member.type not in tarfile.SUPPORTED_TYPES


def padding(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Return what fills the last block of an entry whose content was read, but for its last byte."""
    left = -member.size % _BLOCK
    read: bytes = archive.fileobj.read(left - 1) if left > 1 else b""
    return read
