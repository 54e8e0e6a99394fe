"""What happens in the setting, in the order in which the rows ask for it. Each step happens once.

A step that failed fails again for the next row that needs it, without being tried anew.
"""

from __future__ import annotations

import functools
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from bench import floor
from bench.appended import Appended, Appender
from bench.engine import Engine
from bench.measure import Failed, Measured, processor_seconds
from bench.naive import Naive, build_and_push
from bench.recorder import Uploaded
from bench.runtimes import add_dependency, change_app, copy_runtime, patch_base
from bench.setting import BASE, NAMESPACE, RUNTIMES, Models, Runner, Setting, Sizes, say
from bench.store import sync
from bench.verification import Verifications, verify_in_turns
from bench.weights import write_hole, write_weights
from modelbake.credentials import Secret
from modelbake.dockerconfig import RegistryCredentials
from modelbake.plan import LABEL_PREFIX
from modelbake.registry import Registry
from modelbake.stream.publish import copy_image
from modelbake.stream.repository import RegistryRepository
from tests.servers.environment import ROOT
from tests.servers.hub import Repo
from tests.servers.minilm import cache_folder

MODEL = "model"
CHANGES = ("app", "dependency", "base")
SMALL_FILE = 200_000_000  # bytes; the models that share a runtime have no larger ones
GB = 1_000_000_000
_RE_PUBLISHES = 5
_CONFIG = b'{"architectures": ["Bench"], "torch_dtype": "bfloat16"}\n'

_Story = TypeVar("_Story", bound="Story")
_Result = TypeVar("_Result")


def once(step: Callable[[_Story], _Result]) -> Callable[[_Story], _Result]:
    """Let a step happen once, whether it succeeds or fails."""

    @functools.wraps(step)
    def run(story: _Story) -> _Result:
        name = step.__name__
        if name not in story.done:
            say(f"bench: {name.replace('_', ' ')}")
            began = time.monotonic()
            try:
                story.done[name] = step(story)
            except Exception as error:
                story.done[name] = error
            say(f"bench: {name.replace('_', ' ')}: {time.monotonic() - began:.1f} s")
        outcome = story.done[name]
        if isinstance(outcome, Exception):
            raise outcome
        result: _Result = outcome
        return result

    return run


@dataclass(frozen=True)
class Timed(Generic[_Result]):
    """A run, and the processor seconds that hub and registry took for it."""

    run: _Result
    hub: float
    registry: float


class Rounds:
    """Cold runs, side by side. One kind that fails takes no other with it: asked for, it says why."""

    def __init__(self) -> None:
        self._made: dict[str, list[Any]] = {}
        self._failed: dict[str, Exception] = {}

    def add(self, kind: str, run: Callable[[], Any]) -> None:
        """Do one run of a kind, unless one has failed."""
        if kind in self._failed:
            return
        try:
            self._made.setdefault(kind, []).append(run())
        except Exception as error:
            self._failed[kind] = error

    @property
    def publish(self) -> list[Timed[Measured]]:
        """Runs of `build.py publish --candidate`."""
        return self._of("publish")

    @property
    def floor(self) -> list[Timed[float]]:
        """Seconds of PUTs from memory."""
        return self._of("floor")

    @property
    def naive(self) -> list[Naive]:
        """Builds and pushes by hand."""
        return self._of("naive")

    @property
    def appended(self) -> list[Appended]:
        """Runs of olot and skopeo."""
        return self._of("appended")

    def _of(self, kind: str) -> list[Any]:
        if kind in self._failed:
            raise self._failed[kind]
        return self._made[kind]


@dataclass(frozen=True)
class Published:
    """One publish that was counted: what moved. `up`: bytes to the registry, headers included."""

    digest: str
    weights: int
    hub: int
    up: int
    uploads: list[Uploaded]
    requests: list[str]
    measured: Measured


@dataclass(frozen=True)
class Pulled:
    """One pull: the weight layers that were asked for, their bytes, and all bytes."""

    layers: int
    weights: int
    all: int


