"""One registry's HTTP: which scheme, who may see credentials, redirects, retries, and foreign exceptions.

Plain HTTP is spoken to loopback hosts and named ones only, and HTTPS to those of them that say they want it.
Credentials never go to the target of a redirect (see `registryauth`), and a client certificate to no host but
its own (see `certsd`). Every exception of the HTTP library becomes one of `modelbake.errors`.
"""

from __future__ import annotations

import functools
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx2

from modelbake.certsd import certificates_of, context_for
from modelbake.dockerconfig import DOCKER_HUB, RegistryCredentials, registry_key
from modelbake.errors import DiskFull, RegistryError, RegistryUnavailable
from modelbake.registryauth import RegistryLogin, in_clear, is_loopback
from modelbake.registryreply import Reply, retry_after, said, says_full
from modelbake.tlshints import hint_for, tls_problem
from modelbake.trust import ENVIRONMENT_HINT

_HUB_HOST = "registry-1.docker.io"  # where docker.io's API answers
_FIRST_WAIT = 0.5  # seconds before the second attempt, doubled before each further one
_LARGEST_REPLY = 8 << 20  # bytes; registries themselves accept manifests up to 4 MiB
_LONGEST_REPLY = 120.0  # seconds for one reply to arrive completely
_LONGEST_WAIT = 60.0  # seconds; a larger Retry-After is not waited out
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 5
_BUFFER = 1 << 20  # bytes; how a blob is read
FOREIGN = (httpx2.HTTPError, httpx2.InvalidURL, httpx2.CookieConflict, httpx2.StreamError)


class ConnectionLost(Exception):
    """A request with a body that cannot be sent again was broken off; says how."""


