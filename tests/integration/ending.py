"""Runs of `build.py` that are ended from outside, at a stage or a moment, and what they have left."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.integration.world import World
from tests.servers.environment import ROOT

BOUND = 90  # seconds; a run that takes longer hangs


@dataclass(frozen=True)
class Stage:
    """When a run is ended: so many seconds after the first line of an event, or after its start."""

    event: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Ended:
    """How a run ended; `reached`: it was still running at its stage; `took`: seconds from there."""

    code: int
    out: str
    said: str
    reached: bool
    took: float
    events: tuple[str, ...]


def start(world: World, *arguments: str) -> subprocess.Popen[str]:
    """Start `build.py`, which logs JSON lines."""
    command = [sys.executable, str(ROOT / "build.py"), *arguments, "--images", str(world.images)]
    return subprocess.Popen(
        [*command, "--log-format", "json"],
        cwd=world.folder,
        env=world.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests may ignore it; the program inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def end_at(
    world: World,
    stage: Stage,
    act: signal.Signals | None,
    *arguments: str,
    also: Callable[[], object] | None = None,
) -> Ended:
    """Run `build.py`, and send it a signal (or call `also`) at a stage; wait for its end.

    Raises AssertionError for a run that does not end, or shows a traceback.
    """
    began: list[float] = []

    def strike() -> None:
        if run.poll() is None:
            began.append(time.monotonic())
            if act is not None:
                run.send_signal(act)
            if also is not None:
                also()

    timer, lines = threading.Timer(stage.seconds, strike), []
    with start(world, *arguments) as run:
        watchdog = threading.Timer(BOUND, run.kill)
        watchdog.start()
        assert run.stderr is not None and run.stdout is not None
        if not stage.event:
            timer.start()
        for line in run.stderr:
            lines.append(line)
            if stage.event and _event(line) == stage.event and not timer.is_alive() and not began:
                timer.start()
                timer.join()  # at this very stage, and not one later
        out = run.stdout.read()
        code = run.wait()
    took = time.monotonic() - began[0] if began else 0.0
    for each in (timer, watchdog):
        each.cancel()
    said = "".join(lines)
    assert took < BOUND - 1, f"it hung\n{said}"
    assert "Traceback" not in said and "Exception ignored" not in said, said
    return Ended(code, out, said, bool(began), took, tuple(map(_event, lines)))


def _event(line: str) -> str:
    try:
        return str(json.loads(line)["event"])
    except (ValueError, KeyError, TypeError):
        return ""


def left(world: World, name: str) -> list[str]:
    """Return what runs of a model have left: containers, candidate tags on the engine, temporary files."""
    ours = world.docker("ps", "--all", "--format", "{{.Names}}", "--filter", f"name=modelbake-{name}-")
    found = [f"container {container}" for container in ours.ok().out.split()]
    names = f"reference={world.services.registry}/{world.namespace}/*:candidate-*"
    tags = world.docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", "--filter", names)
    found += [f"tag {tag}" for tag in tags.ok().out.split()]
    files = [*Path(world.environment["TMPDIR"]).iterdir()]
    files += [path for path in world.folder.rglob("*.tmp") if path.is_file()]
    return found + [f"file {path}" for path in files]
