"""Requests and responses as values, and what HTTP says about ranges."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, unquote

from tests.servers.hub_faults import Fault
from tests.servers.hub_log import Role

PORTAL_PAGE = b"<!DOCTYPE html><html><title>Sign in</title><body>Please sign in to the network.</body></html>"
_RANGE = re.compile(r"bytes=(?:(\d+)-(\d*)|-(\d+))")


@dataclass(frozen=True)
class Call:
    """A request: `parts` are the path's segments, decoded, `query` the decoded query."""

    host: Role
    method: str
    path: str
    raw_query: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def parts(self) -> list[str]:
        """The path's segments, each percent-decoded (an encoded slash stays inside its segment)."""
        return [unquote(part) for part in self.path.split("/")[1:]]

    @property
    def query(self) -> dict[str, list[str]]:
        """The query's values by name."""
        return parse_qs(self.raw_query, keep_blank_values=True)


@dataclass(frozen=True)
class FileBody:
    """A body that is a file, or a range of it if the client asks for one."""

    path: Path
    size: int


@dataclass(frozen=True)
class Answer:
    """A response; Content-Length and what ranges need are added when it is sent."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | FileBody = b""


def json_answer(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """Make an answer whose body is JSON."""
    return Answer(
        status,
        {"Content-Type": "application/json; charset=utf-8", **(headers or {})},
        json.dumps(value).encode(),
    )


def redirect(status: int, location: str, headers: Mapping[str, str]) -> Answer:
    """Make a redirect."""
    text = f"Found. Redirecting to {location}".encode()
    return Answer(
        status, {"Content-Type": "text/plain; charset=utf-8", "Location": location, **headers}, text
    )


def file_answer(path: Path, size: int, headers: Mapping[str, str]) -> Answer:
    """Answer with the bytes of a file."""
    return Answer(200, {"Content-Type": "application/octet-stream", **headers}, FileBody(path, size))


def spoilt(fault: Fault, call: Call) -> Answer:
    """Make the answer that a fault gives in place of the right one."""
    if fault.kind == "html":
        return Answer(200, {"Content-Type": "text/html; charset=utf-8"}, PORTAL_PAGE)
    if fault.kind == "loop":
        query = f"?{call.raw_query}" if call.raw_query else ""
        return Answer(302, {"Location": call.path + query})
    if fault.kind == "redirect":
        return Answer(302, {"Location": fault.location})
    retry = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
    return Answer(fault.status, {"Content-Type": "text/plain", **retry}, b"a fault was asked for")


def asked_range(call: Call, etag: str | None, size: int) -> tuple[int, int] | None:
    """Return [start, stop) of the one range asked for, (0, 0) if it cannot be had, None if there is none.

    Several ranges at once, and what is not a range, are ignored, as HTTP allows; so is a range of another
    version than `If-Range` names.
    """
    match = _RANGE.fullmatch(call.headers.get("range", ""))
    if match is None or call.headers.get("if-range", etag) != etag:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        return (max(0, size - int(suffix)), size) if int(suffix) and size else (0, 0)
    start = int(first)
    stop = min(int(last) + 1, size) if last else size
    if last and int(last) < start:
        return None
    return (start, stop) if start < size else (0, 0)


def length_headers(
    headers: Mapping[str, str], status: int, start: int, stop: int, size: int
) -> dict[str, str]:
    ranged = {"Content-Range": f"bytes {start}-{stop - 1}/{size}"} if status == 206 else {}
    return {**headers, **ranged, "Content-Length": str(stop - start)}