class Story:
    """The steps. Those that leave the registry as later ones need it are called by them."""

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

    # --- nothing changed -----------------------------------------------------------------------------------

    @once
    def re_published(self) -> tuple[list[float], list[str]]:
        """Seconds of publishes of a version that is released, and the requests of one of them."""
        self.counted()
        runner = self.new_runner("released")
        runner.build_py("publish", MODEL)
        self.setting.builder.forget(keep=[self.setting.base, self.runtime()])
        seconds = [runner.build_py("publish", MODEL).seconds for _ in range(_RE_PUBLISHES)]
        recorder = self.setting.recorder
        seen = self.setting.runner("seen", model(), registry=recorder.address, lock=self.lock())
        recorder.forget()
        seen.build_py("publish", MODEL)
        return seconds, [f"{request.method} {request.path}" for request in recorder.requests]

    # --- the runtime changed -------------------------------------------------------------------------------

    @once
    def changed_app(self) -> Published:
        """The model with another program to serve it."""
        return self._changed("app", change_app)

    @once
    def changed_dependency(self) -> Published:
        """The model with one more package beside the program."""
        return self._changed(
            "dependency", lambda runtimes: add_dependency(runtimes, self.setting.wheels.folder)
        )

    @once
    def changed_base(self) -> Published:
        """The model on a base image whose only layer is another one."""
        setting = self.setting
        name = f"{setting.store.host}/{BASE}:patched"
        base = patch_base(setting.builder, setting.base, name)
        return self._changed("base", lambda runtimes: None, base=base)

    def change(self, name: str) -> Published:
        """Return what became of one of CHANGES."""
        steps: Mapping[str, Callable[[], Published]] = {
            "app": self.changed_app,
            "dependency": self.changed_dependency,
            "base": self.changed_base,
        }
        return steps[name]()

    def _changed(self, name: str, change: Callable[[Path], None], base: str = "") -> Published:
        self.counted()
        folder = self.setting.folder / f"runtimes-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        change(copy_runtime(folder))
        models = model(version=f"1.0.{CHANGES.index(name) + 1}", base=base, runtimes=folder)
        published = self.publish_counted(f"changed-{name}", models, self.lock())
        if published.digest == self.counted().digest:
            raise Failed("the change has changed nothing")
        return published

    @once
    def re_pulls_classic(self) -> dict[str, Pulled]:
        """Pulls of the changed images by an engine with the classic store that has the first one."""
        return self._re_pulls(self.setting.puller)

    @once
    def re_pulls_containerd(self) -> dict[str, Pulled]:
        """The same with containerd's image store."""
        return self._re_pulls(self.setting.containerd_puller)

    def _re_pulls(self, engine: Engine) -> dict[str, Pulled]:
        changed = {name: self.change(name).digest for name in CHANGES}
        first = self.counted().digest
        engine.forget()
        whole = self.pull(engine, MODEL, first)
        if whole.layers < len(self.weight_layers(MODEL, first)):
            raise Failed(f"the first pull took {whole.layers} weight layers only: nothing can be concluded")
        pulls = {}
        for name, digest in changed.items():
            pulls[name] = self.pull(engine, MODEL, digest)
            engine.docker("image", "rm", f"{self.setting.recorder.address}/{NAMESPACE}/{MODEL}@{digest}")
        engine.forget()
        return pulls

    def pull(self, engine: Engine, repository: str, digest: str) -> Pulled:
        """Pull an image through the recorder."""
        recorder = self.setting.recorder
        recorder.forget()
        engine.docker("pull", "--quiet", f"{recorder.address}/{NAMESPACE}/{repository}@{digest}")
        layers, weights = recorder.pulled(digest for digest, _ in self.weight_layers(repository, digest))
        return Pulled(layers, weights, recorder.down)

    # --- three models, one runtime -------------------------------------------------------------------------

    @once
    def three_models(self) -> tuple[float, float]:
        """Bytes pulled, and disk taken, by three models on one runtime (base-first), over what they need."""
        setting = self.setting
        self.runtime()
        names = ("one", "two", "three")
        size = min(SMALL_FILE, setting.sizes.file_bytes)
        for number, name in enumerate(names):
            path = write_weights(setting.folder / f"weights/{name}.safetensors", size, 100 + number)
            setting.hub.repo(f"acme/{name}", {"model.safetensors": path})
        entries = {name: {"source": f"hf://acme/{name}", "layer_order": "base-first"} for name in names}
        runner = setting.runner("three", Models(entries))
        runner.build_py("lock")
        references = runner.build_py("publish", "--all", "--candidate").out.split()
        digests = {
            reference.partition("@")[0].rpartition("/")[2]: reference.partition("@")[2]
            for reference in references
        }
        weights = {
            name: sum(size for _, size in self.weight_layers(name, digest))
            for name, digest in digests.items()
        }
        first = setting.store.manifest(f"{NAMESPACE}/one", digests["one"])["layers"]
        runtime = sum(int(layer["size"]) for layer in first) - weights["one"]
        setting.puller.forget()
        disks, pulled = [setting.puller.disk()], 0
        for name in names:
            pulled += self.pull(setting.puller, name, digests[name]).all
            sync()
            disks.append(setting.puller.disk())
        setting.puller.forget()
        needed = runtime + sum(weights.values())
        # On disk the runtime is unpacked: what it takes is what the first model takes besides its weights.
        needed_disk = (disks[1] - disks[0]) + weights["two"] + weights["three"]
        return pulled / needed, (disks[3] - disks[0]) / needed_disk

    # --- the weights changed -------------------------------------------------------------------------------

    @once
    def changed_weights(self) -> tuple[Published, int]:
        """The model with one shard of another content and a small file more; and the bytes of both."""
        first = self.counted()
        size = self.setting.sizes.file_bytes
        shard = write_weights(self.setting.folder / "weights/changed", size, 1000)
        adapter_size = min(20_000_000, size // 10 // 2 * 2)
        adapter = write_weights(self.setting.folder / "weights/adapter", adapter_size, 1001)
        self.repo().commit({self.files()[0].name: shard, "lora/adapter_model.safetensors": adapter})
        models = model(version="1.1.0")
        locker = self.setting.runner("lock-changed", models, lock=self.lock())
        locker.build_py("lock")
        published = self.publish_counted("changed-weights", models, locker.lock)
        if published.digest == first.digest:
            raise Failed("the change has changed nothing")
        return published, size + adapter_size

    # --- what an image does before it serves ---------------------------------------------------------------

    @once
    def verifications(self) -> Verifications:
        """Verifications of weights by start.py, and what one core hashes; no engine takes part."""
        sizes = self.sizes
        return verify_in_turns(cache_folder().parent / "bench", sizes.files, sizes.file_bytes, sizes.rounds)

    # --- models of any size --------------------------------------------------------------------------------

    @once
    def memory(self) -> dict[int, Measured]:
        """Publishes of one file of 1 GB and of one that is huge, into a registry that keeps no bytes."""
        self.runtime()
        command = [sys.executable, "-m", "bench.sink"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                address = process.stdout.readline().strip()
                self._copy_runtime(address)
                return {size: self._publish_hole(size, address) for size in (1, self.setting.sizes.huge_gb)}
            finally:
                process.terminate()

    def _copy_runtime(self, address: str) -> None:
        store = self.setting.store
        login = RegistryCredentials(store.user, Secret(store.password_file.read_text().strip()))
        with Registry(store.host, login) as source, Registry(address) as target:
            here, there = RegistryRepository(source, RUNTIMES), RegistryRepository(target, RUNTIMES)
            for tag in source.tags(RUNTIMES):
                if manifest := here.manifest(tag):
                    copy_image(manifest, here, there, tag)

    def _publish_hole(self, size: int, address: str) -> Measured:
        path = write_hole(self.setting.folder / f"weights/hole-{size}", size * GB)
        self.setting.hub.repo(f"acme/hole{size}", {"model.safetensors": path})
        models = Models({MODEL: {"source": f"hf://acme/hole{size}"}})
        runner = self.setting.runner(f"hole-{size}", models, registry=address)
        runner.build_py("lock")
        return runner.build_py("publish", MODEL, "--candidate")


def model(version: str = "1.0.0", base: str = "", runtimes: Path | None = None) -> Models:
    """Return the models.yaml of the model that is measured."""
    entry = {"source": "hf://acme/model", "version": version, "layer_order": "weights-first"}
    return Models({MODEL: entry}, base, runtimes)


def median(times: Sequence[float]) -> float:
    """Return the middle one."""
    return statistics.median(times)
