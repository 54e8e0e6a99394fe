"""An engine that is killed in the middle, and disks that are full: the engine's, the registry's, the user's.

The engine is this module's own, and its data lies on a disk in memory that is as small as a test likes.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from modelbake.containers import ContainerSpec
from modelbake.credentials import Secret
from modelbake.diskspace import telling_need
from modelbake.dockerconfig import RegistryCredentials
from modelbake.engine import connect
from modelbake.errors import BuildFailed, DiskFull, EngineError, EngineNotFound, PushFailed, SmokeError
from modelbake.registry import Registry
from modelbake.stream.repository import RegistryRepository
from tests.conftest import Tally
from tests.integration.ending import Stage, end_at, left
from tests.integration.world import Ran, Services, World
from tests.promises import cases, full
from tests.servers.environment import run_script, shell_exports
from tests.servers.hub import Hub
from tests.servers.minilm import cache_folder
from tests.servers.small_disk import SmallDisk, small_disk

pytestmark = pytest.mark.engine

NAME = "crash"
BOUND = 60  # seconds; a run that takes longer hangs
ENGINE_ERRORS = {
    error.exit_code for error in (EngineError, EngineNotFound, BuildFailed, PushFailed, SmokeError)
}
ROOM = 2 << 30  # bytes of a disk that is large enough; memory is taken only as far as it is used


@dataclass
class Doomed:
    """The engine that is killed and filled."""

    folder: Path
    disk: SmallDisk

    def up(self) -> str:
        return shell_exports("engine", "up", "--name", NAME)["DOCKER_HOST"]

    def kill(self, program: str) -> None:
        """Send SIGKILL to dockerd or to its containerd, whose command lines name files of this engine."""
        marks = {"dockerd": "dockerd.pid", "containerd": "exec/containerd/containerd.toml"}
        killed = 0
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                arguments = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if Path(arguments[0]).name == program and f"{self.folder}/{marks[program]}" in arguments:
                    os.kill(int(process.name), signal.SIGKILL)
                    killed += 1
        assert killed == 1, f"{killed} processes are this engine's {program}"


@pytest.fixture(scope="module")
def doomed(services: Services) -> Iterator[Doomed]:
    run_script("engine", "down", "--name", NAME, "--purge")
    folder = cache_folder().parent / "engine" / NAME
    with small_disk(folder / "data", ROOM) as disk:
        yield Doomed(folder, disk)
        run_script("engine", "down", "--name", NAME)  # it unmounts what is below its folder
    run_script("engine", "down", "--name", NAME, "--purge")


@pytest.fixture(scope="module")
def world_of_doom(
    services: Services, doomed: Doomed, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    token, folder = f"hf_{secrets.token_hex(17)}", tmp_path_factory.mktemp("doom")
    with (
        tempfile.TemporaryDirectory(prefix="mbdoom-") as temporary,
        Hub(folder / "hub", {token: None}, host=services.bridge) as hub,
    ):
        world = World(replace(services, docker_host=doomed.up()), folder, hub, token)
        world.environment["TMPDIR"] = temporary
        yield world


@dataclass
class Model:
    """The model of these tests: new weights, as another version, whenever that is asked for."""

    world: World
    doomed: Doomed
    name: str = "doom"
    versions: int = 0

    def anew(self, size: int = 8 << 20) -> None:
        self.versions += 1
        repo = f"acme/doom{self.versions}"
        self.world.repo(repo, {"config.json": b"{}", "model.safetensors": os.urandom(size)})
        self.world.models(**{self.name: self.settings()})
        self.run("lock").ok()

    def settings(self, **others: object) -> dict[str, object]:
        """Return the model's entry of models.yaml."""
        return {"source": f"hf://acme/doom{self.versions}", "version": f"1.0.{self.versions}", **others}

    def run(self, verb: str, **environment: str | None) -> Ran:
        return self.world.build_py(verb, self.name, **environment)

    def publish_runtime(self, services: Services) -> None:
        """Bring the runtime to the registry by another engine, which has all of it."""
        self.anew(1000)
        reference = self.run("publish", DOCKER_HOST=services.docker_host).ok().out.strip()
        self.world.docker("image", "rm", reference, host=services.docker_host).ok()


