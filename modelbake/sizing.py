"""How large an image on an engine is: the engine's own count where that is of unpacked bytes, else ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelbake.budget import require_size
from modelbake.imagetar import read_image
from modelbake.quantity import bytes_of
from modelbake.size import Sizes, sizes_of

if TYPE_CHECKING:
    from modelbake.config import ModelSpec
    from modelbake.engine import Engine, LocalImage


def measure(engine: Engine, image_id: str) -> Sizes:
    """Read a whole image from the engine, and count it. Raises ImageNotFound, EngineError."""
    return sizes_of(read_image(engine.export(image_id)))


def require_image_size(engine: Engine, spec: ModelSpec, image: LocalImage) -> None:
    """Raise ImageTooLarge, with what takes most, where an image is larger than its model's `max_size`.

    The classic store counts files; the containerd store counts what it keeps, which may be compressed.
    """
    if spec.max_size is None:
        return
    if engine.info.store == "classic" and image.size <= bytes_of(spec.max_size):
        return
    sizes = measure(engine, image.id)
    require_size(
        spec, max(sizes.total, image.size) if engine.info.store == "classic" else sizes.total, sizes.largest()
    )
