"""How much faster several workers of a Dask cluster are than one: `python -m bench.machines`.

Four models, each at a hub of its own that sends so many bytes a second and no more: so this machine is not
the limit, and a worker that streams one layer is as fast as its hub. The scheduler, the workers and the hubs
are processes of their own; the registry is `bench.sink`. What is timed is what `publish --all --on` does
before it assembles images: `stream_ahead`, by workers that have imported what they need. A round in which a
worker is killed counts what was read twice.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from distributed import Client

from bench.hub import TOKEN, HubProcess
from bench.results import Row, table, write_results
from bench.setting import say
from modelbake.cluster import connect, scheduler_address
from modelbake.config import ModelSpec
from modelbake.credentials import Secret
from modelbake.lock import Lock
from modelbake.locked import LockedModel
from modelbake.output import Output
from modelbake.plan import group_files
from modelbake.registry import Registry
from modelbake.sources import resolve_all
from modelbake.stream.ahead import Wanted, stream_ahead
from modelbake.stream.publish import WeightsSpec
from modelbake.stream.repository import RegistryRepository
from modelbake.stream.view import TransferView
from tests.servers.dask_cluster import DaskCluster
from tests.servers.environment import ROOT

BAR = 3.4  # times one worker
WORKERS = 4


@dataclass(frozen=True)
class Model:
    """A model of one layer at its own hub."""

    locked: LockedModel
    hub: HubProcess


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench; 0 when every bar is met."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.machines", description=(__doc__ or "").split(":")[0]
    )
    parser.add_argument("--size-mb", type=int, default=30, help="of each of the four models")
    parser.add_argument("--rate-mb", type=float, default=2.0, help="what each hub sends in a second")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("machines.json"))
    options = parser.parse_args(arguments)
    size, rate = options.size_mb * 1_000_000, options.rate_mb * 1e6
    with tempfile.TemporaryDirectory() as folder, ExitStack() as ending:
        models = [_model(Path(folder), number, size, rate, ending) for number in range(WORKERS)]
        alone = _seconds(Path(folder, "alone"), models, 1)
        together = _seconds(Path(folder, "together"), models, WORKERS)
        with_loss = _seconds(Path(folder, "loss"), models, WORKERS, kill_after=size / rate / 2)
        fetched = [model.hub.fetched() for model in models]
    again = sum(map(sum, fetched)) - WORKERS * size
    times = sorted(len(each) for each in fetched)
    setting = f"{WORKERS} hubs of {options.rate_mb:g} MB/s, {options.size_mb} MB each"
    rows = [
        Row(
            f"{WORKERS} workers, time of one worker",
            1 / BAR,
            together / alone,
            note=f"{alone:.1f} s and {together:.1f} s: {alone / together:.2f} times as fast; {setting}",
        ),
        Row(
            "bytes read again after a worker was killed, of its layer",
            1.0,
            again / size,
            note=f"requests for each layer: {times}; {with_loss:.1f} s in all",
        ),
        Row(
            "layers begun again after a worker was killed",
            1,
            sum(count - 1 for count in times),
            unit="layers",
        ),
    ]
    write_results(options.output, rows)
    sys.stdout.write(f"{os.cpu_count()} CPUs, {setting}\n{table(rows)}\n")
    return int(not all(row.met for row in rows))


def _model(folder: Path, number: int, size: int, rate: float, ending: ExitStack) -> Model:
    hub = HubProcess(folder / str(number), "127.0.0.1", rate)
    ending.callback(hub.close)
    hub.repo("acme/model", {"model.safetensors": os.urandom(size)})
    spec = ModelSpec(
        name=f"model-{number}", version="1.0.0", source="hf://acme/model", runtime="tiny", hub=hub.url
    )
    (resolved,) = resolve_all([spec], Lock(), Secret(TOKEN))
    return Model(resolved.locked, hub)


def _import() -> None:
    import modelbake.sources.hub_read
    import modelbake.stream.task  # noqa: F401


def _seconds(folder: Path, models: Sequence[Model], workers: int, kill_after: float | None = None) -> float:
    """Return how long workers of one thread each take for all models, into an empty registry."""
    folder.mkdir()
    for model in models:
        model.hub.forget()
    sink = subprocess.Popen([sys.executable, "-m", "bench.sink"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert sink.stdout is not None
        host = sink.stdout.readline().strip()
        with DaskCluster(folder, {"HF_TOKEN": TOKEN}) as cluster, Registry(host) as registry:
            for number in range(workers):
                cluster.worker(f"worker-{number}")
            cluster.ready(workers)
            wanted = [
                Wanted(
                    WeightsSpec(model.locked, group_files(model.locked.weights), "none", "amd64"),
                    RegistryRepository(registry, "bench/weights"),
                )
                for model in models
            ]
            with Client(scheduler_address(cluster.address), set_as_default=False) as client:
                client.run(_import)
            output = Output(stdout=io.StringIO(), stderr=io.StringIO())
            with connect(cluster.address, output) as pool:
                if kill_after is not None:
                    threading.Timer(kill_after, cluster.kill, ["worker-0"]).start()
                began = time.monotonic()
                failed = stream_ahead(wanted, pool, TransferView(output))
                seconds = time.monotonic() - began
        assert not failed, failed
    finally:
        sink.kill()
        sink.wait()
    say(f"bench: {workers} workers{'' if kill_after is None else ', one killed'}: {seconds:.1f} s")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
