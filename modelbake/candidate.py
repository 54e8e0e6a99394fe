"""Pushing an image through the engine under a candidate tag, which it has on the engine only meanwhile.

Several runs may do so with one image at the same moment. One then takes the name from under the other; and a
registry that keeps its links in files (CNCF distribution) refuses the one that reads such a file while the
other writes it. Both pass, so it is tried again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from modelbake.errors import ImageNotFound, PushFailed, RegistryUnavailable
from modelbake.registryupload import require_space

if TYPE_CHECKING:
    from modelbake.dockerconfig import RegistryCredentials
    from modelbake.engine import Engine
    from modelbake.engine_push import PushedTag
    from modelbake.engine_stream import LayerProgress
    from modelbake.registry import Registry

_TURNS = 5
_PAUSE = 0.5  # seconds after the first turn, twice as many after the next one
_BESIDE_OTHERS = re.compile(
    r"tag does not exist|does not exist locally|No such image|digest invalid|blob unknown", re.IGNORECASE
)


def push_candidate(
    engine: Engine,
    registry: Registry,
    image_id: str,
    name: str,
    tag: str,
    credentials: RegistryCredentials | None,
    on_event: Callable[[LayerProgress], None],
) -> PushedTag:
    """Push an image as `REGISTRY/name:tag`; the engine has that name no longer than that takes.

    Raises what `Engine.push` does, and DiskFull where the registry has no room: the engine says of that only
    that the registry fails, so it is asked.
    """
    reference = f"{registry.host}/{name}:{tag}"
    for turn in range(_TURNS):
        try:
            with engine.tagged(image_id, reference):
                return engine.push(reference, credentials, on_event)
        except (ImageNotFound, PushFailed, RegistryUnavailable) as error:
            image = engine.image(image_id)
            if image is None:  # it had no name but this one, and whoever took that took the image with it
                raise ImageNotFound("the engine no longer has the image", subject=image_id) from error
            if turn == _TURNS - 1 or not _BESIDE_OTHERS.search(error.message):
                require_space(registry, name, image.size)
                raise
            time.sleep(_PAUSE * 2**turn)
    raise AssertionError("unreachable: the last turn returns or raises")
