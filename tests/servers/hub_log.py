"""What the hub server heard and said: one record a request, which never holds a token."""

from __future__ import annotations

import fnmatch
import hmac
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

Role = Literal["hub", "cdn"]
_SETTLE_SECONDS = 2.0


@dataclass(frozen=True)
class Record:
    """One request and its answer.

    Attributes:
        id: running number, from 1.
        host: which of the two servers was asked.
        path: the URL's path, still percent-encoded.
        query: the URL's query.
        repo, file: what the request was about, where it names a repository or a file of one.
        had_authorization: whether an Authorization header came.
        authorization_valid: whether that header held a token which the hub knows.
        token_elsewhere: whether a token that the hub knows came in the URL or in any other header.
        range: the Range header.
        status: of the answer; 0 where none was sent.
        bytes_sent: of the answer's body.
        headers: of the request, lower-case names, in which tokens are replaced by `***`.
        faults: the kinds of faults that were applied.
        seconds: from reading the request to the last byte of the answer.
    """

    id: int
    host: Role
    method: str
    path: str
    query: str = ""
    repo: str = ""
    file: str = ""
    had_authorization: bool = False
    authorization_valid: bool = False
    token_elsewhere: bool = False
    range: str | None = None
    status: int = 0
    bytes_sent: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    seconds: float = 0.0

    def matches(self, pattern: str) -> bool:
        """Whether a pattern of `fnmatch` fits the file, `org/name/file` or the URL's path."""
        return matches(pattern, self.path, self.repo, self.file)


def matches(pattern: str, path: str, repo: str, file: str) -> bool:
    """Whether a pattern of `fnmatch` fits the file, `org/name/file` or the URL's path."""
    return any(name and fnmatch.fnmatchcase(name, pattern) for name in (file, f"{repo}/{file}", path))


class Tokens:
    """The tokens that the hub knows, each with the repositories it may read (None: all of them)."""

    def __init__(self, grants: Mapping[str, Collection[str] | None]) -> None:
        self._grants = {token: None if names is None else frozenset(names) for token, names in grants.items()}

    def __repr__(self) -> str:
        return f"Tokens({len(self._grants)})"

    def find(self, authorization: str | None) -> str | None:
        """Return the token of a `Bearer` header if the hub knows it."""
        given = (authorization or "").removeprefix("Bearer ").encode()
        return next((token for token in self._grants if hmac.compare_digest(token.encode(), given)), None)

    def may_read(self, token: str | None, repo: str) -> bool:
        """Whether a known token was given the repository."""
        if token is None:
            return False
        names = self._grants[token]
        return names is None or repo in names

    def inside(self, text: str) -> bool:
        """Whether any known token is part of the text."""
        return any(token in text for token in self._grants)

    def scrub(self, text: str) -> str:
        """Return the text with every known token replaced by `***`."""
        for token in self._grants:
            text = text.replace(token, "***")
        return text

    def scrub_headers(self, headers: Iterable[tuple[str, str]]) -> dict[str, str]:
        """Return headers without secrets: an Authorization is hidden even where the token is a wrong one."""
        return {
            name.lower(): "***" if name.lower() == "authorization" else self.scrub(value)
            for name, value in headers
        }


class Draft:
    """The record of a request that is still being answered."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.status = 0
        self.bytes_sent = 0
        self.faults: list[str] = []


class RequestLog:
    """All requests since the start or the last reset. Safe to use from any thread.

    A client has the last byte of an answer before the server has noted it down. So reading waits, up to two
    seconds, for requests that are being answered.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._records: list[Record] = []
        self._open = 0
        self._last_id = 0

    @contextmanager
    def record(self, record: Record) -> Iterator[Draft]:
        """Note a request down once the block ends, however it ends."""
        with self._changed:
            self._open += 1
            self._last_id += 1
            draft = Draft(replace(record, id=self._last_id))
        started = time.monotonic()
        try:
            yield draft
        finally:
            done = replace(
                draft.record,
                status=draft.status,
                bytes_sent=draft.bytes_sent,
                faults=tuple(draft.faults),
                seconds=round(time.monotonic() - started, 6),
            )
            with self._changed:
                self._open -= 1
                self._records.append(done)
                self._changed.notify_all()

    def records(self) -> list[Record]:
        """Return every finished request, oldest first."""
        with self._changed:
            self._changed.wait_for(lambda: self._open == 0, _SETTLE_SECONDS)
            return sorted(self._records, key=lambda record: record.id)

    def reset(self) -> None:
        """Forget everything."""
        with self._changed:
            self._changed.wait_for(lambda: self._open == 0, _SETTLE_SECONDS)
            self._records.clear()

    def as_json(self) -> list[dict[str, object]]:
        """Return the records as plain values."""
        return [asdict(record) for record in self.records()]
