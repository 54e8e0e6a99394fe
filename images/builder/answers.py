"""What an HTTP answer says of a file's bytes, before any of them is read."""

from __future__ import annotations

import re

from events import Code, FetchError
from hub import Opened, Retry
from manifest import Entry

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class NoRanges(Exception):
    """The server does not answer ranges as it should."""


def wrong_size(entry: Entry, actual: str) -> FetchError:
    """Return the error that `actual` came where the file's bytes should have."""
    expected = f"{entry.size} bytes"
    return FetchError(
        Code.WRONG_BYTES,
        f"wrong size: {expected} expected, {actual} received",
        expected=expected,
        actual=actual,
    )


def check_range(entry: Entry, opened: Opened, start: int, stop: int | None) -> None:
    """Make sure that an answer holds the bytes asked for, from `start` on (a server may send fewer of them).

    Raises:
        NoRanges: it holds others, or the whole file.
        FetchError: it is of a file of another size.
    """
    response, host = opened.response, opened.location.host
    if response.status_code != 206:
        raise NoRanges(f"{host} answered {response.status_code} to a range")
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    if match is None or _is_encoded(opened):
        raise NoRanges(f"{host} answered a range without saying which")
    first, last, total = int(match[1]), int(match[2]), match[3]
    if total not in {"*", str(entry.size)}:
        raise wrong_size(entry, f"{total} bytes")
    if first != start or not first <= last < (entry.size if stop is None else stop):
        raise NoRanges(f"{host} answered another range than was asked for")


def check_whole(entry: Entry, opened: Opened) -> None:
    """Make sure that an answer can be the whole file.

    Raises:
        Retry: it has no sense as an answer to a request without a range.
        FetchError: it is something else.
    """
    response = opened.response
    if response.status_code != 200:
        raise Retry(f"{opened.location.host} answered {response.status_code} to a plain request")
    if _is_encoded(opened):
        raise wrong_size(entry, "a compressed body, which was not asked for,")
    length = response.headers.get("Content-Length")
    if length is not None and length != str(entry.size):
        page = response.headers.get("Content-Type", "").startswith("text/html")
        raise wrong_size(entry, f"{length} bytes{' of HTML (a login page, or a proxy?)' if page else ''}")


def strong_etag(opened: Opened) -> str:
    """Return the ETag if `If-Range` may name it (RFC 9110, 13.1.5), else ""."""
    etag = str(opened.response.headers.get("ETag", ""))
    return etag if etag.startswith('"') else ""


def _is_encoded(opened: Opened) -> bool:
    encoding: str = opened.response.headers.get("Content-Encoding", "identity")
    return encoding.strip().lower() not in {"", "identity"}
