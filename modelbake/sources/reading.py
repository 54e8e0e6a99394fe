"""Reading locked files from where they lie, from any offset, for as long as it takes: the stream lane's way.

A `Locator` says where a file's bytes are, with what right, for a while. The bytes come by urllib3: read in
pieces of 1 MiB it takes a fifth of the processor time that other clients' reading takes, and there are two
cores for reading, hashing twice and sending. An address's headers go to its own origin only.

A connection that breaks is continued where it broke (Range, and If-Range where there is a strong ETag). What
comes is not trusted: whoever reads compares the sha256, and no more bytes are handed out than were locked.
"""

from __future__ import annotations

import functools
import os
import re
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn, Protocol
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError, LocationParseError, SSLError
from urllib3.util import parse_url

from modelbake.bounded import within
from modelbake.errors import SourceError, SourceUnavailable, WrongBytes
from modelbake.sources.guard import require_allowed
from modelbake.sources.patience import Patience, seconds_to_wait
from modelbake.trust import ENVIRONMENT_HINT, VARIABLE, trust
from modelbake.weightpath import shown

if TYPE_CHECKING:
    from modelbake.locked import LockedFile

_PIECE, _SMALL_PIECE = 1 << 20, 16 << 10  # bytes
_MOST_REDIRECTS = 5
# No backslash anywhere, no user or password, nothing that is not printable.
_ADDRESS = re.compile(r"https?://[A-Za-z0-9._:\[\]-]+(?:[/?#][!-\[\]-~]*)?")
_SLOWEST = 64 * 1024  # bytes a second, on average; a transfer that is slower is given up
_DECIDING_TRUST = (VARIABLE, "SSL_CERT_FILE", "SSL_CERT_DIR")
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_GONE = frozenset({400, 401, 403, 404, 410})  # what a signed URL answers when its time is over


@dataclass(frozen=True)
class Address:
    """Where a file's bytes are, and what to say there. URL and headers may be credentials.

    `own`: at the source's own server, whose refusals are final; any other address may have expired, and is
    asked for anew, once. `start`: the bytes that lie before the file's there, of `whole` bytes in all.
    `expires`: one at the source's own server that may have expired, too.
    """

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    own: bool = False
    start: int = 0
    whole: int | None = None
    expires: bool = False

    @property
    def host(self) -> str:
        """The host and port, which may be shown."""
        return urlsplit(self.url).netloc.rpartition("@")[2]


class Locator(Protocol):
    """Finds addresses of a source's files, and knows what its server means.

    `subject`: of errors. `server`: a URL of the server that is trusted, for what it may redirect to. `noun`:
    what it is called in messages.
    """

    subject: str
    server: str
    noun: str

    def locate(self, file: LockedFile, patience: Patience, stop: threading.Event) -> Address:
        """Return where a file is. Raises SourceError."""
        ...

    def refuse(self, file: LockedFile, status: int, headers: Mapping[str, str]) -> NoReturn:
        """Raise the SourceError that an answer of the source's own server means."""
        ...


