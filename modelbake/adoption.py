"""What is checked before loose weights are brought anywhere: command, folder, entry, runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelbake.config import Config, ModelSpec, SourceSpec, config_of
from modelbake.errors import ConfigError, UnfitModel, UsageError
from modelbake.fitness import CONFIGURATION, LARGEST_CONFIGURATION, Evidence, warnings
from modelbake.grammar import NAME
from modelbake.loose import LooseFile, duplicates, list_folder
from modelbake.pickles import is_pickle, patterns_of
from modelbake.sources.selecting import select_files
from modelbake.sources.target import require_writable
from modelbake.sourceuri import SOURCE
from modelbake.weightpath import shown
from modelbake.yamlfile import parse_yaml, read_yaml
from modelbake.yamlinsert import Entry, entry_text, insert_model, new_file

if TYPE_CHECKING:
    from modelbake.workspace import Workspace

_DANGER = "is a pickle, and loading one can run any code"


@dataclass(frozen=True)
class Adoption:
    """What is to be done, and was checked.

    `files`: what is taken; `left_out`: what stays in the folder alone. `entry`: of models.yaml. `remarks`:
    what the user should know first. `registry`: of a models.yaml that is made, else "".
    """

    folder: Path
    files: tuple[LooseFile, ...]
    left_out: tuple[str, ...]
    spec: ModelSpec
    entry: Entry
    remarks: tuple[str, ...]
    registry: str

    @property
    def source(self) -> SourceSpec:
        """Where the files go, and come from afterwards."""
        return self.spec.sources[0]


def prepare(wish: Mapping[str, Any], workspace: Workspace) -> Adoption:
    """Check everything that this machine can tell by itself. `wish`: the verb's arguments by name.

    Raises UsageError, ConfigError, UnfitModel, SourceError.
    """
    _check_words(wish)
    folder = Path(wish["path"]).resolve()
    listed = list_folder(folder)
    _check_target(wish["to"], folder)
    registry, name, file = _registry(wish["registry"], workspace.file), wish["name"], workspace.file
    if file.exists():
        config_of(read_yaml(file))  # what is wrong already is not this entry's fault
    entry = _entry(wish)
    asked = _asked(wish, file)
    first = _chosen(asked, listed, folder)
    pickles = [each.path for each in first if is_pickle(each.path)]
    taken = pickles if wish["convert"] else [path for path in pickles if path in wish["allow_pickle"]]
    unasked = [path for path in pickles if path not in taken]
    if unasked:
        if len(unasked) == len(first):
            raise _only_pickles(unasked, folder)
        more = [each for each in patterns_of(unasked, taken) if each not in asked.exclude]
        entry = _entry({**wish, "exclude": [*asked.exclude, *more]})
    require_new(file, name, entry)
    config = config_with(file, registry, name, entry)
    spec = config.models[name]
    files = _chosen(spec.sources[0], listed, folder)
    paths = [each.path for each in files]
    evidence = Evidence(paths, [each.path for each in listed], _configuration(files))
    try:
        workspace.with_config(config).require_fit({name: evidence})
    except UnfitModel as error:
        error.hint = (
            f"`source` is {folder} here. Put what lacks into it, or leave out what is too much; the runtime"
            " `weights` takes files as they are"
        )
        raise
    remarks = [f"{shown(path)} {_DANGER}: left out; --convert or --allow-pickle takes it" for path in unasked]
    remarks += [f"{shown(path)} {_DANGER}: taken, as you say" for path in taken]
    return Adoption(
        folder=folder,
        files=tuple(files),
        left_out=tuple(each.path for each in listed if each.path not in set(paths)),
        spec=spec,
        entry=entry,
        remarks=(*remarks, *duplicates(listed, {}), *warnings(spec, evidence)),
        registry=registry,
    )


def content_with(file: Path, registry: str, name: str, entry: Entry) -> bytes:
    """Return what models.yaml is to hold; unchanged where it has this model. `registry`: of one to be made.

    Raises ConfigError.
    """
    if registry and not file.exists():
        return new_file(registry, name, entry)
    content = file.read_bytes()
    if name in parse_yaml(content, file).data["models"]:
        return content
    return insert_model(content, file, name, entry)


def config_with(file: Path, registry: str, name: str, entry: Entry) -> Config:
    """Return models.yaml as it will be. Raises ConfigError."""
    content = content_with(file, registry, name, entry)
    try:
        return config_of(parse_yaml(content, file))
    except ConfigError as error:
        error.hint = f"this is about the entry that would be written:\n{entry_text(name, entry).rstrip()}"
        raise


def require_new(file: Path, name: str, entry: Entry) -> None:
    """Raise UsageError where models.yaml has another model of this name. Raises ConfigError."""
    models = read_yaml(file).data["models"] if file.exists() else {}
    if name in models and models[name] != entry:
        raise UsageError(
            f"has a model {name} already, and it is not this one",
            subject=str(file),
            hint="for a new version of it, adopt the folder under another --name, to an address of its own;"
            " then give the old entry that `source` and a higher `version`, take the new entry out, and lock"
            f" it. Of this --name, this would be written:\n{entry_text(name, entry).rstrip()}",
        )


def _check_words(wish: Mapping[str, Any]) -> None:
    for option, grammar in (("name", NAME), ("to", SOURCE)):
        text = wish[option]
        if not grammar.matches(text):
            advice = grammar.advise(text)
            raise UsageError(
                f"expected {grammar.expected}, got {shown(text)!r}", subject=f"--{option}", hint=advice
            )
    require_writable(wish["to"])


def _check_target(address: str, folder: Path) -> None:
    if not address.startswith("file://"):
        return
    target = Path(address.removeprefix("file://")).resolve()
    if target == folder or folder in target.parents or target in folder.parents:
        raise UsageError(
            f"{target} and {folder} lie within each other",
            subject="--to",
            hint="name another folder; what is at its place already needs only a `source: file://...`",
        )


def _registry(given: str | None, file: Path) -> str:
    """Return the registry of a models.yaml that has to be made; "" for one that exists."""
    if file.exists():
        if given is not None:
            raise UsageError(
                "models.yaml names its registry; --registry is for making one", subject=str(file)
            )
        return ""
    if given is None:
        raise UsageError(
            "there is no such file",
            subject=str(file),
            hint="run in the folder that holds models.yaml, name it with --file, or have it made with"
            " --registry registry.example.com/ml",
        )
    return given


def _entry(wish: Mapping[str, Any]) -> Entry:
    entry: dict[str, str | list[str]] = {"version": wish["version"], "source": wish["to"]}
    for key in ("endpoint", "hub", "include", "exclude", "allow_pickle"):
        if wish[key]:
            entry[key] = wish[key]
    if wish["convert"]:
        entry["convert"] = "safetensors"
    for key in ("runtime", "device"):
        if wish[key]:
            entry[key] = wish[key]
    return entry


def _asked(wish: Mapping[str, Any], file: Path) -> SourceSpec:
    """Return what the command and the defaults select, whatever models.yaml may have under this name."""
    said = (read_yaml(file).data.get("defaults") or {}) if file.exists() else {}
    return SourceSpec(
        name=wish["name"],
        source=wish["to"],
        include=wish["include"] or said.get("include", ["*"]),
        exclude=wish["exclude"] or said.get("exclude", []),
    )


def _chosen(source: SourceSpec, listed: Sequence[LooseFile], folder: Path) -> list[LooseFile]:
    return select_files(listed, source, f"{source.name}: {folder}")


def _configuration(files: Sequence[LooseFile]) -> bytes | None:
    found = [file for file in files if file.path == CONFIGURATION and file.size <= LARGEST_CONFIGURATION]
    return found[0].place.read_bytes() if found else None


def _only_pickles(unasked: Sequence[str], folder: Path) -> UsageError:
    return UsageError(
        f"holds only pickles ({', '.join(map(shown, unasked[:5]))}), and loading one can run any code",
        subject=str(folder),
        hint="--convert has them converted to safetensors where the image is built; --allow-pickle FILE takes"
        " one as it is",
    )
