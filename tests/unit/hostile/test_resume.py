"""A fetch that is killed (SIGKILL) in the middle, at random offsets, and run again: all of it is right."""

from __future__ import annotations

import hashlib
import random
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import Tally
from tests.promises import cases
from tests.servers.hub import Fault, Hub
from tests.unit.hostile.forked import BUILDER
from tests.unit.hostile.readers import Case, prepare, require_right, sabotaged

WEIGHTS = random.Random(11).randbytes(900_000)
FILES = {
    "config.json": b"{}",
    "model-1.safetensors": WEIGHTS,
    "model-2.safetensors": WEIGHTS[:300_000][::-1],
    "sub/vocab.txt": b"word\n" * 20_000,
}


def partial_bytes(case: Case) -> int:
    """How far the file has come that is being written, -1 where there is none."""
    sizes = [-1]
    for path in case.destination.glob(".modelbake-partial-*"):
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:  # renamed meanwhile
            continue
    return max(sizes)


def kill_at(hub: Hub, case: Case, command: list[str], path: str, offset: int) -> dict[str, str]:
    """Run, kill when `path` has come so far; return the files that were finished: path -> sha256."""
    hub.faults.clear()
    # What follows comes byte by byte: there is time to kill.
    hub.faults.add(Fault("trickle", path, offset=offset, seconds=0.1))
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    others = set(FILES) - {path}
    while partial_bytes(case) < offset or not all((case.destination / other).exists() for other in others):
        assert time.monotonic() < deadline and run.poll() is None, (run.poll(), path, offset)
        time.sleep(0.005)
    run.kill()
    run.communicate()
    hub.faults.clear()
    hub.reset_log()
    return found(case)


def found(case: Case) -> dict[str, str]:
    return {
        file.relative_to(case.destination).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in case.destination.rglob("*")
        if file.is_file() and not file.name.startswith(".modelbake-partial-")
    }


def again(command: list[str]) -> int:
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode


@pytest.mark.promise("resume", "wrong-bytes")
def test_killed_at_any_offset_it_goes_on(hub: Hub, case: Case, tally: Tally) -> None:
    for seed in range(cases(2, 50)):
        chance = random.Random(seed)
        path = chance.choice(["model-1.safetensors", "model-2.safetensors"])
        offset = chance.randrange(len(FILES[path]))
        command = prepare(case)
        finished = kill_at(hub, case, command, path, offset)
        assert finished == {each: sha256 for each, sha256 in case.truth.items() if each != path}
        assert again(command) == 0
        require_right(found(case), case)
        assert not [each for each in finished if hub.requests_for(each)], "what was whole is not asked for"
        assert hub.bytes_sent(path, host="cdn") == len(FILES[path])
        assert partial_bytes(case) == -1, "and nothing half is left"
        tally.count()


@pytest.mark.promise("resume", "wrong-bytes")
def test_what_was_damaged_while_nothing_ran_is_fetched_again(hub: Hub, case: Case, tally: Tally) -> None:
    command = prepare(case)
    for seed in range(cases(1, 20)):
        chance = random.Random(seed)
        path = chance.choice(list(FILES))
        kill_at(hub, case, command, "model-1.safetensors", chance.randrange(900_000))
        file = case.destination / path
        content = bytearray(file.read_bytes() if file.exists() else FILES[path])
        content[chance.randrange(len(content))] ^= 1
        file.chmod(0o644) if file.exists() else None
        file.write_bytes(content)
        assert again(command) == 0
        require_right(found(case), case)
        command = prepare(case)
        tally.count()


@pytest.mark.control("resume")
def test_one_that_believes_what_it_finds_is_found_out(hub: Hub, case: Case, tmp_path: Path) -> None:
    """A program that takes a file of the right size for a finished one."""
    naive = sabotaged(tmp_path, "tree.py", "state.st_size == entry.size and self._is(entry)", "state")
    assert naive.parent != BUILDER
    command = prepare(case, naive)
    kill_at(hub, case, command, "model-1.safetensors", 1000)
    (case.destination / "model-1.safetensors").write_bytes(bytes(900_000))
    assert again(command) == 0
    with pytest.raises(AssertionError, match="wrong bytes were accepted"):
        require_right(found(case), case)
