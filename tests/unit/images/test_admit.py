"""admit.py, run as the real program: only the locked bytes get in."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modelbake.sample import Sampler
from tests.unit.images.test_slim import BUILDER

FILES = {"model.safetensors": b"weights" * 1000, "deep/er/model.safetensors": b"", "index.json": b"{}"}


class Bench:
    def __init__(self, folder: Path) -> None:
        self.manifest, self.source, self.destination = (
            folder / name for name in ("manifest.json", "made", "models")
        )
        for path, content in FILES.items():
            (self.source / path).parent.mkdir(parents=True, exist_ok=True)
            (self.source / path).write_bytes(content)
        self.lock(FILES)

    def lock(self, files: dict[str, bytes]) -> None:
        entries = [
            {"path": path, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for path, content in files.items()
        ]
        self.manifest.write_text(json.dumps({"schema": 1, "files": entries}))

    def run(self, *options: str) -> tuple[int, dict[str, Any]]:
        paths = map(str, (BUILDER / "admit.py", self.manifest, self.source, self.destination))
        done = subprocess.run(
            [sys.executable, *paths, *options], env={}, capture_output=True, text=True, check=False
        )
        return done.returncode, json.loads(done.stderr) if done.stderr else {}

    def left(self) -> list[str]:
        return sorted(path.name for path in self.destination.rglob("*")) if self.destination.exists() else []


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_locked_files_are_taken_in_and_sealed(bench: Bench) -> None:
    (bench.source / "more.txt").write_text("made, and not of this group")
    assert bench.run() == (0, {})
    found = {
        path.relative_to(bench.destination).as_posix(): path.read_bytes()
        for path in bench.destination.rglob("*")
        if path.is_file()
    }
    assert found == FILES
    for path in bench.destination.rglob("*"):
        state = path.stat()
        assert (stat.S_IMODE(state.st_mode), state.st_mtime) == (0o444 if path.is_file() else 0o555, 0)


def test_large_files_have_samples_as_if_they_had_been_fetched(bench: Bench, tmp_path: Path) -> None:
    content = os.urandom(5 << 20)
    (bench.source / "model.safetensors").write_bytes(content)
    bench.lock({**FILES, "model.safetensors": content})
    folder = tmp_path / "modelbake" / "samples"
    assert bench.run("--samples", str(folder)) == (0, {})
    sampler = Sampler(len(content))
    sampler.update(memoryview(content))
    found = {path.name: path.read_text() for path in folder.iterdir()}
    assert found == {hashlib.sha256(content).hexdigest(): f"{sampler.hexdigest()}\n"}


@pytest.mark.promise("wrong-bytes")
@pytest.mark.parametrize(
    "content", [b"weights" * 999 + b"weightx", b"weights" * 999, b"weights" * 1001, b"", None]
)
def test_other_bytes_are_refused_and_leave_nothing(bench: Bench, content: bytes | None) -> None:
    path = bench.source / "model.safetensors"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    code, error = bench.run()
    assert (code, error["file"]) == (29, "model.safetensors")
    if content is not None:
        wanted = hashlib.sha256(FILES["model.safetensors"]).hexdigest()
        assert (error["expected"], error["actual"]) == (wanted, hashlib.sha256(content).hexdigest())
    assert bench.left() == []


@pytest.mark.promise("hub-names")
@pytest.mark.parametrize("path", ["../out", "/out", "a/../../out"])
def test_no_path_leads_out(bench: Bench, path: str) -> None:
    bench.lock({path: b""})
    code, error = bench.run()
    assert code == 27 and "not a safe path" in error["message"]


def test_a_destination_that_holds_something_else_is_refused(bench: Bench) -> None:
    bench.destination.mkdir()
    (bench.destination / "extra").write_text("x")
    code, error = bench.run()
    assert (code, error["code"]) == (24, 24) and "extra" in error["message"]
    os.unlink(bench.destination / "extra")  # noqa: PTH108 - control: without it all is well
    assert bench.run()[0] == 0
