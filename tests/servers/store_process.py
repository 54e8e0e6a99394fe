"""A store's server as a process of its own: on a free port, from the environment `.venv/stores`.

`make .venv/stores/.installed .venv/azurite/.installed` makes what they need; `make test` and `make sources`
ask for it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tests.servers.running import free_port

ROOT = Path(__file__).resolve().parents[2]
STORES = ROOT / ".venv" / "stores"
AZURITE = ROOT / ".venv" / "azurite"
_PATIENCE = 180.0  # seconds; MLflow makes its tables first, and the machine may be busy


class StoreProcess:
    """Started by `with`, ready when it answers, killed at the end; its output is in `folder`/`name`.log."""

    name = "store"
    ready_path = "/"
    scheme = "http"

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        self.folder = folder
        self.host = host
        self.port = free_port()
        self.endpoint = f"{self.scheme}://{host}:{self.port}"
        self.opener = urllib.request.build_opener()
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """What is run."""
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        """What it gets besides PATH and a HOME of its own."""
        return {}

    def prepare(self) -> None:
        """What is done once before the first start."""

    @property
    def log(self) -> Path:
        """What the server has printed."""
        return self.folder / f"{self.name}.log"

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.prepare()
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it on its port and wait until it answers. Raises AssertionError with its log's end if not."""
        command = self.command()
        missing = [path for path in command[:2] if path.startswith(str(ROOT)) and not Path(path).exists()]
        assert not missing, f"{missing[0]} is not there: run `make test` or `make sources`, which install it"
        system = {"PATH": f"{STORES / 'bin'}:{os.environ.get('PATH', '')}", "HOME": str(self.folder)}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**system, **self.environment()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kill it and what it has started; nothing if it is not running."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def _wait(self) -> None:
        assert self._process is not None
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            if self._process.poll() is not None:
                break
            if self.answers():
                return
            time.sleep(0.1)
        raise AssertionError(f"{self.name} does not answer:\n{self.log.read_text()[-3000:]}")

    def answers(self) -> bool:
        """Whether it answers HTTP, with whatever status."""
        try:
            with self.opener.open(f"{self.endpoint}{self.ready_path}", timeout=5):
                return True
        except urllib.error.HTTPError as error:
            error.close()
            return True
        except OSError:
            return False
