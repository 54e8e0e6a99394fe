"""Faults that the hub server commits on purpose, so that tests can see what a client makes of them.

    corrupt        one bit of the file, at byte `offset` (negative: from the end), is flipped
    truncate       the body ends `size` bytes early, though Content-Length promises them
    short          the body lacks its last `size` bytes, and Content-Length agrees
    extra          `size` bytes too many follow the file, and Content-Length agrees
    drop           the connection is reset after `offset` bytes of the body
    trickle        after `offset` bytes of the body, one byte every `seconds`
    endless        the bytes of the file, then others without an end, and no Content-Length
    content_range  a 206 says it starts `size` bytes later than it does
    html           200 with a web page, as a captive portal or a login proxy answers
    status         the HTTP status `status`, with `retry_after` seconds if given
    delay          nothing for `seconds`, then the normal answer
    loop           a redirect to itself
    redirect       a redirect to `location`
    slow_head      one byte of the answer's head every `seconds`, without an end
    down           the connection is closed as soon as it is accepted

The first eight concern the bytes of a file: they apply to a GET that serves a file (or the part of it that
holds byte `offset`), never to an answer of the API or a redirect. `down` knows no path.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from tests.servers.hub_log import Role, matches

Kind = Literal[
    "corrupt",
    "truncate",
    "short",
    "extra",
    "drop",
    "trickle",
    "endless",
    "content_range",
    "html",
    "status",
    "delay",
    "loop",
    "redirect",
    "slow_head",
    "down",
]
BODY_KINDS: frozenset[Kind] = frozenset(
    {"corrupt", "truncate", "short", "extra", "drop", "trickle", "endless", "content_range"}
)


@dataclass(frozen=True)
class Fault:
    """A fault, where it happens, and how often.

    Attributes:
        kind: what goes wrong; the module's docstring says how.
        path: a pattern of `fnmatch` for the file, `org/name/file` or the URL's path.
        host: only at this server (None: at both).
        method: only for this HTTP method (None: for all).
        count: for the first so many requests it applies to (None: until the faults are cleared).
        offset, size, status, retry_after, seconds, location: see the kinds.
    """

    kind: Kind
    path: str = "*"
    host: Role | None = None
    method: str | None = None
    count: int | None = None
    offset: int = 0
    size: int = 1
    status: int = 503
    retry_after: int | None = None
    seconds: float = 1.0
    location: str = ""

    def position(self, size: int) -> int:
        """Return where in a file of `size` bytes `offset` points."""
        return self.offset if self.offset >= 0 else size + self.offset

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Fault:
        """Make a fault from parsed JSON.

        Raises:
            ValueError: an unknown field, kind or host, or a value of the wrong type.
        """
        known = {item.name: item.default for item in fields(cls)}
        for name, value in raw.items():
            if name not in known:
                raise ValueError(f"a fault has no {name!r}; known: {', '.join(known)}")
            if name in {"offset", "size", "status", "count", "retry_after"} and type(value) is not int:
                raise ValueError(f"{name} must be a whole number, not {value!r}")
        if raw.get("kind") not in get_args(Kind):
            raise ValueError(f"unknown kind {raw.get('kind')!r}; known: {', '.join(get_args(Kind))}")
        if raw.get("host") not in {None, *get_args(Role)}:
            raise ValueError(f"unknown host {raw['host']!r}; known: {', '.join(get_args(Role))}")
        return cls(**raw)


class Faults:
    """The faults in force. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left: list[tuple[Fault, int | None]] = []

    def add(self, *faults: Fault) -> None:
        """Put faults into force, after those that are."""
        with self._lock:
            self._left += [(fault, fault.count) for fault in faults]

    def clear(self) -> None:
        """Behave well again."""
        with self._lock:
            self._left.clear()

    def as_json(self) -> list[dict[str, object]]:
        """Return the faults in force, `count` being how often each will still apply."""
        with self._lock:
            return [{**asdict(fault), "count": left} for fault, left in self._left]

    def take_down(self, host: Role) -> bool:
        """Whether a connection to `host` has to be closed at once."""
        return any(self._take(lambda fault: fault.kind == "down" and fault.host in {None, host}))

    def take_before(self, host: Role, method: str, path: str, repo: str, file: str) -> list[Fault]:
        """Return the faults that this request meets before it is answered, and count them."""
        return self._take(
            lambda fault: (
                fault.kind not in BODY_KINDS | {"down"} and _fits(fault, host, method, path, repo, file)
            )
        )

    def take_body(
        self, host: Role, path: str, repo: str, file: str, *, start: int, stop: int, size: int, partial: bool
    ) -> list[Fault]:
        """Return the faults for the bytes [start, stop) of a file of `size` bytes, and count them."""

        def applies(fault: Fault) -> bool:
            if fault.kind not in BODY_KINDS or not _fits(fault, host, "GET", path, repo, file):
                return False
            if fault.kind == "corrupt":
                return start <= fault.position(size) < stop
            return fault.kind != "content_range" or partial

        return self._take(applies)

    def _take(self, applies: Callable[[Fault], bool]) -> list[Fault]:
        """Return, and count, the first fault of each kind that applies; bits may flip in several places."""
        taken: dict[tuple[Kind, int], Fault] = {}
        with self._lock:
            left: list[tuple[Fault, int | None]] = []
            for fault, n in self._left:
                key = (fault.kind, fault.offset if fault.kind == "corrupt" else 0)
                if key not in taken and applies(fault):
                    taken[key] = fault
                    n = None if n is None else n - 1
                if n is None or n > 0:
                    left.append((fault, n))
            self._left = left
        return list(taken.values())


def _fits(fault: Fault, host: Role, method: str, path: str, repo: str, file: str) -> bool:
    return (
        fault.host in {None, host}
        and fault.method in {None, method}
        and matches(fault.path, path, repo, file)
    )
