"""Files in the blobs of a registry: as they are, in the middle of a plain tar, packed in a compressed one."""

from __future__ import annotations

import hashlib
import io
import posixpath
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from modelbake.errors import RegistryError, WrongBytes
from modelbake.imagetar import as_file
from modelbake.layertar import LayerTar, Member, members_of, opened
from modelbake.locked import LockedFile
from modelbake.registry import Registry
from modelbake.sources.archives import Archive
from modelbake.sources.archives import Member as Packed
from modelbake.sources.ocicontent import ROOT, Content
from modelbake.sources.reading import AddressReader

if TYPE_CHECKING:
    from modelbake.sources.oci import OciStore
    from modelbake.stream.flow import FileBytes

_BLOCK = 64 << 10  # bytes that are asked for at once where only headers of a tar are wanted


def plain_members(
    registry: Registry, repository: str, content: Content, links: list[str]
) -> Iterator[tuple[str, int, int]]:
    """Yield name, size and offset of each file of an uncompressed tar; `links` gets what is no file.

    Headers alone are read, where the registry gives parts of blobs.
    """
    first = registry.blob_part(repository, content.digest, 0, min(_BLOCK, content.size))
    if first is None:
        archive = opened(as_file(registry.read_blob(repository, content.digest)))
    else:
        file = io.BufferedReader(_Blob(registry, repository, content), _BLOCK)
        archive = LayerTar.open(fileobj=file, mode="r:", tarinfo=Member)
    with archive:
        for member in members_of(archive):
            name = posixpath.normpath(f"/{member.name}").lstrip("/")  # as engines read it
            if member.isreg():
                yield name, member.size, member.offset_data
            elif not member.isdir():
                links.append(name)


class OciReader:
    """Reads files of one repository."""

    def __init__(self, store: OciStore, stop: threading.Event) -> None:
        self._store = store
        self._blobs = AddressReader(store, stop=stop)
        self._archives: dict[str, Archive] = {}
        self._opening = threading.Lock()

    def read(self, file: LockedFile, start: int = 0) -> FileBytes:
        """Return the bytes of a file from `start` on."""
        place = self._store.place(file)
        if not place.compression:
            return self._blobs.read(file, start)
        name = f"{ROOT}/{file.path}" if place.rooted else file.path
        with self._opening:
            archive = self._archives.get(place.digest)
            if archive is None:
                size = self._store.size_of(place.digest, file.path)
                blob = LockedFile(place.digest, size, "", place.digest)
                archive = self._archives[place.digest] = self._archive(blob, place.compression)
        return archive.read(Packed(name, file.size), start)

    def close(self) -> None:
        """End what still reads."""
        for archive in self._archives.values():
            archive.close()

    def packed(self, content: Content, links: list[str]) -> Iterator[tuple[str, int, int]]:
        """Yield name, size and 0 for each file of a compressed tar, all of which is read and compared.

        `links` gets what is no file.
        """
        blob = LockedFile(content.digest, content.size, "", content.digest)
        for member in self._archive(blob, content.compression).members(links.append):
            yield member.path, member.size, 0

    def _archive(self, blob: LockedFile, compression: str) -> Archive:
        return Archive(
            lambda: _Whole(self._blobs, blob, self._store.subject), compression, self._store.subject
        )


class _Whole:
    """A blob from its beginning to its end, which has to be what its digest says."""

    def __init__(self, blobs: AddressReader, blob: LockedFile, subject: str) -> None:
        self._bytes = blobs.read(blob)
        self._blob = blob
        self._subject = subject

    @property
    def attempts(self) -> int:
        return self._bytes.attempts

    def __iter__(self) -> Iterator[bytes]:
        digest = hashlib.sha256()
        for piece in self._bytes:
            digest.update(piece)
            yield piece
        if f"sha256:{digest.hexdigest()}" != self._blob.version:
            raise WrongBytes(f"the registry serves other bytes for {self._blob.path}", subject=self._subject)


class _Blob(io.RawIOBase):
    """A blob as a file of which parts are read."""

    def __init__(self, registry: Registry, repository: str, content: Content) -> None:
        self._registry, self._repository, self._content = registry, repository, content
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._content.size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), self._content.size - self._position)
        if size <= 0:
            return 0
        part = self._registry.blob_part(self._repository, self._content.digest, self._position, size)
        if part is None:
            raise RegistryError("stopped giving parts of a blob", subject=self._registry.host)
        buffer[:size] = part
        self._position += size
        return size
