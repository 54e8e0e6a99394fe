"""Reading locked files of a hub, from any offset, for as long as it takes: what the stream lane flows from.

huggingface_hub and its client find where a file's bytes are, with the token. The bytes themselves come by
urllib3: read in pieces of 1 MiB it takes a fifth of the processor time that the client's own reading takes,
and there are two cores for reading, hashing twice and sending. The token goes to the hub's own origin only.

A connection that breaks is continued where it broke (Range, and If-Range where there is a strong ETag). What
comes is not trusted: whoever reads compares the sha256, and no more bytes are handed out than were locked.
"""

from __future__ import annotations

import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

import httpx2
import urllib3
from huggingface_hub import get_session, hf_hub_url
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # public, but not marked as exported
    build_hf_headers,
    hf_raise_for_status,
)
from urllib3.exceptions import HTTPError, LocationParseError, SSLError
from urllib3.util import parse_url

from modelbake import __version__
from modelbake.bounded import within
from modelbake.credentials import Redactor
from modelbake.errors import SourceError, SourceUnavailable, WrongBytes
from modelbake.sources.hub_client import Patience, require_allowed, seconds_to_wait, talking
from modelbake.sources.hub_errors import Place
from modelbake.trust import ENVIRONMENT_HINT, trust
from modelbake.weightpath import shown

if TYPE_CHECKING:
    from modelbake.credentials import Secret
    from modelbake.locked import LockedFile, LockedModel

_PIECE, _SMALL_PIECE = 1 << 20, 16 << 10  # bytes
_MOST_REDIRECTS = 5
# No backslash anywhere, no user or password, nothing that is not printable.
_ADDRESS = re.compile(r"https?://[A-Za-z0-9._:\[\]-]+(?:[/?#][!-\[\]-~]*)?")
_SLOWEST = 64 * 1024  # bytes a second, on average; a transfer that is slower is given up
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_GONE = frozenset({401, 403, 404, 410})  # what a signed URL answers when its time is over


@dataclass(frozen=True)
class _Location:
    """Where the bytes are. The URL may be signed: a credential. `own`: at the hub, which gets the token."""

    url: str
    own: bool

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc.rpartition("@")[2]


