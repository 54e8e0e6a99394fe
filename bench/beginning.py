"""The beginning of the story: the model, its lock, its runtime, and publishes into an empty registry.

What is timed is done in turns with what it is compared with; what is counted goes through the recorder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from bench import floor
from bench.appended import Appended, Appender
from bench.engine import Engine
from bench.measure import Failed, processor_seconds
from bench.naive import Naive, build_and_push
from bench.setting import BASE, NAMESPACE, RUNTIMES, Models, Runner, Setting, Sizes, say
from bench.steps import Published, Pulled, Rounds, Timed, once
from bench.store import sync
from bench.weights import write_weights
from modelbake.plan import LABEL_PREFIX
from tests.servers.hub import Repo

MODEL = "model"
_CONFIG = b'{"architectures": ["Bench"], "torch_dtype": "bfloat16"}\n'

_Result = TypeVar("_Result")


class Beginning:
    """The steps that all others begin with."""

    def __init__(self, sizes: Sizes, start: Callable[[], Setting]) -> None:
        self.sizes = sizes
        self._start = start
        self.done: dict[str, Any] = {}

    @property
    def setting(self) -> Setting:
        """The engines, the registry and the hub: some rows need none, and what they need is started once."""
        return self.started()

    @once
    def started(self) -> Setting:
        """Start the setting."""
        return self._start()

    # --- what there is before anything is measured ---------------------------------------------------------

    @once
    def files(self) -> list[Path]:
        """The weights of the model."""
        sizes = self.setting.sizes
        return [
            write_weights(self._weights(number), sizes.file_bytes, number)
            for number in range(1, sizes.files + 1)
        ]

    def _weights(self, number: int) -> Path:
        name = f"model-{number:05}-of-{self.setting.sizes.files:05}.safetensors"
        return self.setting.folder / "weights" / name

    @once
    def repo(self) -> Repo:
        """The model at the hub."""
        content: dict[str, bytes | Path] = {path.name: path for path in self.files()}
        return self.setting.hub.repo("acme/model", {**content, "config.json": _CONFIG})

    @once
    def lock(self) -> Path:
        """The model's models.lock."""
        self.repo()
        runner = self.setting.runner("lock", model())
        runner.build_py("lock")
        return runner.lock

    @once
    def runtime(self) -> str:
        """The runtime's image, put into the registry by the publish of another model; its reference."""
        self.setting.hub.repo("acme/seed", {"seed.safetensors": b"\1" * 1_000_000})
        runner = self.setting.runner("seed", Models({"seed": {"source": "hf://acme/seed"}}))
        runner.build_py("lock")
        runner.build_py("publish", "seed", "--candidate")
        store = self.setting.store
        (tag,) = [tag for tag in store.tags(RUNTIMES) if not tag.startswith("candidate-")]
        reference = f"{store.host}/{RUNTIMES}:{tag}"
        self.setting.builder.forget()
        for image in (self.setting.base, reference):
            self.setting.builder.docker("pull", "--quiet", image)
        return reference

    # --- cold: an empty registry but for base and runtime --------------------------------------------------

    @once
    def rounds(self) -> Rounds:
        """Publish, floor, naive build and push, olot and skopeo: in turns, each into an emptied registry."""
        self.runtime()
        rounds = Rounds()
        kinds: Mapping[str, Callable[[], Any]] = {
            "appended": self._append,
            "publish": lambda: self._timed(
                lambda: self.new_runner("cold").build_py("publish", MODEL, "--candidate")
            ),
            "floor": lambda: self._timed(self._floor),
            "naive": self._build_naively,
        }
        for number in range(1, self.setting.sizes.rounds + 1):
            say(f"bench: round {number} of {self.setting.sizes.rounds}")
            for kind, run in kinds.items():
                self._empty()
                rounds.add(kind, run)
        return rounds

    def _timed(self, run: Callable[[], _Result]) -> Timed[_Result]:
        self.lock()  # made before the clocks are read
        pids = (self.setting.hub.pid, self.setting.store.pid)
        before = [processor_seconds(pid) for pid in pids]
        outcome = run()
        hub, registry = (processor_seconds(pid) - start for pid, start in zip(pids, before, strict=True))
        return Timed(outcome, hub, registry)

    def _empty(self) -> None:
        self.setting.store.keep_only({BASE, RUNTIMES})
        sync()

    def new_runner(self, name: str) -> Runner:
        """Return a runner that has nothing but models.yaml and models.lock."""
        return self.setting.runner(name, model(), lock=self.lock())

    def _append(self) -> Appended:
        folder = self.setting.folder
        appender, layout = self.appender()
        target = f"{self.setting.store.host}/{NAMESPACE}/appended:latest"
        return appender.append_and_push(layout, self.files(), folder / "appended", target)

    @once
    def appender(self) -> tuple[Appender, Path]:
        """Install olot and skopeo; with them, the runtime's image as an OCI layout."""
        made = Appender(self.setting.cache, self.setting.tools, self.setting.login)
        layout = self.setting.folder / "layout"
        made.fetch(self.runtime(), layout)
        return made, layout

    def _floor(self) -> float:
        repo, store = self.repo(), self.setting.store
        blobs = floor.load([(repo.object_path(file), file.sha256) for file in repo.head.files])
        return floor.put_all(store.host, store.login, f"{NAMESPACE}/floor", blobs)

    def _build_naively(self) -> Naive:
        return build_and_push(
            self.setting.builder,
            self.setting.folder / "naive",
            base=self.setting.base,
            runtime=self.runtime(),
            hub=self.setting.hub.url,
            token=self.setting.hub.token_file,
            repo=self.repo(),
            name=self.naive_image,
        )

    @property
    def naive_image(self) -> str:
        """The image that the last round left."""
        return f"{self.setting.store.host}/{NAMESPACE}/naive:latest"

    # --- one publish that is counted; its image stays ------------------------------------------------------

    @once
    def counted(self) -> Published:
        """A cold publish through the recorder: it is slower for it, and not timed."""
        self.runtime()
        if "rounds" in self.done:
            # The naive image of the last round stays, to be pulled beside this one.
            self.setting.store.keep_only({BASE, RUNTIMES, f"{NAMESPACE}/naive"})
        return self.publish_counted("counted", model(), self.lock())

    def publish_counted(self, name: str, models: Models, lock: Path) -> Published:
        """Publish a candidate from an empty runner, through the recorder."""
        hub, recorder = self.setting.hub, self.setting.recorder
        runner = self.setting.runner(name, models, registry=recorder.address, lock=lock)
        hub.forget()
        recorder.forget()
        measured = runner.build_py("publish", MODEL, "--candidate")
        digest = measured.out.strip().rpartition("@")[2]
        return Published(
            digest,
            sum(size for _, size in self.weight_layers(MODEL, digest)),
            hub.sent(),
            recorder.up,
            recorder.uploads(),
            [f"{request.method} {request.path}" for request in recorder.requests],
            measured,
        )

    def weight_layers(self, repository: str, digest: str) -> list[tuple[str, int]]:
        """Return digest and size of an image's weight layers."""
        layers = self.setting.store.manifest(f"{NAMESPACE}/{repository}", digest)["layers"]
        found = [
            (str(layer["digest"]), int(layer["size"]))
            for layer in layers
            if f"{LABEL_PREFIX}group" in layer.get("annotations", {})
        ]
        if not found:
            raise Failed("the published image has no layer that is marked as weights")
        return found

    def pull(self, engine: Engine, repository: str, digest: str) -> Pulled:
        """Pull an image through the recorder."""
        recorder = self.setting.recorder
        recorder.forget()
        engine.docker("pull", "--quiet", f"{recorder.address}/{NAMESPACE}/{repository}@{digest}")
        layers, weights = recorder.pulled(digest for digest, _ in self.weight_layers(repository, digest))
        return Pulled(layers, weights, recorder.down)

    # --- pulls by a stock engine ---------------------------------------------------------------------------

    @once
    def cold_pulls(self) -> tuple[list[float], list[float]]:
        """Pulls of the published image and of the naive one, in turns, on an engine without any image."""
        self.rounds()
        digest = self.counted().digest
        published = f"{self.setting.store.host}/{NAMESPACE}/{MODEL}@{digest}"
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(self.setting.sizes.rounds):
            for image, seconds in zip((published, self.naive_image), times, strict=True):
                self.setting.puller.forget()
                sync()
                began = time.monotonic()
                self.setting.puller.docker("pull", "--quiet", image)
                seconds.append(time.monotonic() - began)
        self.setting.puller.forget()
        return times


def model(version: str = "1.0.0", base: str = "", runtimes: Path | None = None) -> Models:
    """Return the models.yaml of the model that is measured."""
    entry = {"source": "hf://acme/model", "version": version, "layer_order": "weights-first"}
    return Models({MODEL: entry}, base, runtimes)
