"""models.yaml, read and checked: what the team wants, with the defaults merged into every model.

`python -m modelbake.config > models.schema.json` writes the JSON Schema for editors.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, PrivateAttr

from modelbake import schema
from modelbake.errors import UsageError
from modelbake.expected import golden_of
from modelbake.release.entries import USUAL_CHANNELS, ChannelEntry, SigningEntry
from modelbake.scalars import quoted
from modelbake.schema import DEFAULT_HUB, Device, json_schema
from modelbake.smokeentry import CheckEntry, Limits, ToleranceEntry, UrlPath
from modelbake.sourceuri import kind_of
from modelbake.validation import Entry, did_you_mean, validate
from modelbake.yamlfile import KeyPath, Problem, YamlFile, dotted, raise_problems, read_yaml

__all__ = [
    "CheckSpec",
    "Config",
    "Device",
    "ModelSpec",
    "SmokeSpec",
    "SourceSpec",
    "json_schema",
    "load_config",
    "schema_text",
]


class CheckSpec(Entry):
    """One request to the running image; `expect` maps JMESPath expressions to JSON values or `expected`'s."""

    name: str
    method: Literal["GET", "POST"]
    path: UrlPath
    body: Any = None
    status: int = 200
    expect: dict[str, Any] = Field(default_factory=dict)

    @property
    def goldens(self) -> dict[str, str]:
        """The goldens that answers are compared with: their names, and the expressions that yield them."""
        named = ((golden_of(wanted), expression) for expression, wanted in self.expect.items())
        return {name: expression for name, expression in named if name is not None}


class SmokeSpec(Entry):
    """How the built image is tried out. `requests` repetitions of the first check measure its speed."""

    startup_seconds: float = 300.0
    requests: int = 20
    require_gpu: bool = False
    limits: Limits = Field(default_factory=Limits)
    checks: tuple[CheckSpec, ...] = ()
    tolerance: ToleranceEntry = Field(default_factory=ToleranceEntry)

    @property
    def meant_to_succeed(self) -> CheckSpec | None:
        """The check that is repeated to measure speed: only a good answer says something about it."""
        return next((check for check in self.checks if 200 <= check.status < 300), None)


class SourceSpec(Entry):
    """One source of a model as models.yaml has it. What does not belong to its kind is empty.

    `server`: the hub of an hf:// source, the endpoint of a store, "" for the cloud's own. `files`: given
    sha256 by path, of an https:// source. `into`: the folder of the image, "" for the model's own.
    """

    name: str
    source: schema.Source
    server: str = ""
    revision: str = ""
    include: schema.Patterns = Field(default=("*",), strict=False)
    exclude: schema.Patterns = Field(default=(), strict=False)
    files: dict[str, str] = Field(default_factory=dict)
    into: str = ""

    @property
    def kind(self) -> str:
        """Of its address: `hf`, `s3`, ..."""
        return kind_of(self.source)


class ModelSpec(Entry):
    """A model with the defaults merged in; constructing one checks every name that leaves the program."""

    name: schema.ModelName
    version: schema.Version
    source: schema.Source
    revision: schema.Revision = "main"
    include: schema.Patterns = Field(default=("*",), strict=False)
    exclude: schema.Patterns = Field(default=(), strict=False)
    allow_pickle: schema.PickleNames = Field(default=(), strict=False)
    convert: schema.Convert = "none"
    runtime: schema.RuntimeName
    device: Device = "cuda"
    base: schema.Base | None = None
    hub: schema.Hub = DEFAULT_HUB
    endpoint: schema.Endpoint | None = None
    files: schema.GivenFiles = Field(default_factory=dict)
    add: tuple[schema.AddedEntry, ...] = Field(default=(), strict=False)
    layer_order: schema.LayerOrder = "auto"
    compression: schema.Compression = "none"
    verify: schema.Verify = "full"
    max_size: schema.MaxSize | None = None
    env: schema.Environment = Field(default_factory=dict)
    labels: schema.Labels = Field(default_factory=dict)
    smoke: SmokeSpec = Field(default_factory=SmokeSpec)

    @property
    def sources(self) -> tuple[SourceSpec, ...]:
        """Where its files come from: the model's own source, and what is added to it."""
        added = (_source(self.name, each, self.hub) for each in self.add)
        return (_source(self.name, self, self.hub), *added)


