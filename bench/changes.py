"""What a change moves: nothing changed, the runtime, the weights, and three models on one runtime."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.beginning import MODEL, Beginning, model
from bench.engine import Engine
from bench.measure import Failed
from bench.runtimes import add_dependency, change_app, copy_runtime, patch_base
from bench.setting import BASE, NAMESPACE, Models
from bench.steps import Published, Pulled, once
from bench.store import sync
from bench.weights import write_weights

CHANGES = ("app", "dependency", "base")
SMALL_FILE = 200_000_000  # bytes; the models that share a runtime have no larger ones
_RE_PUBLISHES = 5
_ADAPTERS = 10


class Changes(Beginning):
    """The steps after the first publish. They call those that leave the registry as they need it."""

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

    # --- ten adapters, one model ---------------------------------------------------------------------------

    @once
    def ten_adapters(self) -> tuple[int, int]:
        """Bytes pulled for the second to the tenth model that differ in an adapter, and of these adapters."""
        setting = self.setting
        self.runtime()
        size = min(SMALL_FILE, setting.sizes.file_bytes)
        small = size // 10 // 2 * 2
        base = write_weights(setting.folder / "weights/common.safetensors", size, 200)
        setting.hub.repo("acme/common", {"model.safetensors": base})
        entries: dict[str, dict[str, Any]] = {}
        for number in range(_ADAPTERS):
            path = write_weights(setting.folder / f"weights/adapter{number}", small, 201 + number)
            setting.hub.repo(f"acme/adapter{number}", {"adapter_model.safetensors": path})
            added = {"source": f"hf://acme/adapter{number}", "into": "adapter"}
            # Weights at the bottom, as `auto` takes it for a model that outweighs its runtime.
            entries[f"a{number}"] = {
                "source": "hf://acme/common",
                "layer_order": "weights-first",
                "add": [added],
            }
        runner = setting.runner("adapters", Models(entries))
        runner.build_py("lock")
        references = runner.build_py("publish", "--all", "--candidate").out.split()
        setting.puller.forget()
        pulled = []
        for reference in references:
            name, _, digest = reference.partition("@")
            pulled.append(self.pull(setting.puller, name.rpartition("/")[2], digest).all)
        setting.puller.forget()
        if len(pulled) != _ADAPTERS or pulled[0] < size:
            raise Failed(f"the first pull took {pulled[:1]} bytes: nothing can be concluded")
        return sum(pulled[1:]), small * (_ADAPTERS - 1)

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
