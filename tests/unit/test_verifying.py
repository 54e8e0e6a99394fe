"""The smoke run of weights alone; in place of the container runs the image's real start program."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from modelbake.containers import ContainerState, ExecResult
from modelbake.errors import NotReady
from modelbake.verdict import Run
from modelbake.verifying import watch

PROGRAMS = Path(__file__).parents[2] / "images" / "start"


class Process:
    """A process in place of a container."""

    def __init__(self, folder: Path, *command: str) -> None:
        self.log = folder / "log"
        with self.log.open("wb") as log:
            environment = {"MODELBAKE_WEIGHTS": str(folder / "models")}
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def state(self) -> ContainerState:
        code = self.process.poll()
        return ContainerState(running=code is None, exit_code=code, oom_killed=False)

    def logs(self, tail: int = 200) -> str:
        return self.log.read_text()

    def exec(self, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> ExecResult:
        raise AssertionError("there is nobody to ask")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    (tmp_path / "models/config.json").write_bytes(b"{}")
    for name in ("start.py", "weight_files.py", "weight_headers.py", "weight_sample.py"):
        shutil.copy(PROGRAMS / name, tmp_path)
    file = {"path": "config.json", "size": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}
    manifest = {"schema": 1, "model": "m", "version": "1.0.0", "files": [file]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def watched(folder: Path, *command: str, limit: float = 60) -> Run:
    run = Run()
    process = Process(folder, *(command or (sys.executable, str(folder / "start.py"), "--verify")))
    try:
        watch(process, limit, run)
    finally:
        process.process.kill()
        process.process.wait()
        (check,) = run.checks
        assert check.report.name == "verified"
        assert check.report.passed == (run.ready_seconds is not None)
    return run


def test_right_weights(image: Path) -> None:
    run = watched(image)
    assert run.failed == []
    assert run.ready_seconds is not None


def test_wrong_weights(image: Path) -> None:
    (image / "models/config.json").write_bytes(b"[]")
    with pytest.raises(NotReady, match="exit code 65") as caught:
        watched(image)
    assert "config.json: mismatch" in caught.value.message


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import time; time.sleep(60)", "it had not verified its weights within 0.5 s"),
        ("print('all well')", "it ended well, but does not say that it has verified its weights"),
        ("raise SystemExit(3)", "the container ended with exit code 3"),
    ],
)
def test_what_verifies_nothing_does_not_pass(tmp_path: Path, program: str, words: str) -> None:
    with pytest.raises(NotReady, match=words):
        watched(tmp_path, sys.executable, "-c", program, limit=0.5 if "sleep" in program else 60)
