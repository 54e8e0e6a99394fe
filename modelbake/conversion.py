"""`convert: safetensors`: which files of a model are converted, and what they are called afterwards. Pure.

    pytorch_model-00001-of-00002.bin   model-00001-of-00002.safetensors
    pytorch_model.bin.index.json       model.safetensors.index.json
    consolidated.00.pth                consolidated.00.safetensors

Every pickle of these kinds is converted but those that `allow_pickle` names: they are baked in as they are.
How it is done stands in images/builder/convert.py.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from modelbake.errors import RenderError
from modelbake.grammar import PICKLE_SUFFIXES
from modelbake.locked import Conversion, LockedModel
from modelbake.objections import Objection
from modelbake.scalars import quoted
from modelbake.weightpath import conflicting_paths, path_problem, shown

if TYPE_CHECKING:
    from modelbake.config import ModelSpec

CONVERTIBLE = (".bin", ".pt", ".pth")
# What decides about the bytes that come out: a lock is of a conversion by these very programs and packages.
DECISIVE = ("builder/convert.py", "builder/requirements.converter.txt", "builder/state_dict.py")

_INDEX = re.compile(r"(?P<stem>.+)(?P<suffix>\.bin|\.pt|\.pth)\.index\.json", re.IGNORECASE)
_LONGEST = 1024  # characters of a name that is to be copied
_SHOWN = 5


def is_convertible(path: str) -> bool:
    """Tell whether a file is a pickle that can be converted, by its name."""
    return path.lower().endswith(CONVERTIBLE)


def converted_names(spec: ModelSpec, files: Sequence[str]) -> dict[str, str]:
    """Return what each file that is converted becomes; nothing for a model without `convert`.

    Only of the model's own files: what is added stays in layers of its own, as it is.
    """
    if spec.convert == "none":
        return {}
    added = tuple(f"{each.into}/" for each in spec.add)
    files = [path for path in files if not path.startswith(added)]
    pickles = [path for path in files if is_convertible(path) and path not in spec.allow_pickle]
    names = {path: _weights_name(path) for path in pickles}
    for path in files:
        if (index := _INDEX.fullmatch(path)) and _has_parts(index["stem"], index["suffix"], pickles):
            names[path] = f"{_weights_name(index['stem'] + index['suffix'])}.index.json"
    return dict(sorted(names.items()))


def image_files(spec: ModelSpec, files: Sequence[str]) -> list[str]:
    """Return the names that the image has of a model's files."""
    names = converted_names(spec, files)
    return sorted(names.get(path, path) for path in files)


