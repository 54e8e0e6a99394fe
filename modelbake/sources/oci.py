"""The source `oci://registry/repository:tag` (or `@sha256:...`): an artifact or image of weights.

Spoken to as every registry is here: Docker's credentials, pull only. A file's version names its blob by
digest, and the place in it:

    sha256:HEX              the blob is the file
    sha256:HEX!tar+N        in an uncompressed tar, N bytes into it
    sha256:HEX!gzip         in a compressed tar (!zstd), found by its name
    sha256:HEX/models!gzip  the same of an image's file system, below /models

A tag that moved shows in `lock --check`; the locked blobs stay readable for as long as the registry has them.
A builder gets a blob's address with a pull token of minutes, or the password where a registry has no tokens.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from modelbake.dockerconfig import Reference, RegistryAuth, split_reference
from modelbake.errors import (
    ReadBackMismatch,
    RevisionNotFound,
    SourceError,
    SourceNotFound,
)
from modelbake.manifest import Descriptor, Manifest
from modelbake.plan import LABEL_PREFIX
from modelbake.registry import Registry
from modelbake.sources.kinds import subject_of
from modelbake.sources.ociblobs import OciReader, plain_members
from modelbake.sources.ocicontent import FileTree, Place, contents_of, place_of
from modelbake.sources.ocierrors import translated
from modelbake.sources.opener import Address
from modelbake.sources.store import AddressedStore, StoredFile
from modelbake.weightpath import shown

if TYPE_CHECKING:
    from modelbake.config import SourceSpec
    from modelbake.locked import LockedFile, LockedSource

PLATFORM = "linux/amd64"
_LARGEST_CONFIG = 8 << 20  # bytes


def open_store(spec: SourceSpec | LockedSource) -> OciStore:
    """Return the artifact that a source names. Raises SourceError, UsageError for a wrong environment."""
    reference, subject = split_reference(spec.source.removeprefix("oci://")), subject_of(spec)
    with translated(subject, reference):
        credentials = RegistryAuth().for_registry(reference.registry)
        return OciStore(Registry(reference.registry, credentials), reference, subject, spec.name)


class OciStore(AddressedStore):
    """An artifact or image of a registry."""

    noun = "registry"

    def __init__(self, registry: Registry, reference: Reference, subject: str, model: str) -> None:
        self.registry = registry
        self._reference = reference
        self._model = model
        self._readers: list[OciReader] = []
        super().__init__(subject, registry.address("/v2/", scope="")[0])

    @property
    def repository(self) -> str:
        """Its name at the registry."""
        return self._reference.repository

    def close(self) -> None:
        """See Store."""
        for reader in self._readers:
            reader.close()
        self.registry.close()

    def listing(self) -> Iterator[StoredFile]:
        """Yield the files of the artifact, once all of its layers are known."""
        with translated(self.subject, self._reference):
            manifest = self._manifest()
            tree = FileTree(self.subject)
            reader = self.reader(threading.Event())
            for content in contents_of(manifest, self.subject):
                if content.path:
                    tree.add(content)
                    continue
                links: list[str] = []
                if content.compression == "tar":
                    found = plain_members(self.registry, self.repository, content, links)
                else:
                    found = reader.packed(content, links)
                tree.apply(content, found, lambda links=links: links)  # type: ignore[misc]
            said = self._said_sha256(manifest)
        for file in tree.files():
            sha256 = said.get((file.path, file.version.partition("!")[0].partition("/")[0]))
            yield (
                file if sha256 is None else StoredFile(file.path, file.size, file.version, ("sha256", sha256))
            )

    def address(self, file: LockedFile) -> Address:
        """Return where the blob is that a file lies in; asking for it gives a token, if there are any."""
        place = self.place(file)
        size = self.size_of(place.digest, file.path)
        path = f"/v2/{self.repository}/blobs/{place.digest}"
        url, headers = self.registry.address(path, scope=f"repository:{self.repository}:pull")
        return Address(url, headers, start=place.start or 0, whole=None if place.start is None else size)

    def size_of(self, digest: str, path: str) -> int:
        """Return the bytes of a blob, which has a file in it. Raises RevisionNotFound where it is gone."""
        with translated(self.subject, self._reference):
            size = self.registry.blob_size(self.repository, digest)
        if size is None:
            raise RevisionNotFound(
                f"the registry no longer has {digest}, in which {shown(path)} is",
                subject=self.subject,
                hint=f"was it deleted, or collected as garbage? `build.py lock {self._model}` takes what is"
                " there now",
            )
        return size

    def reader(self, stop: threading.Event) -> OciReader:
        """See Store."""
        made = OciReader(self, stop)
        self._readers.append(made)
        return made

    def place(self, file: LockedFile) -> Place:
        """Return where a file's bytes are. Raises SourceError for a version that is none of ours."""
        place = place_of(file.version)
        if place is None:
            raise SourceError(
                f"{file.version} is no place in a registry",
                subject=self.subject,
                hint=f"models.lock was edited: run `build.py lock {self._model}`",
            )
        return place

    def _manifest(self) -> Manifest:
        wanted = self._reference.digest or self._reference.tag or "latest"
        found = self.registry.manifest(self.repository, wanted)
        if found is not None and found.is_index:
            found = self.registry.manifest(self.repository, self._chosen(found).digest)
        if found is None:
            raise SourceNotFound(
                "the registry has no such repository, tag or digest",
                subject=self.subject,
                hint="private ones are hidden from whom may not pull them: `docker login"
                f" {self._reference.registry}`",
            )
        return found

    def _chosen(self, index: Manifest) -> Descriptor:
        """Return the manifest of an index that is for this platform, or for none in particular."""
        entries = [each for each in index.manifests if each.platform != "unknown/unknown"]  # attestations
        for entry in entries:
            if entry.platform == PLATFORM or (entry.platform is None and len(entries) == 1):
                return entry
        there = ", ".join(sorted({str(each.platform) for each in entries}))
        raise SourceError(
            f"is an index without a manifest for {PLATFORM}; there are: {there or 'none'}",
            subject=self.subject,
            hint="name the manifest that has the weights by its digest: oci://registry/repository@sha256:...",
        )

    def _said_sha256(self, manifest: Manifest) -> dict[tuple[str, str], str]:
        """Return what an image of weights of ours says of its files: sha256 by path and layer."""
        config = manifest.config
        if not config.media_type.endswith("image.config.v1+json") or config.size > _LARGEST_CONFIG:
            return {}
        body = b"".join(self.registry.small_blob(self.repository, config.digest))
        if f"sha256:{hashlib.sha256(body).hexdigest()}" != config.digest:
            raise ReadBackMismatch("the configuration has other bytes than its digest says")
        try:
            files = json.loads(body)[LABEL_PREFIX + "weights"]["files"]
            return {(each["path"], each["layer"]): each["sha256"] for each in files}
        except (ValueError, KeyError, TypeError, RecursionError):
            return {}
