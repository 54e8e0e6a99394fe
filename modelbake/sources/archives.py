"""Weights inside a tar archive: read as a stream, one member at a time, and never unpacked onto a disk.

    bytes of the archive, from any source --gzip/zstd--> tar --headers--> members --> the bytes of one

A compressed archive can only be read from its beginning. A pass that has handed out a member goes on from
there to the next one that is asked for and lies behind it, so that reading all of them costs about one pass
for each thread that reads.

Only regular files are members. What an archive says of itself is not trusted: names that lead out of it are
refused, headers that would fill the memory too. Whether an image can have a name is up to `select_files`.
"""

from __future__ import annotations

import gzip
import tarfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, cast

import zstandard

from modelbake.errors import RevisionNotFound, SourceError, WrongBytes
from modelbake.sources.unpacking import Forward, unpacked
from modelbake.weightpath import shown

if TYPE_CHECKING:
    from modelbake.stream.flow import FileBytes

COMPRESSIONS = ("tar", "gzip", "zstd")  # as versions of members end: `!gzip`; see `plan.is_packed`
_PIECE = 1 << 20  # bytes
_MOST_IDLE, _LONGEST_IDLE = 4, 30.0  # passes that wait for the next member, and for how many seconds


@dataclass(frozen=True)
class Member:
    """A regular file of an archive: its name without a leading `./`, its size in bytes."""

    path: str
    size: int


class Archive:
    """An archive whose bytes can be had from the beginning, as often as need be. Safe to use from any thread.

    Args:
        start: starts reading the archive's bytes; what they raise is passed on.
        compression: one of COMPRESSIONS.
        subject: of errors.
    """

    def __init__(self, start: Callable[[], FileBytes], compression: str, subject: str) -> None:
        self._start = start
        self._compression = compression
        self._subject = subject
        self._guard = threading.Lock()
        self._offsets: dict[str, int] = {}  # of the members that a pass has come by
        self._idle: list[_Pass] = []

    def members(self, others: Callable[[str], None] | None = None) -> Iterator[Member]:
        """Yield every regular file, in the archive's order; all bytes of the archive are read for it.

        `others`: told the name of everything that is neither a file nor a folder, such as a link. Raises
        SourceError for what is no such archive, and what the bytes raise.
        """
        with closing(self._begin()) as passing, self._translated():
            for info in passing.headers():
                self._come_by(info)
                if _is_file(info):
                    yield Member(_name(info), info.size)
                elif others and not info.isdir():
                    others(_name(info))
            passing.finish()

    def read(self, member: Member, start: int = 0) -> MemberBytes:
        """Return the bytes of a member from `start` on.

        Raises, while they are read, SourceError for a broken archive, RevisionNotFound where there is no such
        member, WrongBytes where it has another size, and what the archive's own bytes raise.
        """
        return MemberBytes(self, member, start)

    def close(self) -> None:
        """End the passes that wait for another member."""
        with self._guard:
            idle, self._idle = self._idle, []
        for each in idle:
            each.close()

    def _begin(self) -> _Pass:
        return _Pass(self._start(), self._compression, self._subject)

    @contextmanager
    def _at(self, member: Member) -> Iterator[_Pass]:
        """Yield a pass that has come to the data of a member; kept for the next one unless it fails."""
        passing = self._take(member.path)
        try:
            with self._translated():
                for info in passing.headers():
                    self._come_by(info)
                    if _name(info) == member.path and _is_file(info):
                        break
                else:
                    raise RevisionNotFound(
                        f"the archive has no {shown(member.path)}",
                        subject=self._subject,
                        hint="was it replaced since? `build.py lock NAME` takes what is there now",
                    )
                if info.size != member.size:
                    raise WrongBytes(
                        f"{shown(member.path)} has {info.size:,} bytes in the archive instead of the"
                        f" {member.size:,} that are locked",
                        subject=self._subject,
                    )
                yield passing
        except BaseException:
            passing.close()
            raise
        self._keep(passing)

    def _come_by(self, info: tarfile.TarInfo) -> None:
        if _is_file(info):  # folders and links are not read, and there may be any number of them
            self._offsets.setdefault(_name(info), info.offset)

    def _take(self, path: str) -> _Pass:
        """Return the pass that has the least to skip before a member."""
        with self._guard:
            now = time.monotonic()
            stale = [each for each in self._idle if now - each.idle_since > _LONGEST_IDLE]
            self._idle = [each for each in self._idle if each not in stale]
            offset = self._offsets.get(path)  # unknown: all passes have yet to come to it
            before = [each for each in self._idle if offset is None or each.position <= offset]
            best = max(before, key=lambda each: each.position, default=None)
            if best is not None:
                self._idle.remove(best)
        for each in stale:
            each.close()
        return best or self._begin()

    def _keep(self, passing: _Pass) -> None:
        passing.idle_since = time.monotonic()
        with self._guard:
            self._idle.append(passing)
            dropped = self._idle.pop(0) if len(self._idle) > _MOST_IDLE else None
        if dropped:
            dropped.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (tarfile.TarError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError, EOFError) as error:
            raise self.broken(f"{type(error).__name__}: {shown(str(error))}") from error
        # What tarfile makes of numbers and texts of a header that are none.
        except (ValueError, OverflowError, IndexError, KeyError, RecursionError) as error:
            raise self.broken(f"a header cannot be read ({type(error).__name__})") from error

    def broken(self, why: str) -> SourceError:
        """Return the error that an archive which cannot be read makes."""
        kind = (
            "a tar archive" if self._compression == "tar" else f"a tar archive packed by {self._compression}"
        )
        return SourceError(
            f"cannot be read as {kind}: {why}", subject=self._subject, hint="pack it anew, and lock again"
        )


