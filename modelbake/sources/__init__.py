"""Sources: where weights come from. One module a kind, the `Source` protocol between them and the rest.

Only `lock` asks a source anything; what it answers is written down, and nothing later asks again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from modelbake.errors import ModelbakeError, SourceError
from modelbake.locked import LockedModel
from modelbake.parallel import try_all
from modelbake.weightpath import conflicting_paths, shown

if TYPE_CHECKING:
    from modelbake.config import ModelSpec, SourceSpec
    from modelbake.credentials import Secret
    from modelbake.lock import Lock, LockedFile, LockedSource
    from modelbake.stream.flow import FileBytes, Reader

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Resolved:
    """What a source answered.

    Attributes:
        locked: the facts to write down.
        upstream: every path that the source has at this commit, selected or not.
        configuration: the content of config.json, if that was selected and had to be fetched.
    """

    locked: LockedSource
    upstream: tuple[str, ...]
    configuration: bytes | None


class Source(Protocol):
    """Turns what models.yaml asks for into facts."""

    def resolve(self, spec: SourceSpec, previous: LockedSource | None) -> Resolved:
        """Return the commit and the path, size and sha256 of every selected file.

        `previous` is what the lock says; at the same commit the facts have to be the same.
        Raises SourceError or one of its subclasses.
        """
        ...

    def head(self, spec: SourceSpec) -> str:
        """Return the commit that the revision points to now. Raises SourceError."""
        ...

    def edits(self, locked: LockedSource) -> list[str]:
        """Return how the locked files differ from the source's at the locked commit, one text a file.

        Nothing is fetched: what the source lists is compared. Raises SourceError.
        """
        ...

    def reach(self, spec: SourceSpec) -> None:
        """Find out that the source hands out the model's files, as far as asking for one tells.

        Raises SourceError where it does not.
        """
        ...


class Audit(Protocol):
    """What is told of every fetched file, as `Output.audit` is; called from several threads."""

    def __call__(
        self, *, source: str, file: str, bytes: int, attempts: int, sha256: str, seconds: float
    ) -> None:
        """Take note of one finished transfer."""
        ...


@dataclass(frozen=True)
class ResolvedModel:
    """What all sources of a model answered.

    Attributes:
        locked: the facts to write down.
        upstream: every path that the sources have, as it would be in the image, selected or not.
        configuration: the content of the model's own config.json, if that is known.
    """

    locked: LockedModel
    upstream: tuple[str, ...]
    configuration: bytes | None


@dataclass(frozen=True)
class Compared:
    """What the sources say of locked models, by name, as far as they could be asked.

    Attributes:
        heads: the commits that the model's sources are at now, its own first.
        edits: how the locked files differ from the sources' at the locked commits; see `Source.edits`.
        error: why some models are not among these, if so; as `resolve_all` raises it.
    """

    heads: Mapping[str, list[str]]
    edits: Mapping[str, list[str]]
    error: ModelbakeError | None


def source_for(kind: str, token: Secret | None, audit: Audit | None = None) -> Source:
    """Return the source of a kind; `token` is for hubs. Stores find their credentials themselves."""
    if kind == "hf":
        # Imported here: huggingface_hub costs more than everything else together, and few verbs need it.
        from modelbake.sources.hub import HubSource

        return HubSource(token, audit=audit)
    from modelbake.sources.kinds import open_store
    from modelbake.sources.storesource import StoreSource

    return StoreSource(open_store, audit)


class ModelReader:
    """Reads the files of a locked model, each from its source. Sources are opened when first read from."""

    def __init__(self, locked: LockedModel, token: Secret | None, stop: threading.Event) -> None:
        self._token = token
        self._stop = stop
        self._sources = locked.sources
        self._source_of = {
            file.path: number for number, each in enumerate(self._sources) for file in each.files
        }
        self._readers: dict[int, Reader] = {}
        self._opening = threading.Lock()

    def read(self, file: LockedFile, start: int = 0) -> FileBytes:
        """Return the bytes of a file from `start` on."""
        number = self._source_of[file.path]
        with self._opening:
            if number not in self._readers:
                self._readers[number] = self._open(self._sources[number])
        return self._readers[number].read(file, start)

    def _open(self, locked: LockedSource) -> Reader:
        if locked.kind == "hf":
            from modelbake.sources.hub_read import HubReader

            return HubReader(locked, self._token, stop=self._stop)
        from modelbake.sources.kinds import open_store
        from modelbake.sources.storesource import InnerReader

        return InnerReader(locked, open_store(locked).reader(self._stop))


def require_approved(locked: LockedModel) -> None:
    """Ask for each source that somebody has to approve whether that still stands. Raises SourceError.

    Who reads it asks anyway; layers that a registry has already are not read.
    """
    for source in locked.sources:
        if source.kind == "sagemaker":
            from modelbake.sources.kinds import open_store

            open_store(source).close()


def reader_for(locked: LockedModel, token: Secret | None, stop: threading.Event) -> Reader:
    """Return what reads the locked files of a model. `stop`: set to end all reading."""
    return ModelReader(locked, token, stop)


def resolve_all(
    specs: Sequence[ModelSpec],
    lock: Lock,
    token: Secret | None,
    jobs: int = 8,
    done: Callable[[LockedModel], None] | None = None,
    audit: Audit | None = None,
) -> list[ResolvedModel]:
    """Resolve models, `jobs` at a time, in the order of `specs`; call `done` as each one is finished.

    `audit` is told of every file that had to be fetched. All models are tried, whatever becomes of others.
    Raises the error of the model that failed, or one error that reports all which failed: of their common
    class, else SourceError.
    """

    def resolve(spec: ModelSpec) -> ResolvedModel:
        before = lock.models.get(spec.name)
        known = before.sources if before is not None else ()
        answers = [
            source_for(each.kind, token, audit).resolve(each, _same_place(each, known))
            for each in spec.sources
        ]
        resolved = _joined(answers)
        if done:
            done(resolved.locked)
        return resolved

    answers, error = _all_and_report(specs, resolve, jobs)
    if error:
        raise error
    return [resolved for _, resolved in answers]


def _same_place(spec: SourceSpec, known: Sequence[LockedSource]) -> LockedSource | None:
    """Return what is locked of a source; by its address, as `add` may have been put into another order."""
    found = [each for each in known if (each.source, each.into) == (spec.source, spec.into)]
    return found[0] if found else None


def _joined(answers: Sequence[Resolved]) -> ResolvedModel:
    """Return what the sources of one model answered. Raises SourceError where two have the same path."""
    locked = LockedModel.join([each.locked for each in answers])
    if clash := conflicting_paths(file.path for file in locked.files):
        raise SourceError(
            f"the files {shown(clash[0])!r} and {shown(clash[1])!r} come from two sources",
            subject=locked.name,
            hint="choose another folder with `into`, or leave one out with `exclude`",
        )
    upstream = [
        f"{each.locked.into}/{path}" if each.locked.into else path
        for each in answers
        for path in each.upstream
    ]
    return ResolvedModel(locked, tuple(sorted(upstream)), answers[0].configuration)


def compare_all(specs: Sequence[ModelSpec], lock: Lock, token: Secret | None, jobs: int = 8) -> Compared:
    """Ask the sources, `jobs` at a time, what they have of locked models. Raises no error of theirs."""

    def compare(spec: ModelSpec) -> tuple[list[str], list[str]]:
        asked = [(source_for(each.kind, token), each) for each in spec.sources]
        heads = [source.head(each) for source, each in asked]
        locked = lock.models[spec.name].sources
        found = [source.edits(each) for (source, _), each in zip(asked, locked, strict=True)]
        return heads, [edit for edits in found for edit in edits]

    found, error = _all_and_report(specs, compare, jobs)
    return Compared(
        heads={spec.name: heads for spec, (heads, _) in found},
        edits={spec.name: edits for spec, (_, edits) in found},
        error=error,
    )


def _all_and_report(
    specs: Sequence[ModelSpec], action: Callable[[ModelSpec], _Result], jobs: int
) -> tuple[list[tuple[ModelSpec, _Result]], ModelbakeError | None]:
    """Return what `action` returned and for which model, in the order of `specs`, and what failed as one."""
    outcomes = list(zip(specs, try_all(specs, action, jobs), strict=True))
    results = [(spec, each) for spec, each in outcomes if not isinstance(each, ModelbakeError)]
    errors = [each for _, each in outcomes if isinstance(each, ModelbakeError)]
    if len(errors) < 2:
        return results, errors[0] if errors else None
    classes = {type(error) for error in errors}
    report = "\n".join(dict.fromkeys(str(error) for error in errors))  # a CA bundle fails for all of them
    common = classes.pop() if len(classes) == 1 else SourceError
    return results, common(f"{len(errors)} of {len(specs)} models could not be resolved:\n{report}")
