"""Runs modelbake on hostile files in processes that may use little time and memory, and die if they use more.

One process has everything imported; it forks for every case, so that each is judged alone.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.servers.environment import ROOT

CPU_SECONDS = 10
WALL_SECONDS = 60  # the machine may be busy; a program that waits for something waits for ever
MEMORY = 1 << 30  # bytes of address space; Python with everything imported has a third of it
_UNEXPECTED = 99


@dataclass(frozen=True)
class Outcome:
    """How one case ended: the exit code, or minus the signal that killed it; its stderr; what it used."""

    status: int
    stderr: str
    seconds: float
    megabytes: int


class Limited:
    """The process that forks; `run` is for one case at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, folder: Path, *command: str, cpu_seconds: int = CPU_SECONDS) -> Outcome:
        """Run a command line in a folder; `report` and `goldens` as first word read these files instead.

        `loop`, `fill` and `raise` do what is not to happen.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([cpu_seconds, str(folder), *command]) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        stderr = (folder / "stderr").read_text(errors="backslashreplace")
        return Outcome(answer["status"], stderr, answer["seconds"], answer["megabytes"])


@contextmanager
def limited() -> Iterator[Limited]:
    """Start the process that forks."""
    command = [sys.executable, "-m", "tests.unit.limited"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Limited(process)
        assert process.stdin is not None
        process.stdin.close()


def _serve() -> None:
    from modelbake import cli, goldens, lock, report  # noqa: F401 - imported once, for all

    cli._parser()
    for line in sys.stdin:
        cpu_seconds, folder, *command = json.loads(line)
        child = os.fork()
        if child == 0:
            _child(folder, command, cpu_seconds)
        _, status, usage = os.wait4(child, 0)
        answer = {
            "status": os.waitstatus_to_exitcode(status),
            "seconds": usage.ru_utime + usage.ru_stime,
            "megabytes": usage.ru_maxrss // 1024,
        }
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _child(folder: str, command: list[str], cpu_seconds: int) -> None:
    status = _UNEXPECTED
    try:
        os.chdir(folder)
        nothing, stderr = (
            os.open(os.devnull, os.O_RDWR),
            os.open("stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        )
        for number, descriptor in enumerate((nothing, nothing, stderr)):
            os.dup2(descriptor, number)
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        signal.alarm(WALL_SECONDS)
        status = _run(command)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _run(command: list[str]) -> int:
    from modelbake import cli
    from modelbake.errors import ModelbakeError
    from modelbake.goldens import read_goldens
    from modelbake.report import read_report

    while command[0] == "loop":
        pass
    if command[0] == "fill":
        bytearray(2 * MEMORY)
    if command[0] == "raise":
        raise ValueError("foreign")
    try:
        if command[0] == "report":
            read_report(Path("reports"), *command[1:])
            return 0
        if command[0] == "goldens":
            read_goldens(Path("goldens"), *command[1:])
            return 0
    except ModelbakeError as error:
        sys.stderr.write(str(error))
        return error.exit_code
    return cli.run(command)


if __name__ == "__main__":
    _serve()
