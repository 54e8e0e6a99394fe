"""What the libraries of the clouds get from us: authorities to trust, times to keep to, nothing to say.

Google's and Azure's libraries talk by `requests`: one adapter holds both to what other clients here do.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from modelbake.bounded import within
from modelbake.errors import SourceUnavailable
from modelbake.sources.patience import Patience
from modelbake.trust import trust, unusable_environment

PATIENCE = Patience()
TIMEOUT = (PATIENCE.connect, PATIENCE.read)  # seconds: to connect, and for the next bytes
# Their warnings (no project, no metadata server) are about what our own errors say better.
for _name in ("google", "azure", "msal", "urllib3.connectionpool"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


class _Trusting(HTTPAdapter):
    """Checks servers with `modelbake.trust`, and waits no longer than TIMEOUT, whatever is asked for."""

    def __init__(self, subject: str) -> None:
        try:
            self._context = trust()
        except OSError as error:
            raise unusable_environment(error, subject) from error
        super().__init__(pool_maxsize=16)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **{**options, "ssl_context": self._context})

    def proxy_manager_for(self, *args: Any, **options: Any) -> Any:
        return super().proxy_manager_for(*args, **{**options, "ssl_context": self._context})

    def cert_verify(self, *args: Any, **options: Any) -> None:
        """Add no authorities: the context has them, and `send` refuses to do without."""

    def send(self, request: Any, *args: Any, **options: Any) -> requests.Response:
        # Google asks the metadata server, which is there or not, for less.
        asked = options.get("timeout")
        quick = isinstance(asked, int | float) and asked < PATIENCE.connect
        return super().send(
            request, *args, **{**options, "timeout": asked if quick else TIMEOUT, "verify": True}
        )


def equip(*sessions: requests.Session, subject: str) -> None:
    """Have sessions trust and wait as we do. Raises SourceError, UsageError."""
    adapter = _Trusting(subject)  # one: authorities take long to load
    for session in sessions:
        session.mount("https://", adapter)
        session.mount("http://", adapter)


class LiveHeaders(Mapping[str, str]):
    """The headers of requests, made for each: a token ends long before a large file does.

    Whoever copies them has those of one moment.
    """

    def __init__(self, make: Callable[[], Mapping[str, str]]) -> None:
        self._make = make
        self._made: Mapping[str, str] = {}

    def __iter__(self) -> Iterator[str]:
        self._made = self._make()
        return iter(self._made)

    def __getitem__(self, name: str) -> str:
        return (self._made or self._make())[name]

    def __len__(self) -> int:
        return len(self._make())


def pages_of(pages: Iterator[Any], subject: str) -> Iterator[list[Any]]:
    """Yield the pages of a library's listing; each has its time, and all have. Raises SourceUnavailable."""
    deadline = time.monotonic() + PATIENCE.listing
    while True:
        left = min(PATIENCE.answer, deadline - time.monotonic())
        try:
            page = within(left, lambda: _next(pages), late=lambda _: None)
        except TimeoutError as error:
            raise SourceUnavailable("the listing does not come in time", subject=subject) from error
        if page is None:
            return
        yield page


def _next(pages: Iterator[Any]) -> list[Any] | None:
    page = next(pages, None)
    return None if page is None else list(page)
