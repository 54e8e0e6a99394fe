"""Sources: where weights come from. One module a kind, the `Source` protocol between them and the rest.

Only `lock` asks a source anything; what it answers is written down, and nothing later asks again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Resolved:
    """What a source answered.

    Attributes:
        locked: the facts to write down.
        upstream: every path that the source has at this commit, selected or not.
        configuration: the content of config.json, if that was selected and had to be fetched.
    """

    locked: LockedModel
    upstream: tuple[str, ...]
    configuration: bytes | None


class Source(Protocol):
    """Turns what models.yaml asks for into facts."""

    def resolve(self, spec: ModelSpec, previous: LockedModel | None) -> Resolved:
        """Return the commit and the path, size and sha256 of every selected file.

        `previous` is what the lock says; at the same commit the facts have to be the same.
        Raises SourceError or one of its subclasses.
        """
        ...

    def head(self, spec: ModelSpec) -> str:
        """Return the commit that the revision points to now. Raises SourceError."""
        ...

    def edits(self, locked: LockedModel) -> list[str]:
        """Return how the locked files differ from the source's at the locked commit, one text a file.

        Nothing is fetched: what the source lists is compared. Raises SourceError.
        """
        ...

    def reach(self, spec: ModelSpec) -> None:
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
class Compared:
    """What the sources say of locked models, by name, as far as they could be asked.

    Attributes:
        heads: the commit that the model's revision points to now.
        edits: how the locked files differ from the source's at the locked commit; see `Source.edits`.
        error: why some models are not among these, if so; as `resolve_all` raises it.
    """

    heads: Mapping[str, str]
    edits: Mapping[str, list[str]]
    error: ModelbakeError | None


def source_for(uri: str, token: Secret | None, audit: Audit | None = None) -> Source:
    """Return the source that serves a URI. Raises UsageError where none does."""
    if uri.startswith("hf://"):
        # Imported here: huggingface_hub costs more than everything else together, and few verbs need it.
        from modelbake.sources.hub import HubSource

        return HubSource(token, audit=audit)
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
    audit: Audit | None = None,
) -> list[Resolved]:
    """Resolve models, `jobs` at a time, in the order of `specs`; call `done` as each one is finished.

    `audit` is told of every file that had to be fetched. All models are tried, whatever becomes of others.
    Raises the error of the model that failed, or one error that reports all which failed: of their common
    class, else SourceError.
    """

    def resolve(spec: ModelSpec) -> Resolved:
        resolved = source_for(spec.source, token, audit).resolve(spec, lock.models.get(spec.name))
        if done:
            done(resolved.locked)
        return resolved

    answers, error = _all_and_report(specs, resolve, jobs)
    if error:
        raise error
    return [resolved for _, resolved in answers]


def compare_all(specs: Sequence[ModelSpec], lock: Lock, token: Secret | None, jobs: int = 8) -> Compared:
    """Ask the sources, `jobs` at a time, what they have of locked models. Raises no error of theirs."""

    def compare(spec: ModelSpec) -> tuple[str, list[str]]:
        source = source_for(spec.source, token)
        return source.head(spec), source.edits(lock.models[spec.name])

    found, error = _all_and_report(specs, compare, jobs)
    return Compared(
        heads={spec.name: head for spec, (head, _) in found},
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
