"""What the registry remembers of weights: which layer holds which group of files. Pure.

Two kinds of images, both data only, in the one repository REGISTRY/weights that all models share:

    group-HEX     one layer: the group of files whose paths, sizes and sha256 give HEX. It is put as soon as
                  its layer is committed, so a run that was killed, another version or another model finds it.
    weights-HEX   all layers of one lock; what Kubernetes mounts as an image volume.

`zstd-` before HEX: the layers are compressed; `arm64-`: the image is for such hosts. This is what has to be
remembered, for a layer's digest cannot be computed from the lock: it takes all of its bytes. So do the
samples of its large files; they stand beside the digest, and no byte of the layer depends on them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelbake.manifest import OCI_MANIFEST, Descriptor, Manifest
from modelbake.plan import LABEL_PREFIX, WeightGroup
from modelbake.sample import sampled
from modelbake.stream.flow import TAR, TAR_ZSTD
from modelbake.stream.layers import WeightLayer

if TYPE_CHECKING:
    from modelbake.locked import LockedModel

OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
GROUP = LABEL_PREFIX + "group"  # annotation of a layer: what is in it
DIFF_ID = LABEL_PREFIX + "diff-id"  # annotation of a layer: the digest of its uncompressed tar
SAMPLES = LABEL_PREFIX + "samples"  # annotation of a layer: of its large files, in their order
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_SAMPLE = re.compile(r"[0-9a-f]{64}")
EPOCH = "1970-01-01T00:00:00Z"


@dataclass(frozen=True)
class StoredLayer:
    """A weight layer that a repository holds: `blob` is what it stores, `diff_id` the uncompressed tar.

    `samples`: one for each large file of the group, in its order.
    """

    group: WeightGroup
    blob: Descriptor
    diff_id: str
    samples: tuple[str, ...] = ()

    @property
    def descriptor(self) -> dict[str, Any]:
        """The entry of a manifest's list of layers."""
        notes = {GROUP: self.group.digest, DIFF_ID: self.diff_id}
        if self.samples:
            notes[SAMPLES] = " ".join(self.samples)
        return {
            "mediaType": self.blob.media_type,
            "digest": self.blob.digest,
            "size": self.blob.size,
            "annotations": notes,
        }

    @property
    def sample_by_file(self) -> dict[str, str]:
        """The samples by the sha256 of their files."""
        files = sampled(self.group.files)
        return {file.sha256: sample for file, sample in zip(files, self.samples, strict=True)}

    @property
    def created_by(self) -> str:
        """What `docker history` says of it."""
        largest = self.group.largest.path
        more = f" and {len(self.group.files) - 1} more" if len(self.group.files) > 1 else ""
        return f"modelbake weights /models/{largest}{more} # {self.group.size:,} bytes"


def media_type_of(compression: str) -> str:
    """Return the media type of weight layers."""
    return TAR if compression == "none" else TAR_ZSTD


def group_tag(group: WeightGroup, compression: str) -> str:
    """Return the tag that remembers one layer."""
    return f"group-{'' if compression == 'none' else f'{compression}-'}{group.digest}"


def weights_tag(groups: Sequence[WeightGroup], compression: str, architecture: str) -> str:
    """Return the tag that remembers all layers of a lock, cut into groups in this way."""
    digest = hashlib.sha256("".join(f"{group.digest}\n" for group in groups).encode()).hexdigest()
    special = [word for word, usual in ((compression, "none"), (architecture, "amd64")) if word != usual]
    return "-".join(["weights", *special, digest])


def recalled(
    manifest: Manifest, groups: Sequence[WeightGroup], compression: str
) -> tuple[StoredLayer, ...] | None:
    """Return the layers that a remembered image has for these groups, None where it is not of them.

    What can be checked without reading a layer is checked: groups, media types, and the sizes, which follow
    from the lock. One without samples, as older versions of modelbake put it, is none: it is made anew.
    """
    entries = manifest.document().get("layers")
    if not isinstance(entries, list):
        return None
    blobs = manifest.layers
    if len(blobs) != len(groups):
        return None
    found = []
    for group, blob, entry in zip(groups, blobs, entries, strict=True):
        notes = entry.get("annotations")
        notes = notes if isinstance(notes, dict) else {}
        diff_id = blob.digest if compression == "none" else str(notes.get(DIFF_ID))
        if notes.get(GROUP) != group.digest or blob.media_type != media_type_of(compression):
            return None
        if compression == "none" and blob.size != WeightLayer(group).size:
            return None
        samples = tuple(str(notes.get(SAMPLES, "")).split())
        if not _DIGEST.fullmatch(diff_id) or not all(map(_SAMPLE.fullmatch, samples)):
            return None
        if len(samples) != len(sampled(group.files)):
            return None
        found.append(StoredLayer(group, blob, diff_id, samples))
    return tuple(found)


def size_without_weights(manifest: Manifest) -> int | None:
    """Return the bytes of an image's other layers; None where it does not say which ones the weights are."""
    blobs, others = manifest.layers, []
    for blob, entry in zip(blobs, manifest.document()["layers"], strict=True):
        notes = entry.get("annotations")
        if not isinstance(notes, dict) or GROUP not in notes:
            others.append(blob.size)
    return sum(others) if len(others) < len(blobs) else None


def data_image(
    layers: Sequence[StoredLayer], locked: LockedModel | None, platform: Mapping[str, str]
) -> tuple[bytes, Manifest]:
    """Return configuration and manifest of an image of weights alone; the same layers give the same bytes.

    The configuration lists every file: path, size, sha256, and the digest of the layer that holds it.
    `locked`: whose weights they are, for the annotations; `platform`: `os` and `architecture`, because a host
    takes only images of its own.
    """
    files = [
        {"path": file.path, "size": file.size, "sha256": file.sha256, "layer": layer.blob.digest}
        for layer in layers
        for file in layer.group.files
    ]
    config = encode(
        {
            **platform,
            "created": EPOCH,
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
            "history": [{"created": EPOCH, "created_by": layer.created_by} for layer in layers],
            LABEL_PREFIX + "weights": {"schema": 1, "files": files},
        }
    )
    annotations = {}
    if locked is not None:
        annotations = {
            "org.opencontainers.image.title": "weights",
            "org.opencontainers.image.description": "model weights below /models, nothing else",
            LABEL_PREFIX + "lock": locked.digest,
        }
    return config, image_manifest(config, [layer.descriptor for layer in layers], annotations)


def image_manifest(
    config: bytes, layers: Sequence[Mapping[str, Any]], annotations: Mapping[str, str]
) -> Manifest:
    """Return the OCI manifest of a configuration and layers, bottom first."""
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {
            "mediaType": OCI_CONFIG,
            "digest": f"sha256:{hashlib.sha256(config).hexdigest()}",
            "size": len(config),
        },
        "layers": list(layers),
    }
    if annotations:
        document["annotations"] = dict(annotations)
    return Manifest.of(OCI_MANIFEST, encode(document))


def encode(document: Any) -> bytes:
    """Encode a JSON document, compact and sorted: the same content has the same bytes."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