class _Broken(Exception):
    """An attempt failed in a way that may pass; `after`: the seconds the server asks to wait, or None."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class HubReader:
    """Reads the files of one locked model. Safe to use from any thread; each `read` is one conversation.

    `stop`: set to end all reading, with SourceUnavailable, within a piece.
    """

    def __init__(
        self,
        locked: LockedModel,
        token: Secret | None,
        *,
        patience: Patience | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self._locked = locked
        self._token = token or None
        self._patience = patience or Patience()
        self._stop = stop or threading.Event()
        self._place = Place(
            name=locked.name,
            repo=locked.source.removeprefix("hf://"),
            revision=locked.commit,
            hub=locked.hub,
            has_token=self._token is not None,
            redact=Redactor([token] if token else []),
        )
        self._pools = _Pools(self._patience, self._place.subject)

    def read(self, file: LockedFile, start: int = 0) -> HubFile:
        """Return an iterator over the bytes of a file from `start` on: all of them, or an error.

        Raises, while it is iterated:
            WrongBytes: the hub serves another number of bytes than was locked.
            SourceUnavailable: it keeps failing, or is too slow.
            SourceError: or another subclass, as `hub_errors` tells; 401 and 403 are not tried again.
        """
        return HubFile(self, file, start)

    def _headers(self) -> dict[str, str]:
        headers = build_hf_headers(
            token=self._token.reveal() if self._token else False,
            library_name="modelbake",
            library_version=__version__,
        )
        return {**headers, "accept-encoding": "identity"}

    def _is_own(self, url: str) -> bool:
        return self._origin(url) == self._origin(self._place.hub)

    def _origin(self, url: str) -> tuple[str, str, int]:
        """Return scheme, host and port as they will be connected to.

        By the parser of the library that connects: another one could see another host in a crafted address,
        and the token would go astray. What two parsers could disagree about is refused.
        """
        try:
            parsed = parse_url(url)
        except LocationParseError:
            parsed = None
        odd = parsed is None or parsed.auth is not None or not parsed.host or not _ADDRESS.fullmatch(url)
        if odd or parsed is None or parsed.scheme not in ("http", "https"):
            raise SourceError("the hub redirects to an address that is none", subject=self._place.subject)
        port = parsed.port or (443 if parsed.scheme == "https" else 80)
        return parsed.scheme, str(parsed.host).lower(), port

    def _locate(self, file: LockedFile) -> _Location:
        """Follow the hub's own redirects, with the token, to where the bytes are."""
        url = hf_hub_url(self._place.repo, file.path, revision=self._locked.commit, endpoint=self._place.hub)
        with talking(self._place, self._patience, self._stop):
            for _ in range(_MOST_REDIRECTS + 1):
                response = get_session().head(url, headers=self._headers(), follow_redirects=False)
                if not response.is_redirect:
                    hf_raise_for_status(response)
                    return _Location(url, own=True)
                url = urljoin(url, response.headers["location"])
                if not self._is_own(url):
                    return _Location(url, own=False)
        raise SourceError("the hub redirects without end", subject=self._place.subject)

    def _open(self, location: _Location, start: int, etag: str) -> urllib3.BaseHTTPResponse:
        """Ask for the bytes from `start` on; redirects are followed; the token stays with the hub."""
        url = location.url
        for _ in range(_MOST_REDIRECTS + 1):
            headers = self._headers() if self._is_own(url) else {"accept-encoding": "identity"}
            if start:
                headers["range"] = f"bytes={start}-"
                if etag:
                    headers["if-range"] = etag
            require_allowed(self._place, self._origin(url)[1])
            try:
                response = within(self._patience.answer, self._get(url, headers), late=_close)
            except TimeoutError as error:
                raise _Broken(f"{location.host} does not answer in time") from error
            except (LocationParseError, SSLError, ValueError) as error:
                host = urlsplit(url).netloc.rpartition("@")[2]
                raise SourceUnavailable(
                    f"{host} cannot be spoken to ({type(error).__name__})", subject=self._place.subject
                ) from error
            except HTTPError as error:
                raise _Broken(f"{location.host} does not answer ({type(error).__name__})") from error
            if response.status not in (301, 302, 303, 307, 308):
                return response
            response.close()
            target = urljoin(url, response.headers.get("location", ""))
            if urlsplit(target).scheme not in {"https", urlsplit(url).scheme}:
                raise SourceError("is redirected from https to http", subject=self._place.subject)
            url = target
        raise SourceError("the hub redirects without end", subject=self._place.subject)

    def _get(self, url: str, headers: dict[str, str]) -> Callable[[], urllib3.BaseHTTPResponse]:
        return lambda: self._pools.of(url).request(
            "GET", url, headers=headers, redirect=False, retries=False, preload_content=False
        )


