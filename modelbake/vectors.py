"""Vectors as JSON has them: lists of numbers that have a direction, and how near two directions are. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeGuard


def is_number(value: Any) -> bool:
    """Tell whether a JSON value is a number; `true` is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_vector(value: Any) -> TypeGuard[list[float]]:
    """Tell whether a JSON value is a list of finite numbers that are not all zero: it has a direction."""
    try:
        return isinstance(value, list) and (
            all(is_number(x) and math.isfinite(x) for x in value) and any(float(x) != 0 for x in value)
        )
    except OverflowError:  # an integer beyond all floats
        return False


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the cosine of the angle between two vectors of one length, neither of them zero."""
    # Scaled first, so that squares of large or small numbers neither overflow nor vanish.
    sizes = [max(abs(float(x)) for x in vector) for vector in (one, other)]
    scaled = [[float(x) / size for x in vector] for vector, size in zip((one, other), sizes, strict=True)]
    dot = math.fsum(a * b for a, b in zip(*scaled, strict=True))
    norms = [math.sqrt(math.fsum(x * x for x in vector)) for vector in scaled]
    return min(1.0, max(-1.0, dot / (norms[0] * norms[1])))
