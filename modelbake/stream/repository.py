"""Where blobs and manifests are kept: a repository of a registry, or an OCI layout in a folder.

`RegistryRepository` is here, `LayoutRepository` in `layout`. Manifests are bytes with a digest, blobs as
well; nothing is ever written under a name before it is complete.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from modelbake.errors import (
    Interrupted,
    ReadBackMismatch,
    RegistryAuthError,
    RegistryError,
    RegistryUnavailable,
)
from modelbake.manifest import Descriptor, Manifest, digest_of
from modelbake.registryupload import open_upload, transfer_blob, upload_flow

if TYPE_CHECKING:
    from modelbake.registry import Registry
    from modelbake.stream.flow import LayerFlow

LARGEST_DOCUMENT = 16 << 20  # bytes of a configuration
_SMALL = 4 << 20  # bytes; what one reply may hold


class Repository(Protocol):
    """A place for one image's blobs and manifests."""

    @property
    def name(self) -> str:
        """What errors and references call it."""

    def manifest(self, reference: str) -> Manifest | None:
        """Return the manifest under a tag or digest, None where there is none."""

    def put_manifest(self, tag: str, manifest: Manifest) -> None:
        """Store a manifest under a tag, and make sure that it is what is stored."""

    def has(self, blob: Descriptor) -> bool:
        """Tell whether the blob is here, with that size."""

    def read(self, blob: Descriptor) -> Iterator[bytes]:
        """Yield a blob's bytes, and raise ReadBackMismatch at the end where they are not of its digest."""

    def read_part(self, blob: Descriptor, start: int, size: int) -> bytes | None:
        """Return some bytes of a blob, None where they cannot be had."""

    def put(self, content: bytes, media_type: str) -> Descriptor:
        """Store a small blob, if it is not here yet."""

    def upload(self, flow: LayerFlow) -> None:
        """Store what flows; then `flow.digest` names a blob here. After an error nothing was stored."""

    def bring(self, blob: Descriptor, source: Repository) -> int:
        """Make a blob of another repository one of this, and return how many of its bytes were sent."""


def read_document(repository: Repository, blob: Descriptor) -> bytes:
    """Return a small blob's bytes, an image configuration's for example."""
    if blob.size > LARGEST_DOCUMENT:
        raise RegistryError(f"a configuration of {blob.size:,} bytes is not read", subject=repository.name)
    return b"".join(repository.read(blob))


def checked(blob: Descriptor, pieces: Iterator[bytes], subject: str) -> Iterator[bytes]:
    """Yield the pieces of a blob; raise ReadBackMismatch where they are too many or have another digest."""
    sha256, size = hashlib.sha256(), 0
    for piece in pieces:
        sha256.update(piece)
        size += len(piece)
        if size > blob.size:
            break
        yield piece
    if size != blob.size or f"sha256:{sha256.hexdigest()}" != blob.digest:
        raise ReadBackMismatch(
            f"the blob {blob.digest} has other bytes than its digest says", subject=subject
        )


class RegistryRepository:
    """One repository of a registry; `path` is without the registry's host.

    `stop`: set to end copying a blob to it, with Interrupted.
    """

    def __init__(self, registry: Registry, path: str, stop: threading.Event | None = None) -> None:
        self.registry = registry
        self.path = path
        self._stop = stop or threading.Event()
        self._here: set[str] = set()  # digests of blobs that the registry has said it has, with their size

    @property
    def name(self) -> str:
        """`host/path`."""
        return f"{self.registry.host}/{self.path}"

    def manifest(self, reference: str) -> Manifest | None:
        """See Repository."""
        return self.registry.manifest(self.path, reference)

    def put_manifest(self, tag: str, manifest: Manifest) -> None:
        """See Repository."""
        self.registry.put_manifest(self.path, tag, manifest)
        if self.registry.manifest(self.path, tag) != manifest:
            raise ReadBackMismatch(
                f"the registry took {manifest.digest} under this tag, and gives something else back",
                subject=f"{self.name}:{tag}",
            )

    def has(self, blob: Descriptor) -> bool:
        """See Repository. What is once here stays for the length of a run."""
        if blob.digest not in self._here and self.registry.blob_size(self.path, blob.digest) == blob.size:
            self._here.add(blob.digest)
        return blob.digest in self._here

    def read(self, blob: Descriptor) -> Iterator[bytes]:
        """See Repository. What is small is asked for again where the registry fails."""
        small = blob.size <= _SMALL
        read = self.registry.small_blob if small else self.registry.read_blob
        return checked(blob, read(self.path, blob.digest), self.name)

    def read_part(self, blob: Descriptor, start: int, size: int) -> bytes | None:
        """See Repository."""
        return self.registry.blob_part(self.path, blob.digest, start, size)

    def put(self, content: bytes, media_type: str) -> Descriptor:
        """See Repository."""
        blob = Descriptor(media_type, digest_of(content), len(content))
        if not self.has(blob):
            transfer_blob(self.registry, self.path, blob, lambda: iter((content,)))
        return blob

    def upload(self, flow: LayerFlow) -> None:
        """See Repository."""
        upload_flow(self.registry, self.path, flow)

    def bring(self, blob: Descriptor, source: Repository) -> int:
        """See Repository. Within one registry the blob is mounted: no byte of it moves."""
        if self.has(blob):
            return 0
        if isinstance(source, RegistryRepository) and source.registry.host == self.registry.host:
            try:
                upload = open_upload(self.registry, self.path, mount=blob.digest, source=source.path)
            except (RegistryAuthError, RegistryUnavailable):
                raise
            except RegistryError:
                pass  # it does not know mounts, and says so: a copy, then
            else:
                if upload is None:
                    return 0
                upload.cancel()  # the registry mounts nothing, and has begun an upload instead
        transfer_blob(self.registry, self.path, blob, lambda: self._while_wanted(source.read(blob)))
        return blob.size

    def _while_wanted(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            if self._stop.is_set():
                raise Interrupted("stopped", subject=self.name)
            yield piece
