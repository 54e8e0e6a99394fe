"""What a build needs, looked at one by one: each finding is ok, a note, or something to mend and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from modelbake import engine as engines
from modelbake.buildkit.solve import ways_to_build
from modelbake.config import ModelSpec
from modelbake.credentials import Redactor, Secret, hub_token
from modelbake.dockerconfig import RegistryAuth, split_reference
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

    def hub(spec: ModelSpec) -> Finding:
        token = hub_token()
        if token:
            redactor.add(token)
        return _hub(spec, token)

    # One model of each hub stands for all: `lock --check` asks for every one of them.
    for spec in {spec.hub: spec for spec in config.models.values()}.values():
        look("hub", partial(hub, spec))
    for base in dict.fromkeys(workspace.bases()):
        look("base", partial(_base, base))
    look("registry", lambda: _registry(config.registry))
    return findings


def _models(workspace: Workspace) -> Finding:
    names = list(workspace.config.models)
    listed = ", ".join(names[:5]) + (", ..." if names[5:] else "")
    return Finding("models.yaml", "ok", f"{workspace.file} has {listed}")


def _buildkit(engine: Engine) -> Finding:
    how = ways_to_build(engine)
    return Finding("buildkit", "ok", f"this engine builds with secret mounts, over {how}")


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
    source_for(spec.source, token).reach(spec)
    how = "with the token" if token else "without a token"
    return Finding("hub", "ok", f"{spec.hub} shows {spec.source} {how}")


def _base(base: str) -> Finding:
    """Ask the base image's registry for its manifest, with the credentials a build would use."""
    reference = split_reference(base)
    with Registry(reference.registry, RegistryAuth().for_registry(reference.registry)) as connection:
        found = connection.manifest(reference.repository, reference.digest or "")
    if found is None:
        remedy = "name a digest that is there with `base:` in models.yaml"
        return Finding("base", "mend", f"{base}: the registry has no such image", remedy)
    return Finding("base", "ok", f"{base} is there")


def _registry(registry: str) -> Finding:
    host = registry.partition("/")[0]
    credentials = RegistryAuth().for_registry(host)
    with Registry(host, credentials) as connection:
        connection.ping()
    who = f"as {credentials.username}" if credentials else "without credentials"
    return Finding("registry", "ok", f"{host} answers, {who}")
