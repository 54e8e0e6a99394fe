"""What a smoke run's raw numbers mean. Pure.

Source of the metrics format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from modelbake.report import Latency

_DIGITS = 6  # microseconds: finer than any of it is repeatable
_SAMPLE = re.compile(
    r'(?P<name>[A-Za-z_:][\w:]*)(?:\{(?P<labels>(?:[^"}]|"(?:[^"\\]|\\.)*")*)\})?\s+(?P<value>\S+)(?:\s+-?\d+)?\s*',
    re.ASCII,
)
_LABEL = re.compile(r'([A-Za-z_]\w*)\s*=\s*"((?:[^"\\]|\\.)*)"', re.ASCII)


@dataclass(frozen=True)
class Sample:
    """One line of a metrics text."""

    name: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


def parse_metrics(text: str) -> list[Sample]:
    """Return the samples of a metrics text; lines that are none are passed over."""
    samples = []
    for line in text.splitlines():
        if line.startswith("#") or not (match := _SAMPLE.fullmatch(line.strip())):
            continue
        try:
            value = float(match["value"])
        except ValueError:
            continue
        labels = {
            name: re.sub(r"\\(.)", _unescape, raw) for name, raw in _LABEL.findall(match["labels"] or "")
        }
        samples.append(Sample(match["name"], value, labels))
    return samples


def total(samples: Sequence[Sample], name: str) -> float | None:
    """Return the sum of a metric over its labels (GPUs, say), None where it is absent or no real amount."""
    values = [sample.value for sample in samples if sample.name == name]
    amount = sum(values)
    return round(amount, _DIGITS) if values and math.isfinite(amount) and amount >= 0 else None


def label_of(samples: Sequence[Sample], name: str, label: str) -> str | None:
    """Return one label of a metric, None where it is absent."""
    return next((s.labels[label] for s in samples if s.name == name and label in s.labels), None)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile of at least one value: a value that was really measured."""
    rank = math.ceil(percent / 100 * len(values))
    return sorted(values)[max(rank, 1) - 1]


def summarize(seconds: Sequence[float], wall: float) -> tuple[Latency | None, float | None]:
    """Return latency, and answers a second, of requests sent one after the other; None without any answer."""
    if not seconds or wall <= 0:
        return None, None
    latency = Latency(
        p50=round(percentile(seconds, 50), _DIGITS),
        p95=round(percentile(seconds, 95), _DIGITS),
        max=round(max(seconds), _DIGITS),
    )
    return latency, round(len(seconds) / wall, 3)


def _unescape(match: re.Match[str]) -> str:
    return "\n" if match[1] == "n" else match[1]
