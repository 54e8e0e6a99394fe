"""Reports beside images in a real registry: kept by both lanes, found by others, compared at a release."""

from __future__ import annotations

import json
import re
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
TOLERANCE = {"latency": "3000%"}  # a busy machine may make it many times slower than a few milliseconds
SLOW = {"TINY_TAKES": "1.0"}


def declare(world: World, version: str, **keys: object) -> None:
    smoke = {
        "requests": 3,
        "checks": [{"post": "/sum", "body": {"numbers": [1, 2]}, "expect": {"sum": 3}}],
        "tolerance": TOLERANCE,
    }
    world.models(timed={"version": version, "smoke": smoke, **keys})


@pytest.fixture(scope="module")
def released(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """`timed` 1.0.0, released by the docker lane."""
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
    digest: str = world.services.manifest(f"{world.namespace}/timed", version)["digest"]
    return digest


def test_other_tools_find_and_read_the_report(released: World, oras: Programs, tmp_path: Path) -> None:
    common = ["--plain-http", "--registry-config", str(released.folder / ".docker/config.json")]
    name = f"{released.services.registry}/{released.namespace}/timed"
    discovered = json.loads(oras.run("oras", "discover", *common, "--format", "json", f"{name}:1.0.0"))
    listed = discovered.get("referrers") or discovered.get("manifests")
    (found,) = listed
    assert found["artifactType"] == REPORT_TYPE
    assert found["annotations"]["io.modelbake.measured-on"] == "cpu"
    oras.run("oras", "pull", *common, "--output", str(tmp_path), f"{name}@{found['digest']}")
    kept = (tmp_path / "timed-1.0.0-report.json").read_bytes()
    assert kept == (released.folder / "reports/timed/1.0.0.json").read_bytes()


def test_released_twice_it_is_there_once(released: World) -> None:
    assert "already" in released.build_py("push", "timed").ok().err
    tag = referrers_tag(digest_of(released, "1.0.0"))
    index = released.services.manifest(f"{released.namespace}/timed", tag)
    assert len(index["manifests"]) == 1


def test_a_report_that_cannot_be_kept_stops_the_release(released: World) -> None:
    """Something else lies under the tag that the specification reserves: there is no version tag then."""
    digest = digest_of(released, "1.0.0")
    folder = released.services.repository_folder(f"{released.namespace}/timed") / "_manifests"
    link = folder / "tags" / referrers_tag(digest) / "current/link"
    index = link.read_text()
    (folder / "tags/1.0.0").rename(folder / "not-yet")
    link.write_text(digest)
    ran = released.build_py("push", "timed")
    tags = released.version_tags("timed")
    link.write_text(index)
    assert ran.code == 60 and "names something else" in ran.err, ran.err
    assert tags == []
    released.build_py("push", "timed").ok()  # control: without that it is released
    assert digest_of(released, "1.0.0") == digest


def test_a_slower_version_is_not_released_by_either_lane(released: World) -> None:
    declare(released, "1.1.0", env=SLOW)
    released.run("build", "smoke")
    tags = released.tags("timed")
    for verb in ("push", "publish", "publish"):
        ran = released.build_py(verb, "timed")
        assert ran.code == 55, ran.err
        assert "worse than 1.0.0 on cpu" in ran.err
        assert re.search(
            r"latency p95: 1\S* s, 1\.0\.0 had \S+ ms \(\+\S+%, 3000% more is tolerated\)", ran.err
        )
        assert released.version_tags("timed") == ["1.0.0"]
        assert verb != "push" or released.tags("timed") == tags, "nothing was uploaded"
    assert "running timed 1.1.0" in ran.err, "the second time it is measured again, and not pulled"
    assert " pulls " not in ran.err


def test_the_versions_are_listed_and_compared(released: World) -> None:
    declare(released, "1.1.0")
    reference = released.build_py("publish", "timed").ok().out.strip()
    assert reference.endswith(digest_of(released, "1.1.0"))
    (released.folder / "reports/timed/1.2.0.json").write_bytes(
        (released.folder / "reports/timed/1.1.0.json").read_bytes().replace(b'"1.1.0"', b'"1.2.0"')
    )
    for version in ("1.0.0", "1.1.0"):
        (released.folder / f"reports/timed/{version}.json").unlink()

    lines = released.build_py("history", "timed").ok().out.splitlines()
    assert [line.split()[0] for line in lines] == ["VERSION", "1.2.0", "1.1.0", "1.0.0"]
    assert "not released" in lines[1] and all("cpu" in line for line in lines[1:])
    assert digest_of(released, "1.1.0")[7:19] in lines[2]
    document = json.loads(released.build_py("history", "timed", "--json", "--html", "page.html").ok().out)
    assert [each["released"] for each in document] == [False, True, True]
    assert document[2]["reports"][0]["version"] == "1.0.0"
    assert "1.1.0" in (released.folder / "page.html").read_text()

    told = released.build_py("compare", "timed", "1.0.0", "1.1.0").ok().out
    assert "latency p95" in told and " are those of 1.0.0" in told
    compared = json.loads(released.build_py("compare", "timed", "1.1.0", "1.2.0", "--json").ok().out)
    assert compared["image"] is None and compared["now"]["released"] is False
    assert {each["ratio"] for each in compared["figures"] if each["before"]} == {1.0}
    ran = released.build_py("compare", "timed", "1.0.0", "9.9.9")
    assert ran.code == 66 and "build.py history timed" in ran.err
    broken = released.folder / "reports/timed/9.9.9.json"
    broken.write_text("{broken")
    ran = released.build_py("compare", "timed", "1.0.0", "9.9.9")
    assert ran.code == 66 and "9.9.9.json: is not a report" in ran.err
    broken.unlink()
    assert released.build_py("compare", "timed", "1.0.0", "../x").code == 2