class Config(Entry):
    """All models by name, in the order of the file, and the registry that their images go to."""

    path: Path
    registry: schema.Registry
    models: Mapping[str, ModelSpec]
    channels: Mapping[str, ChannelEntry] = Field(default_factory=lambda: dict(USUAL_CHANNELS))
    signing: SigningEntry | None = None
    _file: YamlFile | None = PrivateAttr(default=None)

    def select(self, names: Sequence[str], all: bool = False) -> list[ModelSpec]:
        """Return the named models once each in the order given, or all; UsageError for any other request."""
        if all and names:
            raise UsageError("write either names or --all, not both")
        if all:
            return list(self.models.values())
        if not names:
            raise UsageError("name at least one model, or write --all", hint=self._known())
        unknown = [name for name in dict.fromkeys(names) if name not in self.models]
        if unknown:
            lines = [f"no model {quoted(name)}{did_you_mean(name, self.models)}" for name in unknown]
            raise UsageError("\n".join(lines), subject=str(self.path), hint=self._known())
        return [self.models[name] for name in dict.fromkeys(names)]

    def problem(self, name: str, key: str, message: str) -> Problem:
        """Return a Problem about a model's key, at the line that says it: its own or the default's."""
        here: KeyPath = ("models", name, key)
        if self._file is None:
            return Problem(1, 1, dotted(here), message)
        own = self._file.data["models"][name]
        if key not in own and key in self._file.data.get("defaults", ()):
            here = ("defaults", key)
        return self._file.problem(here, message)

    def says(self, name: str, *keys: str) -> bool:
        """Tell whether a model's own entry, and not the defaults, has anything at these keys."""
        here: Any = self._file.data["models"][name] if self._file else {}
        for key in keys:
            here = here.get(key) if isinstance(here, dict) else None
        return bool(here)

    def _known(self) -> str:
        names = list(self.models)
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        return f"models are {', '.join(names[:10])}{more}"


def load_config(path: Path) -> Config:
    """Read models.yaml; ConfigError with all problems, each `file:line:column: key: expected, got`."""
    return config_of(read_yaml(path, hint="run in the folder that holds models.yaml, or name it with --file"))


def config_of(file: YamlFile) -> Config:
    """Check what was read, or is about to be written; ConfigError as `load_config` raises it."""
    path = file.path
    document = validate(file, schema.ModelsFile, _without_runtime(file))
    models = {name: _merged(name, document.defaults, entry) for name, entry in document.models.items()}
    config = Config(
        path=path,
        registry=document.registry,
        models=models,
        channels=document.channels,
        signing=document.signing,
    )
    config._file = file
    impossible = (_impossible(config), _impossible_sources(config, file), _impossible_channels(config, file))
    raise_problems(path, [problem for each in impossible for problem in each])
    return config


