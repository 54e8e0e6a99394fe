"""Where `adopt` puts files: a store or a hub, as a place that is written to once and never overwritten."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Protocol

from modelbake.errors import UsageError
from modelbake.sources.hashing import read_object
from modelbake.sources.selecting import is_selected

if TYPE_CHECKING:
    from modelbake.config import SourceSpec
    from modelbake.credentials import Secret
    from modelbake.sources.store import StoredFile

# The kinds that a file can be put into, by how they are written; the others are read only.
WRITABLE = ("hf://", "s3://", "gs://", "az://", "file:///")


@dataclass(frozen=True)
class There:
    """A file that a target has already. `sha256`: returns that of its content, which may take a while."""

    size: int
    sha256: Callable[[], str]


class Target(Protocol):
    """A place for one model's files. Every method raises SourceError or a subclass, DiskFull, UsageError.

    `passes`: how often it reads what it uploads.
    """

    subject: str
    passes: int

    def there(self) -> Mapping[str, There]:
        """Return what it has, by path, of what the model would take from it. Changes nothing."""
        ...

    def upload(self, path: str, content: IO[bytes], size: int, sha256: str) -> None:
        """Put a file there that is not there yet."""
        ...

    def finish(self) -> None:
        """Have all that was uploaded appear, where that is a step of its own."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


def open_target(spec: SourceSpec, token: Secret | None, *, create: bool) -> Target:
    """Return the target at a source's address. `create`: make a private repository where there is none.

    Raises UsageError for kinds that cannot be written, SourceError where it cannot be opened.
    """
    if spec.kind == "hf":
        from modelbake.sources.hub_write import HubTarget

        return HubTarget(spec, token, create=create)
    if create:
        raise UsageError("--create is for hf://: a bucket or container is made by whoever looks after it")
    from modelbake.sources import kinds

    store = kinds.open_target(spec)
    if not hasattr(store, "upload"):
        store.close()
        raise _unwritable(spec.source)
    return StoreTarget(store, spec)


def require_writable(address: str) -> None:
    """Raise UsageError for an address of a kind that cannot be written."""
    if not address.startswith(WRITABLE):
        raise _unwritable(address)


def _unwritable(address: str) -> UsageError:
    return UsageError(
        f"{address.partition(':')[0]}: sources are only read from here",
        subject="--to",
        hint=f"name one that can be written: {', '.join(WRITABLE)}",
    )


class StoreTarget:
    """A store that has a method `upload(path, content, size)`.

    That reads `content` to its end, may seek in it, and refuses with SourceError to put it in the place of
    another object, as far as its service lets it.
    """

    passes = 1

    def __init__(self, store: Any, spec: SourceSpec) -> None:
        self.subject: str = store.subject
        self._store = store
        self._spec = spec

    def there(self) -> Mapping[str, There]:
        """See Target. What a store says of a sha256 is enough here: everything is read back later."""
        return {
            file.path: There(file.size, lambda file=file: self._sha256(file))  # type: ignore[misc]
            for file in self._store.listing()
            if is_selected(file.path, self._spec)
        }

    def upload(self, path: str, content: IO[bytes], size: int, sha256: str) -> None:
        """See Target."""
        self._store.upload(path, content, size)

    def finish(self) -> None:
        """Do nothing: what was uploaded is there."""

    def close(self) -> None:
        """See Target."""
        self._store.close()

    def _sha256(self, file: StoredFile) -> str:
        algorithm, said = file.said() or ("", "")
        if algorithm == "sha256":
            return said
        stop = threading.Event()
        try:
            return read_object(self._store.reader(stop), file, self.subject).sha256
        finally:
            stop.set()
