"""Single objects of S3 as stores: one file, or the members of one archive, as model registries name them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

from modelbake.errors import RevisionNotFound, SourceError, SourceNotFound, WrongBytes
from modelbake.locked import LockedFile
from modelbake.sources.archives import Archive, Member, MemberBytes
from modelbake.sources.s3 import S3Store
from modelbake.sources.store import StoredFile
from modelbake.weightpath import shown

if TYPE_CHECKING:
    from modelbake.stream.flow import FileBytes, Reader

_PACKED = "!gzip"  # at the end of a member's version


class OneObject(S3Store):
    """One object of a prefix. `registered`: as with PackedStore."""

    def __init__(self, subject: str, bucket: str, folder: str, name: str, registered: str) -> None:
        super().__init__(subject, bucket, folder)
        self._name, self._registered = name, registered

    def listing(self) -> Iterator[StoredFile]:
        """Yield the object."""
        yield _found(self, self._name, self._registered)


class PackedStore:
    """The members of one archive in S3. `registered`: its ETag when the package was made, if known."""

    def __init__(self, store: S3Store, name: str, registered: str = "") -> None:
        self.subject = store.subject
        self._store, self._name, self._registered = store, name, registered

    def listing(self) -> Iterator[StoredFile]:
        """Yield the members; the whole archive is read for it, and compared with what S3 says of it."""
        outer = _found(self._store, self._name, self._registered)
        reader = self._store.reader(threading.Event())
        archive = Archive(lambda: _Compared(reader, outer, self.subject), "gzip", self.subject)
        for member in archive.members(self._refuse):
            yield StoredFile(member.path, member.size, f"{outer.version}{_PACKED}")

    def reader(self, stop: threading.Event) -> PackedReader:
        """See Store."""
        return PackedReader(self._store, self._name, stop)

    def address(self, file: LockedFile) -> None:
        """Return None: a member lies within compressed bytes."""

    def close(self) -> None:
        """Let go of connections."""
        self._store.close()

    def _refuse(self, name: str) -> NoReturn:
        raise SourceError(
            f"the archive holds {shown(name)!r}, which is no regular file",
            subject=self.subject,
            hint="pack it anew, with files in the place of links (`tar --dereference --hard-dereference`)",
        )


class PackedReader:
    """Reads members of an archive, each of the version of the archive that it says."""

    def __init__(self, store: S3Store, name: str, stop: threading.Event) -> None:
        self._store, self._name = store, name
        self._reader = store.reader(stop)
        self._archives: dict[str, Archive] = {}
        self._opening = threading.Lock()

    def read(self, file: LockedFile, start: int = 0) -> MemberBytes:
        """Return the bytes of a member from `start` on."""
        version = file.version.removesuffix(_PACKED)
        with self._opening:
            if version not in self._archives:
                outer = _locked(self._store.find(self._name, version)[0])
                self._archives[version] = Archive(
                    lambda: self._reader.read(outer), "gzip", self._store.subject
                )
        return self._archives[version].read(Member(file.path, file.size), start)


class _Compared:
    """The bytes of an object, with an error at their end if they are not those that S3 has a checksum of."""

    def __init__(self, reader: Reader, file: StoredFile, subject: str) -> None:
        self._bytes: FileBytes = reader.read(_locked(file))
        self._checksum = file.checksum() if callable(file.checksum) else file.checksum
        self._subject = subject

    @property
    def attempts(self) -> int:
        """Requests so far."""
        return self._bytes.attempts

    def __iter__(self) -> Iterator[bytes]:
        algorithm, said = self._checksum or ("sha256", "")
        digest = hashlib.new(algorithm, usedforsecurity=False)
        for piece in self._bytes:
            digest.update(piece)
            yield piece
        if said and digest.hexdigest() != said:
            raise WrongBytes(
                f"the archive's {algorithm} is {digest.hexdigest()}, and S3 says {said}",
                subject=self._subject,
                hint="it was damaged on the way, or by a proxy or mirror: lock again",
            )


def _found(store: S3Store, name: str, registered: str) -> StoredFile:
    """Return the object of a package as it is now: the one that was registered, and so approved."""
    try:
        file, etag = store.find(name)
    except RevisionNotFound as error:
        raise SourceNotFound(
            "the package's weights are not there", subject=store.subject, hint="were they deleted?"
        ) from error
    if registered and etag.strip('"') != registered:
        raise WrongBytes(
            "the package's weights were replaced after it was registered: nobody approved these",
            subject=store.subject,
            hint="register a new version of the package",
        )
    return file


def _locked(file: StoredFile) -> LockedFile:
    return LockedFile(file.path, file.size, "", file.version)