def schema_text() -> str:
    """Return the content of models.schema.json."""
    return json.dumps(json_schema(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _without_runtime(file: YamlFile) -> Iterator[Problem]:
    """Yield a problem for each model that has no runtime, neither its own nor by default."""
    document = file.data if isinstance(file.data, dict) else {}
    models, defaults = document.get("models"), document.get("defaults")
    if not isinstance(models, dict) or (isinstance(defaults, dict) and "runtime" in defaults):
        return
    for name, entry in models.items():
        merges = ("models", name, "<<") in file.refused or ("defaults", "<<") in file.refused
        if isinstance(entry, dict) and "runtime" not in entry and not merges:
            message = (
                "required key missing, here and in `defaults`: the folder of images/ that serves the model"
            )
            yield file.problem(("models", name, "runtime"), message)


def _impossible(config: Config) -> Iterator[Problem]:
    """Yield a problem for each model whose settings, put together, no smoke run can pass."""
    for spec in config.models.values():
        if spec.smoke.require_gpu and spec.device == "cpu":
            yield config.problem(
                spec.name,
                "smoke",
                "`device: cpu` and `require_gpu: true` exclude each other; write `require_gpu: false`, or"
                " another device",
            )


def _impossible_channels(config: Config, file: YamlFile) -> Iterator[Problem]:
    """Yield a problem for each requirement of a channel that no version can meet."""
    for name, entry in config.channels.items():
        here: KeyPath = ("channels", name)
        if "signature" in entry.require and config.signing is None:
            yield file.problem(
                (*here, "require"), "a signature is required, and `signing` says not whose; add `signing`"
            )
        if entry.soak is None:
            continue
        soaks: KeyPath = (*here, "soak", "channel")
        if entry.soak.channel == name:
            yield file.problem(soaks, "a version cannot have been in this very channel before")
        elif entry.soak.channel not in config.channels:
            guess = did_you_mean(entry.soak.channel, config.channels)
            yield file.problem(soaks, f"no channel {quoted(entry.soak.channel)}{guess}")


_KINDS_WITH_ENDPOINT = ("s3", "gs", "az", "mlflow")


def _source(name: str, entry: ModelSpec | schema.AddedEntry, hub: str) -> SourceSpec:
    """Return the source that an entry is about; `hub`: of the model, where the entry names none."""
    is_hub = kind_of(entry.source) == "hf"
    server = (entry.hub or hub) if is_hub else (entry.endpoint or "")
    return SourceSpec(
        name=name,
        source=entry.source,
        server=server.rstrip("/"),
        revision=(entry.revision or "main") if is_hub else "",
        include=entry.include,
        exclude=entry.exclude,
        files=entry.files,
        into=entry.into if isinstance(entry, schema.AddedEntry) else "",
    )


def _impossible_sources(config: Config, file: YamlFile) -> Iterator[Problem]:
    """Yield a problem for each key that the kind of its source has no use for, or lacks."""
    for name, spec in config.models.items():
        entry = file.data["models"][name]
        places: list[tuple[KeyPath, Any, str]] = [(("models", name), entry, spec.source)]
        places += [
            (("models", name, "add", index), each, each["source"])
            for index, each in enumerate(entry.get("add") or ())
        ]
        for here, said, source in places:
            for key, message in _misplaced(said, source):
                yield file.problem((*here, key), message)
        folders = [each.into for each in spec.add]
        for index, into in enumerate(folders):
            if any(f"{into}/".startswith(f"{other}/") for other in folders[:index]):
                yield file.problem(
                    ("models", name, "add", index, "into"), "another source comes into this folder already"
                )


def _misplaced(said: Mapping[str, Any], source: str) -> Iterator[tuple[str, str]]:
    from modelbake.registryauth import is_loopback  # few files need it, and its imports take time

    kind = kind_of(source)
    for key in ("revision", "hub"):
        if key in said and kind != "hf":
            yield key, f"{quoted(source)} has none; only hf:// sources do{_INSTEAD.get((kind, key), '')}"
    if "endpoint" in said and kind not in _KINDS_WITH_ENDPOINT:
        instead = "; write 'hub'" if kind == "hf" else ""
        yield "endpoint", f"{quoted(source)} has none; only s3://, gs://, az:// and mlflow: do{instead}"
    if kind == "https" and not said.get("files"):
        yield "files", "required key missing: the names of the files, each with its sha256"
    if kind != "https" and "files" in said:
        yield "files", f"{quoted(source)} lists its files itself; write 'include' to choose among them"
    if source.startswith("http://") and not is_loopback(urlsplit(source).hostname or ""):
        yield "source", "over http anyone on the way reads and changes what comes; write https://"


_INSTEAD = {(kind, "hub"): "; write 'endpoint'" for kind in _KINDS_WITH_ENDPOINT} | {
    ("oci", "revision"): "; write the tag or digest into 'source'",
    ("mlflow", "revision"): "; write it at the end of 'source'",
}


def _written(entry: Entry) -> dict[str, Any]:
    return {key: getattr(entry, key) for key in entry.model_fields_set}


def _merged(name: str, defaults: schema.Settings, entry: schema.ModelEntry) -> ModelSpec:
    smoke = {**_written(defaults.smoke), **_written(entry.smoke)}
    limits = {**_written(defaults.smoke.limits), **_written(entry.smoke.limits)}
    smoke["limits"] = Limits(**limits)
    smoke["checks"] = _checks(smoke.get("checks", ()))
    own = {
        "name": name,
        "env": {**defaults.env, **entry.env},
        "labels": {**defaults.labels, **entry.labels},
        "smoke": SmokeSpec(**smoke),
    }
    return ModelSpec(**{**_written(defaults), **_written(entry), **own})


def _checks(entries: Sequence[CheckEntry]) -> tuple[CheckSpec, ...]:
    checks: list[CheckSpec] = []
    taken = {entry.name for entry in entries}
    for number, entry in enumerate(entries, 1):
        method: Literal["GET", "POST"] = "POST" if entry.get is None else "GET"
        path = entry.get or entry.post or ""
        name = entry.name or f"{method} {path}"
        if entry.name is None and name in taken:
            name = f"{name} #{number}"
        taken.add(name)
        checks.append(
            CheckSpec(
                name=name,
                method=method,
                path=path,
                body=entry.body,
                status=entry.status,
                expect=entry.expect,
            )
        )
    return tuple(checks)


if __name__ == "__main__":
    sys.stdout.write(schema_text())
