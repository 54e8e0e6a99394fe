"""One file: from the hub to its place in the destination, or an error that says what is wrong with it.

The ways, in the order in which they are tried:

    hf_transfer   parallel ranges, for large files whose bytes need no token (the URL is signed, or the
                  repository public), as hf_transfer could carry a token to where it does not belong
    ranges        our own parallel ranges, for other large files, and where hf_transfer failed
    stream        one request, resumed after a cut: small files, servers without ranges, second thoughts

Whatever brought the bytes, their number and sha256 are compared with the manifest. Wrong bytes are thrown
away and fetched once more as a plain stream, as a proxy may have garbled them. After that they are an error.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from accelerate import AccelerationFailed, download
from answers import NoRanges, check_range, check_whole, strong_etag, wrong_size
from events import Code, Events, FetchError
from hub import Hub, Location, Opened, Refused, Retry
from manifest import Entry
from persistence import Limits, Persistence, too_slow
from tree import Destination, Partial

_SEGMENT = 32 << 20  # bytes of one of our own ranges
_CONNECTIONS = 4  # of our own, for a file


class _NextWay(Exception):
    """This way does not lead there; another may."""


class Transfer:
    """Fetches one file.

    Args:
        ca: a PEM file with all certificate authorities to trust, for hf_transfer, or None for the system's.
        stop: set by other threads when the whole run has been given up.

    Attributes:
        done: bytes that are there so far; read by other threads.
    """

    def __init__(
        self,
        entry: Entry,
        hub: Hub,
        destination: Destination,
        events: Events,
        limits: Limits,
        *,
        ca: Path | None,
        stop: threading.Event,
    ) -> None:
        self.entry = entry
        self.done = 0
        self._hub = hub
        self._destination = destination
        self._events = events
        self._limits = limits
        self._ca = ca
        self._lock = threading.Lock()
        self._persistence = Persistence(entry.size, limits, stop)
        self._location: Location | None = None
        self._refusals = 0

    def run(self) -> None:
        """Fetch, verify and place the file, and leave its audit line.

        Raises:
            FetchError: with the file's name.
            OSError: the file cannot be written.
        """
        started = time.monotonic()
        self._persistence.begin()
        try:
            try:
                method = self._fetch(parallel=self.entry.size >= self._limits.ranges_from)
            except FetchError as error:
                if error.code is not Code.WRONG_BYTES:
                    raise
                self._events.note(f"{error.message}; fetching it once more", file=self.entry.path)
                self._persistence.again()
                method = self._fetch(parallel=False)
        except FetchError as error:
            raise self._named(error) from None
        except OSError as error:
            raise OSError(error.errno, error.strerror, error.filename or self.entry.path) from error
        self._events.fetched(
            source=str(self._hub.source),
            file=self.entry.path,
            bytes=self.entry.size,
            attempts=self._persistence.attempts,
            sha256=self.entry.sha256,
            seconds=round(time.monotonic() - started, 3),
            method=method,
            host=self._location.host if self._location else self._hub.host,
        )

    def require_time(self) -> None:
        """Raise FetchError if this file's time is over: its own thread may hang in a read that never ends."""
        if self._persistence.is_over():
            raise self._named(too_slow())

    def _named(self, error: FetchError) -> FetchError:
        return FetchError(
            error.code,
            f"{self._hub.source}: {self.entry.path}: {error.message}",
            file=self.entry.path,
            expected=error.expected,
            actual=error.actual,
        )

    def _fetch(self, *, parallel: bool) -> str:
        """Fetch the bytes by the first way that leads there, verify and place them; return the way's name."""
        for name, way in self._ways(parallel):
            self.done = 0
            partial = self._destination.begin()
            try:
                digest = way(partial)
                self._verify(partial, digest)
                self._destination.place(partial, self.entry)
            except _NextWay as reason:
                self._destination.discard(partial)
                self._events.note(f"{reason}; trying without", file=self.entry.path)
                self._persistence.again()
            except BaseException:
                self._destination.discard(partial)
                raise
            else:
                return name
        raise AssertionError("the last way never gives up")

    def _ways(self, parallel: bool) -> Iterator[tuple[str, Callable[[Partial], str]]]:
        etag = self._persistence.insist(self._probe) if parallel else None
        if etag is not None and self._location is not None:
            if not self._location.own or not self._hub.has_token:
                yield "hf_transfer", self._accelerate
            yield "ranges", lambda partial: self._ranges(partial, etag)
        yield "stream", self._stream

    def _verify(self, partial: Partial, digest: str) -> None:
        if (size := os.fstat(partial.fd).st_size) != self.entry.size:
            raise wrong_size(self.entry, f"{size} bytes")
        if digest != self.entry.sha256:
            raise FetchError(
                Code.WRONG_BYTES,
                f"wrong bytes: sha256 {self.entry.sha256} expected, {digest} received",
                expected=self.entry.sha256,
                actual=digest,
            )

    # -- the ways: each fills the file and returns its sha256 in hex -----------------------------------------

    def _accelerate(self, partial: Partial) -> str:
        assert self._location is not None

        def received(count: int) -> None:
            self.done = min(self.done + count + 1, self.entry.size)  # hf_transfer counts a range one too low

        try:
            download(
                self._location.url,
                partial.path,
                self.entry.size,
                ca=self._ca,
                stall=self._limits.stall,
                stopped=self._persistence.is_over,
                on_bytes=received,
            )
        except AccelerationFailed as failure:
            self._persistence.check()
            if failure.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
            raise _NextWay(str(failure)) from None
        return _sha256(partial)

    def _ranges(self, partial: Partial, etag: str) -> str:
        os.ftruncate(partial.fd, self.entry.size)
        ended = threading.Event()

        def segment(start: int) -> None:
            position, stop = start, min(start + _SEGMENT, self.entry.size)

            def ask() -> None:
                nonlocal position
                with self._open(position, stop, etag) as opened:
                    check_range(self.entry, opened, position, stop)
                    for chunk in opened.response.iter_raw():
                        if ended.is_set():
                            return
                        self._write(partial, chunk[: stop - position], position)
                        position = min(position + len(chunk), stop)
                        if position == stop:
                            return  # what follows is not read: it need not have an end
                if position < stop:
                    raise Retry(f"{opened.location.host} sent less than the range")

            try:
                self._persistence.insist(ask)
            except BaseException:
                ended.set()
                raise

        with concurrent.futures.ThreadPoolExecutor(_CONNECTIONS) as pool:
            jobs = [pool.submit(segment, start) for start in range(0, self.entry.size, _SEGMENT)]
            try:
                for job in concurrent.futures.as_completed(jobs):
                    job.result()
            except NoRanges as reason:
                raise _NextWay(f"parallel ranges: {reason}") from None
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
        return _sha256(partial)

    def _stream(self, partial: Partial) -> str:
        position, digest, etag = 0, hashlib.sha256(), ""

        def restart() -> None:
            nonlocal position, digest
            os.ftruncate(partial.fd, 0)
            position, digest = 0, hashlib.sha256()
            self.done = 0

        def ask() -> None:
            nonlocal position, etag
            if position == self.entry.size > 0:
                return  # cut after the last byte
            with self._open(position, None, etag) as opened:
                if position:
                    try:
                        check_range(self.entry, opened, position, None)
                    except NoRanges as reason:
                        restart()
                        if opened.response.status_code != 200:
                            raise Retry(str(reason)) from None
                if not position:
                    check_whole(self.entry, opened)
                    etag = strong_etag(opened)
                for chunk in opened.response.iter_raw():
                    if position + len(chunk) > self.entry.size:
                        raise wrong_size(self.entry, f"more than {self.entry.size} bytes")
                    self._write(partial, chunk, position)
                    digest.update(chunk)
                    position += len(chunk)
            if position < self.entry.size:
                raise wrong_size(self.entry, f"{position} bytes")

        self._persistence.insist(ask)
        return digest.hexdigest()

    # -- requests --------------------------------------------------------------------------------------------

    def _probe(self) -> str | None:
        """Find where the bytes are; return their ETag ("" if it is weak), or None if there are no ranges."""
        with self._open(0, 1, "") as opened:
            self._location = opened.location  # behind all redirects
            try:
                check_range(self.entry, opened, 0, 1)
            except NoRanges:
                return None
            return strong_etag(opened)

    @contextlib.contextmanager
    def _open(self, start: int, stop: int | None, etag: str) -> Iterator[Opened]:
        """GET bytes from where the file is, asking the hub anew if that place no longer answers."""
        with self._lock:
            if (location := self._location) is None:
                location = self._location = self._hub.locate(self.entry.path)
        try:
            with self._hub.open(self.entry.path, location, start=start, stop=stop, etag=etag) as opened:
                yield opened
        except Refused as refused:
            with self._lock:
                if self._location is location:
                    self._location = None
                    self._refusals += 1
                if self._refusals > 1:
                    code = Code.NOT_FOUND if refused.status in {404, 410} else Code.UNREACHABLE
                    raise FetchError(
                        code, f"{refused}, also to a new address from {self._hub.host}"
                    ) from None
            raise Retry(str(refused), after=0.0) from None

    def _write(self, partial: Partial, chunk: bytes, position: int) -> None:
        view = memoryview(chunk)
        while view:
            written = os.pwrite(partial.fd, view, position)
            view, position = view[written:], position + written
        with self._lock:
            self.done += len(chunk)
            done, self._refusals = self.done, 0
        self._persistence.reached(done)
        self._persistence.check()


def _sha256(partial: Partial) -> str:
    os.lseek(partial.fd, 0, os.SEEK_SET)
    with os.fdopen(os.dup(partial.fd), "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
