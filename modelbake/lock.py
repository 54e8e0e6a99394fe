"""models.lock against models.yaml and upstream: what differs, what a build may rely on, what is put in anew.

Pure. The facts themselves are of `locked`, the file of `lockfile`; both are handed on here, so that the rest
of the program imports everything about locks from this module.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Literal

from modelbake.conversion import conversion_changes
from modelbake.errors import LockDrift, LockMissing
from modelbake.locked import Conversion, Lock, LockedFile, LockedModel, LockedSource
from modelbake.lockfile import decode_lock, encode_lock, exclusively, read_lock, write_lock
from modelbake.weightpath import shown

if TYPE_CHECKING:
    from modelbake.config import Config, ModelSpec, SourceSpec

__all__ = [
    "Conversion",
    "Drift",
    "DriftKind",
    "Lock",
    "LockedFile",
    "LockedModel",
    "LockedSource",
    "comparable",
    "config_drift",
    "decode_lock",
    "encode_lock",
    "exclusively",
    "intent_changes",
    "read_lock",
    "require_locked",
    "update_lock",
    "upstream_drift",
    "write_lock",
]

_SHOWN_EDITS = 20
_SHOWN_KEYS = {"hub": "server"}  # the key of models.yaml is `hub` or `endpoint`
DriftKind = Literal["missing", "orphan", "changed", "moved", "edited"]


@dataclass(frozen=True, slots=True)
class Drift:
    """A difference: `missing` from the lock, `orphan` in it, `changed` intent, or `moved` upstream.

    `edited`: the lock has other files than upstream has at the very commit that is locked.
    """

    model: str
    kind: DriftKind
    detail: str

    def __str__(self) -> str:
        """Return one line for people."""
        return f"{self.model}: {self.kind}: {self.detail}"


def config_drift(config: Config, lock: Lock, converter: str = "") -> list[Drift]:
    """Return every difference between models.yaml and the lock, by model name. Asks nobody.

    `converter`, here and below: the identity of today's converter. Where it is not given, no conversion is
    taken for one of today's.
    """
    drifts: list[Drift] = []
    for name in sorted({*config.models, *lock.models}):
        if name not in config.models:
            drifts.append(Drift(name, "orphan", "is locked, but models.yaml has no such model"))
        elif name not in lock.models:
            drifts.append(Drift(name, "missing", "is in models.yaml, but not locked"))
        elif changes := intent_changes(config.models[name], lock.models[name], converter):
            drifts.append(Drift(name, "changed", "; ".join(changes)))
    return drifts


def upstream_drift(
    lock: Lock, heads: Mapping[str, Sequence[str]], edits: Mapping[str, Sequence[str]] | None = None
) -> list[Drift]:
    """Return the models whose revision names another commit now, and those whose files are not upstream's.

    By model name, `heads` has the commits that the sources are at now, first source first, and `edits` one
    text a file that differs.
    """
    drifts: list[Drift] = []
    for name, locked in sorted(lock.models.items()):
        if found := (edits or {}).get(name):
            more = f"; and {len(found) - _SHOWN_EDITS} more" if len(found) > _SHOWN_EDITS else ""
            files = "; ".join(found[:_SHOWN_EDITS])
            drifts.append(Drift(name, "edited", f"at the locked commit {locked.commit}: {files}{more}"))
        for source, head in zip(locked.sources, heads.get(name, ()), strict=False):
            if head != source.commit:
                what = source.revision or source.source
                drifts.append(Drift(name, "moved", f"{what} was {source.commit}, is {head}"))
    return drifts


def comparable(spec: ModelSpec, lock: Lock) -> bool:
    """Tell whether upstream can say something of a model's lock: it is locked, from where it still comes."""
    locked = lock.models.get(spec.name)
    if locked is None or len(locked.sources) != len(spec.sources):
        return False
    return all(
        getattr(have, key) == getattr(LockedSource.at(want, have.commit, ()), key)
        for want, have in zip(spec.sources, locked.sources, strict=True)
        for key in ("source", "hub", "revision", "into")
    )


def intent_changes(spec: ModelSpec, locked: LockedModel, converter: str = "") -> list[str]:
    """Return what models.yaml asks for differently than when the model was locked, one text a key."""
    changes: list[str] = []
    for number, (want, have) in enumerate(zip_longest(spec.sources, locked.sources)):
        where = f"add[{number - 1}]" if number else ""
        if want is None or have is None:
            changes.append(
                f"{where} was {have.source if have else 'none'}, is {want.source if want else 'none'}"
            )
            continue
        wanted = LockedSource.at(want, have.commit, ())
        changes += [
            f"{where}{'.' if where else ''}{_SHOWN_KEYS.get(key, key)} was {_shown(getattr(have, key))},"
            f" is {_shown(getattr(wanted, key))}"
            for key in ("source", "hub", "revision", "into", "include", "exclude")
            if getattr(have, key) != getattr(wanted, key)
        ]
        changes += [f"{where}{'.' if where else ''}files {change}" for change in _given_changes(want, have)]
    return changes + conversion_changes(spec, locked, converter)


def _given_changes(want: SourceSpec, have: LockedSource) -> list[str]:
    """Return how the sha256 that models.yaml gives of a web server's files differ from the locked ones."""
    if want.kind != "https":
        return []
    from modelbake.sources.selecting import is_selected

    given = {path: sha256 for path, sha256 in want.files.items() if is_selected(path, want)}
    locked = {have.path_there(file): file.sha256 for file in have.files}
    return [
        f"{shown(path)} was {locked.get(path, 'not there')}, is {given.get(path, 'not there')}"
        for path in sorted(given.keys() | locked.keys())
        if given.get(path) != locked.get(path)
    ]


def require_locked(spec: ModelSpec, lock: Lock, converter: str = "") -> LockedModel:
    """Return the facts of a model.

    Raises:
        LockMissing: it was never locked.
        LockDrift: models.yaml asks for something else than was locked.
    """
    locked = lock.models.get(spec.name)
    if locked is None:
        close = difflib.get_close_matches(spec.name, list(lock.models), n=1)
        renamed = f" (it holds `{close[0]}`; was it renamed?)" if close else ""
        raise LockMissing(f"is not in models.lock{renamed}", subject=spec.name, hint=_remedy(spec.name))
    if changes := intent_changes(spec, locked, converter):
        raise LockDrift(
            f"models.lock is not of this models.yaml: {'; '.join(changes)}",
            subject=spec.name,
            hint=_remedy(spec.name),
        )
    return locked


def update_lock(
    lock: Lock, resolved: Iterable[LockedModel], *, configured: Collection[str] | None = None
) -> Lock:
    """Return the lock with `resolved` put in. Pure.

    `configured` are the names of models.yaml, given when every model was locked: entries of other names are
    orphans and are dropped. Without it every other entry stays as it is.
    """
    models = {**lock.models, **{model.name: model for model in resolved}}
    if configured is not None:
        models = {name: model for name, model in models.items() if name in configured}
    return replace(lock, models=dict(sorted(models.items())))


def _remedy(name: str) -> str:
    return f"run `build.py lock {name}`, look at the difference, and commit models.lock"


def _shown(value: str | Sequence[str]) -> str:
    return shown(value) if isinstance(value, str) else f"[{', '.join(map(shown, value))}]"
