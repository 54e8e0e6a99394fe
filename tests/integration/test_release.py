"""Releases in a real registry: what they need, what they tag, what an end leaves; and what pruning frees.

The registry is one of this module's own, with a proxy before it: its disk is looked into, and its garbage
collected.
"""

from __future__ import annotations

import io
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelbake import registryhttp
from modelbake.errors import ModelbakeError
from modelbake.goldens import read_goldens
from modelbake.history import opened
from modelbake.output import Output
from modelbake.referrers import referrers_tag
from modelbake.release.audits import AUDIT_TYPE
from modelbake.release.documents import SBOM_TYPE
from modelbake.release.provenance import PROVENANCE_TYPE
from modelbake.release.releasing import release
from modelbake.report import asked_of
from modelbake.reportstore import REPORT_TYPE
from modelbake.workspace import Workspace
from tests.conftest import Tally
from tests.integration.ending import Stage, end_at
from tests.integration.world import BehindProxy, Services, World
from tests.promises import cases
from tests.servers.environment import run_script, shell_exports
from tests.servers.hub import Hub
from tests.servers.minilm import cache_folder
from tests.servers.registry_streaming import StreamingProxy

pytestmark = pytest.mark.engine

NAME = "releases"
CONTENT = {"config.json": b'{"kind": "tiny"}\n', "model.safetensors": b"\5" * 300_000}
FOREVER = 1_000_000
KEPT = sorted([AUDIT_TYPE, REPORT_TYPE, SBOM_TYPE, PROVENANCE_TYPE])


@pytest.fixture(scope="module")
def own_registry(services: Services) -> Iterator[Services]:
    run_script("registry", "down", "--name", NAME, "--purge")
    yield services.with_registry(shell_exports("registry", "up", "--name", NAME))
    run_script("registry", "down", "--name", NAME, "--purge")


@pytest.fixture(scope="module")
def proxy(own_registry: Services) -> Iterator[StreamingProxy]:
    with StreamingProxy(own_registry.registry) as running:
        yield running