def instructions(names: Mapping[str, str]) -> bytes:
    """Return what convert.py is told: the answer of `converted_names`, as its JSON."""
    weights = {source: name for source, name in names.items() if is_convertible(source)}
    indexes = {source: name for source, name in names.items() if source not in weights}
    document = {"schema": 1, "weights": weights, "indexes": indexes}
    return (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def conversion_objections(
    spec: ModelSpec, files: Sequence[str], upstream: Sequence[str] | None
) -> list[Objection]:
    """Return what is wrong: nothing to convert, or a converted file in the place of another file."""
    if spec.convert == "none":
        return []
    names = converted_names(spec, files)
    if not names:
        return [Objection("convert", _nothing(spec, files, upstream))]
    found = []
    kept = set(files).difference(names)
    for name in sorted(set(names.values())):
        sources = [source for source, target in names.items() if target == name]
        exclude = f"leave one out with `exclude: {_flow([*spec.exclude, sources[-1]])}`"
        if name in kept:
            message = f"{shown(sources[0])} of {spec.name} would become {shown(name)}, which is there already"
            found.append(Objection("convert", f"{message}: {exclude}"))
        elif len(sources) > 1:
            pair = f"{shown(sources[0])} and {shown(sources[1])}"
            found.append(
                Objection("convert", f"{pair} of {spec.name} would both become {shown(name)}: {exclude}")
            )
        elif problem := path_problem(name):
            message = f"{shown(sources[0])} of {spec.name} would get a name that {problem}"
            found.append(Objection("convert", message))
    if not found and (clash := conflicting_paths([*kept, *names.values()])):
        message = f"{spec.name} would have {shown(clash[0])} and {shown(clash[1])}, which cannot both exist"
        found.append(Objection("convert", message))
    return found


def conversion_changes(spec: ModelSpec, locked: LockedModel, converter: str) -> list[str]:
    """Return how what models.yaml asks for differs from the conversion that is locked, one text a difference.

    `converter` is the `identity` of today's converter.
    """
    had = locked.converted
    if spec.convert == "none":
        return [] if had is None else ["convert was safetensors, is not there"]
    if had is None:
        return ["convert was not there, is safetensors"]
    names = converted_names(spec, [file.path for file in locked.files])
    changes = []
    if set(had.replaces) != names.keys():
        changes.append(f"what is converted was {_names(had.replaces)}, is {_names(list(names))}")
    elif sorted(names.values()) != [file.path for file in had.files]:
        targets = _names([file.path for file in had.files])
        changes.append(f"the converted files were {targets}, are {_names(sorted(names.values()))}")
    if had.converter != converter:
        changes.append(f"the converter was {had.converter}, is {converter or 'not known'}")
    return changes


def kept_conversion(
    spec: ModelSpec, resolved: LockedModel, previous: LockedModel | None, converter: str
) -> Conversion | None:
    """Return the conversion that is locked already, if it is of the same files by the same converter."""
    if previous is None or (had := previous.converted) is None:
        return None
    if conversion_changes(spec, previous, converter):
        return None
    before = {file.path: file for file in previous.files}
    now = {file.path: file for file in resolved.files}
    names = converted_names(spec, list(now))
    same = names.keys() == set(had.replaces) and all(before[path] == now[path] for path in names)
    return had if same else None


@cache
def identity(programs: Path) -> str:
    """Return `sha256:` and a digest that names the converter in a folder of programs: its code and its pins.

    Raises RenderError.
    """
    lines = []
    for name in DECISIVE:
        try:
            content = (programs / name).read_bytes()
        except OSError as error:
            raise RenderError(f"cannot read ({error.strerror})", subject=str(programs / name)) from error
        lines.append(f"{hashlib.sha256(content).hexdigest()} {name}\n")
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def _weights_name(path: str) -> str:
    """Return what libraries look for in the place of a pickle of this name."""
    folder, slash, name = path.rpartition("/")
    stem = name.rpartition(".")[0]
    if stem.startswith("pytorch_model"):
        stem = stem.removeprefix("pytorch_")
    return f"{folder}{slash}{stem}.safetensors"


def _has_parts(stem: str, suffix: str, pickles: Sequence[str]) -> bool:
    part = re.compile(rf"{re.escape(stem)}(?:-[0-9]{{5}}-of-[0-9]{{5}})?{re.escape(suffix)}")
    return any(part.fullmatch(path) for path in pickles)


def _nothing(spec: ModelSpec, files: Sequence[str], upstream: Sequence[str] | None) -> str:
    kinds = f"{', '.join(CONVERTIBLE[:-1])} or {CONVERTIBLE[-1]}"
    if allowed := [path for path in files if is_convertible(path) and path in spec.allow_pickle]:
        return (
            f"`allow_pickle` names all that {spec.name} has to convert: {_names(allowed)}; a file is either"
            " baked in as it is or converted: take it from `allow_pickle`, or remove `convert`"
        )
    if left_out := [path for path in upstream or () if is_convertible(path)]:
        names = _names(left_out)
        return f"`include` and `exclude` of {spec.name} leave out all that could be converted: {names}"
    others = [path for path in files if path.lower().endswith(PICKLE_SUFFIXES)]
    besides = f" (and {_names(others)} cannot be converted)" if others else ""
    return f"{spec.name} has no file to convert, none that ends in {kinds}{besides}: remove `convert`"


def _names(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(shown(path) for path in paths[:_SHOWN]) + more


def _flow(words: Sequence[str]) -> str:
    return f"[{', '.join(quoted(word, _LONGEST) for word in words)}]"
