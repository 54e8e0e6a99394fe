"""Releases in a real registry: what they need, what they tag, and what an end at any request leaves."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from modelbake.referrers import referrers_tag
from modelbake.release.audits import AUDIT_TYPE
from modelbake.reportstore import REPORT_TYPE
from tests.integration.world import Services, World
from tests.servers.hub import Hub

pytestmark = pytest.mark.engine

CONTENT = {"config.json": b'{"kind": "tiny"}\n', "model.safetensors": b"\5" * 300_000}


def digests(world: World, name: str = "tiny") -> dict[str, str]:
    """What the version tags and the aliases name."""
    return {
        tag: world.services.manifest(f"{world.namespace}/{name}", tag)["digest"]
        for tag in world.version_tags(name)
    }


def attached(world: World, digest: str, name: str = "tiny") -> list[str]:
    index = world.services.manifest(f"{world.namespace}/{name}", referrers_tag(digest))
    return sorted(each["artifactType"] for each in index["manifests"])


@pytest.fixture(scope="module")
def shared(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    token, folder = f"hf_{secrets.token_hex(17)}", tmp_path_factory.mktemp("release")
    with Hub(folder / "hub", {token: None}, host=services.bridge) as hub:
        world = World(services, folder, hub, token)
        world.login()
        world.repo("acme/tiny", CONTENT)
        world.models(tiny={"version": "1.4.0"})
        world.run("lock")
        yield world
        world.remove_images()


def test_untagged_then_released(shared: World) -> None:
    reference = shared.build_py("publish", "tiny", "--untagged").ok().out.strip()
    digest = reference.rpartition("@")[2]
    assert digests(shared) == {}
    assert attached(shared, digest) == [REPORT_TYPE]
    ran = shared.build_py("release", "tiny").ok()
    assert ran.out.strip() == reference
    assert digests(shared) == dict.fromkeys(["1.4.0", "1.4", "1"], digest)
    assert attached(shared, digest) == sorted([AUDIT_TYPE, REPORT_TYPE])
    again = shared.build_py("release", "--all").ok()
    assert again.out.strip() == reference
    assert "layer" not in again.err and "as before" in again.err
