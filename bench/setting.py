"""Everything that the bench runs on, and a runner: a folder with models.yaml, a process for each `build.py`.

The engines, the registry and the hub are the bench's own, so that they can be emptied. They are deleted at
the end, however that comes; only downloads stay in the cache folder: Debian's packages, the base image, olot.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench import measure
from bench.engine import Engine, add_login, make_login
from bench.hub import HubProcess
from bench.recorder import Recorder
from bench.runtimes import WheelServer, copy_runtime
from bench.store import Store
from modelbake.schema import RUNTIMES_REPOSITORY
from tests.servers.environment import ROOT, bridge_address, run_script
from tests.servers.minilm import cache_folder

NAMESPACE = "bench"
RUNTIMES = f"{NAMESPACE}/{RUNTIMES_REPOSITORY}"
BASE = "base/python"


@dataclass(frozen=True)
class Sizes:
    """How much the bench moves: `files` of `file_bytes` each, and one of `huge_gb` GB for the memory."""

    file_bytes: int = 600_000_000
    files: int = 4
    huge_gb: int = 20
    rounds: int = 3


class Setting:
    """The parts. A context manager; parts that only some rows need are started when they are asked for."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.cache = cache_folder().parent
        self.tools = self.cache / "bench"
        self.folder = self.tools / "run"
        self._ending = contextlib.ExitStack()

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        say("bench: removing all that was made")
        # A second Ctrl-C must leave nothing behind either.
        usual = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._ending.close()
        finally:
            for number, handler in usual.items():
                signal.signal(number, handler)

    def _start(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)  # of a run that was killed
        self.folder.mkdir(parents=True)
        self._ending.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.store = Store("bench", self.cache)
        self._ending.callback(self.store.close)
        # Engines and runners may use it in the registry's place, where bytes are counted.
        self.recorder = self._ending.enter_context(Recorder(self.store.host))
        self.login = make_login(self.folder / "login", self.cache, self.store.host, self.store.login)
        add_login(self.login, self.recorder.address, self.store.login)
        self.builder = self._engine("bench")
        self.base = run_script(
            "base-image",
            "--push",
            f"{self.store.host}/{BASE}:3.11-bookworm",
            environment={**self.store.exports, "DOCKER_HOST": self.builder.host},
        )
        address = bridge_address(self.builder.host)
        self.hub = HubProcess(self.folder, address)
        self._ending.callback(self.hub.close)
        self.wheels = WheelServer(self.folder, address)
        self._ending.callback(self.wheels.close)
        self.runtimes = copy_runtime(self.folder / "runtimes")

    def _engine(self, name: str, *, containerd: bool = False) -> Engine:
        say(f"bench: starting the engine {name}")
        engine = Engine(name, self.cache, self.login, containerd=containerd)
        self._ending.callback(engine.close)
        return engine

    @cached_property
    def puller(self) -> Engine:
        """A stock engine with the classic image store that has built nothing."""
        return self._engine("benchpull")

    @cached_property
    def containerd_puller(self) -> Engine:
        """A stock engine with containerd's image store that has built nothing."""
        return self._engine("benchoci", containerd=True)

    def runner(self, name: str, models: Models, *, registry: str = "", lock: Path | None = None) -> Runner:
        """Return a runner in an empty folder, that has models.yaml, and models.lock where one is given."""
        folder = self.folder / "runners" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        made = Runner(self, folder, models, registry or self.store.host)
        made.write()
        if lock is not None:
            shutil.copy(lock, folder / "models.lock")
        return made


@dataclass(frozen=True)
class Models:
    """What a models.yaml says: models by name, with the keys that differ from the bench's usual ones."""

    entries: Mapping[str, Mapping[str, Any]]
    base: str = ""
    runtimes: Path | None = None


@dataclass
class Runner:
    """A CI runner: a folder and nothing else; each `build_py` is a new process."""

    setting: Setting
    folder: Path
    models: Models
    registry: str
    environment: dict[str, str] = field(default_factory=dict)

    def write(self) -> None:
        """Write models.yaml (JSON is YAML), and say where everything is."""
        setting = self.setting
        usual = {
            "version": "1.0.0",
            "runtime": "tiny",
            "device": "any",
            "smoke": {"checks": [{"post": "/sum", "body": {"numbers": [1, 2]}, "expect": {"sum": 3}}]},
        }
        document = {
            "registry": f"{self.registry}/{NAMESPACE}",
            "defaults": {"hub": setting.hub.url, "base": self.models.base or setting.base},
            "models": {name: {**usual, **keys} for name, keys in self.models.entries.items()},
        }
        (self.folder / "models.yaml").write_text(json.dumps(document, indent=2))
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "DOCKER_HOST": setting.builder.host,
            "MODELBAKE_REGISTRY": self.registry,
            "MODELBAKE_REGISTRY_USER": setting.store.user,
            "MODELBAKE_REGISTRY_PASSWORD_FILE": str(setting.store.password_file),
            "MODELBAKE_PIP_CONFIG": str(setting.wheels.pip_config),
            "HF_TOKEN_PATH": str(setting.hub.token_file),
        }

    @property
    def lock(self) -> Path:
        """Its models.lock."""
        return self.folder / "models.lock"

    def build_py(self, *arguments: str) -> measure.Measured:
        """Run `build.py`; raise Failed where it fails."""
        runtimes = self.models.runtimes or self.setting.runtimes
        command = [sys.executable, str(ROOT / "build.py"), *arguments, "--images", str(runtimes)]
        return measure.run(command, environment=self.environment, folder=self.folder)


def say(text: str) -> None:
    """Tell the person who waits; stdout is kept for the table."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
