"""The `Source` of a store: objects listed, selected, hashed once by `lock`.

    listing --include/exclude--> objects --stream once--> sha256 beside the store's own version of each

A store seldom says a sha256, and what it says could be wrong: `lock` reads each object once (`hashing`), and
writes down the sha256 with the version. Everything later demands that version. An object whose version is
locked already is not read again.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from modelbake.errors import SourceError
from modelbake.fitness import CONFIGURATION, LARGEST_CONFIGURATION
from modelbake.locked import LockedFile, LockedSource
from modelbake.parallel import parallel
from modelbake.sources import Resolved
from modelbake.sources.facts import require_same, snapshot
from modelbake.sources.hashing import read_object
from modelbake.sources.selecting import MOST_FILES, select_files
from modelbake.sources.store import StoredFile, unhashed
from modelbake.weightpath import shown

if TYPE_CHECKING:
    from modelbake.config import SourceSpec
    from modelbake.sources import Audit
    from modelbake.sources.store import Store
    from modelbake.stream.flow import Reader

_THREADS = 4  # objects of one source read at the same time
_CONTENT = re.compile(r"sha256:[0-9a-f]{64}")  # a version that is of the file's own bytes


class StoreSource:
    """The `Source` of a store. `open_store`: makes the store that a source of models.yaml or a lock names."""

    def __init__(
        self, open_store: Callable[[SourceSpec | LockedSource], Store], audit: Audit | None = None
    ) -> None:
        self._open = open_store
        self._audit = audit

    def resolve(self, spec: SourceSpec, previous: LockedSource | None) -> Resolved:
        """Return the facts of every selected object, as the store has it now.

        Raises:
            SourceError: or a subclass of it.
            WrongBytes: the bytes are not those that the store says it has, or that were locked of a version.
        """
        known = _known(spec, previous)
        stop = threading.Event()
        with self._opened(spec) as store:
            listed = _all_of(store)
            chosen = select_files(listed, spec, store.subject)
            commit = snapshot((file.path, file.size, file.version) for file in chosen)
            reader = store.reader(stop)
            try:
                facts = parallel(chosen, lambda file: self._fact(store, reader, file, known), _THREADS)
            finally:
                stop.set()
            locked = LockedSource.at(spec, commit, [fact for fact, _ in facts])
            require_same(previous, locked, store.subject, "the store")
        configuration = next((content for _, content in facts if content is not None), None)
        return Resolved(locked, tuple(sorted(file.path for file in listed)), configuration)

    def head(self, spec: SourceSpec) -> str:
        """Return the digest of what the store has now of the selected objects."""
        with self._opened(spec) as store:
            chosen = select_files(_all_of(store), spec, store.subject)
        return snapshot((file.path, file.size, file.version) for file in chosen)

    def edits(self, locked: LockedSource) -> list[str]:
        """Return where the lock disagrees with itself: versions that do not make the commit it names."""
        there = [(locked.path_there(file), file.size, file.version) for file in locked.files]
        if snapshot(there) != locked.commit:
            return [f"the files of {locked.source} are not those that its commit names"]
        named = {file.path: file.version.removeprefix("sha256:") for file in locked.files}
        return [
            f"{shown(file.path)} has the sha256 {file.sha256} here, and its version says {named[file.path]}"
            for file in locked.files
            if _CONTENT.fullmatch(file.version) and named[file.path] != file.sha256
        ]

    def reach(self, spec: SourceSpec) -> None:
        """Ask for the first byte of one of the objects: listing is allowed to more people than reading."""
        stop = threading.Event()
        with self._opened(spec) as store:
            chosen = select_files(_all_of(store), spec, store.subject)
            smallest = min(chosen, key=lambda file: (not file.size, file.size))
            try:
                next(iter(store.reader(stop).read(unhashed(smallest))), b"")
            finally:
                stop.set()

    def _opened(self, spec: SourceSpec | LockedSource) -> AbstractContextManager[Store]:
        return closing(self._open(spec))

    def _fact(
        self, store: Store, reader: Reader, file: StoredFile, known: Mapping[tuple[str, int, str], str]
    ) -> tuple[LockedFile, bytes | None]:
        """Return what is locked of an object; its content too if it is config.json."""
        wanted = file.path == CONFIGURATION and file.size <= LARGEST_CONFIGURATION
        sha256 = known.get((file.path, file.size, file.version))
        given = file.checksum if isinstance(file.checksum, tuple) else ("", "")
        believed = given[0] != "sha256" or given[1] == sha256  # models.yaml may give another one than before
        if sha256 is not None and believed and not wanted:
            return LockedFile(file.path, file.size, sha256, file.version), None
        found = read_object(reader, file, store.subject, keep=wanted)
        if self._audit:
            self._audit(
                source=store.subject,
                file=file.path,
                bytes=file.size,
                attempts=found.attempts,
                sha256=found.sha256,
                seconds=found.seconds,
            )
        return LockedFile(file.path, file.size, found.sha256, file.version), found.content


class InnerReader:
    """Reads a store's files by the paths that they have in an image. See `StoredFile.path`."""

    def __init__(self, locked: LockedSource, inner: Reader) -> None:
        self._locked = locked
        self._inner = inner

    def read(self, file: LockedFile, start: int = 0) -> Any:
        """Return the bytes of a file from `start` on."""
        return self._inner.read(replace(file, path=self._locked.path_there(file)), start)


def _known(spec: SourceSpec, previous: LockedSource | None) -> dict[tuple[str, int, str], str]:
    """Return the sha256 of every object that is locked of this very place, by path, size and version."""
    if previous is None or (previous.source, previous.server) != (spec.source, spec.server):
        return {}
    return {(previous.path_there(file), file.size, file.version): file.sha256 for file in previous.files}


def _all_of(store: Store) -> list[StoredFile]:
    files: list[StoredFile] = []
    for file in store.listing():
        files.append(file)
        if len(files) > MOST_FILES:
            raise SourceError(
                f"holds more than {MOST_FILES:,} files",
                subject=store.subject,
                hint="name a folder of one model: a longer prefix in `source`",
            )
    return files
