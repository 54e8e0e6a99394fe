"""The hub: where a file's bytes are, who may see the token, and what a refusal means.

huggingface_hub makes the URLs, asks for the metadata and knows the hub's error headers. It would hand the
token on to every host that it takes for a hub, so a guard on each request takes the token off unless the
request goes to the endpoint's own scheme, host and port. Redirects are followed here, hop by hop, and not
into the build's own machine or network: see addresses.py.
"""

from __future__ import annotations

import contextlib
import email.utils
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx2
from addresses import redirect_problem
from events import Code, FetchError
from huggingface_hub import get_hf_file_metadata, hf_hub_url, set_client_factory
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # exported lazily
    build_hf_headers,
    parse_ratelimit_headers,
)
from manifest import HubSource, StoreSource

MAX_REDIRECTS = 5
PASSING = {408, 425, 429}  # statuses, besides 5xx, after which a later attempt may succeed
_MAX_REASON = 200  # characters of a server's own words in a message


class Retry(Exception):
    """An attempt failed in a way that may pass.

    Attributes:
        reason: what happened, with the host's name.
        after: seconds the server asked to wait, or None; 0 to try again at once.
    """

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after = after


class Refused(Exception):
    """A host that is not the hub refused a URL that the hub made; the URL may have expired."""

    def __init__(self, host: str, status: int) -> None:
        super().__init__(f"{host} answered {status}")
        self.host = host
        self.status = status


@dataclass(frozen=True)
class Location:
    """Where a file is. The URL may be signed: a credential. `own`: at the endpoint, which gets the token."""

    url: str
    own: bool

    @property
    def host(self) -> str:
        """The host and port, which may be shown."""
        return host_of(self.url)


@dataclass(frozen=True)
class Opened:
    """A response (200, 206 or 416) whose body has not been read, and where it came from."""

    response: httpx2.Response
    location: Location


def host_of(url: str) -> str:
    """Return the host[:port] of a URL."""
    return urlsplit(url).netloc.rpartition("@")[2]


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    return scheme, (parts.hostname or "").lower(), parts.port or {"http": 80, "https": 443}.get(scheme, 0)


