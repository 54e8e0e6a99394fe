"""What a registry's HTTP reply says. Pure."""

from __future__ import annotations

import email.utils
import json
import re
import time
from dataclasses import dataclass
from typing import Any

import httpx2

_FULL = re.compile(r'no space left on device|disk quota exceeded|"Err": (?:28|122)\b')  # ENOSPC, EDQUOT


@dataclass(frozen=True)
class Reply:
    """One finished HTTP reply."""

    status: int
    headers: httpx2.Headers
    body: bytes


def parse_challenges(header: str) -> dict[str, dict[str, str]]:
    """Parse `WWW-Authenticate` into `{scheme in lower case: parameters}`, as far as it makes sense."""
    found: dict[str, dict[str, str]] = {}
    scheme: str | None = None
    word_of = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"  # RFC 9110 calls it a token
    pattern = re.compile(
        rf'\s*,?\s*(?:({word_of})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({word_of}))|({word_of})(?=\s|,|$))', re.ASCII
    )
    position = 0
    while match := pattern.match(header, position):
        position = match.end()
        name, quoted, plain, word = match.groups()
        if word is not None:
            scheme = word.lower()
            found.setdefault(scheme, {})
        elif scheme is not None:
            value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain
            found[scheme].setdefault(name.lower(), value)
    return found


def document_of(body: bytes) -> dict[str, Any]:
    """Return the JSON object that a body is, empty where it is none."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def said(reply: Reply) -> str:
    """Return the status and the first error a registry's reply names, in one short printable line."""
    errors = document_of(reply.body).get("errors")
    first = errors[0] if isinstance(errors, list) and errors and isinstance(errors[0], dict) else {}
    words = " ".join(str(first[key]) for key in ("code", "message") if first.get(key))
    words = re.sub(r"[^\x20-\x7e]+", " ", words)[:200]
    return f"HTTP {reply.status} {words}".rstrip()


def says_full(reply: Reply) -> bool:
    """Tell whether a reply is about a full disk of the registry's.

    CNCF distribution keeps that in the error's detail: in words, or as Go writes an error of the system.
    """
    errors = document_of(reply.body).get("errors")
    details = json.dumps(errors) if reply.status >= 500 and errors else ""
    return bool(_FULL.search(details))


def next_page(reply: Reply) -> str | None:
    """Return the address of a list's next page, None where this is the last one."""
    link = re.match(r'\s*<([^>]+)>\s*;\s*rel="?next"?', reply.headers.get("Link", ""))
    return link[1] if link else None


def retry_after(reply: Reply) -> float:
    """Return the seconds a reply asks to wait, 0 where it says nothing usable."""
    value = reply.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", value):
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    try:
        return max(0.0, moment.timestamp() - time.time())
    except (OverflowError, OSError):
        return 0.0
