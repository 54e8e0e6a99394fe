"""What is asked of BuildKit, and what a way of asking has to look like."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Protocol

from modelbake.buildkit.progress import BuildEvent, Trace
from modelbake.credentials import Secret

if TYPE_CHECKING:
    from modelbake.dockerconfig import RegistryAuth


@dataclass(frozen=True)
class BuildRequest:
    """What is to be built.

    `context` is a tar with the Dockerfile at its top: bytes, or a file opened for reading. `network` is that
    of RUN steps: None (the engine's default), 'none' or 'host'.
    """

    context: bytes | IO[bytes]
    secrets: Mapping[str, Secret] = field(default_factory=dict)
    registries: RegistryAuth | None = None
    target: str | None = None
    tags: Sequence[str] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    no_cache: bool = False
    network: str | None = None


class Builder(Protocol):
    """A way to have BuildKit build."""

    def build(self, request: BuildRequest, trace: Trace, on_event: Callable[[BuildEvent], None]) -> str:
        """Build, feed what happens to `trace` and its events to `on_event`, return the image's id.

        Raises:
            Unsuitable: this way is closed; nothing was built, the context was not touched.
            ModelbakeError: the build failed, or the engine did.
        """
        ...
