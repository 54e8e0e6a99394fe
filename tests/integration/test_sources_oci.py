"""oci:// sources as users have them: artifacts and images of a real registry become models."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from modelbake.config import SourceSpec
from modelbake.errors import RevisionNotFound, SourceError, SourceNotFound
from modelbake.lock import read_lock
from modelbake.locked import LockedSource
from modelbake.sources.oci import open_store
from modelbake.sources.storesource import InnerReader, StoreSource
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
def content(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[OciContent]:
    """A repository for weights; docker's own login is the only one that is known of the registry."""
    world.login()
    for name in ("MODELBAKE_REGISTRY_USER", "MODELBAKE_REGISTRY_PASSWORD_FILE"):
        del world.environment[name]
    monkeypatch.setenv("DOCKER_CONFIG", str(world.folder / ".docker"))
    services = world.services
    login = (services.registry, services.registry_user, services.password)
    with closing(OciContent(*login, f"{world.namespace}/pets")) as made:
        yield made


def lock(source: str, **keys: Any) -> LockedSource:
    return StoreSource(open_store).resolve(SourceSpec(name="m", source=source, **keys), None).locked


def read_all(locked: LockedSource) -> dict[str, bytes]:
    """Read every file in two parts, as a lane does that goes on after it was broken off."""
    with closing(open_store(locked)) as store:
        reader = InnerReader(locked, store.reader(threading.Event()))
        found = {}
        for file in locked.files:
            half = file.size // 2
            found[file.path] = b"".join(reader.read(file))
            assert b"".join(reader.read(file, half)) == found[file.path][half:]
        return found


@pytest.mark.parametrize("packing", ["raw", "tar", "tar+gzip", "tar+zstd"])
def test_modelpack(content: OciContent, packing: str) -> None:
    content.modelpack("1", FILES, packing)
    locked = lock(content.source("1"))
    assert read_all(locked) == FILES
    ending = {"raw": "", "tar": r"!tar\+512", "tar+gzip": "!gzip", "tar+zstd": "!zstd"}[packing]
    plain = [file.version for file in locked.files if file.path != ODD]  # its name takes a header more
    assert all(re.fullmatch(rf"sha256:[0-9a-f]{{64}}{ending}", version) for version in plain)


def test_oras_artifacts(content: OciContent) -> None:
    pushed = content.oras("oras", {"config.json": b"{}"}, {"weights": packed({f"weights/{ODD}": b"odd"})})
    locked = lock(content.source(pushed["digest"]))
    assert read_all(locked) == {"config.json": b"{}", f"weights/{ODD}": b"odd"}


@pytest.mark.parametrize("compression", ["", "gzip"])
def test_images(content: OciContent, compression: str) -> None:
    many = 1000 if compression else 50  # of a plain tar each is asked for alone
    below: dict[str, bytes | None] = {f"models/{path}": data for path, data in FILES.items()}
    below |= {f"models/parts/{number:05}.json": b"%d" % number for number in range(many)}
    lower: dict[str, bytes | None] = {"etc/x": b"1", "models/old": b"2"}
    image = content.image("car", [lower, below, {"models/.wh.old": b"", "etc/link": None}], compression)
    content.index("several", [{**image, "platform": {"os": "linux", "architecture": "amd64"}}])
    locked = lock(content.source("several"), exclude=("parts/*",))
    assert read_all(locked) == FILES
    chosen = lock(content.source("car"), include=("parts/*",))
    assert len(chosen.files) == many
    content.image("link", [{"models/a": b"1", "models/b": None}], compression)
    with pytest.raises(SourceError, match="'models/b' is a link"):
        lock(content.source("link"))


def test_our_own_weights_are_a_source(world: World, content: OciContent) -> None:
    """What `publish` has put beside an image is what another model may be made of."""
    world.environment |= {
        "MODELBAKE_REGISTRY_USER": world.services.registry_user,
        "MODELBAKE_REGISTRY_PASSWORD_FILE": str(world.services.registry_password_file),
    }
    world.models(tiny={"source": content.source(content.modelpack("1", FILES)["digest"])})
    world.run("lock")
    reference = world.build_py("publish", "tiny").ok().out.strip()
    first = {file.path: file.sha256 for file in read_lock(world.folder / "models.lock").models["tiny"].files}
    locked = lock(f"oci://{reference}")
    assert {file.path: file.sha256 for file in locked.files} == first
    assert read_all(locked) == FILES
    (tag,) = (tag for tag in world.services.tags(f"{world.namespace}/weights") if tag.startswith("weights-"))
    again = lock(f"oci://{world.services.registry}/{world.namespace}/weights:{tag}")
    assert {file.path: file.sha256 for file in again.files} == first


def test_what_goes_wrong_is_said(world: World, content: OciContent) -> None:
    content.modelpack("1", FILES)
    world.models(tiny={"source": content.source("1")})
    world.run("lock")
    locked = read_lock(world.folder / "models.lock")
    content.modelpack("1", {**FILES, "config.json": b"{}"})
    moved = world.build_py("lock", "--check")
    assert moved.code == 13
    assert "tiny: moved: " in moved.out
    world.secrets.add("not-the-password")
    wrong = {"MODELBAKE_REGISTRY_USER": "me", "MODELBAKE_REGISTRY_PASSWORD": "not-the-password"}
    refused = world.build_py("lock", **wrong)
    assert refused.code == 21
    assert "credHelpers, credsStore, auths" in refused.err
    assert read_lock(world.folder / "models.lock") == locked, "what was locked stays"
    with pytest.raises(SourceNotFound):
        lock(content.source("none"))
    file = locked.models["tiny"].files[0]
    content.delete_blob(file.version)
    with pytest.raises(RevisionNotFound, match="no longer has"):
        read_all(locked.models["tiny"])
