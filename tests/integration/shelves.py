"""Where a team may keep its weights: each kind of source, filled with files, as models.yaml names it.

A shelf is real: a hub, a store's server, a folder. `keeps_versions` tells whether what was replaced can still
be had; where it cannot, a build of the old lock has to fail.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.integration.world import World


@dataclass
class Shelf:
    """One source with files in it.

    `entry`: the keys of models.yaml. `environment`: what the user's shell needs for it. `put`: writes a file.
    `close`: stops what was started for it alone. `lost`: the files whose names it cannot keep.
    """

    entry: dict[str, Any]
    put: Callable[[str, bytes], None]
    keeps_versions: bool
    environment: dict[str, str] = field(default_factory=dict)
    secrets: frozenset[str] = frozenset()
    close: Callable[[], object] = bool
    lost: frozenset[str] = frozenset()


def hub_shelf(world: World, files: Mapping[str, bytes], folder: Path) -> Shelf:
    name = f"acme/{secrets.token_hex(4)}"
    repo = world.repo(name, files)

    def put(path: str, content: bytes) -> None:
        repo.commit({path: content})

    return Shelf({"source": f"hf://{name}"}, put, keeps_versions=True)


def file_shelf(world: World, files: Mapping[str, bytes], folder: Path) -> Shelf:
    root = folder / f"weights {secrets.token_hex(4)}"  # with a space, as a mounted disk may have it

    def put(path: str, content: bytes) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)

    for path, content in files.items():
        put(path, content)
    return Shelf({"source": f"file://{root}"}, put, keeps_versions=False)


SHELVES: dict[str, Callable[[World, Mapping[str, bytes], Path], Shelf]] = {
    "hf": hub_shelf,
    "file": file_shelf,
}
