"""What a `publish` would do, and what its image would cost the hosts that pull it. Pure.

A host with Docker's classic store, and most Kubernetes nodes, pull anew every layer above the first one that
changed; the containerd store pulls what it does not have.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelbake.budget import over_budget
from modelbake.manifest import Manifest
from modelbake.plan import BuildPlan
from modelbake.stream.assembly import Order, RuntimeImage, choose_order, model_layer_size, stacked
from modelbake.stream.layers import WeightLayer
from modelbake.stream.limits import KNOWN, limits_of
from modelbake.stream.publish import WeightsSpec
from modelbake.stream.weights import GROUP, media_type_of

_SEVERAL = 3  # models on one host, for the comparison
_MEMORY = 110 << 20  # bytes: Python with what it imports, measured
_MEMORY_PER_JOB = 4 << 20  # bytes: what a layer on its way holds
_ORDERS: tuple[Order, ...] = ("weights-first", "base-first")


@dataclass(frozen=True)
class Facts:
    """What was found out: `stored` are digests of groups that the registry has as layers.

    `previous`: the version before this one and its manifest, where there is one. `released`: the digest that
    has this version's tag already; `released_is_this`: it was published of this very plan.
    """

    plan: BuildPlan
    weights: WeightsSpec
    runtime: RuntimeImage | None
    stored: Collection[str]
    previous: tuple[str, Manifest] | None
    host: str
    jobs: int
    released: str | None = None
    released_is_this: bool = False


def forecast(facts: Facts) -> dict[str, Any]:
    """Return the forecast as a JSON document; sizes in bytes, None where they are not known yet.

    Raises ConfigError where `layer_order` cannot be had.
    """
    plan, weights, runtime = facts.plan, facts.weights, facts.runtime
    sizes = [WeightLayer(group).size for group in weights.groups]
    missing = [
        (group, size)
        for group, size in zip(weights.groups, sizes, strict=True)
        if group.digest not in facts.stored and not facts.released_is_this
    ]
    hides = sorted(set(runtime.hides)) if runtime else []
    order = choose_order(plan.spec, sum(sizes), runtime.size, hides) if runtime else None
    all_sizes = sizes + [layer.size for layer in runtime.layers if runtime] if runtime else sizes
    return {
        "model": plan.name,
        "version": plan.version,
        "repository": plan.repository,
        "released": {"digest": facts.released, "is_this": facts.released_is_this} if facts.released else None,
        "source": " + ".join(each.origin for each in plan.locked.sources),
        "files": len(plan.locked.files),
        "weight_bytes": plan.locked.size,
        "compression": weights.compression,
        "layers": [
            {
                "group": group.digest,
                "files": len(group.files),
                "largest_file": group.largest.path,
                "bytes": size,
                "stored": group.digest in facts.stored or facts.released_is_this,
            }
            for group, size in zip(weights.groups, sizes, strict=True)
        ],
        "bundled": sum(len(group.files) for group in weights.groups if len(group.files) > 1),
        "image_layers": len(sizes) + len(runtime.layers) + 1 if runtime else None,
        "download_bytes": sum(group.size for group, _ in missing),
        "upload_bytes": 0
        if facts.released_is_this
        else sum(size for _, size in missing) + model_layer_size(plan),
        "stored_bytes": sum(sizes) - sum(size for _, size in missing),
        "runtime": {
            "name": plan.runtime.name,
            "stored": runtime is not None,
            "layers": len(runtime.layers) if runtime else None,
            "bytes": runtime.size if runtime else None,
            "hides_weights": hides,
        },
        "layer_order": order,
        "orders": {name: _cost(name, sum(sizes), runtime.size) for name in _ORDERS} if runtime else None,
        "previous": _repull(facts, order, sizes) if runtime and order and facts.previous else None,
        "limits": [
            {"registry": limits.name, "hits": hits}
            for limits in KNOWN
            if (hits := limits.hits(all_sizes)) or limits.serves(facts.host)
        ],
        "too_large": None
        if facts.released_is_this
        else over_budget(plan.spec, plan.locked.size, runtime.size if runtime else None),
        "needs": {
            "disk_bytes": 0,
            "memory_bytes": _MEMORY + facts.jobs * _MEMORY_PER_JOB,
            "host_disk_bytes": sum(sizes) + runtime.size if runtime else None,
        },
    }


def _cost(order: Order, weights: int, runtime: int) -> dict[str, int]:
    """Return what a host of the classic store pulls: for one model, for several, after a runtime's patch."""
    first = order == "weights-first"
    return {
        "one_model": weights + runtime,
        f"{_SEVERAL}_models": _SEVERAL * (weights + runtime) if first else _SEVERAL * weights + runtime,
        "runtime_patched": runtime if first else weights + runtime,
    }


