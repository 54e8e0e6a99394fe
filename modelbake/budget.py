"""`max_size`: how large a model's image may be, unpacked, and what is said when it is larger. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelbake.errors import ImageTooLarge
from modelbake.quantity import bytes_of, size_text

if TYPE_CHECKING:
    from modelbake.config import ModelSpec

_REMEDY = "leave something out of the weights (`exclude`) or the packages (docs/slim.md), or raise `max_size`"


def require_size(spec: ModelSpec, size: int, largest: Sequence[tuple[str, int]] = ()) -> None:
    """Raise ImageTooLarge where an image of `size` bytes is larger than the model's `max_size`.

    `largest`: what takes most of it, by name, with its bytes.
    """
    if spec.max_size is None or size <= (most := bytes_of(spec.max_size)):
        return
    takes = ", ".join(f"{name} {size_text(taken)}" for name, taken in largest)
    raise ImageTooLarge(
        f"the image is {size_text(size)} unpacked, {size_text(size - most)} more than"
        f" `max_size: {spec.max_size}`{'; the largest: ' if takes else ''}{takes}",
        subject=f"{spec.name} {spec.version}",
        hint=_REMEDY,
    )


def over_budget(spec: ModelSpec, weights: int, runtime: int | None) -> str | None:
    """Return what `require_budget` would say, None where it would say nothing."""
    try:
        require_budget(spec, weights, runtime)
    except ImageTooLarge as error:
        return error.message
    return None


def require_budget(spec: ModelSpec, weights: int, runtime: int | None) -> None:
    """Raise ImageTooLarge where an image cannot but be larger than the model's `max_size`.

    `weights`: bytes of the weights; `runtime`: of the runtime's layers as the registry keeps them, compressed
    perhaps, so that it is at least as large; None where it is not known yet.
    """
    if spec.max_size is None or weights + (runtime or 0) <= bytes_of(spec.max_size):
        return
    largest = [("weights", weights), *([("runtime, compressed", runtime)] if runtime else [])]
    try:
        require_size(spec, weights + (runtime or 0), largest)
    except ImageTooLarge as error:
        error.message = error.message.replace("the image is ", "the image is at least ", 1)
        raise
