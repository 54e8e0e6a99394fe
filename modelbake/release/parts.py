"""Whether a registry has all that an image is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelbake.parallel import parallel

if TYPE_CHECKING:
    from modelbake.manifest import Manifest
    from modelbake.stream.repository import RegistryRepository

_AT_ONCE = 8  # manifests or blobs that are asked for at the same time


def missing_parts(repository: RegistryRepository, manifest: Manifest) -> list[str]:
    """Return the digests of the manifests, configurations and layers that a repository lacks of an image.

    Raises RegistryError.
    """
    if manifest.is_index:
        listed = [each.digest for each in manifest.manifests]
        found = dict(zip(listed, parallel(listed, repository.manifest, _AT_ONCE), strict=True))
        missing = [digest for digest, each in found.items() if each is None]
        for each in found.values():
            missing += [] if each is None else missing_parts(repository, each)
        return list(dict.fromkeys(missing))
    blobs = list(dict.fromkeys((manifest.config, *manifest.layers)))
    there = parallel(blobs, repository.has, _AT_ONCE)
    return [blob.digest for blob, has in zip(blobs, there, strict=True) if not has]