@pytest.fixture(scope="module")
def model(world_of_doom: World, doomed: Doomed, services: Services) -> Model:
    made = Model(world_of_doom, doomed)
    made.publish_runtime(services)
    return made


# --- a full disk of the engine's: first, while the engine has nothing yet -----------------------------------


def named_as_full(ran: Ran) -> None:
    """Raise AssertionError unless an error says that a disk is full, where, and what is needed."""
    assert ran.code == DiskFull.exit_code, f"{ran.code}\n{ran.out}\n{ran.err}"
    said = ran.err[ran.err.index("error: ") :]
    assert re.search(r"no space left|disk is full|no room|disk has", said), said
    assert re.search(r"[\d,.]{3,} (?:bytes|GB)|few MB", said), said
    assert ran.out == ""


# Free MB, the smaller ones first: what has been pulled stays. `make test` tries those of the first line.
SIZES = (40, 400)
MORE_SIZES = (1, 2, 4, 8, 12, 20, 32, 48, 64, 96, 128, 160, 200, 240)


@pytest.mark.promise("disk-full")
@pytest.mark.parametrize("verb", ["publish", *(["build"] * cases(0, 1))])
def test_an_engine_whose_disk_is_full(model: Model, doomed: Doomed, tally: Tally, verb: str) -> None:
    """Whatever the size, it works or says that it is full; and works once there is room."""
    model.anew(24 << 20)
    outcomes = []
    for size in sorted(SIZES + MORE_SIZES * cases(0, 1)):
        doomed.disk.resize(size << 20)
        began = time.monotonic()
        ran = model.run(verb)
        assert time.monotonic() - began < BOUND, f"{size} MB: {ran}"
        outcomes.append(ran.code)
        if ran.code == 0:
            break
        tally.count()
        named_as_full(ran)
    doomed.disk.resize(ROOM)
    assert DiskFull.exit_code in outcomes, "control: some were too small"
    model.run(verb).ok()


@pytest.mark.promise("disk-full")
def test_an_engine_that_is_full_when_a_container_starts(model: Model, doomed: Doomed, tally: Tally) -> None:
    reference = model.run("publish").ok().out.strip()
    with connect(model.world.services.docker_host) as engine:
        for left_over in (0, *((1 << 12, 1 << 13, 1 << 14, 1 << 15, 1 << 16) * cases(0, 1))):
            said = ""
            try:
                with (
                    doomed.disk.full(left_over),
                    telling_need(engine, "a container needs a few MB"),
                    engine.start(ContainerSpec(reference, f"modelbake-{model.name}")),
                ):
                    pass
            except DiskFull as error:
                said = error.message
            assert "no space left" in said or left_over, "control: the disk was full"
            tally.count()
            assert left(model.world, model.name) == []


# --- an engine that is killed -------------------------------------------------------------------------------

# Verb, event, seconds after it, program. `make test` tries those of the first line.
KILLS = [("publish", "smoke_ready", 0.0, "dockerd")]
MORE_KILLS = [
    ("build", "transfer", 0.0, "dockerd"),
    ("build", "step_done", 0.0, "containerd"),
    ("build", "step_done", 0.6, "dockerd"),
    ("smoke", "smoke_started", 0.1, "dockerd"),
    ("smoke", "smoke_started", 0.3, "containerd"),
    ("smoke", "smoke_measuring", 0.0, "dockerd"),
    ("smoke", "smoke_measuring", 0.0, "containerd"),
    ("push", "push_started", 0.0, "dockerd"),
    ("push", "push_started", 0.1, "containerd"),
    ("push", "push_started", 0.3, "dockerd"),
    ("publish", "pull_started", 0.1, "dockerd"),
    ("publish", "pull_started", 0.0, "containerd"),
    ("publish", "runtime_started", 0.1, "dockerd"),
]


