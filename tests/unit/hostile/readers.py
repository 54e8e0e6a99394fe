"""The three programs that read from a hub, made alike, and what must hold of each whatever the hub does.

    resolver   what `lock` does: listing, hashing of what is not in Git LFS
    fetch      the builder stage's program, run as it is in a build
    stream     what `publish` does: the bytes flow through a layer, compared with the lock

Each is asked for the files of one model at one hub. It accepts them, path -> sha256, or refuses them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from modelbake.config import ModelSpec
from modelbake.credentials import Secret
from modelbake.errors import ModelbakeError
from modelbake.lock import LockedFile, LockedModel
from modelbake.plan import WeightGroup
from modelbake.sources.hub import HubSource
from modelbake.sources.hub_read import HubReader
from modelbake.sources.patience import Patience
from modelbake.stream.flow import LayerFlow, Reader
from modelbake.stream.layers import WeightLayer
from tests.unit.hostile.forked import BUILDER, Ended, run_fetch

TOKEN = "hf_canaryCANARYcanaryCANARYcanary0123"
NAME = "org/model"
QUICK = Patience(
    busy_attempts=4, first_wait=0.01, longest_wait=1, connect=2, read=0.6, answer=1.5, listing=3.0
)
CALM = Patience(busy_attempts=4, first_wait=0.01, longest_wait=1, connect=10, read=10, answer=20)
# For attempts and bytes that do not come, seconds instead of minutes.
HURRIED = ("--patience", "2", "--attempts", "3", "--read-timeout", "1", "--connect-timeout", "2")
# The same where nothing is meant to be late, on a machine that has other things to do.
UNHURRIED = ("--patience", "2", "--attempts", "3", "--read-timeout", "6")
# Seconds; a reader that is not done by then hangs: all its limits together are a third of that.
LONGEST = 60.0
_Result = TypeVar("_Result")


class Refused(Exception):
    """A reader did not take what it was given; the text is its error."""


@dataclass
class Case:
    """One model at one hub: its true bytes, and where it is said to be."""

    hub: str
    commit: str
    files: Mapping[str, bytes]
    folder: Path
    token: str | None = TOKEN
    options: tuple[str, ...] = UNHURRIED
    patience: Patience = CALM
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def truth(self) -> dict[str, str]:
        """Path -> sha256 of what a reader may accept."""
        return {path: hashlib.sha256(data).hexdigest() for path, data in self.files.items()}

    @property
    def destination(self) -> Path:
        """Where fetch.py writes."""
        return self.folder / "models"

    def locked(self) -> LockedModel:
        """What the lock says of the model."""
        truth = self.truth
        files = [LockedFile(path, len(data), truth[path]) for path, data in sorted(self.files.items())]
        spec = ModelSpec(name="m", version="1.0.0", source=f"hf://{NAME}", runtime="embeddings", hub=self.hub)
        return LockedModel.of(spec, self.commit, files)


def resolver(case: Case, *, revision: str = "main") -> dict[str, str]:
    """Lock the model, as `lock` does."""
    spec = ModelSpec(
        name="m",
        version="1.0.0",
        source=f"hf://{NAME}",
        runtime="embeddings",
        hub=case.hub,
        revision=revision,
        include=tuple(case.files),
    )
    source = HubSource(Secret(case.token) if case.token else None, patience=case.patience)
    try:
        locked = source.resolve(spec.sources[0], None).locked
    except ModelbakeError as error:
        raise Refused(str(error)) from error
    return {file.path: file.sha256 for file in locked.files}


def stream(case: Case, through: Callable[[LockedModel, Reader], None] | None = None) -> dict[str, str]:
    """Let the model's bytes flow through a layer, as `publish` does."""
    locked = case.locked()
    reader = HubReader(locked, Secret(case.token) if case.token else None, patience=case.patience)
    taken: dict[str, str] = {}
    flow = LayerFlow(
        WeightLayer(WeightGroup(locked.files)),
        reader,
        on_verified=lambda verified: taken.update({verified.file.path: verified.file.sha256}),
    )
    try:
        for _ in flow.read():
            pass
    except ModelbakeError as error:
        raise Refused(str(error)) from error
    # A file without bytes passes without being looked at; its sha256 is compared beforehand.
    return {**taken, **{file.path: file.sha256 for file in locked.files if not file.size}}


