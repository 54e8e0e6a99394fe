"""How fast start.py compares weights with the manifest, beside what the cores could hash at best.

The real program is run as in an image: beside a manifest, with the weights in a folder. Everything is in the
page cache, so that no disk is measured.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.measure import Failed
from bench.weights import write_weights
from tests.servers.environment import ROOT

_CHUNK = 1 << 20  # bytes at a time, as start.py
_PROGRAMS = ("start.py", "weight_files.py", "weight_headers.py", "weight_sample.py")


@dataclass
class Verifications:
    """Seconds of each round, for the same bytes.

    Attributes:
        start: start.py's, by its own log.
        one_core: hashlib.file_digest's of all files, one after the other.
        all_cores: the same in a process for each core at once. Where that is far from `one_core` divided by
            the cores, they share something, or another program took part of them.
        memory: one core's with as many bytes that are in its own cache: what reading costs is the difference.
    """

    bytes: int
    cores: int
    start: list[float] = field(default_factory=list)
    one_core: list[float] = field(default_factory=list)
    all_cores: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)


def verify_in_turns(folder: Path, files: int, file_bytes: int, rounds: int) -> Verifications:
    """Run start.py and hashlib alone in turns; everything is made in `folder` and removed."""
    folder.mkdir(parents=True, exist_ok=True)
    cores = len(os.sched_getaffinity(0))
    found = Verifications(files * file_bytes, cores)
    with _image(folder, files, file_bytes) as (program, weights), ProcessPoolExecutor(cores) as pool:
        paths = sorted(weights.iterdir())
        for number in range(rounds + 1):
            start = _start(program, weights)
            one_core = _timed(lambda: [_hash_file(path) for path in paths])
            all_cores = _timed(lambda: list(pool.map(_hash_file, paths)))
            memory = _timed(lambda: _hash_memory(found.bytes))
            if number:  # the first round puts the files into the page cache, and starts the processes
                found.start.append(start)
                found.one_core.append(one_core)
                found.all_cores.append(all_cores)
                found.memory.append(memory)
    return found


@contextmanager
def _image(folder: Path, files: int, file_bytes: int) -> Iterator[tuple[Path, Path]]:
    """Make what start.py finds in an image; yield the program and the folder of the weights."""
    with tempfile.TemporaryDirectory(prefix="verification-", dir=folder) as made:
        programs, weights = Path(made) / "modelbake", Path(made) / "models"
        programs.mkdir()
        for name in _PROGRAMS:
            shutil.copy(ROOT / "images" / "start" / name, programs)
        entries = []
        for number in range(1, files + 1):
            path = write_weights(weights / f"{number}.weights", file_bytes, number)
            entries.append({"path": path.name, "size": path.stat().st_size, "sha256": _hash_file(path)})
        manifest = {"schema": 1, "model": "bench", "version": "1.0.0", "files": entries}
        (programs / "manifest.json").write_text(json.dumps(manifest))
        yield programs / "start.py", weights


def _start(program: Path, weights: Path) -> float:
    """Let start.py verify; return the seconds that it says it took."""
    environment = {"PATH": os.environ["PATH"], "MODELBAKE_WEIGHTS": str(weights)}
    command = [sys.executable, str(program), "true"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode or [event["event"] for event in events] != ["verified"]:
        raise Failed(f"start.py: exit {done.returncode}: {done.stdout}{done.stderr}")
    return float(events[0]["seconds"])


def _timed(action: Callable[[], object]) -> float:
    began = time.monotonic()
    action()
    return time.monotonic() - began


def _hash_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _hash_memory(size: int) -> None:
    piece = memoryview(bytes(range(256)) * (_CHUNK // 256))
    digest = hashlib.sha256()
    for start in range(0, size, _CHUNK):
        digest.update(piece[: size - start])
