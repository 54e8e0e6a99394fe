"""A runtime image and weight layers become one image. Pure: documents in, documents out.

    weights-first   weights | runtime | added | model     a patched runtime or base moves no weight byte
    base-first      runtime | weights | added | model     models of one runtime share it on a host

What is added to a model, an adapter, lies on top in both: models that differ in it alone share all below.

Docker's classic store, and Kubernetes nodes, pull anew what lies above a change. The `model` layer is small:
the manifest that the image compares its weights with at every start, and the samples of large files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from modelbake.errors import ConfigError, RegistryError
from modelbake.manifest import Descriptor, Manifest
from modelbake.plan import LABEL_PREFIX, PLAN_LABEL, BuildPlan
from modelbake.sample import sample_files, sampled
from modelbake.stream.flow import TAR
from modelbake.stream.layers import small_layer
from modelbake.stream.weights import EPOCH, StoredLayer, encode, image_manifest

if TYPE_CHECKING:
    from modelbake.config import ModelSpec

_T = TypeVar("_T")
Order = Literal["weights-first", "base-first"]

ORDER = LABEL_PREFIX + "layer-order"  # annotation of the image
HIDES_WEIGHTS = (
    LABEL_PREFIX + "hides-weights"
)  # annotation of a runtime image: entries over the weights' folder
MOST_LAYERS = 100
"""In an image. overlay2 stacks 128, moby takes 125, ECR 127, and a team's own layers on top need theirs."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_OCI_TYPES = {
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.docker.image.rootfs.diff.tar": TAR,
}
_MANIFEST_PATH = "modelbake/manifest.json"


