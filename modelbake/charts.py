"""Where the points, lines and ticks of a small line chart lie. Pure: numbers in, numbers out.

One chart shows one figure of all versions on one device, from the oldest at the left. The vertical axis
begins at 0, so that what looks twice as high is twice as large.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

WIDTH, HEIGHT = 280.0, 170.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 12.0, 12.0, 28.0
_TICKS = 4  # steps of the vertical axis, about
_CHARACTER = 6.4  # width of a label's character
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Point:
    """One measurement: its place, and which version (counted from 0) it is of."""

    x: float
    y: float
    index: int


@dataclass(frozen=True)
class Line:
    """The measurements: `parts` are those of versions next to each other, `bridges` lead over the others."""

    points: tuple[Point, ...]
    parts: tuple[tuple[Point, ...], ...]
    bridges: tuple[tuple[Point, ...], ...]


@dataclass(frozen=True)
class Tick:
    """A step of an axis: its place along it, and its value or the version's index."""

    at: float
    value: float


@dataclass(frozen=True)
class Axes:
    """The steps of both axes."""

    horizontal: tuple[Tick, ...]
    vertical: tuple[Tick, ...]


def axes(labels: Sequence[str], most: float) -> Axes:
    """Return the axes for these versions and values up to `most`; labels that would overlap are left out."""
    step = nice_step(most)
    count = max(1, math.ceil(most / step - 1e-9))
    vertical = tuple(Tick(_y(number * step, count * step), number * step) for number in range(count + 1))
    widest = max((len(label) for label in labels), default=1) * _CHARACTER + 10
    fit = max(1, int((WIDTH - LEFT - RIGHT) / widest))
    every = math.ceil(len(labels) / fit)
    # Counted from the newest: that one always has its label.
    shown = range(len(labels) - 1, -1, -every)
    return Axes(tuple(Tick(_x(index, len(labels)), index) for index in shown), vertical)


def line(values: Sequence[float | None], top: float) -> Line:
    """Return the line through a version's values; `top`: the value at the upper end of the axis."""
    parts: list[list[Point]] = [[]]
    for index, value in enumerate(values):
        if value is None:
            parts.append([])
        else:
            parts[-1].append(Point(_x(index, len(values)), _y(value, top), index))
    joined = tuple(tuple(part) for part in parts if part)
    bridges = tuple((left[-1], right[0]) for left, right in pairwise(joined))
    return Line(tuple(point for part in joined for point in part), joined, bridges)


def nice_step(most: float) -> float:
    """Return a round step that cuts 0 to `most` into about four."""
    if most <= 0:
        return 1.0
    rough = most / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in _STEPS if step * power >= rough * (1 - 1e-9))


def _x(index: int, count: int) -> float:
    inner = WIDTH - LEFT - RIGHT
    return round(LEFT + inner * (index + 0.5) / max(count, 1), 2)


def _y(value: float, top: float) -> float:
    inner = HEIGHT - TOP - BOTTOM
    return round(HEIGHT - BOTTOM - inner * value / top, 2)
