"""Runtimes: the folders that have a runtime.yaml, and whether they can serve the models.

A model names one of images/, or with `./` one of its team's own, beside models.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal, TypeGuard

from pydantic import Field

from modelbake import grammar, schema
from modelbake.config import Config, ModelSpec
from modelbake.errors import ConfigError, RenderError
from modelbake.requirements import read_requirements, unhashed
from modelbake.scalars import quoted
from modelbake.smallfile import read_small
from modelbake.smokeentry import UrlPath
from modelbake.validation import Entry, Number, Text, did_you_mean, validate
from modelbake.yamlfile import KeyPath, Problem, YamlFile, raise_problems, read_yaml

Build = Literal["cuda", "cpu"]
RUNTIME_FILE = "runtime.yaml"
_LARGEST_REQUIREMENTS = 16 * 1024 * 1024  # bytes
# What start.py takes in place of a server's command; it compares everything, whatever `verify:` says.
VERIFY_ONLY = ("--verify",)

File = Annotated[str, Text(grammar.FILE)]
Pattern = Annotated[str, Text(grammar.INSTALLED)]
Reason = Annotated[str, Text(grammar.REASON)]
PackageNames = Annotated[tuple[Annotated[str, Text(grammar.PACKAGE)], ...], Field(min_length=1, strict=False)]
Needed = Annotated[tuple[Annotated[str, Text(grammar.PATTERN)], ...], Field(min_length=1, strict=False)]


class SlimEntry(Entry):
    """What is removed of the packages, besides the rules for every runtime (images/builder/slim_rules.py).

    Patterns are relative to site-packages, with the reason; `**` stands for any number of folders. `stub`
    takes the place of a library that is linked and never called; `keep` goes before every rule.
    """

    remove: dict[Pattern, Reason] = Field(default_factory=dict)
    stub: dict[Pattern, Reason] = Field(default_factory=dict)
    keep: tuple[Pattern, ...] = Field(default=(), strict=False)


class _Entry(Entry):
    """What every runtime.yaml may say.

    `layers`: packages that are layers of their own, bottom first; the rest is one more, on top of them.
    """

    description: Annotated[str, Text(grammar.LINE)]
    base: schema.Base
    builds: dict[Build, File] = Field(default_factory=dict)
    layers: tuple[PackageNames, ...] = Field(default=(), strict=False)
    slim: SlimEntry = Field(default_factory=SlimEntry)
    app: tuple[File, ...] = Field(default=(), strict=False)
    env: schema.Environment = Field(default_factory=dict)
    # What it cannot serve without: each need with the names or patterns that meet it ('*' within a folder,
    # `**/` for any number of folders).
    needs: dict[Annotated[str, Text(grammar.NEED)], Needed] = Field(default_factory=dict)
    # Those of `needs` that it takes once: in one file, or in all parts of one.
    single: tuple[Annotated[str, Text(grammar.NEED)], ...] = Field(default=(), strict=False)
    # Of the `architectures` in config.json, what it can load; empty: anything.
    architectures: tuple[Annotated[str, Text(grammar.CLASS)], ...] = Field(default=(), strict=False)
    serves: bool = True


class ServerEntry(_Entry):
    """What the runtime.yaml of a server says besides."""

    command: tuple[Annotated[str, Text(grammar.ARGUMENT)], ...] = Field(min_length=1, strict=False)
    # The server is not root, so ports below 1024 are not its to take.
    port: Annotated[int, Number("a port from 1024 to 65535", 1024, 65535, whole=True)]
    health: UrlPath


class DataEntry(_Entry):
    """The runtime.yaml of a runtime that serves nothing: its image carries weights, and can verify them."""

    explained = MappingProxyType(
        dict.fromkeys(("command", "port", "health"), "a runtime with `serves: false` has no server")
    )


class Runtime(_Entry):
    """A runtime whose files exist. `builds` maps a build to its requirements file; empty: none are needed.

    `port` and `health` are None where nothing is served; `command` is what start.py is given.
    """

    name: str
    directory: Path
    command: tuple[str, ...]
    port: int | None = None
    health: str | None = None

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
    return read_runtime(images / name)


def read_runtime(directory: Path) -> Runtime:
    """Read DIRECTORY/runtime.yaml; ConfigError with all problems of the file."""
    file = read_yaml(directory / RUNTIME_FILE)
    serves = not isinstance(file.data, dict) or file.data.get("serves") is not False
    kind = ServerEntry if serves else DataEntry
    others = [*_missing_files(file, directory), *_wrong_packages(file, directory), *_idle_single(file)]
    entry = validate(file, kind, others)
    said = {key: getattr(entry, key) for key in kind.model_fields}
    return Runtime(**{"command": VERIFY_ONLY, **said}, name=directory.name, directory=directory)


def check_runtimes(config: Config, images: Path) -> Mapping[str, Runtime]:
    """Return the runtimes that the models name; ConfigError with all problems of models and runtimes."""
    known = list_runtimes(images)
    found: set[str] = set()
    runtimes: dict[str, Runtime] = {}
    broken: list[str] = []
    problems: list[Problem] = []
    for name in dict.fromkeys(spec.runtime for spec in config.models.values()):
        directory = (config.path.parent if _is_own(name) else images) / name
        if (directory / RUNTIME_FILE).is_file():
            found.add(name)
            try:
                runtimes[name] = read_runtime(directory)
            except ConfigError as error:
                broken.append(str(error))
    for spec in config.models.values():
        runtime = runtimes.get(spec.runtime)
        if spec.runtime not in found:
            problems.append(config.problem(spec.name, "runtime", _unknown(spec.runtime, known)))
        elif runtime is not None and not runtime.offers(build_of(spec)):
            problems.append(config.problem(spec.name, "device", _not_offered(spec, runtime)))
        elif runtime is not None:
            problems += [
                config.problem(spec.name, "smoke", words) for words in _untriable(config, spec, runtime)
            ]
    try:
        raise_problems(config.path, problems)
    except ConfigError as error:
        raise ConfigError("\n".join([error.message, *broken])) from error
    if broken:
        raise ConfigError("\n".join(broken))
    return runtimes


def _is_own(name: str) -> bool:
    return name.startswith("./")


def _unknown(name: str, known: list[str]) -> str:
    if _is_own(name):
        return f"there is no {quoted(f'{name}/{RUNTIME_FILE}')} beside models.yaml"
    listed = f"; there are {', '.join(known)}" if known else "; there are none"
    return f"no runtime {quoted(name)}{did_you_mean(name, known) or listed}"


def _not_offered(spec: ModelSpec, runtime: Runtime) -> str:
    devices = "`device: cpu`" if "cpu" in runtime.builds else "`device: cuda` or `device: any`"
    return (
        f"`device: {spec.device}` needs the {build_of(spec)} build, and runtime {runtime.name} offers"
        f" only {' and '.join(runtime.builds)}; write {devices}"
    )


def _untriable(config: Config, spec: ModelSpec, runtime: Runtime) -> list[str]:
    """Return what of a model's `smoke` no run of its runtime can do or measure.

    Limits and tolerances of `defaults` are for the models that are measured: what serves nothing passes
    over them.
    """
    smoke = spec.smoke
    if runtime.serves:
        return [
            f"`limits: {key}` is measured by repeating a check that is meant to succeed, and none"
            " (of a status from 200 to 299) is declared"
            for key in ("min_throughput", "max_latency")
            if smoke.meant_to_succeed is None and getattr(smoke.limits, key) is not None
        ]
    found = []
    for key, said, nothing, why in (
        ("checks", bool(smoke.checks), "[]", "so nothing can be asked"),
        ("require_gpu", smoke.require_gpu, "false", "on a GPU or elsewhere"),
    ):
        if said:
            own = config.says(spec.name, "smoke", key)
            remedy = (
                f"leave `{key}` out" if own else f"write `{key}: {nothing}` in the `smoke` of {spec.name}"
            )
            found.append(f"runtime {runtime.name} serves nothing, {why}: {remedy}")
    for key in ("limits", "tolerance"):
        if config.says(spec.name, "smoke", key):
            found.append(f"runtime {runtime.name} serves nothing, so nothing is measured: leave `{key}` out")
    return found


def _wrong_packages(file: YamlFile, directory: Path) -> list[Problem]:
    """Return the problems of requirements files, and of `layers` where all of these can be read."""
    data = file.data if isinstance(file.data, dict) else {}
    builds, layers = data.get("builds"), data.get("layers")
    if not isinstance(builds, dict):
        return []
    problems, texts = [], {}
    for build, name in builds.items():
        if not _is_own_file(directory, name):
            continue  # others say what is wrong with it
        try:
            texts[name] = read_small(directory / name, _LARGEST_REQUIREMENTS).decode()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            problems.append(file.problem(("builds", build), f"{quoted(name)} cannot be read: {why}"))
            continue
        # The image is built with `pip install --require-hashes`.
        if found := unhashed(texts[name]):
            line, words = found[0]
            more = f" (nor have {len(found) - 1} more)" if len(found) > 1 else ""
            what = words.split("://")[0][:80]  # the address of a package may have a password
            problem = (
                f"{name}:{line}: {quoted(what)} has no --hash=sha256:...{more}, and nothing is installed"
                " without one; `uv pip compile --generate-hashes` writes them"
            )
            problems.append(file.problem(("builds", build), problem))
    if isinstance(layers, list) and texts.keys() == {*map(str, builds.values())}:
        problems += _idle_layers(file, layers, texts)
    return problems


def _idle_layers(file: YamlFile, layers: list[object], texts: Mapping[str, str]) -> list[Problem]:
    """Return a problem for each pattern in `layers` that names no package of any requirements file."""
    names: set[str] = set()
    for name, text in texts.items():
        with suppress(RenderError):  # `render` says what is wrong with it
            names |= {entry.name for entry in read_requirements(text, name) if entry.name}
    return [
        file.problem(
            ("layers", number, place),
            f"no package of {', '.join(texts)} is called {quoted(pattern)}"
            f"{did_you_mean(pattern, sorted(names))}",
        )
        for number, patterns in enumerate(layers)
        if isinstance(patterns, list)
        for place, pattern in enumerate(patterns)
        if isinstance(pattern, str) and grammar.PACKAGE.matches(pattern)
        if not any(fnmatchcase(name, pattern) for name in names)
    ]


def _is_own_file(directory: Path, name: object) -> TypeGuard[str]:
    """Tell whether a value names a file of a runtime's folder that no symbolic link leads out of."""
    if not isinstance(name, str) or not grammar.FILE.matches(name):
        return False
    return _leads_nowhere_else(directory, name) and (directory / name).is_file()


def _leads_nowhere_else(directory: Path, name: str) -> bool:
    try:
        return (directory / name).resolve() == directory.resolve() / name
    except (OSError, RuntimeError):  # a link that leads to itself
        return False


def _idle_single(file: YamlFile) -> list[Problem]:
    """Return a problem for each word in `single` that is none of `needs`."""
    data = file.data if isinstance(file.data, dict) else {}
    needs, single = data.get("needs", {}), data.get("single")
    if not isinstance(single, list) or not isinstance(needs, dict):
        return []
    known = [need for need in needs if isinstance(need, str)]
    return [
        file.problem(("single", place), f"{quoted(need)} is none of `needs`{did_you_mean(need, known)}")
        for place, need in enumerate(single)
        if isinstance(need, str) and grammar.NEED.matches(need) and need not in known
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
        if not _leads_nowhere_else(directory, name):
            problems.append(file.problem(path, f"{quoted(name)} is behind a symbolic link"))
        elif not target.is_file():
            if present is None:
                present = sorted(
                    str(found.relative_to(directory)) for found in directory.rglob("*") if found.is_file()
                )
            problems.append(file.problem(path, f"no file {quoted(name)}{did_you_mean(name, present)}"))
    return problems
