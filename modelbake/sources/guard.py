"""The rule of `addresses`, as those who follow redirects ask for it."""

from __future__ import annotations

from urllib.parse import urlsplit

from modelbake.errors import SourceError
from modelbake.sources.addresses import redirect_problem


def require_allowed(server: str, target: str, *, subject: str, noun: str) -> None:
    """Raise SourceError for a host that a server (its URL) must not send us to."""
    if problem := redirect_problem(urlsplit(server).hostname or "", target):
        raise SourceError(
            f"the {noun} redirects to where it must not: {problem}",
            subject=subject,
            hint=f"the {noun}, or what answers in its place, may have been taken over",
        )
