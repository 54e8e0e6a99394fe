"""What a registry has of a model already, for `plan`: nothing is changed, and no layer is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelbake.parallel import parallel
from modelbake.stream.publish import WeightsSpec, recall_layer, recall_layers
from modelbake.versiontag import precedence, released_versions

if TYPE_CHECKING:
    from modelbake.manifest import Manifest
    from modelbake.stream.repository import RegistryRepository, Repository


def stored_groups(weights: Repository, spec: WeightsSpec, jobs: int) -> list[str]:
    """Return the digests of the groups whose layers are remembered and there. Raises RegistryError."""
    known = recall_layers(weights, spec)
    if known and all(parallel(known, lambda layer: weights.has(layer.blob), jobs)):
        return [layer.group.digest for layer in known]
    found = parallel(
        spec.groups, lambda group: recall_layer(weights, group, spec.compression) is not None, jobs
    )
    return [group.digest for group, there in zip(spec.groups, found, strict=True) if there]


def previous_release(target: RegistryRepository, version: str) -> tuple[str, Manifest] | None:
    """Return the newest release before a version, with its manifest. Raises RegistryError."""
    released = released_versions(target.registry, target.path)
    newest = next((older for older in released if precedence(older) < precedence(version)), None)
    if newest is None:
        return None
    manifest = target.manifest(newest)
    return None if manifest is None or manifest.is_index else (newest, manifest)
