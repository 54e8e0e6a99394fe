"""oci:// sources as users have them: artifacts and images of a real registry become models."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from modelbake.lock import read_lock
from modelbake.locked import LockedSource
from modelbake.sources.oci import OciStore, open_store
from modelbake.sources.store import InnerReader
from tests.integration.world import World
from tests.servers.oci_content import OciContent, packed

pytestmark = pytest.mark.engine

ODD = "a b/größe +100%.txt"
FILES = {
    "config.json": b'{"kind": "tiny"}\n',
    "model.safetensors": b"\4" * 300_000,
    ODD: b"odd",
    "empty": b"",
}


@pytest.fixture
def content(world: World) -> Iterator[OciContent]:
    """A repository for weights; docker's own login is the only one that is known of the registry."""
    world.login()
    for name in ("MODELBAKE_REGISTRY_USER", "MODELBAKE_REGISTRY_PASSWORD_FILE"):
        del world.environment[name]
    services = world.services
    login = (services.registry, services.registry_user, services.password)
    with closing(OciContent(*login, f"{world.namespace}/pets")) as made:
        yield made


def lock(world: World, source: str, **keys: Any) -> LockedSource:
    world.models(tiny={"source": source, **keys})
    world.run("lock")
    world.build_py("lock", "--check").ok()
    return read_lock(world.folder / "models.lock").models["tiny"]


def read_all(world: World, locked: LockedSource, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Read every file in two parts, as a lane does that goes on after it was broken off."""
    monkeypatch.setenv("DOCKER_CONFIG", str(world.folder / ".docker"))
    with closing(open_store(locked)) as store:
        assert isinstance(store, OciStore)
        reader = InnerReader(locked, store.reader(threading.Event()))
        found = {}
        for file in locked.files:
            half = file.size // 2
            whole = b"".join(reader.read(file))
            assert b"".join(reader.read(file, half)) == whole[half:]
            found[file.path] = whole
        return found


@pytest.mark.parametrize("packing", ["raw", "tar", "tar+gzip", "tar+zstd"])
def test_modelpack(world: World, content: OciContent, packing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content.modelpack("1", FILES, packing)
    locked = lock(world, content.source("1"))
    assert read_all(world, locked, monkeypatch) == FILES
    ending = {"raw": "", "tar": r"!tar\+512", "tar+gzip": "!gzip", "tar+zstd": "!zstd"}[packing]
    plain = [file.version for file in locked.files if file.path != ODD]  # its name takes a header more
    assert all(re.fullmatch(rf"sha256:[0-9a-f]{{64}}{ending}", version) for version in plain)


def test_oras_artifacts_and_images(
    world: World, content: OciContent, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed = content.oras("oras", {"config.json": b"{}"}, {"weights": packed({f"weights/{ODD}": b"odd"})})
    locked = lock(world, content.source(pushed["digest"]))
    assert read_all(world, locked, monkeypatch) == {"config.json": b"{}", f"weights/{ODD}": b"odd"}
    below = {f"models/{path}": data for path, data in FILES.items()}
    for compression in ("", "gzip"):
        layers = [{"etc/x": b"1", "models/old": b"2"}, below, {"models/.wh.old": b"", "etc/link": None}]
        image = content.image("car", layers, compression)
        content.index("several", [{**image, "platform": {"os": "linux", "architecture": "amd64"}}])
        assert read_all(world, lock(world, content.source("several")), monkeypatch) == FILES
    chosen = lock(world, content.source("car"), include=["*.json"])
    assert [file.path for file in chosen.files] == ["config.json"]


def test_what_goes_wrong_is_said(world: World, content: OciContent) -> None:
    content.modelpack("1", FILES)
    locked = lock(world, content.source("1"))
    content.modelpack("1", {**FILES, "config.json": b"{}"})
    moved = world.build_py("lock", "--check")
    assert moved.code == 13
    assert "tiny: moved: " in moved.out
    world.models(tiny={"source": content.source("none")})
    assert world.build_py("lock").code == 23
    content.image("link", [{"models/a": b"1", "models/b": None}])
    world.models(tiny={"source": content.source("link")})
    refused = world.build_py("lock")
    assert refused.code == 20
    assert "'b' is a link" in refused.err or "'models/b' is a link" in refused.err
    world.models(tiny={"source": content.source("1")})
    world.secrets.add("not-the-password")
    wrong = {"MODELBAKE_REGISTRY_USER": "me", "MODELBAKE_REGISTRY_PASSWORD": "not-the-password"}
    refused = world.build_py("lock", **wrong)
    assert refused.code == 21
    assert "credHelpers, credsStore, auths" in refused.err
    assert read_lock(world.folder / "models.lock").models["tiny"] == locked, "what was locked stays"
    anonymous = world.build_py("lock", DOCKER_CONFIG=str(world.folder / "none"))
    assert anonymous.code == 21


def test_thousands_of_files_in_one_tar(world: World, content: OciContent) -> None:
    many = {f"models/parts/{number:05}.json": b"%d" % number for number in range(3000)}
    content.image("many", [many], "gzip")
    assert len(lock(world, content.source("many")).files) == 3000
