"""What a move changes against what was in the channel: weights, runtime, base, size, figures. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelbake.comparison import Image, compare
from modelbake.figures import shown
from modelbake.history import Version
from modelbake.plan import ADDED_LABEL, LABEL_PREFIX, LOCK_LABEL
from modelbake.regression import change
from modelbake.tables import printable

_SOURCE, _COMMIT = LABEL_PREFIX + "source", LABEL_PREFIX + "commit"
_TOLD = ("runtime", "base", "base digest", "built for", "build context")  # of `comparison`'s facts
_DIGITS = 12  # of a digest or a commit


def changes(before: Version | None, now: Version, first: Image | None, second: Image | None) -> list[str]:
    """Return what changed, a line each; `first` and `second` are the images, None where unknown.

    What is the same is said only of the weights: that is what most people ask.
    """
    if before is None:
        return [f"{now.version} is the first version here"]
    told = compare(before, now, first, second)
    lines = [f"{before.version} -> {now.version}"]
    if first is not None and second is not None:
        lines += [_weights(first.labels, second.labels), *_image(told["image"])]
    toolkits = [report.toolkit_version for side in (before, now) for report in side.reports[:1]]
    if len(toolkits) == 2 and toolkits[0] != toolkits[1]:
        lines.append(f"toolkit: {toolkits[0]} -> {toolkits[1]}")
    if before.size and now.size is not None and before.size != now.size:
        sizes = f"{shown(before.size, 'bytes')} -> {shown(now.size, 'bytes')}"
        lines.append(f"size: {sizes} ({change(before.size, now.size)})")
    return [printable(line) for line in (*lines, *_figures(told))]


def _weights(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    if before.get(LOCK_LABEL) == now.get(LOCK_LABEL):
        return f"weights: the same ({_short(now.get(LOCK_LABEL))})"
    parts = [f"lock {_short(before.get(LOCK_LABEL))} -> {_short(now.get(LOCK_LABEL))}"]
    if before.get(_SOURCE) != now.get(_SOURCE):
        parts.append(f"{before.get(_SOURCE) or '-'} -> {now.get(_SOURCE) or '-'}")
    if before.get(_COMMIT) != now.get(_COMMIT):
        parts.append(f"commit {_short(before.get(_COMMIT))} -> {_short(now.get(_COMMIT))}")
    if before.get(ADDED_LABEL) != now.get(ADDED_LABEL):
        parts.append(f"added {before.get(ADDED_LABEL) or '-'} -> {now.get(ADDED_LABEL) or '-'}")
    return f"weights: {', '.join(parts)}"


def _image(told: Mapping[str, Any] | None) -> list[str]:
    if told is None:
        return []
    changed = told["changed"]
    lines = [
        f"{name}: {_short(changed[name]['before'])} -> {_short(changed[name]['now'])}"
        for name in _TOLD
        if name in changed
    ]
    return [*lines, f"layers: {told['same_layers']} of {told['layers']} are the same"]


def _figures(told: Mapping[str, Any]) -> list[str]:
    lines = []
    for figure in told["figures"]:
        if figure["ratio"] is None or figure["before"] == figure["now"]:
            continue
        better = (figure["now"] > figure["before"]) == figure["more_is_better"]
        lines.append(
            f"{figure['label']}: {shown(figure['before'], figure['unit'])} ->"
            f" {shown(figure['now'], figure['unit'])} ({figure['change']},"
            f" {'better' if better else 'worse'}, on {told['now']['device']})"
        )
    return lines


def _short(text: str | None) -> str:
    """Return a name as it is, and of a digest or a commit its first digits."""
    if not text:
        return "-"
    digits = text.removeprefix("sha256:")
    return digits[:_DIGITS] if len(digits) >= 40 and set(digits) <= set("0123456789abcdef") else text
