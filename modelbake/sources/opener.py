"""Where a file's bytes are, and one request to there.

A `Locator` says where a file's bytes are, with what right, for a while. The bytes come by urllib3: read in
pieces of 1 MiB it takes a fifth of the processor time that other clients' reading takes, and there are two
cores for reading, hashing twice and sending. An address's headers go to its own origin only.
"""

from __future__ import annotations

import functools
import os
import re
import ssl
import threading
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn, Protocol
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError, LocationParseError, SSLError
from urllib3.util import parse_url

from modelbake.bounded import within
from modelbake.errors import SourceError, SourceUnavailable
from modelbake.sources.guard import require_allowed
from modelbake.sources.patience import Patience
from modelbake.trust import VARIABLE, trust, unusable_environment

if TYPE_CHECKING:
    from modelbake.locked import LockedFile

_MOST_REDIRECTS = 5
# No backslash anywhere, no user or password, nothing that is not printable.
_ADDRESS = re.compile(r"https?://[A-Za-z0-9._:\[\]-]+(?:[/?#][!-\[\]-~]*)?")
_DECIDING_TRUST = (VARIABLE, "SSL_CERT_FILE", "SSL_CERT_DIR")
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})


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


class AddressOpener:
    """Sends requests for one locator. Safe to use from any thread."""

    def __init__(self, locator: Locator, patience: Patience) -> None:
        self._locator = locator
        self._patience = patience
        self._pools = _Pools(patience, locator.subject)

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
                    f"{host} cannot be spoken to ({type(error).__name__})",
                    subject=self._locator.subject,
                    hint="does it speak TLS at this port, with a certificate that is valid for this name, of"
                    f" an authority that is known here? {VARIABLE} names a PEM file with your own",
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


class _Pools:
    """Connections by urllib3, with the trust and the proxies that the hub's other client has."""

    def __init__(self, patience: Patience, subject: str) -> None:
        try:
            context = _context(*(os.environ.get(name, "") for name in _DECIDING_TRUST))
        except OSError as error:
            raise unusable_environment(error, subject) from error
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


def _close(response: urllib3.BaseHTTPResponse) -> None:
    response.close()
