"""What steps of the story give back, and that each of them happens once.

A step that failed fails again for the next row that needs it, without being tried anew.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from bench.appended import Appended
from bench.measure import Measured
from bench.naive import Naive
from bench.recorder import Uploaded
from bench.setting import say


class Told(Protocol):
    """Who has steps: `done` is what became of each."""

    done: dict[str, Any]


_Story = TypeVar("_Story", bound=Told)
_Result = TypeVar("_Result")


def once(step: Callable[[_Story], _Result]) -> Callable[[_Story], _Result]:
    """Let a step happen once, whether it succeeds or fails."""

    @functools.wraps(step)
    def run(story: _Story) -> _Result:
        name = step.__name__
        if name not in story.done:
            say(f"bench: {name.replace('_', ' ')}")
            began = time.monotonic()
            try:
                story.done[name] = step(story)
            except Exception as error:
                story.done[name] = error
            say(f"bench: {name.replace('_', ' ')}: {time.monotonic() - began:.1f} s")
        outcome = story.done[name]
        if isinstance(outcome, Exception):
            raise outcome
        result: _Result = outcome
        return result

    return run


@dataclass(frozen=True)
class Timed(Generic[_Result]):
    """A run, and the processor seconds that hub and registry took for it."""

    run: _Result
    hub: float
    registry: float


class Rounds:
    """Cold runs, side by side. One kind that fails takes no other with it: asked for, it says why."""

    def __init__(self) -> None:
        self._made: dict[str, list[Any]] = {}
        self._failed: dict[str, Exception] = {}

    def add(self, kind: str, run: Callable[[], Any]) -> None:
        """Do one run of a kind, unless one has failed."""
        if kind in self._failed:
            return
        try:
            self._made.setdefault(kind, []).append(run())
        except Exception as error:
            self._failed[kind] = error

    @property
    def publish(self) -> list[Timed[Measured]]:
        """Runs of `build.py publish --candidate`."""
        return self._of("publish")

    @property
    def floor(self) -> list[Timed[float]]:
        """Seconds of PUTs from memory."""
        return self._of("floor")

    @property
    def naive(self) -> list[Naive]:
        """Builds and pushes by hand."""
        return self._of("naive")

    @property
    def appended(self) -> list[Appended]:
        """Runs of olot and skopeo."""
        return self._of("appended")

    def _of(self, kind: str) -> list[Any]:
        if kind in self._failed:
            raise self._failed[kind]
        return self._made[kind]


@dataclass(frozen=True)
class Published:
    """One publish that was counted: what moved. `up`: bytes to the registry, headers included."""

    digest: str
    weights: int
    hub: int
    up: int
    uploads: list[Uploaded]
    requests: list[str]
    measured: Measured


@dataclass(frozen=True)
class Pulled:
    """One pull: the weight layers that were asked for, their bytes, and all bytes."""

    layers: int
    weights: int
    all: int