class RegistryConnection:
    """One registry. Use it as a context manager, or call `close`.

    `ca_bundle` names a PEM file trusted besides the system's authorities (default: `$MODELBAKE_CA_BUNDLE`).
    `attempts` counts how often a request is sent while the registry answers 429 or 5xx or breaks off.
    """

    def __init__(
        self,
        host: str,
        credentials: RegistryCredentials | None = None,
        ca_bundle: Path | None = None,
        *,
        attempts: int = 4,
        timeout: float = 30.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.host = registry_key(host)
        self._login = RegistryLogin(self.host, credentials, self._exchange)
        self._attempts = attempts
        self.sleep = sleep
        self.first_wait = _FIRST_WAIT
        self._ca_bundle = ca_bundle
        self._timeout = httpx2.Timeout(timeout, connect=min(timeout, 10.0))
        self._folders: dict[str, Path | None] = {}  # of certificates, by host
        self._clients: dict[Path | None, httpx2.Client] = {}  # by that folder
        self._making = threading.Lock()
        address = _HUB_HOST if self.host == DOCKER_HUB else self.host
        try:
            self._root = httpx2.URL(f"{'http' if in_clear(self.host) else 'https'}://{address}")
        except httpx2.InvalidURL as error:
            raise self._not_addressed(error) from error
        self._client_for(self._root)  # a bundle that is none is told before anything is sent

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        for client in self._clients.values():
            client.close()

    def ask(
        self,
        method: str,
        path: str,
        *,
        scope: str,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        attempts: int = 0,
        patience: float = 0.0,
    ) -> Reply:
        """Send a request, authenticating when asked to; raise for 401, 403 and what stays 429 or 5xx.

        Raises DiskFull where a 5xx says that the registry has no space left: waiting would not help.

        `scope`: what a token is asked for, several ones with spaces between. `attempts`, and `patience` (in
        seconds, until an answer begins), replace the connection's own where they are given.
        """
        url = self._url(path)
        send = functools.partial(self._send, attempts=attempts or self._attempts, patience=patience)
        reply = send(method, url, headers, content, scope)
        if reply.status == 400 and url.scheme == "http" and b"HTTPS" in reply.body:
            # How servers say, in clear, that this port speaks TLS; nothing secret has been sent yet.
            self._root = self._root.copy_with(scheme="https")
            url = self._url(path)
            reply = send(method, url, headers, content, scope)
        if reply.status == 401:
            self._login.answer(reply, scope, plain=self._root.scheme == "http")
            reply = send(method, url, headers, content, scope)
        self._login.require(method, url, reply)
        return reply

    def transmit(
        self, method: str, path: str, *, scope: str, headers: Mapping[str, str], content: Iterator[bytes]
    ) -> Reply:
        """Send a body that can be sent only once, in one attempt; its own exceptions pass through.

        Raises:
            ConnectionLost: it broke off; what has arrived is not known. Also for a token that has expired: a
                new one is in place then.
            RegistryAuthError: 401 or 403.
        """
        url = self._url(path)
        sent = {**headers, **self._authorization(url, scope)}
        try:
            reply = self._receive(method, url, sent, content)
        except httpx2.TransportError as error:
            raise ConnectionLost(f"{type(error).__name__} {error}".rstrip()) from error
        except FOREIGN as error:
            raise self._unreachable(url, error) from error
        if reply.status == 401 and self._login.has_token(scope):
            self._login.answer(reply, scope, plain=self._root.scheme == "http")
            raise ConnectionLost("the registry's token had expired")
        self._login.require(method, url, reply)
        return reply

    def download(self, path: str, *, scope: str) -> Iterator[bytes]:
        """Yield a body of any size. Redirects are followed; credentials stay with the registry's own host.

        Raises RegistryError and its subclasses; 404 is one of them.
        """
        self.ask("HEAD", path, scope=scope)  # authenticates, and waits while the registry is busy
        url = self._url(path)
        try:
            for _ in range(_MOST_REDIRECTS + 1):
                headers = self._authorization(url, scope)
                with self._client_for(url).stream("GET", url, headers=headers) as response:
                    if response.status_code in _REDIRECTS:
                        url = self._target(url, response.headers)
                        continue
                    if response.status_code != 200:
                        busy = response.status_code == 429 or response.status_code >= 500
                        raise (RegistryUnavailable if busy else RegistryError)(
                            f"answers HTTP {response.status_code} to GET {url.path}", subject=_place(url)
                        )
                    yield from response.iter_raw(_BUFFER)
                    return
        except FOREIGN as error:
            raise self._unreachable(url, error) from error
        raise RegistryError("redirects without end", subject=self.host)

    def address(self, path: str, *, scope: str) -> tuple[str, dict[str, str]]:
        """Return the URL of a path, and the headers that it takes once `ask` was answered in this scope.

        The headers are credentials: a token where the registry gives any, else the password.
        """
        url = self._url(path)
        return str(url), self._authorization(url, scope)

    def _client_for(self, url: httpx2.URL) -> httpx2.Client:
        """Return the client for a URL's host: it alone is shown the certificate that we have for it."""
        # By the name that the reference has: Docker's folder of `host:443` is not that of `host`.
        host = self.host if url.origin == self._root.origin else registry_key(url.netloc.decode())
        with self._making:
            if host not in self._folders:
                self._folders[host] = certificates_of(host)
            folder = self._folders[host]
            if folder not in self._clients:
                try:
                    self._clients[folder] = httpx2.Client(
                        verify=context_for(folder, self._ca_bundle),
                        timeout=self._timeout,
                        # A proxy of the environment must not be asked for this very machine.
                        trust_env=not is_loopback(self.host),
                        headers={"User-Agent": "modelbake", "Accept-Encoding": "identity"},
                    )
                except (httpx2.InvalidURL, ValueError, OSError) as error:
                    raise self._not_addressed(error) from error
            return self._clients[folder]

    def _not_addressed(self, error: Exception) -> RegistryError:
        return RegistryError(
            f"cannot be addressed ({type(error).__name__}: {error})",
            subject=self.host,
            hint=ENVIRONMENT_HINT,
        )

    def _authorization(self, url: httpx2.URL, scope: str) -> dict[str, str]:
        """Return the Authorization header for a request, empty for any host but the registry's own."""
        return self._login.header(scope) if url.origin == self._root.origin else {}

    def _url(self, path: str) -> httpx2.URL:
        try:
            url = self._root.join(path)
        except httpx2.InvalidURL as error:
            raise RegistryError("named an address that is no URL", subject=self.host) from error
        if url.origin != self._root.origin:
            raise RegistryError(f"sends on to another host ({url.host})", subject=self.host)
        return url

    def _send(
        self,
        method: str,
        url: httpx2.URL,
        headers: Mapping[str, str] | None,
        content: bytes | None,
        scope: str,
        *,
        attempts: int,
        patience: float,
    ) -> Reply:
        """Exchange one request, following redirects of reads; only the registry's host is shown who asks."""
        for _ in range(_MOST_REDIRECTS + 1):
            sent = {**(headers or {}), **self._authorization(url, scope)}
            reply = self._exchange(method, url, sent, content, attempts=attempts, patience=patience)
            if reply.status not in _REDIRECTS:
                return reply
            if method not in ("GET", "HEAD"):
                raise RegistryError(f"redirects a {method}, which is not followed", subject=self.host)
            url = self._target(url, reply.headers)
        raise RegistryError("redirects without end", subject=self.host)

    def _target(self, url: httpx2.URL, headers: httpx2.Headers) -> httpx2.URL:
        try:
            target = url.join(headers.get("Location", ""))
        except httpx2.InvalidURL as error:
            raise RegistryError("redirects to what is no URL", subject=self.host) from error
        if target.scheme not in {"https", url.scheme}:
            raise RegistryError(f"redirects from https to {target.scheme}", subject=self.host)
        return target

    def _exchange(
        self,
        method: str,
        url: httpx2.URL,
        headers: Mapping[str, str],
        content: bytes | None,
        *,
        attempts: int = 0,
        patience: float = 0.0,
    ) -> Reply:
        """Send one request, again while the answer is 429, 5xx or a broken connection."""
        attempts = attempts or self._attempts
        for attempt in range(1, attempts + 1):
            delay = self.first_wait * 2 ** (attempt - 1)
            try:
                reply = self._receive(method, url, headers, content, patience)
            except FOREIGN as error:
                failure = self._unreachable(url, error)
                if not isinstance(error, httpx2.TransportError) or tls_problem(error):
                    raise failure from error
                failure.__cause__ = error
            else:
                if reply.status != 429 and reply.status < 500:
                    return reply
                if says_full(reply):
                    raise registry_full(_place(url), reply, len(content or b""))
                failure = RegistryUnavailable(
                    f"keeps answering {said(reply)} to {method} {url.path} ({attempt} attempts)",
                    subject=_place(url),
                    hint="try again later",
                )
                failure.after = retry_after(reply)
                delay = max(delay, failure.after)
            if attempt == attempts or delay > _LONGEST_WAIT:
                raise failure
            self.sleep(delay)
        raise AssertionError("unreachable: attempts is at least 1")

    def _receive(
        self,
        method: str,
        url: httpx2.URL,
        headers: Mapping[str, str],
        content: bytes | Iterator[bytes] | None,
        patience: float = 0.0,
    ) -> Reply:
        body = bytearray()
        usual = self._timeout
        timeout = httpx2.Timeout(max(patience, usual.read or 0.0), connect=usual.connect)
        client = self._client_for(url)
        with client.stream(method, url, headers=headers, content=content, timeout=timeout) as response:
            deadline = time.monotonic() + _LONGEST_REPLY
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > _LARGEST_REPLY:
                    raise RegistryError(f"answers more than {_LARGEST_REPLY} bytes", subject=_place(url))
                if time.monotonic() > deadline:
                    raise RegistryUnavailable(
                        f"takes longer than {_LONGEST_REPLY:.0f} s", subject=_place(url)
                    )
            return Reply(response.status_code, response.headers, bytes(body))

    def _unreachable(self, url: httpx2.URL, error: Exception) -> RegistryUnavailable:
        kind = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__).lower()
        return RegistryUnavailable(
            f"cannot be reached ({kind}: {error})" if str(error) else f"cannot be reached ({kind})",
            subject=_place(url),
            hint=hint_for(error, url.netloc.decode()),
        )


def registry_full(place: str, reply: Reply, size: int = 0) -> DiskFull:
    """Return the error for a reply that says so to `size` bytes; 0 where these are not known."""
    need = f"; {size:,} bytes more are needed there" if size else ""
    return DiskFull(
        f"the registry's disk is full ({said(reply)}){need}",
        subject=place,
        hint="free space there: expire candidate tags, collect garbage, or enlarge it; then run this again",
    )


def _place(url: httpx2.URL) -> str:
    """Return where a URL leads, without its path and query: a presigned query is a secret."""
    return f"{url.scheme}://{url.netloc.decode()}"
