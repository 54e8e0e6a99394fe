"""docs/deploy on a real engine: each file by its own tool, and a container as the kernel sees it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_run_time import FACTS, facts_of, locked_down
from tests.integration.world import Ran, Services, World
from tests.servers.debian_programs import Programs
from tests.servers.environment import ROOT
from tests.servers.hub import Hub

pytestmark = pytest.mark.engine
FOLDER = ROOT / "docs/deploy"
WEIGHTS = {"config.json": b'{"kind": "tiny"}\n', "model.safetensors": b"\7" * 300_000}
IMAGE = "registry.example.com/ml/minilm@sha256:" + "0" * 64


@pytest.fixture(scope="module")
def compose() -> Path:
    """The program `docker-compose` of Debian 13."""
    return Programs.unpack("trixie", "docker-compose").root / "usr/bin/docker-compose"


@pytest.fixture(scope="module")
def systemd() -> Programs:
    return Programs.unpack("bookworm", "systemd", "libsystemd-shared")


@pytest.fixture(scope="module")
def released(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, str]]:
    """A model in the registry, and the reference that `publish` printed."""
    folder = tmp_path_factory.mktemp("deploy")
    token = f"hf_{uuid.uuid4().hex}{uuid.uuid4().hex[:2]}"
    with Hub(folder / "hub", {token: None}, host=services.bridge) as hub:
        world = World(services, folder, hub, token)
        world.repo("acme/tiny", WEIGHTS)
        world.models(hosted={})
        world.run("lock")
        reference = world.build_py("publish", "hosted").ok().out.strip()
        world.remove_images()  # a host has nothing yet: it pulls by the digest
        yield world, reference
        world.remove_images()


def ran_compose(world: World, compose: Path, *arguments: str, **environment: str) -> Ran:
    """Run Compose as a user who is logged in to the registry."""
    world.docker("version").ok()  # it writes the configuration
    env = {**world.environment, "DOCKER_CONFIG": str(world.folder / "docker-config"), **environment}
    files = [word for name in ("compose.yaml", "compose.cpu.yaml") for word in ("--file", str(FOLDER / name))]
    done = subprocess.run(
        [str(compose), *files, *arguments], env=env, capture_output=True, text=True, check=False
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def settings_of(world: World, container: str) -> dict[str, Any]:
    (inspected,) = json.loads(world.docker("inspect", container).ok().out)
    return dict(inspected)


def held_to_the_page(world: World, container: str, image: str) -> dict[str, Any]:
    """Assert what the page promises of every container, by what the kernel says inside."""
    locked_down(facts_of(world.docker("exec", container, "/opt/venv/bin/python", "-c", FACTS)))
    settings = settings_of(world, container)
    host = settings["HostConfig"]
    assert settings["Config"]["Image"] == image
    assert settings["Config"]["StopTimeout"] == 30
    assert "MODELBAKE_DRAIN_SECONDS=25" in settings["Config"]["Env"]
    assert host["Memory"] == 16 << 30 and host["PidsLimit"] == 512 and host["NanoCpus"] > 0
    assert host["CapDrop"] == ["ALL"] and host["ReadonlyRootfs"]
    assert host["PortBindings"]["8000/tcp"][0]["HostIp"] == "127.0.0.1", "nobody else can reach it"
    return settings


def wait_until_healthy(world: World, container: str) -> None:
    deadline = time.monotonic() + 120
    health = ""
    while time.monotonic() < deadline and health != "healthy":
        time.sleep(0.5)
        asked = world.docker("inspect", "--format", "{{.State.Health.Status}}", container)
        health = asked.out.strip()
    assert health == "healthy", world.docker("logs", container)


def test_compose_takes_the_file_and_asks_for_a_gpu(compose: Path, tmp_path: Path) -> None:
    def config(path: Path, **environment: str) -> Ran:
        command = [str(compose), "--file", str(path), "config", "--format", "json"]
        done = subprocess.run(
            command,
            env={"PATH": os.environ["PATH"], **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    server = json.loads(config(FOLDER / "compose.yaml", MODELBAKE_IMAGE=IMAGE).ok().out)["services"]["server"]
    (device,) = server["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    without = config(FOLDER / "compose.yaml")
    assert without.code != 0 and "write it into .env" in without.err
    mistyped = tmp_path / "compose.yaml"
    mistyped.write_text((FOLDER / "compose.yaml").read_text().replace("cap_drop:", "cap_dropp:"))
    control = config(mistyped, MODELBAKE_IMAGE=IMAGE)
    assert control.code != 0 and "cap_dropp" in control.err


def test_compose_runs_it_as_the_page_says(released: tuple[World, str], compose: Path) -> None:
    world, reference = released
    port = free_port()
    environment = {
        "MODELBAKE_IMAGE": reference,
        "MODELBAKE_PUBLISH": f"127.0.0.1:{port}",
        "MODELBAKE_CPUS": "1",
        "COMPOSE_PROJECT_NAME": f"modelbake-test-{uuid.uuid4().hex[:8]}",
    }
    try:
        ran_compose(world, compose, "up", "--detach", "--wait", "--wait-timeout", "120", **environment).ok()
        container = ran_compose(world, compose, "ps", "--quiet", **environment).ok().out.strip()
        settings = held_to_the_page(world, container, reference)
        assert settings["State"]["Health"]["Status"] == "healthy"
        assert settings["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
        assert settings["HostConfig"]["PortBindings"]["8000/tcp"][0]["HostPort"] == str(port)
    finally:
        ran_compose(world, compose, "down", "--timeout", "0", **environment)


def verified(systemd: Programs, folder: Path, unit: str) -> str:
    """What systemd finds wrong with a unit, where a docker program and its service are; "" for nothing."""
    docker = systemd.root.parents[1] / "trixie/root/usr/bin/docker"
    assert docker.exists()
    (folder / "docker.service").write_text(f"[Service]\nExecStart={docker}\n")
    path = folder / "minilm.service"
    path.write_text(unit.replace("/usr/bin/docker", str(docker)))
    (library,) = systemd.root.glob("usr/lib/*/systemd")
    environment = {
        "PATH": "/usr/bin:/bin",
        "LD_LIBRARY_PATH": f"{library}:{library.parent}",
        "SYSTEMD_UNIT_PATH": f"{folder}:{systemd.root}/lib/systemd/system",
        "SYSTEMD_LOG_LEVEL": "warning",
    }
    command = [str(systemd.root / "usr/bin/systemd-analyze"), "verify", "--man=no", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    # It says of an unknown key that it ignores it, and succeeds: only silence is approval.
    return done.stderr if done.stderr or not done.returncode else f"exit code {done.returncode}"


def test_systemd_takes_the_unit(systemd: Programs, tmp_path: Path) -> None:
    unit = (FOLDER / "minilm.service").read_text()
    assert verified(systemd, tmp_path, unit) == ""
    control = verified(systemd, tmp_path, unit.replace("TimeoutStopSec=", "TimeoutStopSecs="))
    assert "TimeoutStopSecs" in control
    assert "not-there" in verified(systemd, tmp_path, unit.replace("ExecStop=/usr", "ExecStop=/not-there"))


def docker_run_of_the_unit(image: str, name: str) -> list[str]:
    """The words after `docker` of its ExecStart, for a host without a GPU that has one core."""
    unit = (FOLDER / "minilm.service").read_text().replace("\\\n", "")
    (line,) = (each for each in unit.splitlines() if each.startswith("ExecStart="))
    program, *words = shlex.split(line.removeprefix("ExecStart="))
    assert program == "/usr/bin/docker"
    at = words.index("--gpus")
    del words[at : at + 2]
    changed = {"minilm": name, "4": "1", "127.0.0.1:8000:8000": f"127.0.0.1:{free_port()}:8000"}
    words = [changed.get(word, word) for word in words]
    assert words[-1] == "${IMAGE}"
    return [*words[:-1], image]


def test_the_units_docker_run_runs_it_as_the_page_says(released: tuple[World, str]) -> None:
    world, reference = released
    name = f"modelbake-test-{uuid.uuid4().hex[:8]}"
    verb, *words = docker_run_of_the_unit(reference, name)
    try:
        world.docker(verb, "--detach", *words).ok()
        wait_until_healthy(world, name)
        assert settings_of(world, name)["HostConfig"]["AutoRemove"]
        held_to_the_page(world, name, reference)
    finally:
        world.docker("rm", "--force", name)


def docker_28() -> bool:
    """Whether the docker program of this machine knows mounts of images."""
    if shutil.which("docker") is None:
        return False
    said = subprocess.run(["docker", "--version"], capture_output=True, text=True, check=True).stdout
    return int(said.removeprefix("Docker version ").split(".")[0]) >= 28


@contextmanager
def split(world: World, runtime: str, weights: str) -> Iterator[str]:
    """The container that run-split.sh starts, on the engine of the tests."""
    name = f"modelbake-test-{uuid.uuid4().hex[:8]}"
    environment = {
        "PATH": os.environ["PATH"],
        "DOCKER_HOST": world.services.docker_host,
        "DOCKER_CONFIG": str(world.folder / "docker-config"),
        "NAME": name,
        "GPUS": "",
        "PUBLISH": f"127.0.0.1:{free_port()}",
        "RUNTIME": runtime,
        "WEIGHTS": weights,
    }
    script = (FOLDER / "run-split.sh").read_text().replace("--cpus 4", "--cpus 1")
    try:
        done = subprocess.run(
            ["sh", "-c", script], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        yield name
    finally:
        world.docker("rm", "--force", name)


def test_two_images_are_run_as_one(released: tuple[World, str]) -> None:
    """The runtime of one model serves the weights of another, and each is another digest by itself."""
    world, _ = released
    version = json.loads(world.docker("version", "--format", "{{json .Server}}").ok().out)["Version"]
    store = world.docker("info", "--format", "{{json .DriverStatus}}").ok().out
    if int(version.split(".")[0]) < 28 or "io.containerd.snapshotter" not in store or not docker_28():
        pytest.skip(
            "mounts of images need Engine 28, containerd's image store, and docker 28 in PATH;"
            f" the engine is {version}"
        )
    images = world.images
    world.images = ROOT / "images"
    world.models(data={"runtime": "weights", "smoke": {}})
    world.run("lock")
    weights = world.build_py("publish", "data").ok().out.strip()
    world.images = images
    (tag,) = (tag for tag in world.services.tags(f"{world.namespace}/runtimes") if tag.startswith("tiny-"))
    repository = f"{world.namespace}/runtimes"
    digest = world.services.manifest(repository, tag)["digest"]
    with split(world, f"{world.services.registry}/{repository}@{digest}", weights) as name:
        wait_until_healthy(world, name)
        locked_down(facts_of(world.docker("exec", name, "/opt/venv/bin/python", "-c", FACTS)))
        log = world.docker("logs", name).out
        assert '"event": "verified"' in log and '"model": "data"' in log
