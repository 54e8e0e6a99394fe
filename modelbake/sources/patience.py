"""How long a source is waited for, and what it says of that itself."""

from __future__ import annotations

import email.utils
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Patience:
    """How long to go on. Times in seconds.

    Attributes:
        busy_attempts: tries while the hub answers 429 or 5xx.
        silent_attempts: tries while it does not answer at all.
        first_wait: before the second try; doubled each time.
        longest_wait: between two tries; a hub that asks for more is given up.
        connect: for a connection, a TLS handshake included.
        read: for the next bytes.
        answer: for a whole answer, its head included; files get more, by their size.
        listing: for all pages of a listing.
    """

    busy_attempts: int = 5
    silent_attempts: int = 3
    first_wait: float = 0.5
    longest_wait: float = 30
    connect: float = 10
    read: float = 30
    answer: float = 60
    listing: float = 900

    def wait(self, attempt: int) -> float:
        """Return the seconds to wait after a failed attempt (1, 2, ...)."""
        return min(self.longest_wait, self.first_wait * float(2 ** (attempt - 1)))


def seconds_to_wait(retry_after: str) -> float | None:
    """Return what a Retry-After header says in seconds, None where it says nothing usable."""
    value = retry_after.strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