@dataclass(frozen=True)
class RuntimeImage:
    """A runtime's image in a registry: its manifest, its configuration, its layers (bottom first).

    `hides`: what its layers say of the weights' folder; weights cannot lie below them then.
    """

    manifest: Manifest
    config: Mapping[str, Any]
    layers: tuple[Descriptor, ...]
    hides: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of its layers, as a host pulls them."""
        return sum(layer.size for layer in self.layers)

    @property
    def platform(self) -> dict[str, str]:
        """The keys of its configuration that say which hosts it is for."""
        keys = ("architecture", "os", "variant")
        return {key: str(self.config[key]) for key in keys if self.config.get(key)}

    @property
    def diff_ids(self) -> list[str]:
        """The digests of the uncompressed layers, bottom first."""
        return list(self.config["rootfs"]["diff_ids"])


def read_runtime(manifest: Manifest, config: bytes) -> RuntimeImage:
    """Return a runtime image from its documents. Raises RegistryError where they are none of an image."""
    annotations = manifest.document().get("annotations") or {}
    try:
        hides = json.loads(annotations.get(HIDES_WEIGHTS, "[]"))
        document = json.loads(config)
        diff_ids = document["rootfs"]["diff_ids"]
        settings = document.get("config") or {}
        well_formed = (
            isinstance(hides, list)
            and all(isinstance(each, str) and _DIGEST.fullmatch(each) for each in diff_ids)
            and all(isinstance(each, str) and "=" in each for each in settings.get("Env") or [])
            and isinstance(settings.get("Env") or [], list)
            and all(isinstance(each, str) for each in (settings.get("Labels") or {}).values())
            and isinstance(document.get("created") or "", str)
        )
        encode(document)  # what has no UTF-8 form, lone surrogates, cannot be passed on
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        well_formed, diff_ids, hides = False, [], []
    if not well_formed or len(diff_ids) != len(manifest.layers):
        raise RegistryError("the runtime's configuration is not that of an image", subject=manifest.digest)
    return RuntimeImage(manifest, document, manifest.layers, tuple(map(str, hides)))


def runtime_manifest(
    pushed: Manifest, config: bytes, hides: Sequence[str], annotations: Mapping[str, str]
) -> Manifest:
    """Return the OCI manifest of what an engine pushed, with what is known of it in its annotations.

    Raises RegistryError where a layer is of a kind that cannot be passed on.
    """
    layers = []
    for layer in pushed.layers:
        media_type = _OCI_TYPES.get(layer.media_type, layer.media_type)
        if not media_type.startswith(TAR):
            raise RegistryError(
                f"a layer of the base image is of type {layer.media_type}, which cannot be passed on",
                subject=pushed.digest,
            )
        layers.append({"mediaType": media_type, "digest": layer.digest, "size": layer.size})
    notes = {**annotations, **({HIDES_WEIGHTS: json.dumps(list(hides))} if hides else {})}
    return image_manifest(config, layers, notes)


def choose_order(spec: ModelSpec, weights: int, runtime: int, hides: Sequence[str]) -> Order:
    """Return the order of an image's layers; `weights` and `runtime` in bytes as a host pulls them.

    Raises ConfigError where models.yaml wants the weights at the bottom, and the runtime would hide them.
    """
    if spec.layer_order == "weights-first" and hides:
        raise ConfigError(
            f"`layer_order: weights-first` is not possible: the runtime's image has {', '.join(hides)},"
            " which would hide weights that lie below it",
            subject=spec.name,
            hint="write `layer_order: base-first`, or take a base image without a folder /models",
        )
    if spec.layer_order != "auto":
        return spec.layer_order
    return "weights-first" if weights > runtime and not hides else "base-first"


def model_layer(plan: BuildPlan, weights: Sequence[StoredLayer]) -> bytes:
    """Return the tar of what the image needs besides: manifest and samples of its weights."""
    samples = {sha256: sample for layer in weights for sha256, sample in layer.sample_by_file.items()}
    return _model_layer(plan, samples)


def model_layer_size(plan: BuildPlan) -> int:
    """Return the bytes of that tar, which are known before the samples are."""
    return len(_model_layer(plan, {file.sha256: "0" * 64 for file in sampled(plan.locked.files)}))


def _model_layer(plan: BuildPlan, samples: Mapping[str, str]) -> bytes:
    return small_layer({_MANIFEST_PATH: plan.manifest(), **sample_files(samples)})


def assemble(
    plan: BuildPlan,
    runtime: RuntimeImage,
    weights: Sequence[StoredLayer],
    model: Descriptor,
    order: Order,
    plan_digest: str,
) -> tuple[bytes, Manifest]:
    """Return configuration and manifest of the whole image; the same parts give the same bytes.

    Args:
        plan: environment, labels and names of the model.
        runtime: what serves it.
        weights: the weight layers, in the order of the plan's groups: the model's own, then what is added.
        model: the small layer on top, uncompressed.
        order: what lies at the bottom.
        plan_digest: of the build context, for the label that both lanes give an image.

    Raises RegistryError where there would be too many layers.
    """
    own = sum(layer.group.source == 0 for layer in weights)
    own_weights, added = list(weights[:own]), list(weights[own:])
    layers: list[Mapping[str, Any]] = stacked(
        order, _entries(own_weights), [_entry(layer) for layer in runtime.layers], _entries(added)
    )
    ids = stacked(order, _diff_ids(own_weights), runtime.diff_ids, _diff_ids(added))
    history = stacked(order, _told(own_weights), _history(runtime), _told(added))
    layers.append(_entry(model))
    if len(layers) > MOST_LAYERS:
        raise RegistryError(
            f"the image would have {len(layers)} layers, and {MOST_LAYERS} are the most",
            subject=plan.name,
            hint="take a base image of fewer layers",
        )
    ids.append(model.digest)
    history.append({"created": EPOCH, "created_by": f"modelbake manifest /{_MANIFEST_PATH}"})
    inherited = runtime.config.get("config") or {}
    config = encode(
        {
            **runtime.platform,
            "created": str(runtime.config.get("created") or EPOCH),
            "config": {
                **inherited,
                "Env": _environment(inherited.get("Env") or [], plan.model_env),
                "Labels": {**(inherited.get("Labels") or {}), **plan.labels, PLAN_LABEL: plan_digest},
            },
            "rootfs": {"type": "layers", "diff_ids": ids},
            "history": history,
        }
    )
    notes = {
        key: value
        for key, value in plan.labels.items()
        if key.startswith(("org.opencontainers.image.", LABEL_PREFIX))
    }
    return config, image_manifest(config, layers, {**notes, ORDER: order})


def stacked(order: Order, weights: list[_T], runtime: list[_T], added: list[_T]) -> list[_T]:
    """Return the parts of an image bottom first: of its layers, or of what tells of them."""
    return (weights + runtime if order == "weights-first" else runtime + weights) + added


def _entries(layers: Sequence[StoredLayer]) -> list[Mapping[str, Any]]:
    return [layer.descriptor for layer in layers]


def _diff_ids(layers: Sequence[StoredLayer]) -> list[str]:
    return [layer.diff_id for layer in layers]


def _told(layers: Sequence[StoredLayer]) -> list[dict[str, Any]]:
    return [{"created": EPOCH, "created_by": layer.created_by} for layer in layers]


def _entry(layer: Descriptor) -> dict[str, Any]:
    return {"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size}


def _history(runtime: RuntimeImage) -> list[dict[str, Any]]:
    """Return the runtime's history; one that does not tell as many layers as there are is replaced."""
    told = runtime.config.get("history")
    told = [each for each in told if isinstance(each, dict)] if isinstance(told, list) else []
    if sum(not each.get("empty_layer") for each in told) == len(runtime.layers):
        return told
    return [{"created": EPOCH, "created_by": "runtime"} for _ in runtime.layers]


def _environment(inherited: Sequence[str], own: Mapping[str, str]) -> list[str]:
    """Return a configuration's Env: the runtime's, then the model's, each variable once."""
    merged = dict(entry.partition("=")[::2] for entry in inherited) | dict(own)
    return [f"{name}={value}" for name, value in merged.items()]
