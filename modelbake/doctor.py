"""What a build needs, looked at one by one: each finding is ok, a note, or something to mend and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from modelbake import engine as engines
from modelbake.config import ModelSpec
from modelbake.credentials import Redactor, Secret, hub_token
from modelbake.dockerconfig import RegistryAuth
from modelbake.engine import Engine
from modelbake.errors import GpuUnavailable, ModelbakeError
from modelbake.registry import Registry
from modelbake.sources import source_for
from modelbake.workspace import Workspace

State = Literal["ok", "note", "mend"]
_LITTLE_DISK = 20_000_000_000  # bytes; a CUDA image and its build cache are about that much


@dataclass(frozen=True)
class Finding:
    """One looked-at thing: `subject`, whether it is `ok`, what was found, and `remedy` where it is not."""

    subject: str
    state: State
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        """Return one line for people."""
        remedy = f" -> {self.remedy}" if self.remedy else ""
        return f"{self.state:<5}{self.subject}: {self.text}{remedy}"


def examine(workspace: Workspace, redactor: Redactor) -> list[Finding]:
    """Look at everything; nothing is changed. One thing's failure does not hide another's."""
    findings: list[Finding] = []
    engine: Engine | None = None

    def look(subject: str, action: Callable[[], Finding]) -> None:
        try:
            findings.append(action())
        except ModelbakeError as error:
            text = f"{error.subject}: {error.message}" if error.subject else error.message
            findings.append(Finding(subject, "mend", text, error.hint))

    def find_engine() -> Finding:
        nonlocal engine
        engine = engines.connect()
        info = engine.info
        text = f"Docker Engine {info.version} at {engine.host} ({info.store} image store)"
        return Finding("engine", "ok", text)

    look("models.yaml", lambda: _models(workspace))
    look("engine", find_engine)
    if engine:
        found = engine  # a name that stays an Engine inside the lambdas
        look("buildkit", lambda: _buildkit(found))
        look("gpu", lambda: _gpu(found, workspace))
        look("disk", lambda: _disk(found))
    try:
        config = workspace.config
    except ModelbakeError:
        return findings
    token = hub_token()
    if token:
        redactor.add(token)
    # One model of each hub stands for all: `lock --check` asks for every one of them.
    for spec in {spec.hub: spec for spec in config.models.values()}.values():
        look("hub", partial(_hub, spec, token))
    look("registry", lambda: _registry(config.registry))
    return findings


def _models(workspace: Workspace) -> Finding:
    return Finding("models.yaml", "ok", f"{len(workspace.config.models)} models in {workspace.file}")


def _buildkit(engine: Engine) -> Finding:
    engine.require_buildkit()
    return Finding("buildkit", "ok", "this engine builds with secret mounts and linked layers")


def _gpu(engine: Engine, workspace: Workspace) -> Finding:
    if engine.info.gpu:
        return Finding("gpu", "ok", "the engine hands out NVIDIA GPUs")
    try:
        needed = [spec.name for spec in workspace.config.models.values() if spec.device == "cuda"]
    except ModelbakeError:
        needed = []
    remedy = "install the NVIDIA Container Toolkit, or point DOCKER_HOST at a GPU host"
    if needed:
        text = f"the engine has none; these models' smoke tests need one: {', '.join(needed[:5])}"
        raise GpuUnavailable(text, hint=remedy)
    return Finding("gpu", "note", "the engine has none; smoke tests run on the CPU", remedy)


def _disk(engine: Engine) -> Finding:
    free = engine.disk_free()
    if free is None:
        return Finding("disk", "note", "the engine is on another machine; its disk cannot be seen from here")
    text = f"{free / 1e9:,.0f} GB free where the engine keeps its data"
    if free < _LITTLE_DISK:
        return Finding("disk", "mend", text, "`docker builder prune` drops the build cache")
    return Finding("disk", "ok", text)


def _hub(spec: ModelSpec, token: Secret | None) -> Finding:
    """Ask for one model's commit: it takes a hub that answers, and a token that opens that repository."""
    source_for(spec.source, token).head(spec)
    how = "with the token" if token else "without a token"
    return Finding("hub", "ok", f"{spec.hub} shows {spec.source} {how}")


def _registry(registry: str) -> Finding:
    host = registry.partition("/")[0]
    credentials = RegistryAuth().for_registry(host)
    with Registry(host, credentials) as connection:
        connection.ping()
    who = f"as {credentials.username}" if credentials else "without credentials"
    return Finding("registry", "ok", f"{host} answers, {who}")
