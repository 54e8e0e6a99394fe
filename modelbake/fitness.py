"""Whether a runtime can serve a model, as far as its files' names and its config.json tell. Pure.

A server finds the same out by itself, but minutes later: after the build, on a GPU.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from modelbake.conversion import conversion_objections, converted_names, image_files, is_convertible
from modelbake.objections import Objection
from modelbake.pickles import pickle_objections
from modelbake.scalars import quoted
from modelbake.weightpath import shown

if TYPE_CHECKING:
    from modelbake.config import ModelSpec
    from modelbake.runtime import Runtime

CONFIGURATION = "config.json"
LARGEST_CONFIGURATION = 1024 * 1024  # bytes; a larger one is hashed, and not looked into
_PART = re.compile(
    r"(?P<name>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.(?P<kind>safetensors|gguf|bin)"
)
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a model's files.

    Attributes:
        files: the paths that are locked.
        upstream: all paths that the source has at that commit; None where it was not asked.
        configuration: the content of config.json; None where it is not known, or not locked.
    """

    files: Sequence[str]
    upstream: Sequence[str] | None = None
    configuration: bytes | None = None


def objections(
    spec: ModelSpec, runtime: Runtime, evidence: Evidence, others: Sequence[Runtime] = ()
) -> list[Objection]:
    """Return everything that keeps the model from being served. `others` are named if they could serve it."""
    found = pickle_objections(spec, evidence.files)
    unconverted = conversion_objections(spec, evidence.files, evidence.upstream)
    found += unconverted
    image = replace(evidence, files=image_files(spec, evidence.files))
    found += _too_many(spec, runtime, image)
    # Without the files that were to be converted, what else is missing is no news.
    lacking = [] if unconverted else _lacking(spec, runtime, image)
    lacking += _parts_lacking(spec, runtime, evidence)
    for each in [*lacking, *_wrong_configuration(spec, runtime, evidence)]:
        # Where a pattern leaves out what is needed, another runtime is no remedy.
        able = "" if each.key in ("include", "exclude") else _able(runtime, others, evidence)
        found.append(Objection(each.key, each.message + able))
    return found


def warnings(spec: ModelSpec, evidence: Evidence) -> list[str]:
    """Return what is worth a look, though it keeps nothing from working: code that comes with the weights."""
    found = []
    programs = sorted(path for path in evidence.files if path.endswith(".py"))
    if programs:
        names = ", ".join(programs[:_SHOWN]) + (" ..." if len(programs) > _SHOWN else "")
        found.append(
            f"{spec.name}: {names}: code among the weights; no runtime here runs any of it:"
            ' `exclude: ["*.py"]` leaves it out'
        )
    configuration = _parsed(evidence.configuration)
    if configuration is not None and configuration.get("auto_map"):
        found.append(
            f"{spec.name}: {CONFIGURATION} refers to code of the repository (auto_map); no runtime here runs"
            " any (trust_remote_code): a model that its library does not know by itself will not load"
        )
    return found


@lru_cache(maxsize=1 << 16)  # of a thousand models most files have the same names
def holds(path: str, pattern: str) -> bool:
    """Tell whether a path is of a need's pattern.

    Unlike in `include`, '*' stays within its folder; `**/` stands for any number of folders.
    """
    return _fits(path.split("/"), pattern.split("/"))


def _fits(names: list[str], patterns: list[str]) -> bool:
    if not (names and patterns):
        return names == patterns
    if patterns[0] == "**" and len(patterns) > 1:
        return any(_fits(names[depth:], patterns[1:]) for depth in range(len(names)))
    return fnmatchcase(names[0], patterns[0]) and _fits(names[1:], patterns[1:])


def selects(pattern: str, path: str) -> bool:
    """Tell whether a pattern of `include` or `exclude` takes a path; as huggingface_hub's filter does."""
    return fnmatchcase(path, f"{pattern}*" if pattern.endswith("/") else pattern)


def _lacking(spec: ModelSpec, runtime: Runtime, evidence: Evidence) -> list[Objection]:
    """Return an objection for each file that the runtime needs and the lock has not."""
    if not runtime.needs:
        return []
    found = []
    for need, patterns in runtime.needs.items():
        if not _held(evidence.files, patterns):
            either = " or ".join(filter(None, [", ".join(patterns[:-1]), patterns[-1]]))
            what = f"{spec.name} lacks the {need} that runtime {runtime.name} needs ({either})"
            found.append(_missing(spec, what, patterns, evidence))
    return found


def _parts_lacking(spec: ModelSpec, runtime: Runtime, evidence: Evidence) -> list[Objection]:
    """Return an objection for each part that weights in several files lack, by the source's names."""
    if runtime.needs:
        missing = _missing_parts(evidence.files)
    else:  # It may take weights as they come. But what some parts of a pickle become is no model.
        parts = [path for path in converted_names(spec, evidence.files) if is_convertible(path)]
        missing = [(path, why) for path, why in _missing_parts(parts) if is_convertible(path)]
    return [_missing(spec, f"{spec.name} lacks {path}, {why}", [path], evidence) for path, why in missing]


