"""Connecting to a Dask cluster: what is refused before anything is sent, and how a loss is said."""

from __future__ import annotations

import argparse
import io
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from modelbake import __version__, cluster
from modelbake.cluster import DaskPool, connect, scheduler_address
from modelbake.errors import ClusterError, UsageError
from modelbake.output import Output
from modelbake.stream.view import TransferView
from modelbake.verbs import publish
from modelbake.workspace import Workspace
from tests.servers.dask_cluster import DaskCluster
from tests.servers.hub_certificate import make_certificate
from tests.servers.running import free_port
from tests.unit.stream.far import FILES, Far, far_away
from tests.unit.stream.material import stored


def output() -> Output:
    return Output(stdout=io.StringIO(), stderr=io.StringIO())


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Far]:
    with far_away(tmp_path_factory.mktemp("far")) as made:
        yield made


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("dask://scheduler", "tcp://scheduler:8786"),
        ("dask://10.0.0.7:99/", "tcp://10.0.0.7:99"),
        ("dask://[::1]:8786", "tcp://[::1]:8786"),
        ("dasks://scheduler.example.com:1", "tls://scheduler.example.com:1"),
    ],
)
def test_addresses(given: str, address: str) -> None:
    assert scheduler_address(given) == address


@pytest.mark.parametrize(
    "given",
    ["", "scheduler:8786", "tcp://scheduler:8786", "dask://", "dask://a:0", "dask://a:65536", "dask://a:x",
     "dask://a b", "dask://a/b", "DASK://a", "dask://a:1\n", "dask://user:hunter2hunter2@a:1"],
)  # fmt: skip
def test_what_is_no_address(given: str) -> None:
    with pytest.raises(UsageError, match="expected dask://HOST:PORT") as caught:
        scheduler_address(given)
    assert "hunter2" not in str(caught.value)


def test_distributed_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match="not installed") as caught:
        connect("dask://127.0.0.1:9", output())
    assert "'.[dask]'" in caught.value.hint


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 0.3)
    with pytest.raises(ClusterError, match="no Dask scheduler answers") as caught:
        connect(f"dask://127.0.0.1:{free_port()}", output())
    assert caught.value.subject.startswith("tcp://127.0.0.1:")


def test_folders_are_not_shared(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(
        "registry: registry.example.com/ml\nmodels:\n"
        "  a: {version: 1.0.0, source: hf://acme/a, runtime: embeddings}\n"
    )
    arguments = argparse.Namespace(
        names=["a"], all=False, output=None, source=None, candidate=False, untagged=False, gpus=None,
        update_goldens=False, on="dask://127.0.0.1:9",
    )  # fmt: skip
    for option in ("output", "source"):
        given = argparse.Namespace(**{**vars(arguments), option: "oci:x"})
        with pytest.raises(UsageError, match="share no folder"):
            publish.run(given, Workspace(tmp_path / "models.yaml"), output())


def test_the_cluster_from_its_start_to_its_end(
    tmp_path: Path, far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No workers, one of another version, one that works, one that is killed as often as is allowed."""
    environment = {**far.environment(), "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
    with DaskCluster(tmp_path, environment) as running, far.repository() as repository:
        with pytest.raises(ClusterError, match="has no workers") as caught:
            connect(running.address, output())
        assert "dask worker tcp://" in caught.value.hint

        running.worker("one")
        running.ready(1)
        with monkeypatch.context() as patch:
            patch.setattr(cluster, "__version__", "9.9.9")
            with pytest.raises(ClusterError, match="another one") as caught:
                connect(running.address, output())
        assert f"has modelbake {__version__}" in caught.value.message

        said = output()
        with connect(running.address, said, slots=3) as pool:
            assert pool.slots == 3
            assert "1 worker of tcp://" in cast(io.StringIO, said.stderr).getvalue()
            view = TransferView(said)
            made = pool.stream(far.locked, far.group, "none", repository, view, threading.Event())
            assert made == stored(FILES)
            assert "by one" in cast(io.StringIO, said.stderr).getvalue()

            far.hub.limit(100_000)
            passed = far.hub.passed
            killer = threading.Thread(target=lambda: _kill_when(far, passed + 100_000, running))
            killer.start()
            with pytest.raises(ClusterError, match="its worker was lost") as caught:
                pool.stream(far.locked, far.group, "zstd", repository, view, threading.Event())
            killer.join()
            far.hub.limit(None)
            assert caught.value.subject == "model.safetensors"


def _kill_when(far: Far, passed: int, running: DaskCluster) -> None:
    while far.hub.passed < passed:
        threading.Event().wait(0.02)
    running.kill("one")


def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Dask's own configuration alone; without it, the scheduler is not spoken to."""
    made = make_certificate(tmp_path)
    tls = {"DASK_DISTRIBUTED__COMM__TLS__CA_FILE": str(made.authority)}
    for role in ("SCHEDULER", "WORKER", "CLIENT"):
        tls[f"DASK_DISTRIBUTED__COMM__TLS__{role}__CERT"] = str(made.cert)
        tls[f"DASK_DISTRIBUTED__COMM__TLS__{role}__KEY"] = str(made.key)
    with DaskCluster(tmp_path, tls, protocol="tls") as running:
        assert running.address.startswith("dasks://")
        monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 2.0)
        with pytest.raises(ClusterError, match="no Dask scheduler answers") as caught:
            connect(running.address, output())
        assert "distributed.comm.tls" in caught.value.hint
        from dask import config

        names = {name.removeprefix("DASK_").lower(): value for name, value in tls.items()}
        keys = {name.replace("__", ".").replace("_", "-"): value for name, value in names.items()}
        with config.set(keys), pytest.raises(ClusterError, match="has no workers"):
            connect(running.address, output())


def test_all_workers_are_gone_for_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    workers: dict[str, int] = {"a": 1}
    client: Any = SimpleNamespace(
        get_executor=lambda pure: None,
        subscribe_topic=lambda topic, handler: None,
        id="Client-1",
        status="running",
        nthreads=lambda: workers,
    )
    pool, now = DaskPool(client, "tcp://a:1", 1), time.monotonic()
    assert pool.slots == 8, "a cluster that grows by need sees one"
    monkeypatch.setattr(cluster, "time", SimpleNamespace(monotonic=lambda: now))
    now += 100
    pool.check()
    workers.clear()
    for _ in range(9):
        now += 3
        pool.check()
    now += 4
    with pytest.raises(ClusterError, match="tcp://a:1: all workers are gone"):
        pool.check()
    client.status, now = "connecting", now + 3
    pool.check()
    client.status, now = "closed", now + 3
    with pytest.raises(ClusterError, match="tcp://a:1: the scheduler was lost"):
        pool.check()
