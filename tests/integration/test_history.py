"""Reports beside images in a real registry: kept by both lanes, found by others, compared before a release."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelbake.referrers import referrers_tag
from modelbake.reportstore import REPORT_TYPE
from tests.integration.world import Services, World
from tests.servers.debian_programs import Programs
from tests.servers.hub import Hub

pytestmark = pytest.mark.engine

CONTENT = {"config.json": b'{"kind": "tiny"}\n', "model.safetensors": b"\4" * 400_000}
TOLERANCE = {"latency": "900%", "throughput": "95%"}  # a machine may be busy; ten times slower it is not
SLOW = {"TINY_TAKES": "0.5"}


def declare(world: World, version: str, **keys: object) -> None:
    smoke = {
        "requests": 3,
        "checks": [{"post": "/sum", "body": {"numbers": [1, 2]}, "expect": {"sum": 3}}],
        "tolerance": TOLERANCE,
    }
    world.models(tiny={"version": version, "smoke": smoke, **keys})


@pytest.fixture(scope="module")
def released(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """`tiny` 1.0.0, released by the docker lane."""
    token, folder = f"hf_{secrets.token_hex(17)}", tmp_path_factory.mktemp("history")
    with Hub(folder / "hub", {token: None}, host=services.bridge) as hub:
        world = World(services, folder, hub, token)
        world.login()
        world.repo("acme/tiny", CONTENT)
        declare(world, "1.0.0")
        world.run("lock", "build", "smoke", "push")
        yield world
        world.remove_images()


@pytest.fixture(scope="module")
def oras() -> Programs:
    return Programs.unpack("trixie", "oras")


def digest_of(world: World, version: str) -> str:
    digest: str = world.services.manifest(f"{world.namespace}/tiny", version)["digest"]
    return digest


def test_other_tools_find_and_read_the_report(released: World, oras: Programs, tmp_path: Path) -> None:
    common = ["--plain-http", "--registry-config", str(released.folder / ".docker/config.json")]
    name = f"{released.services.registry}/{released.namespace}/tiny"
    discovered = json.loads(oras.run("oras", "discover", *common, "--format", "json", f"{name}:1.0.0"))
    listed = discovered.get("referrers") or discovered.get("manifests")
    (found,) = listed
    assert found["artifactType"] == REPORT_TYPE
    assert found["annotations"]["io.modelbake.measured-on"] == "cpu"
    oras.run("oras", "pull", *common, "--output", str(tmp_path), f"{name}@{found['digest']}")
    kept = (tmp_path / "tiny-1.0.0-report.json").read_bytes()
    assert kept == (released.folder / "reports/tiny/1.0.0.json").read_bytes()


def test_released_twice_it_is_there_once(released: World) -> None:
    assert "already" in released.build_py("push", "tiny").ok().err
    tag = referrers_tag(digest_of(released, "1.0.0"))
    index = released.services.manifest(f"{released.namespace}/tiny", tag)
    assert len(index["manifests"]) == 1


def test_a_slower_version_is_not_released_by_either_lane(released: World) -> None:
    declare(released, "1.1.0", env=SLOW)
    released.run("build", "smoke")
    tags = released.tags()
    for verb in ("push", "publish"):
        ran = released.build_py(verb, "tiny")
        assert ran.code == 55, ran.err
        assert "worse than 1.0.0 on cpu" in ran.err
        assert "latency p95: 50" in ran.err and "1.0.0 had" in ran.err and "900% more is tolerated" in ran.err
        assert "throughput: " in ran.err
        assert released.version_tags() == ["1.0.0"]
        assert verb != "push" or released.tags() == tags, "nothing was uploaded"


def test_the_versions_are_listed_and_compared(released: World) -> None:
    """After the one above: the slow 1.1.0 has a report that passed, and is measured again."""
    declare(released, "1.1.0")
    reference = released.build_py("publish", "tiny").ok().out.strip()
    assert reference.endswith(digest_of(released, "1.1.0"))
    (released.folder / "reports/tiny/1.2.0.json").write_bytes(
        (released.folder / "reports/tiny/1.1.0.json").read_bytes().replace(b'"1.1.0"', b'"1.2.0"')
    )
    for version in ("1.0.0", "1.1.0"):
        (released.folder / f"reports/tiny/{version}.json").unlink()

    lines = released.build_py("history", "tiny").ok().out.splitlines()
    assert [line.split()[0] for line in lines] == ["VERSION", "1.2.0", "1.1.0", "1.0.0"]
    assert "not released" in lines[1] and all("cpu" in line for line in lines[1:])
    assert digest_of(released, "1.1.0")[7:19] in lines[2]
    document = json.loads(released.build_py("history", "tiny", "--json", "--html", "page.html").ok().out)
    assert [each["released"] for each in document] == [False, True, True]
    assert document[2]["reports"][0]["version"] == "1.0.0"
    assert "1.1.0" in (released.folder / "page.html").read_text()

    told = released.build_py("compare", "tiny", "1.0.0", "1.1.0").ok().out
    assert "latency p95" in told and " are those of 1.0.0" in told
    compared = json.loads(released.build_py("compare", "tiny", "1.1.0", "1.2.0", "--json").ok().out)
    assert compared["image"] is None and compared["now"]["released"] is False
    assert {each["ratio"] for each in compared["figures"] if each["before"]} == {1.0}
    ran = released.build_py("compare", "tiny", "1.0.0", "9.9.9")
    assert ran.code == 66 and "build.py history tiny" in ran.err
    assert released.build_py("compare", "tiny", "1.0.0", "../x").code == 2


def test_a_report_that_cannot_be_kept_stops_the_release(released: World) -> None:
    """Something else lies under the tag that the specification reserves: there is no version tag then."""
    declare(released, "2.0.0")
    released.run("build", "smoke")
    released.build_py("push", "tiny").ok()  # control, and so that its digest is known
    digest = digest_of(released, "2.0.0")
    path = f"{released.namespace}/tiny"
    registry = released.services.repository_folder(path) / "_manifests/tags"
    tag = registry / referrers_tag(digest)
    (registry / "2.0.0").rename(registry.parent / "kept")
    link = tag / "current/link"
    link.write_text(digest)
    ran = released.build_py("push", "tiny")
    assert ran.code == 60 and "names something else" in ran.err, ran.err
    assert "2.0.0" not in released.version_tags()
