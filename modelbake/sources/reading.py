"""Reading locked files from where they lie, from any offset, for as long as it takes: the stream lane's way.

A connection that breaks is continued where it broke (Range, and If-Range where there is a strong ETag). What
comes is not trusted: whoever reads compares the sha256, and no more bytes are handed out than were locked.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import urllib3
from urllib3.exceptions import HTTPError

from modelbake.errors import SourceUnavailable, WrongBytes
from modelbake.sources.opener import BUSY, Address, AddressOpener, Broken, Locator
from modelbake.sources.patience import Patience, seconds_to_wait
from modelbake.weightpath import shown

if TYPE_CHECKING:
    from modelbake.locked import LockedFile

_PIECE, _SMALL_PIECE = 1 << 20, 16 << 10  # bytes
_SLOWEST = 64 * 1024  # bytes a second, on average; a transfer that is slower is given up
_GONE = frozenset({400, 401, 403, 404, 410})  # what a signed URL answers when its time is over


class AddressReader(AddressOpener):
    """Reads the files of one source. Safe to use from any thread; each `read` is one conversation.

    `stop`: set to end all reading, with SourceUnavailable, within a piece.
    """

    def __init__(
        self, locator: Locator, *, patience: Patience | None = None, stop: threading.Event | None = None
    ) -> None:
        super().__init__(locator, patience or Patience())
        self._stop = stop or threading.Event()

    def read(self, file: LockedFile, start: int = 0) -> AddressedFile:
        """Return an iterator over the bytes of a file from `start` on: all of them, or an error.

        Raises, while it is iterated:
            WrongBytes: the server has another number of bytes than was locked.
            SourceUnavailable: it keeps failing, or is too slow.
            SourceError: or another subclass, as the locator tells; 401 and 403 are not tried again.
        """
        return AddressedFile(self, file, start)

    def _locate(self, file: LockedFile) -> Address:
        return self._locator.locate(file, self._patience, self._stop)

    def _open(self, address: Address, start: int, stop: int | None, etag: str) -> urllib3.BaseHTTPResponse:
        """Ask for the bytes from `start` to before `stop`."""
        part = {}
        if start or stop is not None:
            part["range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
            if etag:
                part["if-range"] = etag
        return self.open(address, part)


class AddressedFile:
    """The bytes of one file from an offset on. `attempts` counts the requests for them so far."""

    def __init__(self, reader: AddressReader, file: LockedFile, start: int) -> None:
        self._reader = reader
        self._file = file
        self._start = start
        self.attempts = 0

    def __iter__(self) -> Iterator[bytes]:
        file, reader, patience = self._file, self._reader, self._reader._patience
        position, failures, refusals, etag = self._start, 0, 0, ""
        location: Address | None = None
        deadline = time.monotonic() + patience.answer + file.size / _SLOWEST
        while position < file.size:
            self._require_wanted()
            if time.monotonic() > deadline:
                raise self._too_slow()
            self.attempts += 1
            reached = position
            try:
                location = location or reader._locate(file)
                self._require_wanted()
                response = self._ask(location, position, etag)
                try:
                    if response.status in _GONE and (location.expires or not location.own):
                        # A signed URL is good for a while; the hub signs another. Once: then it means it.
                        refusals += 1
                        if refusals > 1:
                            if location.own:
                                self._refuse(response, location)
                            refused = f"{location.host} answers {response.status}"
                            raise self._failed(
                                f"{refused} to an address that the {self._noun} has just signed"
                            )
                        location = None
                        continue
                    skip = self._check(response, location, position)
                    etag = etag or _strong(response.headers.get("etag", ""))
                    # A piece that breaks off is lost: after a break they are smaller, so that some arrive.
                    piece_size = _SMALL_PIECE if failures else _PIECE
                    with _ended_at(deadline, response):
                        for each in self._pieces(response, location, skip, piece_size):
                            # Who has no ranges sends what lies behind a file in an archive, too.
                            piece = each[: file.size - position] if location.whole else each
                            position += len(piece)
                            if position > file.size:
                                raise self._wrong(f"more than {file.size:,} bytes")
                            if time.monotonic() > deadline:
                                raise self._too_slow()
                            yield piece
                            if location.whole and position == file.size:
                                break
                finally:
                    response.close()
                if position < file.size:
                    raise Broken(f"{location.host} sent less than it said")
            except Broken as broken:
                failures = 1 if position > reached else failures + 1
                refusals = 0 if position > reached else refusals
                wait = patience.wait(failures) if broken.after is None else broken.after
                if failures >= patience.busy_attempts or wait > patience.longest_wait:
                    raise self._failed(f"{broken} ({self.attempts} attempts)") from broken
                reader._stop.wait(wait)

    def _check(self, response: urllib3.BaseHTTPResponse, location: Address, position: int) -> int:
        """Look at an answer's head; return how many of its first bytes are here already."""
        file, status = self._file, response.status
        if status in BUSY:
            raise Broken(
                f"{location.host} answers {status}", seconds_to_wait(response.headers.get("retry-after", ""))
            )
        if status == 416:
            raise self._wrong(f"no bytes from {position:,} on")
        if status not in (200, 206):
            self._refuse(response, location)
        if response.headers.get("content-encoding", "identity") != "identity":
            raise Broken(f"{location.host} sends another encoding than asked for")
        there, whole = location.start + position, location.whole or file.size
        skip = there if status == 200 else 0
        if status == 206:
            said = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("content-range", ""))
            if said is None or int(said[1]) != there:
                raise Broken(f"{location.host} answers another range than asked for")
            if said[3] not in ("*", str(whole)):
                raise self._wrong(f"{int(said[3]):,} bytes", of=whole)
        length = response.headers.get("content-length", "")
        expected = whole if status == 200 else file.size - position
        if re.fullmatch(r"\d{1,19}", length) and int(length) != expected:
            raise self._wrong(f"{int(length) - expected + file.size:,} bytes")
        return skip

    def _pieces(
        self, response: urllib3.BaseHTTPResponse, location: Address, skip: int, size: int
    ) -> Iterator[bytes]:
        try:
            for piece in response.stream(size, decode_content=False):
                self._require_wanted()
                if skip:
                    piece, skip = piece[skip:], max(0, skip - len(piece))
                if piece:
                    yield piece
        except (HTTPError, OSError) as error:
            raise Broken(f"the connection to {location.host} broke ({type(error).__name__})") from error

    def _refuse(self, response: urllib3.BaseHTTPResponse, location: Address) -> None:
        """Raise what an answer means that is neither bytes nor a reason to wait."""
        if not location.own:
            raise self._failed(f"{location.host} answers {response.status}")
        self._reader._locator.refuse(self._file, response.status, dict(response.headers))

    def _ask(self, location: Address, position: int, etag: str) -> urllib3.BaseHTTPResponse:
        inside = location.start or location.whole not in (None, self._file.size)
        stop = location.start + self._file.size if inside else None
        return self._reader._open(location, location.start + position, stop, etag)

    @property
    def _noun(self) -> str:
        return self._reader._locator.noun

    @property
    def _subject(self) -> str:
        return f"{self._reader._locator.subject}: {shown(self._file.path)}"

    def _wrong(self, what: str, of: int | None = None) -> WrongBytes:
        return WrongBytes(
            f"the {self._noun} serves {what} instead of the {of or self._file.size:,} that are locked",
            subject=self._subject,
            hint="was models.lock edited, or the file damaged on the way by a proxy or mirror?",
        )

    def _failed(self, message: str) -> SourceUnavailable:
        return SourceUnavailable(message, subject=self._subject, hint="run it again: it goes on from there")

    def _too_slow(self) -> SourceUnavailable:
        return self._failed(
            f"the {self._noun} is too slow, less than {_SLOWEST // 1024} KiB/s on the whole: the transfer was"
            " given up"
        )

    def _require_wanted(self) -> None:
        if self._reader._stop.is_set():
            raise SourceUnavailable("stopped", subject=self._subject)


@contextmanager
def _ended_at(deadline: float, response: urllib3.BaseHTTPResponse) -> Iterator[None]:
    """Break the connection off at a time: a read of a whole piece waits for single bytes without an end."""

    def end() -> None:
        with suppress(OSError, ValueError, RuntimeError):  # it is over already
            response.shutdown()

    timer = threading.Timer(max(0.0, deadline - time.monotonic()), end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _strong(etag: str) -> str:
    return etag if etag.startswith('"') else ""
