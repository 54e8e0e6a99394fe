"""Starts vLLM's own server, `vllm serve`, for the model in ``$MODELBAKE_WEIGHTS``, and stays until it ends.

What vLLM serves, and how, is vLLM's own. This program, its parent, adds what every runtime of modelbake
promises: it looks first whether there is what vLLM needs; gate.py, which vLLM takes as a middleware, makes
/health true and adds to /metrics; whatever any process of vLLM writes becomes a JSON line; SIGTERM lets open
requests end, within ``MODELBAKE_DRAIN_SECONDS``, and then the exit code is 0.

    exit code 70    the model could not be loaded, or did not answer
    exit code 71    the port could not be opened
    exit code 72    vLLM ended by itself after that
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

try:
    import serving
except ModuleNotFoundError:  # Outside of an image, where it lies beside this runtime's folder.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "start"))
    import serving

import arguments
import gate
import machine
from serving import LoadError, Settings, log
from start import write_line

ENDED = 72
HERE = Path(__file__).resolve().parent
VLLM = (sys.executable, "-m", "vllm.entrypoints.cli.main")  # what the command `vllm` runs
LONGEST_LINE = 64 * 1024
# After the time for open requests: vLLM's processes give back the GPU, and are killed where they do not.
TEARDOWN_SECONDS = 30
# How Python's last words begin, whichever process they are of. The server's own only point to the engine's.
ERROR = re.compile(r"[\w.]*(?:Error|Exception|error)\b.*: ")
ROOT_CAUSE = "root cause above"
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1


class Vllm:
    """vLLM's processes: the server, and the engine and workers that it starts."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], drain_seconds: int) -> None:
        self.drain_seconds = drain_seconds
        self.stopping: signal.Signals | None = None
        self.loaded = False
        self.last_error = ""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.stop)
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=end_with_parent,  # no other thread runs yet
        )
        if self.stopping:  # in between
            self.process.terminate()
        assert self.process.stdout is not None and self.process.stderr is not None
        self.readers = [
            threading.Thread(target=self.relay, args=pair, daemon=True)
            for pair in ((self.process.stdout, "info"), (self.process.stderr, "warning"))
        ]

    def wait(self) -> int:
        """Wait for the end; return the exit code that says how it came."""
        for reader in self.readers:
            reader.start()
        code = self.process.wait()
        self.kill()
        for reader in self.readers:
            reader.join(5)
        if self.stopping:
            log("info", "stopped", signal=self.stopping.name)
            return 0
        if not self.loaded:
            if code != serving.LOAD_FAILED:  # else the gate has said why
                log("error", "load_failed", error=self.last_error or "vLLM said nothing", exit_code=code)
            return serving.LOAD_FAILED
        log("error", "vllm_ended", error=self.last_error, exit_code=code)
        return ENDED

    def stop(self, number: int, _frame: object) -> None:
        """Let vLLM end: it answers what it has begun, and then its process ends."""
        if self.stopping:
            return
        self.stopping = signal.Signals(number)
        if process := getattr(self, "process", None):
            process.terminate()
        watch = threading.Timer(self.drain_seconds + TEARDOWN_SECONDS, self.kill)
        watch.daemon = True
        watch.start()

    def kill(self) -> None:
        """End what is left of vLLM's processes, which would keep the GPU's memory."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def relay(self, stream: IO[bytes], level: str) -> None:
        """Pass events on; a line that is none becomes one."""
        for line in iter(lambda: stream.readline(LONGEST_LINE), b""):
            event = read_event(line)
            if event is not None:
                self.loaded = self.loaded or event["event"] == "loaded"
                # Of vLLM's processes only the server knows whose model it is.
                event |= {"model": log.model, "version": log.version}
                write_line(event)
                continue
            # A progress bar draws itself again and again in one line; how it looked last says it all.
            text = line.decode("utf-8", "replace").rstrip().rpartition("\r")[2]
            if not text.strip():
                continue
            if ERROR.match(text) and ROOT_CAUSE not in text:
                self.last_error = text[:1000]
            log(level, "log", logger="vllm.output", message=text[:2000])


def read_event(line: bytes) -> dict[str, Any] | None:
    """A line that is an event of start.Log's form, else None."""
    if not line.startswith(b"{"):
        return None
    try:
        event = json.loads(line)
        json.dumps(event)  # What can just be read may be too deep to be written.
    except (ValueError, RecursionError):
        return None
    known = isinstance(event, dict) and {"time", "level", "event"} <= event.keys()
    return event if known else None


def end_with_parent() -> None:
    """Let the kernel end this process, in order, when its parent is killed."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def environment_of_vllm() -> dict[str, str]:
    """This environment, and what vLLM's processes need to find this runtime's modules."""
    paths = [str(HERE), str(Path(serving.__file__).parent), os.environ.get("PYTHONPATH", "")]
    own = {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONUNBUFFERED": "1",
        gate.STARTED: str(time.monotonic()),
    }
    return {**os.environ, **own, **arguments.FORCED}


def main() -> NoReturn:
    """Serve until a signal comes or vLLM ends; never returns."""
    log.model = os.environ.get("MODELBAKE_MODEL", "")
    log.version = os.environ.get("MODELBAKE_VERSION", "")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, serving.stop)
    environment = environment_of_vllm()
    try:
        settings = Settings.from_environment()
        log.model, log.version = settings.model, settings.version
        arguments.refuse_absent(os.environ)
        added = arguments.serve(settings, os.environ.get(arguments.SETTING, ""))
        serving.require_safetensors(settings.weights)
        machine.require_gpu()
        machine.require_compiler()
    except LoadError as error:
        log("error", "load_failed", error=str(error))
        serving.leave(serving.LOAD_FAILED)
    try:
        machine.require_port(settings.host, settings.port)
    except OSError as error:
        log("error", "port_unusable", host=settings.host, port=settings.port, error=str(error))
        serving.leave(serving.PORT_UNUSABLE)
    serving.leave(Vllm([*VLLM, *added], environment, settings.drain_seconds).wait())


if __name__ == "__main__":
    main()
