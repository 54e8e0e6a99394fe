"""Whether an image that is somewhere is the one that a plan makes: told by what it says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from modelbake.manifest import labels_in
from modelbake.plan import PLAN_LABEL
from modelbake.registryreply import document_of
from modelbake.stream.assembly import ORDER
from modelbake.stream.flow import TAR_ZSTD
from modelbake.stream.repository import Repository, read_document

if TYPE_CHECKING:
    from modelbake.config import ModelSpec
    from modelbake.manifest import Manifest


def is_of_plan(repository: Repository, manifest: Manifest, spec: ModelSpec, plan_digest: str) -> bool:
    """Tell whether an image was published by the stream lane of this very plan, with layers as asked for."""
    order = _notes(manifest).get(ORDER)
    if manifest.is_index or order is None or spec.layer_order not in ("auto", order):
        return False
    kinds = {blob.media_type for blob in manifest.layers}
    if (TAR_ZSTD in kinds) != (spec.compression == "zstd"):
        return False
    return plan_digest_of(repository, manifest) == plan_digest


def plan_digest_of(repository: Repository, manifest: Manifest) -> object:
    """Return what an image's label says it was made of, None without the label."""
    return labels_in(document_of(read_document(repository, manifest.config))).get(PLAN_LABEL)


def _notes(manifest: Manifest) -> Mapping[str, object]:
    notes = manifest.document().get("annotations")
    return notes if isinstance(notes, dict) else {}
