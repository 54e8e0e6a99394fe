"""Short questions to a source's server: a status, headers, and a body of a few MiB at most.

With the redirect guard of all requests: an address's headers go to its own origin
only. What may pass (429, 5xx, a broken connection) is asked again.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import urllib3
from urllib3.exceptions import HTTPError

from modelbake.bounded import within
from modelbake.errors import SourceError, SourceUnavailable
from modelbake.sources.opener import BUSY, Address, AddressOpener, Broken, Locator
from modelbake.sources.patience import Patience, seconds_to_wait

_LARGEST = 8 << 20  # bytes of an answer's body


@dataclass(frozen=True)
class Answer:
    """A whole answer; the names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def document(self) -> dict[str, Any]:
        """Return the JSON object that the body is, empty where it is none."""
        try:
            found = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}


class Asker:
    """Asks the server of one source. Safe to use from any thread."""

    def __init__(self, locator: Locator, patience: Patience | None = None) -> None:
        self._locator = locator
        self._patience = patience or Patience()
        self._waiting = threading.Event()
        self._opener = AddressOpener(locator, self._patience)

    def ask(self, address: Address, headers: Mapping[str, str] | None = None, method: str = "GET") -> Answer:
        """Return the answer, whatever its status; of a part that is asked for, no more than `_LARGEST`.

        Raises SourceUnavailable where there is none, SourceError for one that is too large.
        """
        for attempt in range(1, self._patience.busy_attempts + 1):
            try:
                return self._answer(address, headers or {}, method)
            except Broken as broken:
                wait = self._patience.wait(attempt) if broken.after is None else broken.after
                if attempt == self._patience.busy_attempts or wait > self._patience.longest_wait:
                    self._give_up(broken, attempt)
                self._waiting.wait(wait)
        raise AssertionError("unreachable: there is at least one attempt")

    def _answer(self, address: Address, headers: Mapping[str, str], method: str) -> Answer:
        response = self._opener.open(address, headers, method)
        try:
            found = {name.lower(): value for name, value in response.headers.items()}
            if response.status in BUSY:
                wait = seconds_to_wait(found.get("retry-after", ""))
                raise Broken(f"{address.host} answers {response.status}", wait)
            # Who was asked for the first byte of a file, and has no ranges, sends all of it.
            wanted = method != "HEAD" and not (response.status == 200 and "range" in headers)
            return Answer(response.status, found, self._body(response, address) if wanted else b"")
        finally:
            response.close()

    def _body(self, response: urllib3.BaseHTTPResponse, address: Address) -> bytes:
        def read() -> bytes:
            body = bytearray()
            for piece in response.stream(1 << 16, decode_content=False):
                body += piece
                if len(body) > _LARGEST:
                    raise SourceError(
                        f"{address.host} answers more than {_LARGEST:,} bytes", subject=self._locator.subject
                    )
            return bytes(body)

        try:
            return within(self._patience.answer, read, late=lambda _: None)
        except (HTTPError, OSError) as error:  # TimeoutError is an OSError
            raise Broken(f"the connection to {address.host} broke ({type(error).__name__})") from error

    def _give_up(self, broken: Broken, attempts: int) -> NoReturn:
        raise SourceUnavailable(
            f"{broken} ({attempts} attempts)", subject=self._locator.subject, hint="try again later"
        ) from broken
