"""What every source but a hub has in common: objects with versions, listed, addressed, hashed once by `lock`.

    listing --include/exclude--> objects --stream once--> sha256 beside the store's own version of each

A store seldom says a sha256, and what it says could be wrong: `lock` reads each object once, compares what
the store says of it (a checksum, where there is one), and writes down the sha256 with the version. Everything
later demands that version. An object whose version is locked already is not read again.

A kind of store is one module with a `Store`; this one makes a `Source` of it.
"""

from __future__ import annotations

import base64
import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from modelbake.errors import SourceError, SourceUnavailable, WrongBytes
from modelbake.fitness import CONFIGURATION, LARGEST_CONFIGURATION
from modelbake.locked import LockedFile, LockedSource
from modelbake.parallel import parallel
from modelbake.sources import Resolved
from modelbake.sources.facts import require_same, snapshot
from modelbake.sources.patience import Patience
from modelbake.sources.reading import Address, AddressReader
from modelbake.sources.selecting import select_files
from modelbake.weightpath import shown

if TYPE_CHECKING:
    from modelbake.config import SourceSpec
    from modelbake.sources import Audit
    from modelbake.stream.flow import Reader

MOST_FILES = 100_000
_THREADS = 4  # objects of one source read at the same time
_CONTENT = re.compile(r"sha256:[0-9a-f]{64}")  # a version that is of the file's own bytes
_HASHES: Mapping[str, Callable[[], Any]] = {
    "sha256": hashlib.sha256,
    "sha1": lambda: hashlib.sha1(usedforsecurity=False),
    "md5": lambda: hashlib.md5(usedforsecurity=False),
    "crc32c": lambda: _Crc32c(),
}


@dataclass(frozen=True)
class StoredFile:
    """An object as a store lists it, or asked for by name.

    `path`: below the source's address. `version`: what the store calls these very bytes, 1 to 1024 printable
    ASCII characters. `checksum`: what it says of them, `sha256`, `sha1`, `md5` or `crc32c` and lower-case hex
    digits; only one of the whole object; or what asks for it, where that takes a question for each object.
    """

    path: str
    size: int
    version: str
    checksum: tuple[str, str] | Callable[[], tuple[str, str] | None] | None = None

    def said(self) -> tuple[str, str] | None:
        """Return the checksum, asked for if need be."""
        return self.checksum() if callable(self.checksum) else self.checksum


class Store(Protocol):
    """One place of one kind of store, as a source of a model names it.

    `subject`: what every error is about: model, address, server. Every method raises SourceError or a
    subclass of it, and no exception of a library. Methods may be called from several threads.
    """

    subject: str

    def listing(self) -> Iterator[StoredFile]:
        """Yield what there is now, as many pages as there are."""
        ...

    def reader(self, stop: threading.Event) -> Reader:
        """Return what reads files whose `path` is the store's, of the version that they say."""
        ...

    def address(self, file: LockedFile) -> Address | None:
        """Return where a file of this version is for a while, for a builder elsewhere; None where nowhere is.

        It lets whoever has it read these bytes, and do nothing else.
        """
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


class AddressedStore:
    """A `Store` whose files are read at the addresses that it gives out: what most kinds are made of.

    A kind defines `listing`, `address`, and `noun`; `refuse` where a refusal of its server says more.
    """

    noun = "store"

    def __init__(self, subject: str, server: str) -> None:
        self.subject = subject
        self.server = server

    def address(self, file: LockedFile) -> Address:
        """See Store."""
        raise NotImplementedError

    def locate(self, file: LockedFile, patience: Patience, stop: threading.Event) -> Address:
        """Return where a file is; what `AddressReader` asks."""
        return self.address(file)

    def refuse(self, file: LockedFile, status: int, headers: Mapping[str, str]) -> NoReturn:
        """Raise what an answer means."""
        raise SourceUnavailable(
            f"the {self.noun} answers {status} for a file", subject=f"{self.subject}: {shown(file.path)}"
        )

    def reader(self, stop: threading.Event) -> Reader:
        """See Store."""
        return AddressReader(self, stop=stop)

    def close(self) -> None:
        """Let go of connections."""


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
        started, size, kept = time.monotonic(), 0, bytearray()
        digest = hashlib.sha256()
        algorithm, said = file.said() or ("sha256", "")
        second = _HASHES[algorithm]() if said and algorithm != "sha256" else None
        pieces = reader.read(unhashed(file))
        for piece in pieces:
            size += len(piece)
            digest.update(piece)
            if second is not None:
                second.update(piece)
            if wanted:
                kept += piece
        if size != file.size:
            raise self._wrong(store, file, f"{size:,} bytes instead of {file.size:,}")
        found = second.hexdigest() if second is not None else digest.hexdigest()
        if said and found != said:
            raise self._wrong(store, file, f"bytes whose {algorithm} is {found}, and says {said}")
        if self._audit:
            self._audit(
                source=f"{store.subject}",
                file=file.path,
                bytes=size,
                attempts=max(1, pieces.attempts),
                sha256=digest.hexdigest(),
                seconds=time.monotonic() - started,
            )
        fact = LockedFile(file.path, file.size, digest.hexdigest(), file.version)
        return fact, bytes(kept) if wanted else None

    def _wrong(self, store: Store, file: StoredFile, what: str) -> WrongBytes:
        return WrongBytes(
            f"{shown(file.path)}: the store serves {what}",
            subject=store.subject,
            hint="the object was damaged on the way, or by a proxy or mirror: lock again",
        )


class InnerReader:
    """Reads a store's files by the paths that they have in an image. See `StoredFile.path`."""

    def __init__(self, locked: LockedSource, inner: Reader) -> None:
        self._locked = locked
        self._inner = inner

    def read(self, file: LockedFile, start: int = 0) -> Any:
        """Return the bytes of a file from `start` on."""
        return self._inner.read(replace(file, path=self._locked.path_there(file)), start)


class _Crc32c:
    """CRC32C as hashlib would have it, by Google's library, which only Google's store needs."""

    def __init__(self) -> None:
        import google_crc32c

        self._checksum: Any = google_crc32c.Checksum()  # type: ignore[no-untyped-call]

    def update(self, piece: bytes) -> None:
        self._checksum.update(piece)

    def hexdigest(self) -> str:
        digest: bytes = self._checksum.digest()
        return digest.hex()


def hex_of(encoded: str) -> str:
    """Return the hex digits of a checksum in base64, as stores write them; "" for what is none."""
    try:
        return base64.b64decode(encoded, validate=True).hex()
    except ValueError:
        return ""


def unhashed(file: StoredFile) -> LockedFile:
    """Return what a reader asks a store for: a file whose sha256 nobody knows yet."""
    return LockedFile(file.path, file.size, "", file.version)


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
