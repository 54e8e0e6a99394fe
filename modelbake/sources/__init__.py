"""Sources: where weights come from. One module a kind, the `Source` protocol between them and the rest.

Only `lock` asks a source anything; what it answers is written down, and nothing later asks again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from modelbake.errors import ModelbakeError, SourceError, UsageError
from modelbake.parallel import try_all

if TYPE_CHECKING:
    import threading

    from modelbake.config import ModelSpec
    from modelbake.credentials import Secret
    from modelbake.lock import Lock, LockedModel
    from modelbake.stream.flow import Reader

_Result = TypeVar("_Result")


class Source(Protocol):
    """Turns what models.yaml asks for into facts."""

    def resolve(self, spec: ModelSpec, previous: LockedModel | None) -> LockedModel:
        """Return the commit and the path, size and sha256 of every selected file.

        `previous` is what the lock says; at the same commit the facts have to be the same.
        Raises SourceError or one of its subclasses.
        """
        ...

    def head(self, spec: ModelSpec) -> str:
        """Return the commit that the revision points to now. Raises SourceError."""
        ...

    def reach(self, spec: ModelSpec) -> str:
        """Return the same, and ask the source even where the revision says it. Raises SourceError."""
        ...


def source_for(uri: str, token: Secret | None) -> Source:
    """Return the source that serves a URI. Raises UsageError where none does."""
    if uri.startswith("hf://"):
        # Imported here: huggingface_hub costs more than everything else together, and few verbs need it.
        from modelbake.sources.hub import HubSource

        return HubSource(token)
    raise UsageError("no source serves this address", subject=uri, hint="write hf://organisation/name")


def reader_for(locked: LockedModel, token: Secret | None, stop: threading.Event) -> Reader:
    """Return what reads the locked files of a model. `stop`: set to end all reading.

    Raises UsageError where no source serves its address.
    """
    if locked.source.startswith("hf://"):
        from modelbake.sources.hub_read import HubReader

        return HubReader(locked, token, stop=stop)
    raise UsageError("no source serves this address", subject=locked.source, hint="run `build.py lock`")


def resolve_all(
    specs: Sequence[ModelSpec],
    lock: Lock,
    token: Secret | None,
    jobs: int = 8,
    done: Callable[[LockedModel], None] | None = None,
) -> list[LockedModel]:
    """Resolve models, `jobs` at a time, in the order of `specs`; call `done` as each one is finished.

    All are tried, whatever becomes of the others. Raises the error of the model that failed, or one error
    that reports all which failed: of their common class, else SourceError.
    """

    def resolve(spec: ModelSpec) -> LockedModel:
        locked = source_for(spec.source, token).resolve(spec, lock.models.get(spec.name))
        if done:
            done(locked)
        return locked

    return _all_or_report(specs, resolve, jobs)


def head_all(specs: Sequence[ModelSpec], token: Secret | None, jobs: int = 8) -> Mapping[str, str]:
    """Return the commit that each model's revision points to now, by model name; errors as `resolve_all`."""
    heads = _all_or_report(specs, lambda spec: source_for(spec.source, token).head(spec), jobs)
    return {spec.name: head for spec, head in zip(specs, heads, strict=True)}


def _all_or_report(
    specs: Sequence[ModelSpec], action: Callable[[ModelSpec], _Result], jobs: int
) -> list[_Result]:
    outcomes = try_all(specs, action, jobs)
    errors = [outcome for outcome in outcomes if isinstance(outcome, ModelbakeError)]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        classes = {type(error) for error in errors}
        report = "\n".join(str(error) for error in errors)
        common = classes.pop() if len(classes) == 1 else SourceError
        raise common(f"{len(errors)} of {len(specs)} models could not be resolved:\n{report}")
    return [outcome for outcome in outcomes if not isinstance(outcome, ModelbakeError)]
