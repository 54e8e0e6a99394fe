"""Runtimes: the folders of images/ that have a runtime.yaml, and whether they can serve the models."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from modelbake import grammar, schema
from modelbake.config import Config, ModelSpec
from modelbake.errors import ConfigError, RenderError
from modelbake.requirements import read_requirements
from modelbake.scalars import quoted
from modelbake.validation import Entry, Number, Text, did_you_mean, validate
from modelbake.yamlfile import KeyPath, Problem, YamlFile, raise_problems, read_yaml

Build = Literal["cuda", "cpu"]
RUNTIME_FILE = "runtime.yaml"

File = Annotated[str, Text(grammar.FILE)]
Pattern = Annotated[str, Text(grammar.INSTALLED)]
Reason = Annotated[str, Text(grammar.REASON)]
PackageNames = Annotated[tuple[Annotated[str, Text(grammar.PACKAGE)], ...], Field(min_length=1, strict=False)]


class SlimEntry(Entry):
    """What is removed of the packages, besides the rules for every runtime (images/builder/slim_rules.py).

    Patterns are relative to site-packages, with the reason; `**` stands for any number of folders. `stub`
    takes the place of a library that is linked and never called; `keep` goes before every rule.
    """

    remove: dict[Pattern, Reason] = Field(default_factory=dict)
    stub: dict[Pattern, Reason] = Field(default_factory=dict)
    keep: tuple[Pattern, ...] = Field(default=(), strict=False)


class RuntimeEntry(Entry):
    """What a runtime.yaml may say.

    `layers`: packages that are layers of their own, bottom first; the rest is one more, on top of them.
    """

    description: Annotated[str, Text(grammar.LINE)]
    base: schema.Base
    builds: dict[Build, File] = Field(default_factory=dict)
    layers: tuple[PackageNames, ...] = Field(default=(), strict=False)
    slim: SlimEntry = Field(default_factory=SlimEntry)
    app: tuple[File, ...] = Field(default=(), strict=False)
    command: tuple[Annotated[str, Text(grammar.ARGUMENT)], ...] = Field(min_length=1, strict=False)
    # The server is not root, so ports below 1024 are not its to take.
    port: Annotated[int, Number("a port from 1024 to 65535", 1024, 65535, whole=True)]
    health: schema.UrlPath
    env: schema.Environment = Field(default_factory=dict)


class Runtime(RuntimeEntry):
    """A runtime whose files exist. `builds` maps a build to its requirements file; empty: none are needed."""

    name: str
    directory: Path

    def offers(self, build: Build) -> bool:
        """Tell whether the runtime can be built so; one without requirements can be built either way."""
        return not self.builds or build in self.builds


def build_of(spec: ModelSpec) -> Build:
    """Return the build that a model's device asks for: cuda for `cuda` and `any`, cpu for `cpu`."""
    return "cpu" if spec.device == "cpu" else "cuda"


def list_runtimes(images: Path) -> list[str]:
    """Return the names of the folders that have a runtime.yaml, sorted."""
    try:
        return sorted(path.name for path in images.iterdir() if (path / RUNTIME_FILE).is_file())
    except OSError as error:
        hint = "--images names a folder with a folder for each runtime"
        raise ConfigError(f"cannot be read ({error.strerror})", subject=str(images), hint=hint) from error


def load_runtime(images: Path, name: str) -> Runtime:
    """Read images/NAME/runtime.yaml; ConfigError for an unknown runtime or with all problems of the file."""
    if not grammar.NAME.matches(name) or not (images / name / RUNTIME_FILE).is_file():
        raise ConfigError(_unknown(name, list_runtimes(images)), subject=str(images))
    directory = images / name
    file = read_yaml(directory / RUNTIME_FILE)
    entry = validate(file, RuntimeEntry, [*_missing_files(file, directory), *_idle_layers(file, directory)])
    return Runtime(
        name=name, directory=directory, **{key: getattr(entry, key) for key in RuntimeEntry.model_fields}
    )