class HubFile:
    """The bytes of one file from an offset on. `attempts` counts the requests for them so far."""

    def __init__(self, reader: HubReader, file: LockedFile, start: int) -> None:
        self._reader = reader
        self._file = file
        self._start = start
        self.attempts = 0

    def __iter__(self) -> Iterator[bytes]:
        file, reader, patience = self._file, self._reader, self._reader._patience
        position, failures, refusals, etag = self._start, 0, 0, ""
        location: _Location | None = None
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
                response = reader._open(location, position, etag)
                try:
                    if response.status in _GONE and not location.own:
                        # A signed URL is good for a while; the hub signs another. Once: then it means it.
                        refusals += 1
                        if refusals > 1:
                            refused = f"{location.host} answers {response.status}"
                            raise self._failed(f"{refused} to an address that the hub has just signed")
                        location = None
                        continue
                    skip = self._check(response, location, position)
                    etag = etag or _strong(response.headers.get("etag", ""))
                    # A piece that breaks off is lost: after a break they are smaller, so that some arrive.
                    piece_size = _SMALL_PIECE if failures else _PIECE
                    with _ended_at(deadline, response):
                        for piece in self._pieces(response, location, skip, piece_size):
                            position += len(piece)
                            if position > file.size:
                                raise self._wrong(f"more than {file.size:,} bytes")
                            if time.monotonic() > deadline:
                                raise self._too_slow()
                            yield piece
                finally:
                    response.close()
                if position < file.size:
                    raise _Broken(f"{location.host} sent less than it said")
            except _Broken as broken:
                failures = 1 if position > reached else failures + 1
                refusals = 0 if position > reached else refusals
                wait = patience.wait(failures) if broken.after is None else broken.after
                if failures >= patience.busy_attempts or wait > patience.longest_wait:
                    raise self._failed(f"{broken} ({self.attempts} attempts)") from broken
                reader._stop.wait(wait)

    def _check(self, response: urllib3.BaseHTTPResponse, location: _Location, position: int) -> int:
        """Look at an answer's head; return how many of its first bytes are here already."""
        file, status = self._file, response.status
        if status in _BUSY:
            raise _Broken(
                f"{location.host} answers {status}", seconds_to_wait(response.headers.get("retry-after", ""))
            )
        if status == 416:
            raise self._wrong(f"no bytes from {position:,} on")
        if status not in (200, 206):
            self._refuse(response, location)
        if response.headers.get("content-encoding", "identity") != "identity":
            raise _Broken(f"{location.host} sends another encoding than asked for")
        skip = position if status == 200 else 0
        if status == 206:
            said = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("content-range", ""))
            if said is None or int(said[1]) != position:
                raise _Broken(f"{location.host} answers another range than asked for")
            if said[3] not in ("*", str(file.size)):
                raise self._wrong(f"{int(said[3]):,} bytes")
        length = response.headers.get("content-length", "")
        if re.fullmatch(r"\d{1,19}", length) and int(length) != file.size - position + skip:
            raise self._wrong(f"{int(length) + position - skip:,} bytes")
        return skip

    def _pieces(
        self, response: urllib3.BaseHTTPResponse, location: _Location, skip: int, size: int
    ) -> Iterator[bytes]:
        try:
            for piece in response.stream(size, decode_content=False):
                self._require_wanted()
                if skip:
                    piece, skip = piece[skip:], max(0, skip - len(piece))
                if piece:
                    yield piece
        except (HTTPError, OSError) as error:
            raise _Broken(f"the connection to {location.host} broke ({type(error).__name__})") from error

    def _refuse(self, response: urllib3.BaseHTTPResponse, location: _Location) -> None:
        """Raise what an answer means that is neither bytes nor a reason to wait."""
        if not location.own:
            raise self._failed(f"{location.host} answers {response.status}")
        with talking(self._reader._place, self._reader._patience):
            request = httpx2.Request("GET", location.url)
            hf_raise_for_status(
                httpx2.Response(response.status, headers=dict(response.headers), request=request)
            )
        raise SourceError(f"the hub answers {response.status} for a file", subject=self._subject)

    @property
    def _subject(self) -> str:
        return f"{self._reader._place.subject}: {shown(self._file.path)}"

    def _wrong(self, what: str) -> WrongBytes:
        return WrongBytes(
            f"the hub serves {what} instead of the {self._file.size:,} that are locked",
            subject=self._subject,
            hint="was models.lock edited, or the file damaged on the way by a proxy or mirror?",
        )

    def _failed(self, message: str) -> SourceUnavailable:
        return SourceUnavailable(message, subject=self._subject, hint="run it again: it goes on from there")

    def _too_slow(self) -> SourceUnavailable:
        return self._failed(
            f"the hub is too slow, less than {_SLOWEST // 1024} KiB/s on the whole: the transfer was given up"
        )

    def _require_wanted(self) -> None:
        if self._reader._stop.is_set():
            raise SourceUnavailable("stopped", subject=self._subject)


class _Pools:
    """Connections by urllib3, with the trust and the proxies that the hub's other client has."""

    def __init__(self, patience: Patience, subject: str) -> None:
        try:
            context = trust()
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
