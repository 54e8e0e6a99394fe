"""models.yaml, read and checked: what the team wants, with the defaults merged into every model.

`python -m modelbake.config > models.schema.json` writes the JSON Schema for editors.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr

from modelbake import schema
from modelbake.errors import UsageError
from modelbake.expected import golden_of
from modelbake.release.entries import USUAL_CHANNELS, ChannelEntry, SigningEntry
from modelbake.scalars import quoted
from modelbake.schema import DEFAULT_HUB, Device, json_schema
from modelbake.validation import Entry, did_you_mean, validate
from modelbake.yamlfile import KeyPath, Problem, YamlFile, dotted, raise_problems, read_yaml

__all__ = [
    "CheckSpec",
    "Config",
    "Device",
    "ModelSpec",
    "SmokeSpec",
    "json_schema",
    "load_config",
    "schema_text",
]


class CheckSpec(Entry):
    """One request to the running image; `expect` maps JMESPath expressions to JSON values or `expected`'s."""

    name: str
    method: Literal["GET", "POST"]
    path: schema.UrlPath
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
    limits: schema.Limits = Field(default_factory=schema.Limits)
    checks: tuple[CheckSpec, ...] = ()
    tolerance: schema.ToleranceEntry = Field(default_factory=schema.ToleranceEntry)

    @property
    def meant_to_succeed(self) -> CheckSpec | None:
        """The check that is repeated to measure speed: only a good answer says something about it."""
        return next((check for check in self.checks if 200 <= check.status < 300), None)


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
    layer_order: schema.LayerOrder = "auto"
    compression: schema.Compression = "none"
    verify: schema.Verify = "full"
    max_size: schema.MaxSize | None = None
    env: schema.Environment = Field(default_factory=dict)
    labels: schema.Labels = Field(default_factory=dict)
    smoke: SmokeSpec = Field(default_factory=SmokeSpec)


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
    file = read_yaml(path, hint="run in the folder that holds models.yaml, or name it with --file")
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
    raise_problems(path, [*_impossible(config), *_impossible_channels(config, file)])
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


def _written(entry: Entry) -> dict[str, Any]:
    return {key: getattr(entry, key) for key in entry.model_fields_set}


def _merged(name: str, defaults: schema.Settings, entry: schema.ModelEntry) -> ModelSpec:
    smoke = {**_written(defaults.smoke), **_written(entry.smoke)}
    limits = {**_written(defaults.smoke.limits), **_written(entry.smoke.limits)}
    smoke["limits"] = schema.Limits(**limits)
    smoke["checks"] = _checks(smoke.get("checks", ()))
    own = {
        "name": name,
        "env": {**defaults.env, **entry.env},
        "labels": {**defaults.labels, **entry.labels},
        "smoke": SmokeSpec(**smoke),
    }
    return ModelSpec(**{**_written(defaults), **_written(entry), **own})


def _checks(entries: Sequence[schema.CheckEntry]) -> tuple[CheckSpec, ...]:
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