@pytest.mark.promise("crash")
@pytest.mark.parametrize(("verb", "event", "seconds", "program"), KILLS + MORE_KILLS * cases(0, 1))
def test_an_engine_that_is_killed(
    model: Model, doomed: Doomed, verb: str, event: str, seconds: float, program: str
) -> None:
    """The run ends with an error that says so, soon; when the engine is there again, so does the next run."""
    model.anew(cases(1000, 24 << 20))
    # A server that takes its time: the run is in the middle of a request.
    check = {"post": "/sum", "body": {"numbers": [1, 2]}, "expect": {"sum": 3}}
    slow = model.settings(env={"TINY_TAKES": "0.2"}, smoke={"requests": 5, "checks": [check]})
    model.world.models(**{model.name: slow})
    for earlier in {"smoke": ("build",), "push": ("build", "smoke")}.get(verb, ()):
        model.run(earlier).ok()
    stage = Stage(event, seconds)
    ended = end_at(model.world, stage, None, verb, model.name, also=lambda: doomed.kill(program))
    doomed.up()
    assert ended.reached, f"control: it was still running: {ended}"
    # An engine starts its containerd again: a run may not even notice.
    assert ended.took < BOUND or ended.code == 0
    assert ended.code in ENGINE_ERRORS or (ended.code == 0 and program == "containerd"), ended.said
    again = model.run(verb).ok()
    assert model.run(verb).ok().out == again.out
    assert left(model.world, model.name) == []


# --- other full disks ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full_registry(services: Services) -> Iterator[tuple[Services, SmallDisk]]:
    """A registry whose storage is a small disk."""
    folder = cache_folder().parent / "registry" / NAME
    run_script("registry", "down", "--name", NAME, "--purge")
    with small_disk(folder / "storage", 1 << 20) as disk:
        yield services.with_registry(shell_exports("registry", "up", "--name", NAME)), disk
        run_script("registry", "down", "--name", NAME)
    run_script("registry", "down", "--name", NAME, "--purge")


@pytest.mark.promise("disk-full")
@pytest.mark.parametrize("size", [2 << 20, *((0, 1 << 14, 1 << 20, 3 << 20) * cases(0, 1))])
def test_a_registry_whose_disk_is_full(full_registry: tuple[Services, SmallDisk], size: int) -> None:
    """It is named as the registry's, at once; with some more room the same blob is taken."""
    there, disk = full_registry
    credentials = RegistryCredentials(there.registry_user, Secret(there.password))
    content = os.urandom(4 << 20)
    disk.resize(size)
    with Registry(there.registry, credentials) as registry:
        repository = RegistryRepository(registry, "doom/blobs")
        with pytest.raises(DiskFull, match=r"the registry's disk is full .*4,194,304 bytes there"):
            repository.put(content, "application/octet-stream")
        disk.resize(ROOM)
        assert repository.has(repository.put(content, "application/octet-stream"))