class MemberBytes:
    """The bytes of one member from an offset on."""

    def __init__(self, archive: Archive, member: Member, start: int) -> None:
        self._archive, self._member, self._start = archive, member, start
        self.attempts = 0

    def __iter__(self) -> Iterator[bytes]:
        with self._archive._at(self._member) as passing:
            passing.skip(min(self._start, self._member.size))
            left = self._member.size - self._start
            while left > 0:
                piece = passing.take(min(left, _PIECE))
                self.attempts = passing.source.attempts
                if not piece:
                    raise self._archive.broken(f"it ends within {shown(self._member.path)}")
                left -= len(piece)
                yield piece


class _Pass:
    """One reading of an archive from its beginning on; `position` in what is unpacked, in bytes."""

    def __init__(self, source: FileBytes, compression: str, subject: str) -> None:
        self.source = source
        self.idle_since = 0.0
        self._subject = subject
        self._pieces = iter(source)
        self._forward = Forward(unpacked(self._pieces, compression))
        self._tar: tarfile.TarFile | None = None

    @property
    def position(self) -> int:
        """Bytes unpacked so far."""
        return self._forward.tell()

    def headers(self) -> Iterator[tarfile.TarInfo]:
        """Yield the headers from here on; the data of the last one follows."""
        if self._tar is None:
            # Names of any encoding; what is no UTF-8 has surrogates, which no image's path may have.
            file = cast(IO[bytes], self._forward)
            self._tar = tarfile.TarFile(fileobj=file, encoding="utf-8", errors="surrogateescape")
        while (info := self._tar.next()) is not None:
            parts = _name(info).split("/")
            if info.name.startswith("/") or ".." in parts:
                raise SourceError(
                    f"the archive holds {shown(info.name)!r}, which would lie outside of it",
                    subject=self._subject,
                    hint="pack it anew, with names relative to the model's folder",
                )
            self._tar.members.clear()  # type: ignore[attr-defined]  # else it remembers every one of them
            yield info
        # tarfile takes a block that is no header for the end; the end is empty, or of zeros.
        if self._forward.last.strip(b"\0"):
            raise tarfile.ReadError("a damaged header")

    def skip(self, size: int) -> None:
        """Leave bytes out."""
        self._forward.seek(self.position + size)

    def take(self, size: int) -> bytes:
        """Return some of the next bytes, `size` at most; none at the end."""
        return self._forward.read(size)

    def finish(self) -> None:
        """Read to the end, where compressed data has its own checksum."""
        while self.take(_PIECE):
            pass

    def close(self) -> None:
        """End reading from the source."""
        if close := getattr(self._pieces, "close", None):
            close()


def _name(info: tarfile.TarInfo) -> str:
    name = info.name
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name


def _is_file(info: tarfile.TarInfo) -> bool:
    return info.isreg() and not info.issparse()
