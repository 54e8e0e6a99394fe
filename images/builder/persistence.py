"""How long to go on after failures that may pass: bounds for attempts, for waiting, and for time in all."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TypeVar

from events import Code, FetchError
from hub import Retry

_BACKOFF = 0.5, 16.0  # seconds before the second attempt, and at most; doubled each time
_PROGRESSED = 1 << 20  # bytes after which failures are counted anew
_SLOWEST = 50 * 1024  # bytes a second, on the whole; less is taken for a server that only keeps us busy
_EACH = 5.0  # seconds more for each file of a run

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Limits:
    """How hard to try.

    Attributes:
        attempts: in a row without progress, for a file.
        patience: seconds spent waiting between attempts, for a file.
        grace: seconds for a file of no size, and for a run of no files.
        stall: seconds without any byte after which hf_transfer is ended.
        ranges_from: size in bytes from which a file is fetched in parallel ranges.
    """

    attempts: int = 6
    patience: float = 300.0
    grace: float = 900.0
    stall: float = 60.0
    ranges_from: int = 16 << 20


class Persistence:
    """The attempts for one file of `size` bytes. Safe to use from any thread.

    Attributes:
        attempts: made so far.
    """

    def __init__(self, size: int, limits: Limits, stop: threading.Event) -> None:
        self.attempts = 1
        self._limits = limits
        self._stop = stop
        self._lock = threading.Lock()
        self._allowed = limits.grace + size / _SLOWEST
        self._deadline = math.inf
        self._failures = 0
        self._waited = 0.0
        self._reached = 0

    def begin(self) -> None:
        """Let the file's time run, which its waiting for other files is no part of."""
        self._deadline = time.monotonic() + self._allowed

    def insist(self, ask: Callable[[], _Result]) -> _Result:
        """Call `ask` until it raises no `Retry`, waiting in between.

        Raises:
            FetchError: UNREACHABLE when it is enough, with the last reason; INTERRUPTED.
        """
        while True:
            self.check()
            try:
                return ask()
            except Retry as retry:
                self._wait(retry)

    def reached(self, count: int) -> None:
        """Learn that `count` bytes of the file are there; more than ever before gives new courage."""
        with self._lock:
            if count >= self._reached + _PROGRESSED:
                self._reached = count
                self._failures = 0

    def again(self) -> None:
        """Count an attempt of another kind, which starts from nothing."""
        with self._lock:
            self.attempts += 1
            self._failures = self._reached = 0

    def is_over(self) -> bool:
        """Whether `check` would raise."""
        return self._stop.is_set() or time.monotonic() > self._deadline

    def check(self) -> None:
        """Raise FetchError if the run has been given up, or this file takes too long."""
        if self._stop.is_set():
            raise FetchError(Code.INTERRUPTED, "the run has been given up")
        if time.monotonic() > self._deadline:
            raise too_slow()

    def _wait(self, retry: Retry) -> None:
        with self._lock:
            self._failures += 1
            pause = _pause(self._failures, retry.after)
            left = self._limits.patience - self._waited
            if self._failures >= self._limits.attempts:
                raise FetchError(Code.UNREACHABLE, f"gave up after {self._failures} attempts: {retry.reason}")
            if pause > left:
                asked = f", which asks to wait {retry.after:.0f} s" if retry.after else ""
                raise FetchError(
                    Code.UNREACHABLE,
                    f"gave up after {self._waited:.0f} s of waiting: {retry.reason}{asked}",
                )
            self._waited += pause
            self.attempts += 1
        self._stop.wait(pause)


def too_slow() -> FetchError:
    """Return the error for a server that would keep us busy for ever."""
    return FetchError(Code.UNREACHABLE, f"too slow: less than {_SLOWEST // 1024} KiB/s on the whole")


def longest_run(sizes: Collection[int], limits: Limits) -> float:
    """Return the seconds after which a run is given up, whatever its files still have."""
    return limits.grace + _EACH * len(sizes) + sum(sizes) / _SLOWEST


def _pause(failures: int, after: float | None) -> float:
    """Return the seconds to wait after so many failures in a row, if the server asked for `after`."""
    if after == 0:
        return 0.0
    first, most = _BACKOFF
    backoff = min(first * 2.0 ** (failures - 1), most) * random.uniform(0.8, 1.2)  # noqa: S311
    return max(backoff, after or 0.0)