if full():  # a minute, and most of it is the engine's: it tries long to push the runtime

    @pytest.mark.promise("disk-full")
    def test_a_publish_to_a_registry_whose_disk_is_full(
        services: Services, full_registry: tuple[Services, SmallDisk], tmp_path: Path, tally: Tally
    ) -> None:
        """It is named as the registry's, no tag is put, and once there is room the same run succeeds."""
        there, disk = full_registry
        token = f"hf_{secrets.token_hex(17)}"
        with Hub(tmp_path / "hub", {token: None}, host=services.bridge) as hub:
            world = World(there, tmp_path, hub, token)
            world.login(services)
            world.repo("acme/tiny", {"config.json": b"{}", "model.safetensors": os.urandom(32 << 20)})
            world.repo("acme/small", {"config.json": b"{}", "model.safetensors": os.urandom(1000)})
            outcomes = []
            world.models(doom={"source": "hf://acme/small"})
            world.run("lock")
            disk.resize(8 << 20)
            named_as_full(world.build_py("publish", "doom", "--candidate"))
            tally.count()
            disk.resize(ROOM)
            world.build_py("publish", "doom", "--candidate").ok()
            world.models(doom={"version": "1.0.1"})
            world.run("lock")
            for size in (0, 1, 4, 8, 16, 24, 30, 31, 32, 33, 48, 100):
                disk.resize(size << 20)
                began = time.monotonic()
                ran = world.build_py("publish", "doom", "--candidate")
                assert time.monotonic() - began < BOUND
                outcomes.append(ran.code)
                if ran.code == 0:
                    break
                tally.count()
                named_as_full(ran)
                assert "registry's disk" in ran.err
                assert "1.0.1" not in world.tags("doom")
            disk.resize(ROOM)
            assert DiskFull.exit_code in outcomes, "control: some were too small"
            world.build_py("publish", "doom", "--candidate").ok()


@pytest.mark.promise("disk-full")
def test_a_layout_on_a_disk_that_is_full(model: Model, tmp_path: Path, tally: Tally) -> None:
    model.anew(8 << 20)
    outcomes = []
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        for size in sorted((2, 200) + (0, 1, 4, 16, 40, 48, 52, 56, 60, 64, 80) * cases(0, 1)):
            disk.resize(size << 20)
            ran = model.world.build_py("publish", model.name, "--output", f"oci:{disk.path}/layout")
            outcomes.append(ran.code)
            if ran.code == 0:
                break
            tally.count()
            named_as_full(ran)
            assert str(disk.path) in ran.err
            assert not list(disk.path.rglob(".new-*"))
    assert DiskFull.exit_code in outcomes, "control: some were too small"


@pytest.mark.promise("disk-full")
@pytest.mark.parametrize("verb", ["lock", *(["smoke"] * cases(0, 1))])
def test_a_project_on_a_disk_that_is_full(world: World, tmp_path: Path, tally: Tally, verb: str) -> None:
    """The lock that was there stays, byte for byte; a report that cannot be written is none."""
    world.repo("acme/tiny", {"config.json": b"{}", "model.safetensors": os.urandom(1000)})
    with small_disk(tmp_path / "project", 1 << 20) as disk:
        world = replace(world, folder=disk.path)
        world.models(tiny={})
        world.run("lock")
        if verb == "smoke":
            world.run("build", "smoke")
        before = (disk.path / "models.lock").read_bytes()
        if verb == "lock":
            world.repo("acme/other", {"config.json": b"{}", "model.safetensors": os.urandom(1001)})
            world.models(tiny={"source": "hf://acme/other"})
        for left_over in (0, *((1 << 10, 1 << 11) * cases(0, 1))):
            with disk.full(left_over):
                ran = world.build_py(verb, "tiny")
                tally.count()
                if ran.code:
                    named_as_full(ran)
                    assert (disk.path / "models.lock").read_bytes() == before
            assert ran.code or left_over, "control: the disk was full"
            assert not list(disk.path.rglob("*.tmp"))
        world.build_py(verb, "tiny").ok()


@pytest.mark.control("disk-full")
def test_another_error_is_not_taken_for_a_full_disk() -> None:
    """What hides behind another error is found out to be no name of a full disk."""
    hidden = Ran(EngineError.exit_code, "", "error: engine: something went wrong\n")
    with pytest.raises(AssertionError):
        named_as_full(hidden)
    with pytest.raises(AssertionError):
        named_as_full(replace(hidden, code=DiskFull.exit_code))
    named_as_full(Ran(DiskFull.exit_code, "", "error: x: the disk is full: 1,000 bytes needed, 0 are free\n"))