def _repull(facts: Facts, order: Order, sizes: Sequence[int]) -> dict[str, Any]:
    """Return what a host that has the previous version pulls for this one."""
    assert facts.previous is not None and facts.runtime is not None
    version, manifest = facts.previous
    entries = manifest.document().get("layers")
    entries = entries if isinstance(entries, list) else []
    before = [_identity(entry) for entry in entries if isinstance(entry, dict)]
    kind = media_type_of(facts.weights.compression)
    weights = [
        (f"{group.digest} {kind}", size) for group, size in zip(facts.weights.groups, sizes, strict=True)
    ]
    runtime = [(layer.digest, layer.size) for layer in facts.runtime.layers]
    model = [("model", model_layer_size(facts.plan))]
    own = sum(group.source == 0 for group in facts.weights.groups)
    now = stacked(order, weights[:own], runtime, weights[own:]) + model
    same = 0
    while same < min(len(now), len(before)) and now[same][0] == before[same]:
        same += 1
    return {
        "version": version,
        "classic_bytes": sum(size for _, size in now[same:]),
        "containerd_bytes": sum(size for name, size in now if name not in before),
    }


def _identity(entry: Mapping[str, Any]) -> str:
    """Return what tells a layer from others before its digest is known: its files, else its digest."""
    notes = entry.get("annotations")
    group = notes.get(GROUP) if isinstance(notes, dict) else None
    return f"{group} {entry.get('mediaType')}" if group else str(entry.get("digest"))


def in_words(told: dict[str, Any], host: str) -> list[str]:
    """Return the forecast as lines for people."""
    runtime, orders, previous = told["runtime"], told["orders"], told["previous"]
    layers = told["layers"]
    most = "at most " if told["compression"] != "none" else ""
    lines = [
        f"{told['model']} {told['version']} -> {told['repository']}",
        f"weights    {_counted(told['files'], 'file')}, {_mb(told['weight_bytes'])}"
        f" in {_counted(len(layers), 'layer')}"
        + (f" ({told['bundled']} files share a layer)" if told["bundled"] > 0 else ""),
    ]
    if released := told["released"]:
        said = "published already" if released["is_this"] else "another image: raise `version` in models.yaml"
        lines.insert(1, f"version    {told['version']} is {released['digest'][:19]}, {said}")
    for layer in layers:
        more = f" and {layer['files'] - 1} more" if layer["files"] > 1 else ""
        state = "stored" if layer["stored"] else "to publish"
        lines.append(f"  {state:<10} {_mb(layer['bytes']):>12}  {layer['largest_file']}{more}")
    lines += [
        f"download   {_mb(told['download_bytes'])} from {told['source']}",
        f"upload     {most}{_mb(told['upload_bytes'])}; in the registry already: {_mb(told['stored_bytes'])}",
    ]
    if runtime["stored"]:
        lines.append(
            f"runtime    {runtime['name']}: {_mb(runtime['bytes'])}"
            f" in {_counted(runtime['layers'], 'layer')}, stored"
        )
    else:
        lines.append(
            f"runtime    {runtime['name']}: not in the registry yet; an engine builds it once."
            " Only then its size is known, and with it the layer order that `auto` takes"
        )
    if orders:
        lines.append(f"order      {told['layer_order']}; what a host with Docker's classic store pulls:")
        for name, cost in orders.items():
            one, several, patched = map(_mb, cost.values())
            lines.append(
                f"  {name:<14} one model {one}, {_SEVERAL} such models {several},"
                f" after a patch of the runtime {patched}"
            )
        if runtime["hides_weights"]:
            lines.append(
                f"  weights cannot lie below this runtime: it has {', '.join(runtime['hides_weights'])}"
            )
    if previous:
        lines.append(
            f"update     a host with {previous['version']} pulls {_mb(previous['classic_bytes'])}"
            f" (containerd store: {_mb(previous['containerd_bytes'])})"
        )
    own = limits_of(host)
    for limit in told["limits"]:
        here = "  <- this registry" if own and own.name == limit["registry"] else ""
        lines += [f"limit      {limit['registry']}: {hit}{here}" for hit in limit["hits"]]
    largest = max((layer["bytes"] for layer in layers), default=0)
    if own and (rate := own.slowest([largest])):
        lines.append(f"limit      {own.name}: the largest layer has to be sent with {rate / 1e6:.1f} MB/s")
    if told["too_large"]:
        lines.append(f"limit      models.yaml: {told['too_large']}  <- `publish` refuses it")
    needs = told["needs"]
    host_disk = f", a host's disk {_mb(needs['host_disk_bytes'])}" if needs["host_disk_bytes"] else ""
    lines.append(f"needs      no disk here, about {_mb(needs['memory_bytes'])} of memory{host_disk}")
    return lines


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
