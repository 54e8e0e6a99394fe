"""What an image manifest says: pure, no network.

A manifest's digest is always computed from its bytes; what somebody else calls it is only compared with that.

Sources: https://github.com/opencontainers/image-spec (manifest.md, image-index.md, descriptor.md) and
https://distribution.github.io/distribution/spec/manifest-v2-2/.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelbake.errors import ReadBackMismatch, RegistryError

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
INDEXES = (DOCKER_INDEX, OCI_INDEX)
MEDIA_TYPES = (DOCKER_MANIFEST, OCI_MANIFEST, DOCKER_INDEX, OCI_INDEX)

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

_MEANT = {key.casefold(): key for key in ("mediaType", "config", "layers", "manifests", "digest", "size")}


@dataclass(frozen=True)
class Descriptor:
    """A manifest's pointer to other content; `size` in bytes, `platform` as `os/architecture` in an index."""

    media_type: str
    digest: str
    size: int
    platform: str | None = None


@dataclass(frozen=True)
class Manifest:
    """A manifest's exact bytes with their media type and digest."""

    media_type: str
    digest: str
    body: bytes

    @classmethod
    def of(cls, media_type: str, body: bytes) -> Manifest:
        """Return the manifest made of these bytes.

        Raises RegistryError where they are no JSON object, or name another media type inside: two readers
        could then take one digest for two different things.
        """
        manifest = cls(media_type, digest_of(body), body)
        if media_type not in MEDIA_TYPES:
            raise manifest._unusable(f"is of an unknown media type {media_type!r}")
        said = manifest.document().get("mediaType", media_type)
        if said != media_type:
            raise manifest._unusable(f"came as {media_type} but calls itself {said!r}")
        return manifest

    @property
    def is_index(self) -> bool:
        """Whether it lists manifests of several platforms."""
        return self.media_type in INDEXES

    @property
    def config(self) -> Descriptor:
        """The image configuration; its digest is the image id of Docker's classic store."""
        return self._descriptor("config", self.document().get("config"))

    @property
    def layers(self) -> tuple[Descriptor, ...]:
        """The layers, bottom first."""
        return self._descriptors("layers")

    @property
    def manifests(self) -> tuple[Descriptor, ...]:
        """The manifests that an index lists."""
        return self._descriptors("manifests")

    def document(self) -> dict[str, Any]:
        """Return the JSON object that it is. Raises RegistryError."""
        try:
            document = json.loads(self.body, object_pairs_hook=_unambiguous)
        except (ValueError, RecursionError):
            raise self._unusable("is not JSON, or JSON that readers take differently") from None
        if not isinstance(document, dict):
            raise self._unusable("is not a JSON object")
        return document

    def _descriptors(self, key: str) -> tuple[Descriptor, ...]:
        items = self.document().get(key)
        if not isinstance(items, list):
            raise self._unusable(f"has no list of {key}")
        return tuple(self._descriptor(f"{key}[{number}]", item) for number, item in enumerate(items))

    def _descriptor(self, where: str, item: Any) -> Descriptor:
        if not isinstance(item, dict):
            raise self._unusable(f"has no {where}")
        digest, size, media_type = item.get("digest"), item.get("size"), item.get("mediaType", "")
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise self._unusable(f"{where} has no sha256 digest")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0 or not isinstance(media_type, str):
            raise self._unusable(f"{where} has no size")
        platform = item.get("platform")
        name = None
        if isinstance(platform, dict):
            name = f"{platform.get('os')}/{platform.get('architecture')}"
        return Descriptor(media_type, digest, size, name)

    def _unusable(self, problem: str) -> RegistryError:
        return RegistryError(f"the manifest {problem}", subject=self.digest)


def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. Raises ValueError where it says something twice: readers would differ."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key of an object is there twice")
    return made


def _unambiguous(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse other spellings as well: engines do not mind case, and would take `Layers` for `layers`."""
    for key, _ in pairs:
        if _MEANT.get(key.casefold(), key) != key:
            raise ValueError(f"{key!r} can be taken for {_MEANT[key.casefold()]!r}")
    return unique(pairs)


def digest_of(body: bytes) -> str:
    """Return `sha256:` and the hex digest of the bytes."""
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def labels_in(configuration: Mapping[str, Any]) -> dict[str, str]:
    """Return the labels in an image's configuration; what is no label there is passed over."""
    settings = configuration.get("config")
    labels = settings.get("Labels") if isinstance(settings, dict) else None
    if not isinstance(labels, dict):
        return {}
    return {name: text for name, text in labels.items() if isinstance(text, str)}


def is_image(manifest: Manifest, image_id: str, store: str) -> bool:
    """Tell whether a manifest is that of a local image.

    The classic store names an image by its configuration's digest, the containerd store by its manifest's.
    """
    if store == "containerd":
        return manifest.digest == image_id
    return not manifest.is_index and manifest.config.digest == image_id


def choose_manifest(index: Manifest, platform: str) -> Descriptor:
    """Return an index's entry for a platform (`linux/amd64`). Raises ReadBackMismatch where there is none."""
    for entry in index.manifests:
        if entry.platform == platform:
            return entry
    raise ReadBackMismatch(f"the index has no manifest for {platform}", subject=index.digest)
