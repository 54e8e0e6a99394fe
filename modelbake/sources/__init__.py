"""Sources: where weights come from. One module a kind, the `Source` protocol between them and the rest.

Only `lock` asks a source anything; what it answers is written down, and nothing later asks again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from modelbake.errors import ModelbakeError, SourceError, UsageError

if TYPE_CHECKING:
    from modelbake.config import ModelSpec
    from modelbake.credentials import Secret
    from modelbake.lock import Lock, LockedModel

_Item = TypeVar("_Item")
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


def parallel(items: Sequence[_Item], action: Callable[[_Item], _Result], threads: int) -> list[_Result]:
    """Run `action` for every item and return what it returned, in their order.

    After the first error nothing new is begun, and it is raised.
    """
    outcomes = _run(items, action, threads, stop_at_error=True)
    for outcome in outcomes:
        if isinstance(outcome, ModelbakeError):
            raise outcome
    return [outcome for outcome in outcomes if not isinstance(outcome, (ModelbakeError, _NotBegun))]


class _NotBegun:
    """Stands for an item that was left out after an error."""


def _run(
    items: Sequence[_Item], action: Callable[[_Item], _Result], threads: int, *, stop_at_error: bool
) -> list[_Result | ModelbakeError | _NotBegun]:
    """Run `action` for every item; the threads are daemons, so that Ctrl-C ends the program at once."""
    outcomes: list[_Result | ModelbakeError | _NotBegun] = [_NotBegun() for _ in items]
    defects: list[BaseException] = []
    indexes = iter(range(len(items)))
    guard, stop = threading.Lock(), threading.Event()

    def work() -> None:
        while not stop.is_set():
            with guard:
                index = next(indexes, None)
            if index is None:
                return
            try:
                outcomes[index] = action(items[index])
            except ModelbakeError as error:
                outcomes[index] = error
                if stop_at_error:
                    stop.set()
            except BaseException as defect:  # raised again below, in the thread that called
                defects.append(defect)
                stop.set()

    workers = [threading.Thread(target=work, daemon=True) for _ in range(min(threads, len(items)))]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        stop.set()
    if defects:
        raise defects[0]
    return outcomes


def _all_or_report(
    specs: Sequence[ModelSpec], action: Callable[[ModelSpec], _Result], jobs: int
) -> list[_Result]:
    outcomes = _run(specs, action, jobs, stop_at_error=False)
    errors = [outcome for outcome in outcomes if isinstance(outcome, ModelbakeError)]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        classes = {type(error) for error in errors}
        report = "\n".join(str(error) for error in errors)
        common = classes.pop() if len(classes) == 1 else SourceError
        raise common(f"{len(errors)} of {len(specs)} models could not be resolved:\n{report}")
    return [outcome for outcome in outcomes if not isinstance(outcome, (ModelbakeError, _NotBegun))]
