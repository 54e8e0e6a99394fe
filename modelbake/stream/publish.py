"""From a lock to an image in a registry or an OCI layout, without a weight byte ever lying on a disk here.

    recall | flow each group of files into a layer, remember it     -> weight layers   (ensure_layers)
    runtime image + weight layers + manifest                         -> documents       (make_image)
    mount or copy every blob, put the manifest                       -> candidate       (put_image)

What of it was done before, by whichever run, version or model, is found in the registry and not done again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelbake.errors import RegistryLimit
from modelbake.manifest import Descriptor, Manifest, digest_of
from modelbake.parallel import parallel
from modelbake.plan import MAX_GROUPS, BuildPlan, WeightGroup, weight_groups
from modelbake.stream.assembly import (
    MOST_LAYERS,
    Order,
    RuntimeImage,
    assemble,
    choose_order,
    model_layer,
)
from modelbake.stream.flow import TAR, Reader, refuse_wrong_empty_files
from modelbake.stream.layers import WeightLayer
from modelbake.stream.limits import limits_of
from modelbake.stream.repository import RegistryRepository, Repository
from modelbake.stream.task import flow_layer
from modelbake.stream.weights import (
    OCI_CONFIG,
    StoredLayer,
    data_image,
    group_tag,
    recalled,
    weights_tag,
)

if TYPE_CHECKING:
    from modelbake.locked import LockedModel
    from modelbake.stream.pool import LayerPool
    from modelbake.stream.view import TransferView

JOBS = 8  # layers on their way at the same time
_RECORD_PLATFORM = {"architecture": "amd64", "os": "linux"}  # of what remembers one layer; nobody runs it


@dataclass(frozen=True)
class WeightsSpec:
    """The weights of one model as layers: what is to be there, whether it is or not."""

    locked: LockedModel
    groups: tuple[WeightGroup, ...]
    compression: str
    architecture: str

    @property
    def tag(self) -> str:
        """The name of the image that holds all of them."""
        return weights_tag(self.groups, self.compression, self.architecture)


@dataclass(frozen=True)
class Image:
    """An image that is ready to be put: its documents, its small top layer, what its layers are made of."""

    config: bytes
    model: bytes
    manifest: Manifest
    order: Order
    runtime: RuntimeImage
    weights: tuple[StoredLayer, ...]


def weights_spec(plan: BuildPlan, runtime: RuntimeImage | None) -> WeightsSpec:
    """Cut a plan's weights into layers; no more of them than the runtime leaves room for. Pure."""
    taken = len(runtime.layers) if runtime else MOST_LAYERS - MAX_GROUPS - 1
    groups = weight_groups(plan.locked, max(1, min(MAX_GROUPS, MOST_LAYERS - taken - 1)))
    architecture = str(runtime.platform.get("architecture", "amd64")) if runtime else "amd64"
    return WeightsSpec(plan.locked, groups, plan.spec.compression, architecture)


def require_room(spec: WeightsSpec, host: str) -> None:
    """Raise RegistryLimit where the registry is known to refuse a layer of this size, or so many. Pure."""
    require_taken([WeightLayer(group).size for group in spec.groups], spec.locked.name, host)


def require_taken(sizes: Sequence[int], name: str, host: str) -> None:
    """Raise RegistryLimit where the registry is known to refuse layers of these bytes. Pure."""
    limits = limits_of(host)
    if limits and (hits := limits.hits(sizes)):
        raise RegistryLimit(
            f"{limits.name} would refuse this image: {'; '.join(hits)}",
            subject=name,
            hint="a file is never cut: save the model in smaller shards, or use another registry",
        )


def recall_layers(repository: Repository, spec: WeightsSpec) -> tuple[StoredLayer, ...] | None:
    """Return the layers of the weights image that the repository remembers, None without one."""
    manifest = repository.manifest(spec.tag)
    return None if manifest is None else recalled(manifest, spec.groups, spec.compression)


