"""models.lock against models.yaml and upstream: what differs, what a build may rely on, what is put in anew.

Pure. The facts themselves are of `locked`, the file of `lockfile`; both are handed on here, so that the rest
of the program imports everything about locks from this module.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from modelbake.errors import LockDrift, LockMissing
from modelbake.locked import Lock, LockedFile, LockedModel
from modelbake.lockfile import decode_lock, encode_lock, exclusively, read_lock, write_lock

if TYPE_CHECKING:
    from modelbake.config import Config, ModelSpec

__all__ = [
    "Drift",
    "DriftKind",
    "Lock",
    "LockedFile",
    "LockedModel",
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

DriftKind = Literal["missing", "orphan", "changed", "moved"]


@dataclass(frozen=True, slots=True)
class Drift:
    """A difference: `missing` from the lock, `orphan` in it, `changed` intent, or `moved` upstream."""

    model: str
    kind: DriftKind
    detail: str

    def __str__(self) -> str:
        """Return one line for people."""
        return f"{self.model}: {self.kind}: {self.detail}"


def config_drift(config: Config, lock: Lock) -> list[Drift]:
    """Return every difference between models.yaml and the lock, by model name. Asks nobody."""
    drifts: list[Drift] = []
    for name in sorted({*config.models, *lock.models}):
        if name not in config.models:
            drifts.append(Drift(name, "orphan", "is locked, but models.yaml has no such model"))
        elif name not in lock.models:
            drifts.append(Drift(name, "missing", "is in models.yaml, but not locked"))
        elif changes := intent_changes(config.models[name], lock.models[name]):
            drifts.append(Drift(name, "changed", "; ".join(changes)))
    return drifts


def upstream_drift(lock: Lock, heads: Mapping[str, str]) -> list[Drift]:
    """Return the models whose revision names another commit now. `heads` has a commit by model name."""
    return [
        Drift(name, "moved", f"{lock.models[name].revision} was {lock.models[name].commit}, is {head}")
        for name, head in sorted(heads.items())
        if name in lock.models and lock.models[name].commit != head
    ]


def intent_changes(spec: ModelSpec, locked: LockedModel) -> list[str]:
    """Return what models.yaml asks for differently than when the model was locked, one text a key."""
    wanted = LockedModel.of(spec, locked.commit, locked.files)
    return [
        f"{key} was {_shown(getattr(locked, key))}, is {_shown(getattr(wanted, key))}"
        for key in ("source", "hub", "revision", "include", "exclude")
        if getattr(locked, key) != getattr(wanted, key)
    ]


def require_locked(spec: ModelSpec, lock: Lock) -> LockedModel:
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
    if changes := intent_changes(spec, locked):
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
    return value if isinstance(value, str) else f"[{', '.join(value)}]"