class Broken(Exception):
    """An attempt failed in a way that may pass; `after`: the seconds the server asks to wait, or None."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class AddressReader:
    """Reads the files of one source. Safe to use from any thread; each `read` is one conversation.

    `stop`: set to end all reading, with SourceUnavailable, within a piece.
    """

    def __init__(
        self, locator: Locator, *, patience: Patience | None = None, stop: threading.Event | None = None
    ) -> None:
        self._locator = locator
        self._patience = patience or Patience()
        self._stop = stop or threading.Event()
        self._pools = _Pools(self._patience, locator.subject)

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

    def open(
        self, address: Address, asked: Mapping[str, str], method: str = "GET"
    ) -> urllib3.BaseHTTPResponse:
        """Send one request; the address's headers do not follow a redirect elsewhere, those of `asked` do.

        Raises Broken where trying again may help, and SourceError.
        """
        url, home = address.url, origin_of(address.url, self._locator)
        for _ in range(_MOST_REDIRECTS + 1):
            origin = origin_of(url, self._locator)
            headers = {**(address.headers if origin == home else {}), "accept-encoding": "identity", **asked}
            locator = self._locator
            require_allowed(locator.server, origin[1], subject=locator.subject, noun=locator.noun)
            try:
                response = within(self._patience.answer, self._get(url, headers, method), late=_close)
            except TimeoutError as error:
                raise Broken(f"{address.host} does not answer in time") from error
            except (LocationParseError, SSLError, ValueError) as error:
                host = urlsplit(url).netloc.rpartition("@")[2]
                raise SourceUnavailable(
                    f"{host} cannot be spoken to ({type(error).__name__})", subject=self._locator.subject
                ) from error
            except HTTPError as error:
                raise Broken(f"{address.host} does not answer ({type(error).__name__})") from error
            if response.status not in (301, 302, 303, 307, 308):
                return response
            response.close()
            target = urljoin(url, response.headers.get("location", ""))
            if urlsplit(target).scheme not in {"https", urlsplit(url).scheme}:
                raise SourceError("is redirected from https to http", subject=self._locator.subject)
            url = target
        raise SourceError(f"the {self._locator.noun} redirects without end", subject=self._locator.subject)

    def _get(self, url: str, headers: dict[str, str], method: str) -> Callable[[], urllib3.BaseHTTPResponse]:
        return lambda: self._pools.of(url).request(
            method, url, headers=headers, redirect=False, retries=False, preload_content=False
        )


def origin_of(url: str, locator: Locator) -> tuple[str, str, int]:
    """Return scheme, host and port as they will be connected to. Raises SourceError for what is no address.

    By the parser of the library that connects: another one could see another host in a crafted address, and
    a credential would go astray. What two parsers could disagree about is refused.
    """
    try:
        parsed = parse_url(url)
    except LocationParseError:
        parsed = None
    odd = parsed is None or parsed.auth is not None or not parsed.host or not _ADDRESS.fullmatch(url)
    if odd or parsed is None or parsed.scheme not in ("http", "https"):
        raise SourceError(f"the {locator.noun} redirects to an address that is none", subject=locator.subject)
    port = parsed.port or (443 if parsed.scheme == "https" else 80)
    return parsed.scheme, str(parsed.host).lower(), port


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


class _Pools:
    """Connections by urllib3, with the trust and the proxies that the hub's other client has."""

    def __init__(self, patience: Patience, subject: str) -> None:
        try:
            context = _context(*(os.environ.get(name, "") for name in _DECIDING_TRUST))
        except OSError as error:
            raise SourceError(
                f"the network settings of the environment cannot be used ({type(error).__name__})",
                subject=subject,
                hint=ENVIRONMENT_HINT,
            ) from error
        self._settings = {
            "timeout": urllib3.Timeout(connect=patience.connect, read=patience.read),
            "ssl_context": context,
            "maxsize": 16,
        }
        self._direct = urllib3.PoolManager(**self._settings)  # type: ignore[arg-type]
        self._proxied: dict[str, urllib3.ProxyManager] = {}
        self._lock = threading.Lock()

    def of(self, url: str) -> urllib3.PoolManager:
        parts = urlsplit(url)
        proxies = urllib.request.getproxies()
        proxy = proxies.get(parts.scheme) or proxies.get("all")
        if not proxy or urllib.request.proxy_bypass(parts.netloc):
            return self._direct
        with self._lock:
            if proxy not in self._proxied:
                address = proxy if "://" in proxy else f"http://{proxy}"
                bare = urlsplit(address)
                login = bare.netloc.rpartition("@")[0]
                headers = urllib3.make_headers(proxy_basic_auth=login) if login else None
                self._proxied[proxy] = urllib3.ProxyManager(
                    address,
                    proxy_headers=headers,
                    **self._settings,  # type: ignore[arg-type]
                )
            return self._proxied[proxy]


@functools.lru_cache(maxsize=4)
def _context(*environment: str) -> ssl.SSLContext:
    """Return what `trust` does for the variables that decide it; authorities take long to load."""
    return trust()


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


def _close(response: urllib3.BaseHTTPResponse) -> None:
    response.close()


def _strong(etag: str) -> str:
    return etag if etag.startswith('"') else ""