def _too_many(spec: ModelSpec, runtime: Runtime, evidence: Evidence) -> list[Objection]:
    """Return an objection for each need that is met several times where the runtime takes one."""
    found = []
    for need in runtime.single:
        held = _wholes(_held(evidence.files, runtime.needs.get(need, ())))
        if len(held) > 1:
            names = ", ".join(map(shown, held[:_SHOWN])) + (" ..." if len(held) > _SHOWN else "")
            what = f"{spec.name} has {len(held)} candidates for the {need}, runtime {runtime.name} takes one"
            found.append(Objection("include", f"{what}: {names}; let `include` name one"))
    return found


def _wholes(files: Iterable[str]) -> list[str]:
    """Return the files, sorted, and of one that is in parts only the first that is there."""
    first: dict[tuple[str, ...], str] = {}
    for path in sorted(files):
        part = _PART.fullmatch(path)
        first.setdefault((path,) if part is None else part.group("name", "count", "kind"), path)
    return list(first.values())


def _held(files: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Return the files that are of one of the patterns, those of the first pattern first."""
    return [path for pattern in patterns for path in files if holds(path, pattern)]


def _missing_parts(files: Sequence[str]) -> list[tuple[str, str]]:
    """Return the files that weights in several parts lack, each with what it would have been."""
    parts: dict[tuple[str, str, str], set[int]] = {}
    for path in files:
        if found := _PART.fullmatch(path):
            key = (found["name"], found["count"], found["kind"])
            parts.setdefault(key, set()).add(int(found["number"]))
    missing = []
    for (name, count, kind), numbers in sorted(parts.items()):
        absent = [number for number in range(1, int(count) + 1) if number not in numbers]
        for number in absent[:_SHOWN]:
            missing.append((f"{name}-{number:05}-of-{count}.{kind}", f"one of {int(count)} parts"))
        index = f"{name}.{kind}.index.json"
        if kind != "gguf" and index not in files:
            missing.append((index, f"which says what is in which of {int(count)} parts"))
    return missing


def _missing(spec: ModelSpec, what: str, patterns: Sequence[str], evidence: Evidence) -> Objection:
    """Return the objection to a missing file: at the line that leaves it out, if one does."""
    if evidence.upstream is not None:
        there = _held(evidence.upstream, patterns)
        blamed = _left_out(spec, there[0]) if there else None
        if blamed is None:
            return Objection("source", f"{what}; upstream has none either")
        return Objection(blamed.key, f"{what}; upstream has it, but {blamed.message}")
    # Upstream was not asked: the patterns are to blame for certain only if they take none of the names.
    left_out = [_left_out(spec, pattern) for pattern in patterns if "*" not in pattern]
    if len(left_out) == len(patterns) and left_out[0] is not None and None not in left_out:
        return Objection(left_out[0].key, f"{what}; {left_out[0].message}")
    return Objection("runtime", f"{what}; `build.py lock {spec.name}` says whether upstream has it")


def _left_out(spec: ModelSpec, path: str) -> Objection | None:
    """Return which key leaves a path out, and how; None where it is selected."""
    for pattern in spec.exclude:
        if selects(pattern, path):
            return Objection("exclude", f"{shown(path)} is left out by {quoted(pattern)}")
    if any(selects(pattern, path) for pattern in spec.include):
        return None
    return Objection("include", f"{shown(path)} is not selected: add {quoted(path, 1024)}")


def _wrong_configuration(spec: ModelSpec, runtime: Runtime, evidence: Evidence) -> list[Objection]:
    """Return the objection to what config.json says, if it is known and the runtime reads it."""
    if evidence.configuration is None or not runtime.needs:
        return []
    if _parsed(evidence.configuration) is None:
        return [Objection("source", f"{CONFIGURATION} of {spec.name} is not a JSON object")]
    if _serves(runtime, evidence):
        return []
    named = " and ".join(_architectures(evidence))
    serves = ", ".join(runtime.architectures)
    message = f"{spec.name} is a {named} by its {CONFIGURATION}, and runtime {runtime.name} serves {serves}"
    return [Objection("runtime", message)]


def _serves(runtime: Runtime, evidence: Evidence) -> bool:
    """Tell whether a runtime serves the architecture that config.json names; yes where that names none."""
    named, served = _architectures(evidence), runtime.architectures
    return not (named and served) or any(fnmatchcase(each, one) for each in named for one in served)


def _architectures(evidence: Evidence) -> list[str]:
    named = (_parsed(evidence.configuration) or {}).get("architectures")
    if not isinstance(named, list):
        return []
    return [shown(each, 80) for each in named if isinstance(each, str)][:_SHOWN]


def _parsed(content: bytes | None) -> dict[str, Any] | None:
    try:
        document = json.loads(content or b"")
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _able(unfit: Runtime, others: Sequence[Runtime], evidence: Evidence) -> str:
    """Return a text that names the other runtimes which would find what they need, or ""."""
    files = evidence.files if evidence.upstream is None else evidence.upstream
    names = [
        runtime.name
        for runtime in others
        if runtime.needs
        and runtime.name != unfit.name
        and _serves(runtime, evidence)
        and all(_held(files, patterns) for patterns in runtime.needs.values())
    ]
    return f"; runtime {' or '.join(names)} would find what it needs" if names else ""
