"""The HTTP client that huggingface_hub is given: patient, bounded, and careful with the token.

huggingface_hub has one client for the whole process and lets a program choose it. Its own waits for an
answer without end, sleeps as long as a hub tells it to, retries listings but not lookups, and sends the
token along when a listing's next page lies on another host. What a call may do is not the client's to know:
it is said by `talking`, for the calls of the current thread.
"""

from __future__ import annotations

import functools
import itertools
import math
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import httpx2
import huggingface_hub
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]  # see hub.py

from modelbake.bounded import within
from modelbake.errors import ModelbakeError, SourceError, SourceUnavailable
from modelbake.sources.guard import require_allowed
from modelbake.sources.hub_errors import Place, busy, translate
from modelbake.sources.patience import Patience, seconds_to_wait
from modelbake.trust import trust, unusable_environment

_BUSY = frozenset({408, 429, 500, 502, 503, 504})
_MAX_ANSWER_BYTES = 64 * 1024 * 1024  # of one answer of the API
_MAX_REQUESTS = 2000  # of one conversation: more pages than any repository has


@dataclass
class _Talk:
    place: Place
    patience: Patience
    stop: threading.Event
    until: float
    requests: int = 0

    def rest(self, seconds: float) -> None:
        """Wait before the next attempt. Raises SourceUnavailable as soon as `stop` is set."""
        if self.stop.wait(seconds):
            raise SourceUnavailable("stopped", subject=self.place.subject)


_installing = threading.Lock()
_installed = False
_current: ContextVar[_Talk | None] = ContextVar("modelbake_hub_talk", default=None)


@contextmanager
def talking(
    place: Place,
    patience: Patience,
    stop: threading.Event | None = None,
    *,
    longest: float = math.inf,
) -> Iterator[None]:
    """Within this block the current thread talks to one hub; every foreign exception is translated.

    `stop`: set to end all waiting for a busy hub, with SourceUnavailable. `longest`: seconds after which
    nothing new is asked.
    """
    _install()
    reset = _current.set(_Talk(place, patience, stop or threading.Event(), time.monotonic() + longest))
    try:
        yield
    except ModelbakeError:
        raise
    except Exception as error:  # whatever a library raises on a stranger's answer
        raise translate(error, place) from error
    finally:
        _current.reset(reset)


class HubClient(httpx2.Client):
    """Retries while the hub is busy or silent, never for long, and holds no more than it must.

    Raises UsageError where `MODELBAKE_CA_BUNDLE` cannot be used, SourceError for other network settings.
    """

    def __init__(self) -> None:
        try:
            super().__init__(
                verify=trust(), follow_redirects=True, max_redirects=10, event_hooks={"request": [_check]}
            )
        except (OSError, ValueError, httpx2.InvalidURL) as error:
            talk = _current.get()
            raise unusable_environment(error, talk.place.subject if talk else "") from error

    def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> httpx2.Response:
        """Send a request; only the body of a successful answer is ever left to be streamed."""
        talk = _current.get()
        if talk is None:
            return super().send(request, stream=stream, **options)
        patience, place = talk.patience, talk.place
        # huggingface_hub passes `timeout=None` explicitly, which httpx2 takes for "wait without end".
        request.extensions = {**request.extensions, "timeout": _timeout(patience)}
        for attempt in itertools.count(1):
            try:
                ask = functools.partial(self._ask, request, stream, patience, options)
                response = within(patience.answer, ask, late=httpx2.Response.close)
                if response.status_code not in _BUSY:
                    return response
                asked = _asked_wait(response)
                if attempt >= patience.busy_attempts or (asked or 0) > patience.longest_wait:
                    raise busy(place, response.status_code, attempt, asked)
                talk.rest(patience.wait(attempt) if asked is None else asked)
            except httpx2.TransportError as error:
                if attempt >= patience.silent_attempts or not is_worth_retrying(error):
                    # Translated here: huggingface_hub would take the original for a reason to try again.
                    raise translate(error, place) from error
                talk.rest(patience.wait(attempt))
        raise AssertionError("unreachable")

    def _ask(
        self, request: httpx2.Request, stream: bool, patience: Patience, options: dict[str, Any]
    ) -> httpx2.Response:
        """Send a request once; the body of the answer is left unread only where it shall be streamed."""
        response = super().send(request, stream=True, **options)
        if response.status_code in _BUSY:
            response.close()
            return response
        return response if stream and response.is_success else _whole(response, patience)


def _timeout(patience: Patience) -> dict[str, Any]:
    return httpx2.Timeout(patience.read, connect=patience.connect).as_dict()


def is_worth_retrying(error: httpx2.TransportError) -> bool:
    """Whether an error may be gone the next time. A certificate that is not trusted stays so."""
    if isinstance(error, (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError)):
        return False
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return False
        cause = cause.__cause__ or cause.__context__
    return True


def _check(request: httpx2.Request) -> None:
    """Stop what must not be sent; called for every request, those that follow a redirect included."""
    talk = _current.get()
    if talk is None:
        return
    if huggingface_hub.is_offline_mode():
        raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
    talk.requests += 1
    if talk.requests > _MAX_REQUESTS:
        raise SourceError(f"the hub needs more than {_MAX_REQUESTS} requests", subject=talk.place.subject)
    if time.monotonic() > talk.until:
        raise SourceUnavailable("the hub takes too long for all of its answers", subject=talk.place.subject)
    hub = httpx2.URL(talk.place.hub)
    upgraded = (hub.scheme, hub.port, request.url.scheme, request.url.port) == ("http", None, "https", None)
    own = request.url.origin == hub.origin or (upgraded and request.url.host == hub.host)
    if "authorization" in request.headers and not own:
        raise SourceError(
            f"the hub's answer goes on at {request.url.host}, which must not see the token",
            subject=talk.place.subject,
        )
    if hub.scheme == "https" and request.url.scheme == "http":
        raise SourceError("is redirected from https to http", subject=talk.place.subject)
    require_allowed(talk.place.hub, request.url.host, subject=talk.place.subject, noun="hub")


def _whole(response: httpx2.Response, patience: Patience) -> httpx2.Response:
    """Read a bounded answer in bounded time."""
    deadline = time.monotonic() + patience.answer
    parts: list[bytes] = []
    size = 0
    try:
        for part in response.iter_bytes():
            size += len(part)
            if size > _MAX_ANSWER_BYTES:
                raise httpx2.DecodingError(f"an answer of more than {_MAX_ANSWER_BYTES} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError  # not one of httpx2: trying again would take as long again
            parts.append(part)
    finally:
        response.close()
    # The body is decoded by now; these say how it was on the wire.
    transport = {"content-encoding", "content-length", "transfer-encoding"}
    headers = [
        (name, value) for name, value in response.headers.multi_items() if name.lower() not in transport
    ]
    return httpx2.Response(
        response.status_code, headers=headers, content=b"".join(parts), request=response.request
    )


def _asked_wait(response: httpx2.Response) -> float | None:
    """Return the seconds the hub asks us to wait, if it does."""
    limit = parse_ratelimit_headers(response.headers)
    if response.status_code == 429 and limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds
    return seconds_to_wait(response.headers.get("retry-after", ""))


def _install() -> None:
    """Make huggingface_hub use this client, once, and keep it quiet.

    Its log would carry a hub's `X-HF-Warning` to the terminal, past our redaction. Its telemetry would ask
    huggingface.co for a list of programs before the first header is built, whatever hub was configured.
    """
    global _installed
    with _installing:  # a second change of the factory would close the client under another thread
        if _installed:
            return
        hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
        huggingface_hub.set_client_factory(HubClient)
        _installed = True
