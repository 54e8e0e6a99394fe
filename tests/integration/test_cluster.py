"""Layers streamed by the workers of a real Dask cluster: a scheduler and workers, each a process."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from modelbake.credentials import Secret
from modelbake.errors import ClusterError
from modelbake.stream.task import LayerTask, stream_layer
from tests.integration.world import Ran, Services, World
from tests.servers.canary import found_in_bytes
from tests.servers.dask_cluster import DaskCluster
from tests.servers.environment import ROOT
from tests.servers.hub import Hub, Repo
from tests.unit.stream.material import stored

pytestmark = pytest.mark.engine

SIZE = 3_000_000  # bytes of each model: one layer
RATE = 4_000_000  # bytes a second of the hub, so that no worker is done before the other one has begun
SLOW = 500_000  # where something is to happen in the middle, however busy the machine is
WAIT = 60.0


@dataclass
class Farm:
    """A namespace whose runtime is there, and a cluster that has the credentials: the user has no token."""

    world: World
    cluster: DaskCluster
    contents: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def models(self, folder: Path, *names: str) -> World:
        """Another user's folder with models of one layer each, new to the registry, and locked."""
        world = replace(self.world, folder=folder)
        models = {}
        for name in names:
            repository = f"acme/{name}{secrets.token_hex(4)}"
            self.contents[name] = {"config.json": b"{}", f"{name}.safetensors": os.urandom(SIZE)}
            Repo.create(world.hub.root, repository, self.contents[name])
            models[name] = {"source": f"hf://{repository}"}
        world.models(**models)
        world.run("lock")
        world.hub.reset_log()
        return world

    def start(self, world: World, *arguments: str) -> subprocess.Popen[str]:
        """Begin to publish, without a token for the hub."""
        command = [sys.executable, str(ROOT / "build.py"), "publish", "--all", "--candidate"]
        command += ["--on", self.cluster.address, "--images", str(world.images), "--log-format", "json"]
        env = {name: value for name, value in world.environment.items() if name != "HF_TOKEN_PATH"}
        return subprocess.Popen(
            [*command, *arguments],
            cwd=world.folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def ended(process: subprocess.Popen[str]) -> Ran:
    out, err = process.communicate(timeout=WAIT)
    assert "Traceback" not in err, err
    return Ran(process.returncode, out, err)


def events(ran: Ran, name: str) -> list[dict[str, Any]]:
    return [each for each in map(json.loads, ran.err.splitlines()) if each["event"] == name]


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def digests(ran: Ran) -> list[str]:
    return [line.rpartition("@")[2] for line in ran.out.splitlines()]


@pytest.fixture(scope="module")
def farm(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    token, folder = f"hf_{secrets.token_hex(17)}", tmp_path_factory.mktemp("farm")
    with Hub(folder / "hub", {token: None}, host=services.bridge) as hub:
        world = World(services, folder, hub, token)
        world.repo("acme/first", {"config.json": b"{}", "model.safetensors": os.urandom(70_000)})
        world.models(first={"source": "hf://acme/first"})
        world.run("lock")
        world.build_py("publish", "first", "--candidate").ok()  # and with it the runtime
        environment = {
            "HF_TOKEN": token,
            **{name: value for name, value in world.environment.items() if name.startswith("MODELBAKE_")},
        }
        with DaskCluster(tmp_path_factory.mktemp("cluster"), environment) as cluster:
            for name in ("one", "two"):
                cluster.worker(name)
            cluster.ready(2)
            yield Farm(world, cluster)
        world.remove_images()


def test_workers_stream_what_the_user_cannot_read(farm: Farm, tmp_path: Path) -> None:
    world = farm.models(tmp_path, "left", "right")
    locally = digests(world.build_py("publish", "left", "--output", "oci:left").ok())
    world.hub.reset_log()
    world.hub.limit(RATE)
    ran = ended(farm.start(world)).ok()
    world.hub.limit(None)
    assert digests(ran)[:1] == locally, "the same image as without a cluster"
    lines = events(ran, "transfer")
    assert {line["worker"] for line in lines} == {"one", "two"}
    assert {line["file"] for line in lines} == {"config.json", "left.safetensors", "right.safetensors"}
    requests = world.hub.requests()
    assert requests and all(each.authorization_valid for each in requests if each.host == "hub"), (
        "only who has the token has asked: the workers"
    )
    assert not world.hub.token_leaks()


@pytest.mark.promise("token-leak")
def test_a_lost_worker_costs_its_layer_and_nobody_sees_a_secret(farm: Farm, tmp_path: Path) -> None:
    world, cluster = farm.models(tmp_path, "kept", "lost"), farm.cluster
    before, passed = found(farm), world.hub.passed
    world.hub.limit(SLOW)
    run = farm.start(world)
    wait_for(lambda: world.hub.passed - passed > SIZE * 0.5, "the layers are on their way")
    in_the_middle = found(farm)
    shown = "".join(cluster.pages().values())
    assert "stream_layer" in shown, "control: the pages are about these tasks"
    cluster.kill("one")
    world.hub.limit(None)
    ran = ended(run).ok()
    cluster.ready(1)
    asked = {
        name: [each.bytes_sent for each in world.hub.requests_for(f"{name}.safetensors", host="cdn")]
        for name in ("kept", "lost")
    }
    assert sorted(map(len, asked.values())) == [1, 2], f"only its layer is done again: {asked}"
    once, twice = sorted(asked.values(), key=len)
    assert once == [SIZE] and twice[1] == SIZE and 0 < twice[0] < SIZE
    assert {line["worker"] for line in events(ran, "transfer")} == {"two"}
    for name, digest in zip(asked, digests(ran), strict=True):
        layers = world.services.manifest(f"{world.namespace}/{name}", digest)["layers"]
        # As this process makes it of the same files.
        assert stored(farm.contents[name]).blob.digest in [layer["digest"] for layer in layers]
    assert before == in_the_middle == found(farm) == []


def found(farm: Farm) -> list[str]:
    """Return where the token or the registry's password is: logs, and all that the dashboard shows."""
    shown = {**farm.cluster.pages(), "logs": farm.cluster.logs()}
    assert len(shown) > 10 and len(shown["logs"]) > 1000
    return [
        place
        for place, text in shown.items()
        for secret in (farm.world.token, farm.world.services.password)
        if found_in_bytes(secret.encode(), text.encode())
    ]


@pytest.mark.control("token-leak")
def test_a_task_that_carried_a_token_would_be_found(farm: Farm, tmp_path: Path) -> None:
    planted = replace(farm, world=replace(farm.world, token=f"hf_{secrets.token_hex(17)}", folder=tmp_path))
    address = farm.cluster.address.replace("dask:", "tcp:")
    with Client(address, set_as_default=False) as client:
        with pytest.raises(TypeError):  # what guards our own tasks
            task = LayerTask(None, None, "none", Secret(planted.world.token), "x")  # type: ignore[arg-type]
            client.submit(stream_layer, task, pure=False)
        assert found(planted) == []
        failing = client.submit(int, planted.world.token, pure=False)
        assert isinstance(failing.exception(timeout=30), ValueError)
        places = found(planted)
    assert "logs" in places
    assert any("exceptions.html" in place for place in places), places


def test_interrupted_the_cluster_stops_as_well(farm: Farm, tmp_path: Path) -> None:
    world, cluster = farm.models(tmp_path, "alpha", "beta"), farm.cluster
    passed = world.hub.passed
    world.hub.limit(SLOW)
    run = farm.start(world)
    wait_for(lambda: world.hub.passed - passed > SIZE * 0.1, "a layer is on its way")
    run.send_signal(signal.SIGINT)
    ran = ended(run)
    assert ran.code == 130, ran.err
    wait_for(lambda: cluster.count("processing") == 0, "the tasks are gone")
    wait_for(lambda: len(world.hub.requests_for("*.safetensors", host="cdn")) > 0, "the stream has ended")
    world.hub.limit(None)
    assert world.hub.bytes_sent("*.safetensors") < SIZE


def test_a_scheduler_that_goes_is_said(farm: Farm, tmp_path: Path) -> None:
    """The last test of this cluster."""
    world, cluster = farm.models(tmp_path, "late", "later"), farm.cluster
    passed = world.hub.passed
    world.hub.limit(SLOW)
    run = farm.start(world)
    wait_for(lambda: world.hub.passed - passed > SIZE * 0.1, "a layer is on its way")
    cluster.kill("scheduler")
    ran = ended(run)
    world.hub.limit(None)
    assert ran.code == ClusterError.exit_code, ran.err
    assert "the scheduler was lost" in ran.err and "run it again" in ran.err
    assert ran.out == "" and world.tags("late") == world.tags("later") == []