def bytes_to_write(spec: WeightsSpec, runtime: RuntimeImage, target: Repository, memory: Repository) -> int:
    """Return how many bytes of layers a repository lacks; weights that are to be compressed do not count.

    `memory`: what remembers the weights' layers there.
    """
    layers = sum(layer.size for layer in dict.fromkeys(runtime.layers) if not target.has(layer))
    if spec.compression != "none":
        return layers
    missing = [group for group in spec.groups if recall_layer(memory, group, spec.compression) is None]
    return layers + sum(WeightLayer(group).size for group in missing)


def has_right_shape(repository: Repository, layer: StoredLayer) -> bool:
    """Tell whether a remembered layer has the files of its group, at their places, and nothing besides.

    All that lies between the files' contents follows from the lock; it is read, and no weight is. The
    contents are compared with the lock when the image starts, which is sound only if a layer can bring
    nothing else. A compressed layer cannot be looked into so: who may push to the repository is trusted then.
    """
    if layer.blob.media_type != TAR:
        return True
    return all(
        repository.read_part(layer.blob, segment.start, segment.size) == segment.literal
        for segment in WeightLayer(layer.group).segments
        if segment.literal is not None
    )


def recall_layer(repository: Repository, group: WeightGroup, compression: str) -> StoredLayer | None:
    """Return the layer that a repository remembers for a group and still has, None otherwise."""
    manifest = repository.manifest(group_tag(group, compression))
    found = None if manifest is None else recalled(manifest, (group,), compression)
    if not found or not repository.has(found[0].blob) or not has_right_shape(repository, found[0]):
        return None
    return found[0]


def ensure_layer(
    group: WeightGroup,
    compression: str,
    repository: Repository,
    flow: Callable[[WeightGroup], StoredLayer],
    view: TransferView,
    others: Sequence[Repository] = (),
) -> StoredLayer:
    """Make sure that a repository has one weight layer, and remembers it; return it.

    `flow` brings it there where neither this repository nor one of `others` has it; it raises what it may.
    """
    if found := recall_layer(repository, group, compression):
        view.passed(group)
        return found
    for other in others:
        if found := recall_layer(other, group, compression):
            repository.bring(found.blob, other)
            view.passed(group)
            break
    else:
        found = flow(group)
    config, manifest = data_image((found,), None, _RECORD_PLATFORM)
    repository.put(config, OCI_CONFIG)
    repository.put_manifest(group_tag(group, compression), manifest)
    return found


def ensure_layers(
    spec: WeightsSpec,
    repository: Repository,
    reader: Callable[[threading.Event], Reader],
    view: TransferView,
    *,
    others: Sequence[Repository] = (),
    jobs: int = JOBS,
    stop: threading.Event | None = None,
    pool: LayerPool | None = None,
) -> tuple[StoredLayer, ...]:
    """Make sure that a repository has all weight layers, and remembers them; return them in their order.

    Args:
        spec: which layers.
        repository: where they are kept.
        reader: makes what reads file contents; it is given the event that ends all reading.
        view: shows what flows.
        others: repositories that may have a layer already, to take it from instead.
        jobs: how many layers flow at the same time.
        stop: is set as soon as one layer fails: whatever waits for another one may give up.
        pool: whose workers read and send instead, into a registry; `reader` is not asked then.

    Raises:
        WrongBytes: a file is not the locked one. Its layer was not committed; finished ones stay.
        SourceError, RegistryError, LayoutError, ClusterError: as they say.
    """
    known = recall_layers(repository, spec)
    if known and all(
        parallel(known, lambda layer: repository.has(layer.blob) and has_right_shape(repository, layer), jobs)
    ):
        return known
    stop, guard = stop or threading.Event(), threading.Lock()
    readers: list[Reader] = []

    def source() -> Reader:
        with guard:  # made when the first byte is needed: it takes the hub's libraries, and often none is
            if not readers:
                readers.append(reader(stop))
            return readers[0]

    def flow(group: WeightGroup) -> StoredLayer:
        if pool is None:
            return _flow(group, spec, repository, source(), view, stop)
        assert isinstance(repository, RegistryRepository), "workers share no folder with us"
        return pool.stream(spec.locked, group, spec.compression, repository, view, stop)

    def ensure(group: WeightGroup) -> StoredLayer:
        return ensure_layer(group, spec.compression, repository, flow, view, others)

    for group in spec.groups:
        refuse_wrong_empty_files(WeightLayer(group))
    # The largest first: what is left at the end is small, and no thread waits long for another.
    ordered = sorted(spec.groups, key=lambda group: group.size, reverse=True)
    with view.layers(len(ordered), spec.locked.size):
        made = {layer.group.digest: layer for layer in parallel(ordered, ensure, jobs, stop=stop)}
    layers = tuple(made[group.digest] for group in spec.groups)
    platform = {"architecture": spec.architecture, "os": "linux"}
    config, manifest = data_image(layers, spec.locked, platform)
    repository.put(config, OCI_CONFIG)
    repository.put_manifest(spec.tag, manifest)
    view.remembered(f"{repository.name}:{spec.tag}", manifest.digest)
    return layers


