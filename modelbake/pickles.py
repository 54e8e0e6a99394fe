"""Which weight files are pickles by their names, and whether models.yaml asks for each of them. Pure.

Loading a pickle can run any code of whoever wrote it (https://docs.python.org/3/library/pickle.html), and
nothing tells a harmless one from another. So a pickle is baked in only where `allow_pickle` names it; or it
is converted, and not in the image at all (see `conversion`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from modelbake.conversion import converted_names, is_convertible
from modelbake.grammar import PICKLE_SUFFIXES
from modelbake.objections import Objection
from modelbake.scalars import quoted
from modelbake.validation import did_you_mean

if TYPE_CHECKING:
    from modelbake.config import ModelSpec

_SAFE = (".safetensors", ".gguf")
_SHOWN = 5
_LONGEST = 1024  # characters of a name; what is to be copied must not be shortened


def is_pickle(path: str) -> bool:
    """Tell whether a file is a pickle by its name."""
    return path.lower().endswith(PICKLE_SUFFIXES)


def pickle_objections(spec: ModelSpec, files: Sequence[str]) -> list[Objection]:
    """Return what is wrong: pickles that are not allowed, and allowed names that are no files."""
    found = []
    asked = {*spec.allow_pickle, *converted_names(spec, files)}
    unasked = sorted(path for path in files if is_pickle(path) and path not in asked)
    if unasked:
        found.append(Objection("exclude", _refusal(spec, files, unasked)))
    for name in sorted(set(spec.allow_pickle).difference(files)):
        guess = did_you_mean(name, filter(is_pickle, files))
        found.append(
            Objection(
                "allow_pickle",
                f"{spec.name} has no file {quoted(name)} at the locked commit{guess}; name"
                " the files that `include` and `exclude` select",
            )
        )
    return found


def _refusal(spec: ModelSpec, files: Sequence[str], unasked: Sequence[str]) -> str:
    aside = "" if any(path.endswith(_SAFE) for path in files) else "; there are no safetensors beside"
    # What is added to a model has patterns of its own.
    folders = [each.into for each in spec.add if any(path.startswith(f"{each.into}/") for path in unasked)]
    own = [path for path in unasked if not path.startswith(tuple(f"{folder}/" for folder in folders))]
    convert = " have it converted with `convert: safetensors`," if any(map(is_convertible, own)) else ""
    more = [each for each in patterns_of(own, spec.allow_pickle) if each not in spec.exclude]
    exclude = [*spec.exclude, *more]
    ways = [f"`exclude: {_flow(exclude)}`"] * bool(own)
    ways += [f"`exclude` of what `add` puts into {folder}" for folder in folders]
    return (
        f"{spec.name} holds {_listed(unasked)}: by name a pickle, and loading one can run any code{aside}."
        f" Leave it out with {' and '.join(ways)},{convert} or bake it in all the same with"
        f" `allow_pickle: {_flow([*spec.allow_pickle, *unasked])}`"
    )


def patterns_of(unasked: Iterable[str], allowed: Iterable[str]) -> list[str]:
    """Return the shortest patterns that leave these files out, and none that is allowed."""
    kept = {PurePosixPath(path).suffix for path in allowed}
    suffixes = {path: PurePosixPath(path).suffix for path in unasked}
    return sorted({path if suffix in kept else f"*{suffix}" for path, suffix in suffixes.items()})


def _listed(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(paths[:_SHOWN]) + more


def _flow(words: Sequence[str]) -> str:
    """Return a list as YAML writes it on one line."""
    return f"[{', '.join(quoted(word, _LONGEST) for word in words)}]"
