"""A layer far away: a model at a real hub, a registry that wants a password, and the task between them."""

from __future__ import annotations

import pickle
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from modelbake.config import ModelSpec
from modelbake.credentials import Secret
from modelbake.dockerconfig import RegistryCredentials
from modelbake.lock import Lock
from modelbake.locked import LockedModel
from modelbake.plan import WeightGroup, group_files
from modelbake.registry import Registry
from modelbake.sources import resolve_all
from modelbake.stream.repository import RegistryRepository
from modelbake.stream.task import LayerTask
from tests.servers.hub import Hub, Repo
from tests.servers.upload_registry import PASSWORD, USER, UploadRegistry
from tests.unit.stream.material import content

_Anything = TypeVar("_Anything")
FILES = {"config.json": b"{}", "model.safetensors": content(300_000, 1)}


def again(thing: _Anything) -> _Anything:
    """Return what another process gets."""
    return pickle.loads(pickle.dumps(thing))  # type: ignore[no-any-return]  # noqa: S301


@dataclass
class Far:
    """A hub with one model, a registry, and what a worker needs to know of them."""

    hub: Hub
    server: UploadRegistry
    token: str
    folder: Path
    locked: LockedModel

    @property
    def host(self) -> str:
        return self.server.host

    @property
    def group(self) -> WeightGroup:
        (group,) = group_files(self.locked.weights)
        return group

    def task(self) -> LayerTask:
        return LayerTask(self.locked, self.group, "none", self.host, "ml/weights")

    def environment(self) -> dict[str, str]:
        """What a worker has to be started with."""
        return {
            "HF_TOKEN": self.token,
            "MODELBAKE_REGISTRY": self.host,
            "MODELBAKE_REGISTRY_USER": USER,
            "MODELBAKE_REGISTRY_PASSWORD": PASSWORD,
            "DOCKER_CONFIG": str(self.folder),
            "HF_HOME": str(self.folder),
        }

    @contextmanager
    def repository(self) -> Iterator[RegistryRepository]:
        """The repository, as seen from here."""
        with Registry(self.host, RegistryCredentials(USER, Secret(PASSWORD))) as registry:
            yield RegistryRepository(registry, "ml/weights")


@contextmanager
def far_away(folder: Path, files: Mapping[str, bytes] = FILES) -> Iterator[Far]:
    """Start a hub and a registry; lock the model."""
    token = f"hf_{secrets.token_hex(17)}"
    with Hub(folder / "hub", {token: None}) as hub, UploadRegistry() as server:
        Repo.create(hub.root, "acme/far", files)
        spec = ModelSpec(name="far", version="1.0.0", source="hf://acme/far", runtime="tiny", hub=hub.url)
        (resolved,) = resolve_all([spec], Lock(), Secret(token))
        hub.reset_log()
        yield Far(hub, server, token, folder, resolved.locked)
