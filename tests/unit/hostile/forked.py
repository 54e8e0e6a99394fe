"""The builder stage's program in a process forked off one that has imported it: that is half of a short run.

Nothing of `modelbake` may be imported here: the program is alone in a build.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BUILDER = Path(__file__).parents[3] / "images" / "builder"
_SAID = ("stdout", "stderr")
_FORKING = multiprocessing.get_context("forkserver")
_FORKING.set_forkserver_preload([f"{__package__}.preloaded"])


@dataclass(frozen=True)
class Ended:
    """How a run ended: its exit status, and what it wrote."""

    code: int
    stdout: str
    stderr: str


def run_fetch(arguments: Sequence[str], seconds: float) -> Ended:
    """Run `fetch.py` with arguments. Raises AssertionError where it takes longer than `seconds`."""
    with tempfile.TemporaryDirectory() as name:
        process = _FORKING.Process(target=_run, args=(list(arguments), name, dict(os.environ)), daemon=True)
        process.start()
        process.join(seconds)
        said = [Path(name, file).read_text() for file in _SAID]
        if process.is_alive():
            process.kill()
            process.join()
            raise AssertionError(f"fetch.py hangs: {said[0]!r}")
        # Not `process.exitcode`: where several threads start processes, one may take the status of another's.
        return Ended(int(Path(name, "code").read_text()), *said)


def _run(arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate(_SAID, 1):
        os.dup2(os.open(Path(folder, file), os.O_WRONLY | os.O_CREAT), number)
    if str(BUILDER) not in sys.path:
        sys.path.insert(0, str(BUILDER))
    import fetch  # type: ignore[import-not-found]

    code = fetch.main(arguments)
    sys.stdout.flush()
    Path(folder, "code").write_text(str(code))
    os._exit(code)
