"""Two versions of a model side by side: what was measured of them, and what of the image changed.

Pure, but for reading an image's documents from the registry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelbake.figures import FIGURES, shown
from modelbake.history import Version, single_image
from modelbake.manifest import labels_in
from modelbake.plan import LABEL_PREFIX, LOCK_LABEL, PLAN_LABEL
from modelbake.registryreply import document_of
from modelbake.regression import change
from modelbake.report import Report
from modelbake.stream.repository import read_document
from modelbake.tables import printable, table

if TYPE_CHECKING:
    from modelbake.manifest import Manifest
    from modelbake.stream.repository import RegistryRepository

_FACTS = {
    "base": "org.opencontainers.image.base.name",
    "base digest": "org.opencontainers.image.base.digest",
    "runtime": LABEL_PREFIX + "runtime",
    "source": LABEL_PREFIX + "source",
    "commit": LABEL_PREFIX + "commit",
    "lock": LOCK_LABEL,
    "build context": PLAN_LABEL,
    "built for": LABEL_PREFIX + "device",
}
_LONGEST = 60  # characters of what a layer was made by


@dataclass(frozen=True)
class Layer:
    """A layer of an image: its diffID (what it holds, however it is compressed), pulled bytes, and maker."""

    diff_id: str
    size: int
    created_by: str


@dataclass(frozen=True)
class Image:
    """What an image says of itself: its labels, and its layers from bottom to top."""

    labels: Mapping[str, str] = field(default_factory=dict)
    layers: tuple[Layer, ...] = ()


def read_image(repository: RegistryRepository, digest: str) -> Image | None:
    """Return the image of a released version; None for one of several platforms. Raises RegistryError."""
    manifest = repository.manifest(digest)
    image = None if manifest is None else single_image(repository, manifest)
    if image is None:
        return None
    return image_of(image, read_document(repository, image.config))


def image_of(manifest: Manifest, config: bytes) -> Image:
    """Return what a manifest and a configuration say, as far as they make sense together. Pure."""
    document = document_of(config)
    roots = document.get("rootfs")
    diff_ids = roots.get("diff_ids") if isinstance(roots, dict) else None
    if not isinstance(diff_ids, list) or len(diff_ids) != len(manifest.layers):
        diff_ids = [layer.digest for layer in manifest.layers]
    told = document.get("history")
    told = [each for each in told if isinstance(each, dict)] if isinstance(told, list) else []
    makers = [str(each.get("created_by", "")) for each in told if not each.get("empty_layer")]
    makers += [""] * (len(diff_ids) - len(makers))
    layers = [
        Layer(str(diff_id), blob.size, maker)
        for diff_id, blob, maker in zip(diff_ids, manifest.layers, makers, strict=False)
    ]
    return Image(labels_in(document), tuple(layers))


def choose_reports(before: Version, now: Version) -> tuple[Report | None, Report | None]:
    """Return the reports to compare: of one device where both have one, a GPU rather than a CPU. Pure."""
    first = {report.device: report for report in before.reports}
    second = {report.device: report for report in now.reports}
    # `cuda:` sorts behind `cpu`.
    if both := sorted(first.keys() & second.keys()):
        return first[both[-1]], second[both[-1]]
    return (
        first[max(first)] if first else None,
        second[max(second)] if second else None,
    )


def compare(before: Version, now: Version, first: Image | None, second: Image | None) -> dict[str, Any]:
    """Return the comparison as a JSON document; sizes in bytes, times in seconds. Pure.

    `ratio` is the second figure by the first, None where they cannot be compared: `remarks` says why.
    """
    one, other = choose_reports(before, now)
    figures = []
    same_device = one is not None and other is not None and one.device == other.device
    for figure in FIGURES:
        pair = figure.pair(one, other) if one and other else None
        comparable = (
            same_device
            and pair is not None
            and not (
                figure.of_request and one is not None and other is not None and one.request != other.request
            )
        )
        a, b = pair or (figure.of(one) if one else None, figure.of(other) if other else None)
        figures.append(
            {
                "figure": figure.key,
                "label": figure.label,
                "unit": figure.unit,
                "before": a,
                "now": b,
                "ratio": round(b / a, 4) if comparable and a and b is not None else None,
                "change": change(a, b) if comparable and a is not None and b is not None else None,
                "more_is_better": figure.more_is_better,
            }
        )
    return {
        "before": _side(before, one),
        "now": _side(now, other),
        "figures": figures,
        "image": _image_changes(first, second),
        "remarks": _remarks(one, other),
    }


def _side(version: Version, report: Report | None) -> dict[str, Any]:
    return {
        "version": version.version,
        "released": version.released,
        "digest": version.digest,
        "pulled_bytes": version.size,
        "device": report.device if report else None,
        "date": report.started_at if report else None,
    }


def _remarks(one: Report | None, other: Report | None) -> list[str]:
    if one is None or other is None:
        return ["without two reports there is nothing to compare but the images"]
    remarks = []
    if one.device != other.device:
        remarks.append(f"measured on different devices ({one.device}, {other.device}): no ratios")
    if one.request != other.request:
        remarks.append("asked different requests: latency and throughput have no ratio")
    if one.lock != other.lock:
        remarks.append("the weights are different ones")
    for report in (one, other):
        if not report.passed:
            remarks.append(f"the smoke run of {report.version} failed")
    return remarks


def _image_changes(first: Image | None, second: Image | None) -> dict[str, Any] | None:
    if first is None or second is None:
        return None
    facts = {name: (first.labels.get(label), second.labels.get(label)) for name, label in _FACTS.items()}
    had, has = {layer.diff_id for layer in first.layers}, {layer.diff_id for layer in second.layers}
    return {
        "changed": {name: {"before": a, "now": b} for name, (a, b) in facts.items() if a != b},
        "same_layers": sum(layer.diff_id in had for layer in second.layers),
        "layers": len(second.layers),
        "new_layers": [_told(layer) for layer in second.layers if layer.diff_id not in had],
        "gone_layers": [_told(layer) for layer in first.layers if layer.diff_id not in has],
    }


def _told(layer: Layer) -> dict[str, Any]:
    return {"diff_id": layer.diff_id, "bytes": layer.size, "created_by": layer.created_by}


def in_words(told: Mapping[str, Any]) -> list[str]:
    """Return a comparison as lines for people."""
    before, now = told["before"], told["now"]
    rows = [
        ("digest", *(_short(side["digest"]) or "not released" for side in (before, now)), ""),
        (
            "size",
            *(shown(side["pulled_bytes"], "bytes") for side in (before, now)),
            _size_change(before, now),
        ),
        ("device", *(side["device"] or "-" for side in (before, now)), ""),
        ("date", *((side["date"] or "-")[:10] for side in (before, now)), ""),
    ]
    for figure in told["figures"]:
        rows.append(
            (
                figure["label"],
                shown(figure["before"], figure["unit"]),
                shown(figure["now"], figure["unit"]),
                _verdict(figure),
            )
        )
    lines = table(("", before["version"], now["version"], ""), rows, right=frozenset((1, 2)))
    lines += [printable(f"note: {remark}") for remark in told["remarks"]]
    image = told["image"]
    if image is None:
        return [*lines, "image: nothing to compare; both versions have to be in the registry"]
    for name, sides in image["changed"].items():
        lines.append(printable(f"{name}: {sides['before'] or '-'} -> {sides['now'] or '-'}"))
    lines.append(f"layers: {image['same_layers']} of {image['layers']} are those of {before['version']}")
    for sign, layers in (("+", image["new_layers"]), ("-", image["gone_layers"])):
        for layer in layers:
            lines.append(f"  {sign} {shown(layer['bytes'], 'bytes'):>8}  {_maker(layer['created_by'])}")
    return lines


def _verdict(figure: Mapping[str, Any]) -> str:
    if figure["change"] is None:
        return ""
    if figure["ratio"] is None or figure["before"] == figure["now"]:
        return str(figure["change"])
    better = (figure["now"] > figure["before"]) == figure["more_is_better"]
    return f"x{figure['ratio']:.2f} ({figure['change']}, {'better' if better else 'worse'})"


def _size_change(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    a, b = before["pulled_bytes"], now["pulled_bytes"]
    return f"x{b / a:.2f} ({change(a, b)})" if a and b is not None else ""


def _short(digest: str | None) -> str:
    return digest.removeprefix("sha256:")[:12] if digest else ""


def _maker(created_by: str) -> str:
    text = printable(created_by)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