class Hub:
    """One repository at one commit.

    Args:
        source: the repository.
        token: sent to the endpoint's own origin only; None for public repositories.
        ca: a PEM file with further certificate authorities to trust, or None.
        connect, read: seconds that a connection, and each read, may take.
    """

    def __init__(
        self,
        source: HubSource | StoreSource,
        token: str | None,
        *,
        ca: Path | None,
        connect: float,
        read: float,
    ) -> None:
        self.source = source
        self.host = host_of(source.endpoint)
        self._token = token
        self._origin = _origin(source.endpoint)
        self._timeout = httpx2.Timeout(read, connect=connect)
        self._tls = httpx2.create_ssl_context()
        if ca is not None:
            try:
                self._tls.load_verify_locations(ca)
            except (OSError, ssl.SSLError) as error:
                raise FetchError(Code.BAD_REQUEST, f"the secret ca_bundle is no PEM file: {error}") from error
        self._hops = threading.local()
        set_client_factory(self._make_client)
        # A client of its own: the library may close the one it made while other threads read from it.
        self._client = self._make_client()

    @property
    def has_token(self) -> bool:
        """Whether requests to the endpoint carry a token."""
        return self._token is not None

    def locate(self, path: str) -> Location:
        """Ask the hub where a file is.

        Raises:
            FetchError: it will not say, and a later attempt would not change that.
            Retry: it may say later.
        """
        self._hops.count = 0
        source = self.source
        assert isinstance(source, HubSource)
        there = path.removeprefix(f"{source.into}/") if source.into else path
        url = hf_hub_url(source.repo, there, revision=source.commit, endpoint=source.endpoint)
        try:
            metadata = get_hf_file_metadata(
                url,
                token=self._token or False,
                timeout=self._timeout,  # type: ignore[arg-type]  # handed on to httpx2, which takes both
                endpoint=self.source.endpoint,
            )
        except HfHubHTTPError as error:
            raise self._refusal(path, error.response.status_code, error.response.headers) from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise self._translate(error, self.host) from None
        except ValueError:  # a redirect to what is no URL
            raise FetchError(Code.UNREACHABLE, f"{self.host} redirects to something that is no URL") from None
        target = self._follow(url, metadata.location)
        return Location(target, _origin(target) == self._origin)

    @contextlib.contextmanager
    def open(
        self, path: str, location: Location, *, start: int = 0, stop: int | None = None, etag: str = ""
    ) -> Iterator[Opened]:
        """GET a file, or its bytes from `start` to before `stop`, following at most MAX_REDIRECTS redirects.

        Raises:
            FetchError: refused by the hub, or a redirect that must not be followed.
            Refused: refused by another host.
            Retry: an error that may pass, also while the body is read.
        """
        headers = {"Accept-Encoding": "identity", "User-Agent": "modelbake-fetch"}
        if start or stop is not None:
            headers["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
            if etag:
                headers["If-Range"] = etag
        for _ in range(MAX_REDIRECTS + 1):
            own = self._own_headers(path) if location.own else {}
            try:
                with self._client.stream("GET", location.url, headers={**own, **headers}) as response:
                    if response.has_redirect_location:
                        target = self._follow(location.url, response.headers["Location"])
                        # Once away from the endpoint, the token stays behind, wherever the way leads then.
                        location = Location(target, location.own and _origin(target) == self._origin)
                        continue
                    self._check(path, location, response)
                    yield Opened(response, location)
                    return
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                raise self._translate(error, location.host) from None
        raise FetchError(
            Code.UNREACHABLE, f"more than {MAX_REDIRECTS} redirects, the last to {location.host}"
        )

    def _own_headers(self, path: str) -> Mapping[str, str]:
        """Return what is said to the endpoint besides."""
        return build_hf_headers(token=self._token or False)

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def _make_client(self) -> httpx2.Client:
        return httpx2.Client(
            verify=self._tls,
            timeout=self._timeout,
            follow_redirects=False,
            event_hooks={"request": [self._guard]},
        )

    def _guard(self, request: httpx2.Request) -> None:
        request.headers.pop("Cookie", None)  # cookies know no ports
        if _origin(str(request.url)) != self._origin:
            request.headers.pop("Authorization", None)
            if problem := redirect_problem(self._origin[1], request.url.host):
                raise FetchError(
                    Code.UNREACHABLE, f"{self.host} redirects to where it must not: {problem}; not followed"
                )
        if request.method == "HEAD":
            self._hops.count += 1
            if self._hops.count > MAX_REDIRECTS + 1:
                raise FetchError(Code.UNREACHABLE, f"more than {MAX_REDIRECTS} redirects at {self.host}")

    def _follow(self, url: str, location: str) -> str:
        """Return the absolute target of a redirect, if it may be followed."""
        try:
            target = urljoin(url, location)
            parts = urlsplit(target)
            allowed = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            allowed = False
        if not allowed or "@" in parts.netloc:
            raise FetchError(
                Code.UNREACHABLE, f"{host_of(url)} redirects to something that is no plain web address"
            )
        if urlsplit(url).scheme == "https" and parts.scheme == "http":
            raise FetchError(
                Code.UNREACHABLE,
                f"{host_of(url)} redirects from https to http ({parts.netloc}): not followed",
            )
        return target

    def _check(self, path: str, location: Location, response: httpx2.Response) -> None:
        status = response.status_code
        if status in {200, 206, 416}:
            return
        if location.own:
            raise self._refusal(path, status, response.headers)
        if status in PASSING or status >= 500:
            raise Retry(f"{location.host} answered {status}", wait_of(response.headers))
        raise Refused(location.host, status)

    def _refusal(self, path: str, status: int, headers: Mapping[str, str]) -> Exception:
        """Return what a status of the hub means."""
        code = headers.get("X-Error-Code", "")
        said = "".join(filter(str.isprintable, headers.get("X-Error-Message", "")))[:_MAX_REASON]
        what = f"{self.host} answered {status}{f' ({said})' if said else ''}"
        if status in PASSING or status >= 500:
            return Retry(what, wait_of(headers))
        if status in {401, 403} and self._token is None:
            return FetchError(
                Code.TOKEN_MISSING, f"{what}: the repository needs a token; none was given (secret hf_token)"
            )
        if code == "GatedRepo":
            return FetchError(
                Code.GATED, f"{what}: the repository is gated; accept its terms with the account of the token"
            )
        if status in {401, 403}:
            return FetchError(
                Code.TOKEN_REFUSED, f"{what}: the token is wrong, or may not read this repository"
            )
        if status in {404, 410}:
            missing = {
                "EntryNotFound": f"the commit has no file {path}",
                "RevisionNotFound": "the repository has no such commit",
            }
            return FetchError(
                Code.NOT_FOUND,
                f"{what}: {missing.get(code, 'no such repository or file, or the token may not see it')}",
            )
        return FetchError(Code.UNREACHABLE, what)

    def _translate(self, error: Exception, host: str) -> Exception:
        """Return what a failure of the connection means. Its text never holds a URL."""
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLCertVerificationError):
                return FetchError(
                    Code.UNREACHABLE,
                    f"{host}: the TLS certificate is not trusted ({cause.verify_message}); if the network "
                    "has its own certificate authority, give its certificate as the secret ca_bundle",
                )
            cause = cause.__cause__ or cause.__context__
        if isinstance(error, httpx2.TransportError) and not isinstance(error, httpx2.UnsupportedProtocol):
            return Retry(f"{host}: {str(error) or type(error).__name__}")
        return FetchError(Code.UNREACHABLE, f"{host}: {type(error).__name__}")


def wait_of(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a server asks to wait, by `RateLimit` or by `Retry-After`."""
    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds) or None
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal() and len(value) < 10:
        return float(value) or None
    try:
        seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        return seconds if seconds > 0 else None
    except (ValueError, OverflowError):
        return None
