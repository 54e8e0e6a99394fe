"""What a build needs, looked at one by one: each finding is ok, a note, or something to fix and how."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from modelbake import engine as engines
from modelbake.buildkit.solve import ways_to_build
from modelbake.config import ModelSpec
from modelbake.credentials import Redactor, hub_token
from modelbake.dockerconfig import RegistryAuth, split_reference
from modelbake.engine import Engine
from modelbake.errors import GpuUnavailable, ModelbakeError, RegistryUnavailable
from modelbake.parallel import try_all
from modelbake.registry import Registry
from modelbake.sources import source_for
from modelbake.workspace import Workspace

State = Literal["ok", "note", "fix"]
_HUB_THREADS = 8
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
            findings.append(_to_fix(subject, error))

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

    findings += examine_sources(config.models.values(), redactor)
    for base in dict.fromkeys(workspace.bases()):
        look("base", partial(_base, base))
    look("registry", lambda: _registry(config.registry))
    return findings


def examine_sources(models: Iterable[ModelSpec], redactor: Redactor) -> list[Finding]:
    """Ask for a file of every source: a finding for each that cannot be read, one a server of the rest."""
    # Models of one source differ in what they take of it, not in who may read it.
    asked = {(each.server, each.source): each for spec in models for each in spec.sources}
    token = None
    if any(spec.kind == "hf" for spec in asked.values()):
        try:
            token = hub_token()
        except ModelbakeError as error:
            return [_to_fix("hub", error)]
    if token:
        redactor.add(token)
    specs = list(asked.values())
    outcomes = try_all(specs, lambda spec: source_for(spec.kind, token).reach(spec), _HUB_THREADS)
    found = [
        _to_fix("hub" if spec.kind == "hf" else "store", outcome)
        for spec, outcome in zip(specs, outcomes, strict=True)
        if isinstance(outcome, ModelbakeError)
    ]
    findings = list(dict.fromkeys(found))  # a CA bundle fails for all
    readable: dict[tuple[str, str], list[str]] = {}
    for spec, outcome in zip(specs, outcomes, strict=True):
        if outcome is None:
            readable.setdefault((spec.kind, spec.server), []).append(spec.source)
    how = "with the token" if token else "without a token"
    return findings + [
        Finding("hub", "ok", f"{server} hands out {_listed(sources)} {how}")
        if kind == "hf"
        else Finding("store", "ok", f"{server or f'{kind}:'} hands out {_listed(sources)}")
        for (kind, server), sources in readable.items()
    ]


def _to_fix(subject: str, error: ModelbakeError) -> Finding:
    text = f"{error.subject}: {error.message}" if error.subject else error.message
    return Finding(subject, "fix", text, error.hint)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if names[5:] else "")


def _models(workspace: Workspace) -> Finding:
    return Finding("models.yaml", "ok", f"{workspace.file} has {_listed(list(workspace.config.models))}")


def _buildkit(engine: Engine) -> Finding:
    how = ways_to_build(engine)
    return Finding("buildkit", "ok", f"this engine builds with secret mounts, over {how}")


def _gpu(engine: Engine, workspace: Workspace) -> Finding:
    if engine.info.gpu:
        return Finding("gpu", "ok", "the engine hands out NVIDIA GPUs")
    try:
        models = workspace.config.models.values()
        needed = [spec.name for spec in models if spec.device == "cuda" and workspace.serves(spec)]
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
        return Finding("disk", "fix", text, "`docker builder prune` drops the build cache")
    return Finding("disk", "ok", text)


def _base(base: str) -> Finding:
    """Ask the base image's registry for its manifest, with the credentials a build would use."""
    reference = split_reference(base)
    try:
        with Registry(reference.registry, RegistryAuth().for_registry(reference.registry)) as connection:
            found = connection.manifest(reference.repository, reference.digest or "")
    except RegistryUnavailable as error:
        error.hint += " Or name an image of a registry that is, with `base:` in models.yaml"
        raise
    if found is None:
        remedy = "name a digest that is there with `base:` in models.yaml"
        return Finding("base", "fix", f"{base}: the registry has no such image", remedy)
    return Finding("base", "ok", f"{base} is there")


def _registry(registry: str) -> Finding:
    host = registry.partition("/")[0]
    credentials = RegistryAuth().for_registry(host)
    with Registry(host, credentials) as connection:
        connection.ping()
    who = f"as {credentials.username}" if credentials else "without credentials"
    return Finding("registry", "ok", f"{host} answers, {who}")
