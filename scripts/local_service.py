"""What the scripts of this folder share: the cache folder, locks, services started and stopped by pid file.

A service here is a process that a script starts, leaves running, and later stops; never anything that it did
not start. Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

NAME = re.compile(r"[a-z0-9]{1,11}")


class Problem(Exception):
    """Something the person running a script can act on: what is wrong, and what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def say(line: str) -> None:
    """One line of progress; stdout is kept for the results."""
    print(line, file=sys.stderr, flush=True)


def export(**variables: object) -> None:
    """Prints shell assignments, for ``eval "$(...)"``."""
    for name, value in variables.items():
        print(f"export {name}={shlex.quote(str(value))}")


def main(run: Callable[[], int]) -> None:
    """Runs a script's main function; a Problem becomes a message and exit status 1."""
    try:
        status = run()
    except Problem as problem:
        say(f"{Path(sys.argv[0]).name}: {problem}")
        if problem.hint:
            say(f"  -> {problem.hint}")
        status = 1
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def cache_folder() -> Path:
    """``$MODELBAKE_CACHE``, else ``modelbake`` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("MODELBAKE_CACHE") or Path(home) / "modelbake").absolute()


def require_name(name: str) -> str:
    """A service name that is safe in paths and short enough for a network interface."""
    if not NAME.fullmatch(name):
        raise Problem(f"name {name!r}: 1 to 11 of a-z and 0-9", "for example --name second")
    return name


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on a file: a second script waits. The lock goes with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another run that holds {path}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def free_port() -> int:
    """A loopback TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def command_line(pid: int) -> list[str]:
    """A process's arguments; empty when there is no such process (or it is a zombie)."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return [part.decode(errors="replace") for part in raw.split(b"\0") if part]


class Service:
    """One process with its pid file and log file; ``mark`` is an argument that only our process has."""

    def __init__(self, folder: Path, program: str, mark: str) -> None:
        self.program = program
        self.mark = mark
        self.pid_file = folder / f"{program}.pid"
        self.log_file = folder / f"{program}.log"

    def pid(self) -> int | None:
        """The pid of the running service; None where the pid file is absent, stale, or another process's."""
        try:
            pid = int(self.pid_file.read_text())
        except (OSError, ValueError):
            return None
        arguments = command_line(pid)
        ours = bool(arguments) and Path(arguments[0]).name == self.program and self.mark in arguments
        return pid if ours else None

    def start(
        self, command: list[str], environment: dict[str, str], ready: Callable[[], bool], seconds: float
    ) -> None:
        """Starts the process in its own session and waits until it answers.

        The program may write the pid file itself (dockerd insists); where it has not, it is written here.

        Raises:
            Problem: it exited, or did not answer in time; carries the end of its log.
        """
        self.pid_file.unlink(missing_ok=True)
        with self.log_file.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
                cwd="/",
            )
        try:
            self._wait(process, ready, seconds)
        except BaseException:
            process.terminate()
            self.pid_file.unlink(missing_ok=True)
            raise
        self.pid_file.write_text(f"{process.pid}\n")

    def _wait(self, process: subprocess.Popen[bytes], ready: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            if process.poll() is not None:
                what = f"exited with status {process.returncode}"
            elif time.monotonic() > deadline:
                what = f"does not answer after {seconds:.0f} s"
            else:
                time.sleep(0.05)
                continue
            raise Problem(f"{self.program} {what}:\n{self.log_end()}", f"the whole log: {self.log_file}")

    def stop(self, seconds: float) -> bool:
        """Ends our process, politely first, and waits for it. False when it was not running."""
        pid = self.pid()
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + seconds
            while self.pid() == pid and command_line(pid):
                if time.monotonic() > deadline:
                    say(f"{self.program} ({pid}) did not stop in {seconds:.0f} s: killing it")
                    os.kill(pid, signal.SIGKILL)
                    deadline += 10
                time.sleep(0.1)
        self.pid_file.unlink(missing_ok=True)
        return pid is not None

    def log_end(self, lines: int = 15) -> str:
        """The last lines of the log."""
        try:
            return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return "(no log)"