def _flow(
    group: WeightGroup,
    spec: WeightsSpec,
    repository: Repository,
    source: Reader,
    view: TransferView,
    stop: threading.Event,
) -> StoredLayer:
    with view.layer(group) as on_bytes:
        made = flow_layer(
            group,
            spec.compression,
            source,
            repository,
            on_bytes=on_bytes,
            on_verified=lambda verified: view.verified(spec.locked, verified),
            stop=stop,
        )
    view.stored(group, made.blob.digest, made.blob.size)
    return StoredLayer(group, made.blob, made.diff_id, made.samples)


def make_image(
    plan: BuildPlan, runtime: RuntimeImage, layers: tuple[StoredLayer, ...], plan_digest: str
) -> Image:
    """Return the image of a runtime and weight layers. Pure; the same parts give the same bytes.

    Raises ConfigError, RegistryError: see `choose_order` and `assemble`.
    """
    # By sizes that are known beforehand, so that `plan` says the same.
    weights = sum(WeightLayer(layer.group).size for layer in layers)
    order = choose_order(plan.spec, weights, runtime.size, sorted(set(runtime.hides)))
    model = model_layer(plan, layers)
    blob = Descriptor(TAR, digest_of(model), len(model))
    config, manifest = assemble(plan, runtime, layers, blob, order, plan_digest)
    return Image(config, model, manifest, order, runtime, layers)


def put_image(
    image: Image,
    target: Repository,
    tag: str,
    *,
    runtimes: Repository,
    weights: Repository,
    jobs: int = JOBS,
    stop: threading.Event | None = None,
) -> int:
    """Bring every blob of an image to its repository and put the manifest; return the bytes sent for it."""
    bring = [(layer, runtimes) for layer in image.runtime.layers]
    bring += [(layer.blob, weights) for layer in image.weights]
    # A runtime may have one layer twice: it is one blob.
    sent = sum(parallel(list(dict.fromkeys(bring)), lambda each: target.bring(*each), jobs, stop=stop))
    for content, media_type in ((image.model, TAR), (image.config, OCI_CONFIG)):
        if not target.has(Descriptor(media_type, digest_of(content), len(content))):
            target.put(content, media_type)
            sent += len(content)
    target.put_manifest(tag, image.manifest)
    return sent


def copy_image(
    manifest: Manifest,
    source: Repository,
    target: Repository,
    tag: str,
    jobs: int = JOBS,
    stop: threading.Event | None = None,
) -> int:
    """Copy an image from one repository to another, under a tag; return the bytes that were sent."""
    blobs = list(dict.fromkeys((manifest.config, *manifest.layers)))
    sent = sum(parallel(blobs, lambda blob: target.bring(blob, source), jobs, stop=stop))
    target.put_manifest(tag, manifest)
    return sent