def check_runtimes(config: Config, images: Path) -> Mapping[str, Runtime]:
    """Return the runtimes that the models name; ConfigError with all problems of models and runtimes."""
    known = list_runtimes(images)
    runtimes: dict[str, Runtime] = {}
    broken: list[str] = []
    problems: list[Problem] = []
    for name in dict.fromkeys(spec.runtime for spec in config.models.values()):
        if name in known:
            try:
                runtimes[name] = load_runtime(images, name)
            except ConfigError as error:
                broken.append(str(error))
    for spec in config.models.values():
        runtime = runtimes.get(spec.runtime)
        if spec.runtime not in known:
            problems.append(config.problem(spec.name, "runtime", _unknown(spec.runtime, known)))
        elif runtime is not None and not runtime.offers(build_of(spec)):
            problems.append(config.problem(spec.name, "device", _not_offered(spec, runtime)))
    try:
        raise_problems(config.path, problems)
    except ConfigError as error:
        raise ConfigError("\n".join([error.message, *broken])) from error
    if broken:
        raise ConfigError("\n".join(broken))
    return runtimes


def _unknown(name: str, known: list[str]) -> str:
    listed = f"; there are {', '.join(known)}" if known else "; there are none"
    return f"no runtime {quoted(name)}{did_you_mean(name, known) or listed}"


def _not_offered(spec: ModelSpec, runtime: Runtime) -> str:
    devices = "`device: cpu`" if "cpu" in runtime.builds else "`device: cuda` or `device: any`"
    return (
        f"`device: {spec.device}` needs the {build_of(spec)} build, and runtime {runtime.name} offers"
        f" only {' and '.join(runtime.builds)}; write {devices}"
    )


def _idle_layers(file: YamlFile, directory: Path) -> list[Problem]:
    """Return a problem for each pattern in `layers` that names no package of any build."""
    data = file.data if isinstance(file.data, dict) else {}
    builds, layers = data.get("builds"), data.get("layers")
    if not isinstance(layers, list) or not isinstance(builds, dict):
        return []
    names: set[str] = set()
    for requirements in builds.values():
        with suppress(
            OSError, UnicodeDecodeError, RenderError, TypeError
        ):  # others say what is wrong with it
            text = (directory / requirements).read_text(encoding="utf-8")
            names |= {entry.name for entry in read_requirements(text, requirements) if entry.name}
    return [
        file.problem(
            ("layers", number, place),
            f"no package of {', '.join(map(str, builds.values()))} is called {quoted(pattern)}"
            f"{did_you_mean(pattern, sorted(names))}",
        )
        for number, patterns in enumerate(layers)
        if isinstance(patterns, list)
        for place, pattern in enumerate(patterns)
        if isinstance(pattern, str) and grammar.PACKAGE.matches(pattern)
        if not any(fnmatchcase(name, pattern) for name in names)
    ]


def _missing_files(file: YamlFile, directory: Path) -> list[Problem]:
    """Return a problem for each file that runtime.yaml names and the folder lacks."""
    data = file.data if isinstance(file.data, dict) else {}
    builds, app = data.get("builds"), data.get("app")
    named: list[tuple[KeyPath, object]] = []
    if isinstance(builds, dict):
        named += [(("builds", build), name) for build, name in builds.items()]
    if isinstance(app, list):
        named += [(("app", index), name) for index, name in enumerate(app)]
    present: list[str] | None = None
    problems = []
    for path, name in named:
        if not isinstance(name, str) or not grammar.FILE.matches(name):
            continue  # the grammar's own error says so
        target = directory / name
        if target.resolve() != directory.resolve() / name:
            problems.append(file.problem(path, f"{quoted(name)} is behind a symbolic link"))
        elif not target.is_file():
            if present is None:
                present = sorted(
                    str(found.relative_to(directory)) for found in directory.rglob("*") if found.is_file()
                )
            problems.append(file.problem(path, f"no file {quoted(name)}{did_you_mean(name, present)}"))
    return problems
