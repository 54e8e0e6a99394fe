"""Real parts: an engine, a registry with a password, a small base image. `scripts/` starts what is missing.

Nothing is stopped at the end: a second run, or a person, goes on with the same parts. What a test makes
in them, it removes.
"""

from __future__ import annotations

import io
import re
import secrets
import shutil
import subprocess
import tarfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from modelbake.credentials import Secret
from modelbake.dockerconfig import RegistryCredentials
from modelbake.engine import Engine, connect
from tests.integration.stores_world import (
    azure_server,
    azure_tls_server,
    bridge,
    gcs_server,
    mlflow_server,
    s3_server,
)
from tests.integration.world import WORLDS, Services, World
from tests.servers.environment import Wheels, bridge_address, build_environment, run_script, shell_exports
from tests.servers.hub import Hub
from tests.servers.minilm import cache_folder

__all__ = [
    "azure_server",
    "azure_tls_server",
    "bridge",
    "gcs_server",
    "mlflow_server",
    "s3_server",
]  # fixtures, from there

# Enough of a system for RUN steps, taken from this machine: no download, no distribution in particular.
_PROGRAMS = "cat cp echo env false head id ls mkdir rm seq sh sha256sum sleep tail touch true wc"


@dataclass(frozen=True)
class TestRegistry:
    """A registry that wants a password."""

    __test__ = False

    host: str
    user: str
    password: Secret

    def for_registry(self, host: str) -> RegistryCredentials | None:
        """As modelbake.dockerconfig.RegistryAuth does, for this registry alone."""
        return RegistryCredentials(self.user, self.password) if host == self.host else None


@pytest.fixture(scope="session")
def engine_host() -> str:
    """The address of a running engine."""
    return shell_exports("engine", "up")["DOCKER_HOST"]


@pytest.fixture(scope="session")
def engine(engine_host: str) -> Iterator[Engine]:
    """A running engine."""
    with connect(engine_host) as connected:
        yield connected


@pytest.fixture(scope="session")
def registry(engine_host: str) -> TestRegistry:
    """A running registry."""
    exports = shell_exports("registry", "up", environment={"DOCKER_HOST": engine_host})
    password = Path(exports["MODELBAKE_REGISTRY_PASSWORD_FILE"]).read_text().strip()
    return TestRegistry(exports["MODELBAKE_REGISTRY"], exports["MODELBAKE_REGISTRY_USER"], Secret(password))


@pytest.fixture(scope="session")
def rootfs() -> bytes:
    """A tar of a root file system with a shell."""
    files: dict[str, Path] = {}
    for program in _PROGRAMS.split():
        path = shutil.which(program)
        assert path is not None, f"{program} is not on this machine"
        files[f"bin/{program}"] = Path(path)
        linked = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
        files |= {name.lstrip("/"): Path(name) for name in re.findall(r"(/\S+) \(0x", linked)}
    content: dict[str, bytes | str] = {
        name: path.resolve().read_bytes() for name, path in sorted(files.items())
    }
    # What an earlier run built on the same bytes is in the engine's cache; this run is to build it anew.
    return tar({**content, "etc/run-id": uuid.uuid4().hex})


@pytest.fixture(scope="session")
def tiny(engine: Engine, rootfs: bytes) -> Iterator[str]:
    """The name of a base image of 5 MB, in the engine only."""
    name = f"modelbake-test/tiny:{uuid.uuid4().hex[:8]}"
    repository, _, tag = name.partition(":")
    engine.api.import_image_from_data(rootfs, repository=repository, tag=tag)
    yield name
    engine.api.remove_image(name, force=True)


def tar(files: Mapping[str, bytes | str]) -> bytes:
    """Return a tar archive, a build context for instance."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as writer:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o755
            writer.addfile(member, io.BytesIO(data))
    return archive.getvalue()


@pytest.fixture(scope="session")
def services(
    engine_host: str, registry: TestRegistry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Services]:
    """The engine, the registry, a base image in it, and what lets builds reach this package index."""
    second_engine()  # it also unpacks the docker program that some tests use as a user would
    exports = shell_exports("registry", "up")
    base = run_script(
        "base-image",
        "--push",
        f"{registry.host}/base/python:3.11-bookworm",
        environment={**exports, "DOCKER_HOST": engine_host},
    )
    bridge = bridge_address(engine_host)
    with Wheels(bridge, cache_folder().parent) as wheels:
        yield Services(
            docker_host=engine_host,
            registry=registry.host,
            registry_user=registry.user,
            registry_password_file=Path(exports["MODELBAKE_REGISTRY_PASSWORD_FILE"]),
            base=base,
            bridge=bridge,
            build_environment=build_environment(tmp_path_factory.mktemp("build"), wheels),
            wheels_cpu=wheels.cpu,
        )


def second_engine() -> str:
    """Start (or find) an engine that has none of the first one's images; return its address."""
    return shell_exports("engine", "up", "--name", "second")["DOCKER_HOST"]


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """After every test: no token and no password is in what any `build.py` has said or written meanwhile."""
    yield
    assert [leak for world in WORLDS for leak in world.leaks()] == []


@pytest.fixture
def world(services: Services, tmp_path: Path) -> Iterator[World]:
    """A user's folder, and a hub that answers nothing without the token."""
    token = f"hf_{secrets.token_hex(17)}"
    with Hub(tmp_path / "hub", {token: None}, host=services.bridge) as hub:
        made = World(services, tmp_path, hub, token)
        yield made
        made.remove_images()