@pytest.fixture(scope="module")
def world(
    services: Services,
    own_registry: Services,
    proxy: StreamingProxy,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[World]:
    """`tiny` 1.4.0, published, tested, and not tagged."""
    token, folder = f"hf_{secrets.token_hex(17)}", tmp_path_factory.mktemp("release")
    with Hub(folder / "hub", {token: None}, host=services.bridge) as hub:
        made = World(BehindProxy.of(own_registry, proxy.address), folder, hub, token)
        made.login(services)
        made.repo("acme/tiny", CONTENT)
        made.models(tiny={"version": "1.4.0"})
        made.run("lock")
        made.build_py("publish", "tiny", "--untagged").ok()
        yield made
        made.remove_images()


def repository(world: World) -> str:
    return f"{world.namespace}/tiny"


def named(world: World) -> dict[str, str]:
    """What the version tags and the aliases name."""
    return {tag: world.services.manifest(repository(world), tag)["digest"] for tag in world.version_tags()}


def candidate(world: World) -> str:
    """The digest of 1.4.0."""
    (tag,) = [tag for tag in world.tags() if tag.startswith("candidate-")]
    digest: str = world.services.manifest(repository(world), tag)["digest"]
    return digest


def attached(world: World, digest: str) -> list[str]:
    index = world.services.manifest(repository(world), referrers_tag(digest))
    return sorted(each["artifactType"] for each in index["manifests"])


def forget(world: World, *tags: str) -> None:
    """Take tags away, as if they had never been."""
    for tag in tags:
        folder = world.services.repository_folder(repository(world)) / "_manifests/tags" / tag
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.promise("tags", "interrupt")
def test_interrupted_while_it_audits_nothing_is_released(world: World) -> None:
    digest = candidate(world)
    ended = end_at(world, Stage("audit_started"), signal.SIGINT, "release", "tiny")
    assert ended.reached and ended.code == 130
    assert (named(world), attached(world, digest)) == ({}, [REPORT_TYPE])


def test_what_was_tested_is_released(world: World) -> None:
    digest = candidate(world)
    ran = world.build_py("release", "--all").ok()
    assert ran.out.strip() == f"{world.services.registry}/{repository(world)}@{digest}"
    assert named(world) == dict.fromkeys(["1.4.0", "1.4", "1"], digest)
    assert attached(world, digest) == KEPT
    assert "reading all of" in ran.err, "control: it was audited"


@pytest.mark.promise("tags", "crash")
def test_killed_between_the_tag_and_an_alias_the_next_run_completes_it(world: World) -> None:
    world.build_py("release", "tiny").ok()
    digest, whole = candidate(world), named(world)
    forget(world, *whole)
    ended = end_at(world, Stage("alias_moved"), signal.SIGKILL, "release", "tiny")
    assert ended.reached and ended.code == -signal.SIGKILL
    left = named(world)
    assert {"1.4.0": digest, "1.4": digest}.items() <= left.items() <= whole.items()
    forget(world, "1")  # it is a race whether that one was put as well
    ran = world.build_py("release", "tiny").ok()
    assert named(world) == whole and attached(world, digest) == KEPT
    assert "reading all of" not in ran.err, "the audit was kept"


def test_again_it_says_so_and_puts_nothing(world: World, proxy: StreamingProxy) -> None:
    proxy.forget()
    ran = world.build_py("release", "tiny").ok()
    assert "as before" in ran.err
    assert [each for each in proxy.seen if each.method in ("PUT", "POST", "PATCH")] == []


@pytest.mark.promise("false-success", "tags")
def test_a_registry_that_goes_away_at_any_request(
    world: World, proxy: StreamingProxy, monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    """What is left is the old state, or the version without an alias; the next run completes it."""
    world.build_py("release", "tiny").ok()
    monkeypatch.setattr(registryhttp, "_FIRST_WAIT", 0.0)
    for name, value in world.environment.items():
        monkeypatch.setenv(name, value)
    workspace = Workspace(file=world.folder / "models.yaml", images=world.images)
    (spec,) = workspace.config.select(["tiny"], all=False)
    plan, output = workspace.plan(spec), Output(stdout=io.StringIO(), stderr=io.StringIO())
    asked = asked_of(spec, read_goldens(workspace.goldens, spec.name).values)
    plan_digest = workspace.context(plan).digest

    def attempt() -> str | None:
        try:
            with opened(workspace.config.registry, spec.name, output) as opened_:
                return release(
                    opened_, workspace, plan, plan_digest=plan_digest, asked=asked, output=output
                ).digest
        except ModelbakeError:
            return None

    whole, digest = named(world), candidate(world)
    forget(world, *whole)
    proxy.forget()
    assert attempt() == digest
    assert named(world) == whole
    requests = len(proxy.seen)
    for nth in range(1, requests + 1, max(1, requests // cases(4, requests))):
        forget(world, *whole)
        proxy.forget()
        fault = proxy.fail(".*", "", "lose", nth=nth, times=FOREVER)
        claimed = attempt()
        proxy.forget()
        left = named(world)
        assert fault.fired and (claimed is None or left == whole)
        assert left.items() <= whole.items()
        assert "1.4.0" in left or not left
        assert attempt() == digest
        assert named(world) == whole
        tally.count()


def test_a_moved_alias_and_a_changed_lock_are_refused(world: World) -> None:
    """And nothing is changed; the next version is named."""
    before = named(world)
    folder = world.services.repository_folder(repository(world)) / "_manifests/tags"
    link = folder / "1/current/link"
    right = link.read_text()
    link.write_text(world.services.manifest(repository(world), referrers_tag(candidate(world)))["digest"])
    ran = world.build_py("release", "tiny")
    link.write_text(right)
    assert ran.code == 72 and "by hand" in ran.err and ":1:" in ran.err
    lock = (world.folder / "models.lock").read_text()
    commit = world.repo("acme/other", {**CONTENT, "model.safetensors": b"\6" * 300_000}).head.id
    assert commit
    world.models(tiny={"version": "1.4.0", "source": "hf://acme/other"})
    world.run("lock")
    ran = world.build_py("release", "tiny")
    assert ran.code == 72 and "other weights" in ran.err and "to 1.4.1" in ran.err
    (world.folder / "models.lock").write_text(lock)
    world.models(tiny={"version": "1.4.0"})
    assert named(world) == before


def test_pruning_frees_what_it_says(world: World, own_registry: Services) -> None:
    """One of two candidates with layers of their own goes; the release stays, and its layers are known."""
    digest, before = candidate(world), named(world)
    for number in (1, 2):
        world.repo(f"acme/tiny{number}", {**CONTENT, "model.safetensors": bytes([number]) * 200_000})
        world.models(tiny={"version": f"1.4.{number}", "source": f"hf://acme/tiny{number}"})
        world.run("lock")
        world.build_py("publish", "tiny", "--candidate").ok()
    world.models(tiny={"version": "1.4.0"})
    world.run("lock")
    tags = world.tags()
    dry = world.build_py("prune", "tiny", "--keep", "1", "--dry-run").ok()
    assert world.tags() == tags
    collect(own_registry)
    sizes = blobs(own_registry)
    ran = world.build_py("prune", "--all", "--keep", "1").ok()
    assert ran.out == dry.out.replace("would go", "went")
    assert ran.out.count("candidate-") == 1 and ran.out.count("weights of no image") == 2
    left = [tag for tag in world.tags() if tag.startswith("candidate-")]
    assert len(left) == 2 and set(left) < set(tags)
    assert named(world) == before and attached(world, digest) == KEPT
    collect(own_registry)
    freed = sum(sizes.values()) - sum(blobs(own_registry).values())
    assert f"{freed:,} bytes" in ran.out and freed > 200_000
    world.hub.reset_log()
    world.models(tiny={"version": "1.4.9"})
    world.build_py("publish", "tiny", "--candidate").ok()
    assert world.hub.requests_for("*.safetensors") == [], "the weights that are released are remembered"
    world.models(tiny={"version": "1.4.0"})


def test_a_registry_that_deletes_nothing_keeps_everything(world: World, own_registry: Services) -> None:
    run_script("registry", "down", "--name", NAME)
    shell_exports("registry", "up", "--name", NAME, "--no-delete")
    tags, sizes = world.tags(), blobs(own_registry)
    ran = world.build_py("prune", "--all", "--keep", "0")
    assert ran.code == 78 and "delete: enabled: true" in ran.err and ran.out == ""
    assert (world.tags(), blobs(own_registry)) == (tags, sizes)


def blobs(services: Services) -> dict[str, int]:
    """The bytes of every blob on the registry's disk."""
    root = services.storage / "docker/registry/v2/blobs/sha256"
    return {path.parent.name: path.stat().st_size for path in root.glob("*/*/data")}


def collect(services: Services) -> None:
    """Let the registry collect its garbage, while it is stopped."""
    run_script("registry", "down", "--name", NAME)
    program = cache_folder().parent / "debian/trixie/root/usr/bin/docker-registry"
    config: Path = services.storage.parent / "config.yml"
    done = subprocess.run(
        [str(program), "garbage-collect", str(config)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    shell_exports("registry", "up", "--name", NAME)
