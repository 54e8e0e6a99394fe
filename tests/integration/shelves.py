"""Where a team may keep its weights: each kind of source, filled with files, as models.yaml names it.

A shelf is real: a hub, a store's server, a folder. `keeps_versions` tells whether what was replaced can still
be had; where it cannot, a build of the old lock has to fail.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.integration.world import World
from tests.servers.azurite_server import ACCOUNT, AzuriteServer
from tests.servers.gcs import GcsServer


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


def gcs_shelf(world: World, files: Mapping[str, bytes], folder: Path, server: GcsServer) -> Shelf:
    bucket = server.bucket()

    def put(path: str, content: bytes) -> None:
        server.put(bucket, f"models/llama 3/{path}", content)

    for path, content in files.items():
        put(path, content)
    key = json.loads(server.reader.key_file.read_text())["private_key"]
    return Shelf(
        {"source": f"gs://{bucket}/models/llama 3", "endpoint": server.endpoint},
        put,
        keeps_versions=True,
        environment=server.environment_for(server.reader),
        secrets=frozenset({key.splitlines()[5]}),
    )


def azure_shelf(world: World, files: Mapping[str, bytes], folder: Path, server: AzuriteServer) -> Shelf:
    container = server.container()

    def put(path: str, content: bytes) -> None:
        server.put(container, f"models/llama 3/{path}", content)

    for path, content in files.items():
        put(path, content)
    return Shelf(
        {"source": f"az://{ACCOUNT}/{container}/models/llama 3", "endpoint": server.account_url},
        put,
        keeps_versions=False,  # Azurite has no versions; of accounts that have, see the unit tests
        environment={"AZURE_STORAGE_KEY": server.key},
        secrets=frozenset({server.key}),
    )


SHELVES: dict[str, Callable[..., Shelf]] = {
    "hf": hub_shelf,
    "file": file_shelf,
    "gs": gcs_shelf,
    "az": azure_shelf,
}
SERVERS = {"gs": "gcs_server", "az": "azure_server"}  # the fixture with a kind's server, which comes last