def fetch(case: Case, program: Path = BUILDER / "fetch.py") -> dict[str, str]:
    """Run the builder stage's program."""
    command = prepare(case, program)
    if program == BUILDER / "fetch.py" and not case.environment:
        done = run_fetch(command[2:], LONGEST)
    else:
        done = _run(command, case.environment)
    assert TOKEN not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    if done.code:
        error = json.loads(done.stderr.splitlines()[-1])
        assert error["code"] == done.code, (error, done.code)
        assert done.code != 1, f"an error that was not foreseen: {error}"
        left = [path.name for path in case.destination.rglob("*")] if case.destination.exists() else []
        assert not left, "what was begun is taken away"
        raise Refused(error["message"])
    return {
        path.relative_to(case.destination).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in case.destination.rglob("*")
        if path.is_file()
    }


def _run(command: list[str], environment: Mapping[str, str]) -> Ended:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LONGEST, env=dict(environment) or None
        )
    except subprocess.TimeoutExpired as late:
        raise AssertionError(f"fetch.py hangs: {late.stdout!r}") from late
    return Ended(done.returncode, done.stdout, done.stderr)


def prepare(case: Case, program: Path = BUILDER / "fetch.py") -> list[str]:
    """Write manifest and secrets; return the command."""
    secrets = case.folder / "secrets"
    shutil.rmtree(secrets, ignore_errors=True)
    shutil.rmtree(case.destination, ignore_errors=True)
    secrets.mkdir(parents=True)
    source = {"schema": 1, "kind": "hf", "endpoint": case.hub, "repo": NAME, "revision": case.commit}
    (secrets / "sources").write_text(json.dumps(source))
    if case.token:
        (secrets / "hf_token").write_text(case.token)
    truth = case.truth
    files = [{"path": path, "size": len(data), "sha256": truth[path]} for path, data in case.files.items()]
    manifest = case.folder / "manifest.json"
    manifest.write_text(json.dumps({"schema": 1, "files": files}))
    arguments = [str(manifest), str(case.destination), "--secrets", str(secrets), *case.options]
    return [sys.executable, str(program), *arguments]


READERS: dict[str, Callable[[Case], dict[str, str]]] = {
    "resolver": resolver,
    "fetch": fetch,
    "stream": stream,
}


def sabotaged(folder: Path, file: str, old: str, new: str) -> Path:
    """Return a copy of fetch.py in which one thing is not checked any more."""
    copy = folder / "sabotaged"
    shutil.copytree(BUILDER, copy, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(BUILDER.parent / "start/weight_sample.py", copy)
    text = (copy / file).read_text()
    assert text.count(old) == 1, f"{file} has changed: {old!r}"
    (copy / file).write_text(text.replace(old, new))
    return copy / "fetch.py"


# -- what must hold ------------------------------------------------------------------------------------------


def outcome(read: Callable[[Case], dict[str, str]], case: Case) -> dict[str, str] | None:
    """Return what a reader accepts, None if it refuses; fail if it hangs."""
    try:
        return ends(lambda: read(case))
    except Refused:
        return None


def require_right(accepted: Mapping[str, str] | None, case: Case) -> None:
    """What was accepted is what is true, all of it."""
    if accepted is not None:
        wrong = sorted(
            path
            for path in {*accepted, *case.files}
            if accepted.get(path) != case.truth.get(path, "not a file of the model")
        )
        assert not wrong, f"wrong bytes were accepted: {wrong}"


def ends(call: Callable[[], _Result], seconds: float = LONGEST) -> _Result:
    """Return what a call returns or raises; fail if it takes longer."""
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    began = time.monotonic()
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), f"no end after {time.monotonic() - began:.0f} s: it hangs"
    if errors:
        raise errors[0]
    result: _Result = results[0]
    return result
