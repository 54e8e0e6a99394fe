"""One run of a program: how long, how much memory at its peak, how much it wrote to disks."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_LOOK_EVERY = 0.01  # seconds


class Failed(Exception):
    """Something that is needed for a row did not work; says what."""


@dataclass(frozen=True)
class Measured:
    """What a program did.

    Attributes:
        seconds: from the process's start to its exit.
        processor: seconds of processor time, its children's included.
        out, err: what it said.
        peak: VmHWM, in bytes.
        written: bytes that it and its children gave to disks.
    """

    seconds: float
    processor: float
    out: str
    err: str
    peak: int
    written: int


def run(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    folder: Path,
) -> Measured:
    """Run a program to its end, from a process's start to its exit; raise Failed where it fails."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began = time.monotonic()
        process = subprocess.Popen(
            command, cwd=folder, env=dict(environment), stdin=subprocess.DEVNULL, stdout=out, stderr=err
        )
        peak = 0
        try:
            # It is left a zombie until its counters are read: they go with it.
            while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
                peak = max(peak, _field(process.pid, "status", "VmHWM") * 1024)
                time.sleep(_LOOK_EVERY)
            seconds = time.monotonic() - began
            written = _field(process.pid, "io", "write_bytes")
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        out.seek(0)
        err.seek(0)
        told = Measured(seconds, usage.ru_utime + usage.ru_stime, out.read(), err.read(), peak, written)
    if process.returncode:
        last = "\n".join((told.err or told.out).strip().splitlines()[-8:])
        raise Failed(f"{Path(command[0]).name} {' '.join(command[1:4])}: exit {process.returncode}: {last}")
    return told


def processor_seconds(pid: int) -> float:
    """Return the processor time that a running process has taken so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _field(pid: int, file: str, name: str) -> int:
    """Return a number of /proc/PID/FILE, 0 where it is not told (any more)."""
    try:
        text = Path(f"/proc/{pid}/{file}").read_text()
    except OSError:
        return 0
    found = re.search(rf"^{name}:\s*(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0
