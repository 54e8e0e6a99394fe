"""The figures of a report: their names, units, which way is better, and how they are written. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from modelbake.report import Report

Unit = Literal["s", "bytes", "/s"]
_Amount = Callable[[Report], float | None]
_BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


@dataclass(frozen=True)
class Figure:
    """One figure. `sources`: where a report may have it, the best one first.

    `of_request`: it says something about another version's only where both asked the same request.
    """

    key: str
    label: str
    unit: Unit
    sources: tuple[_Amount, ...]
    more_is_better: bool = False
    of_request: bool = False

    def of(self, report: Report) -> float | None:
        """Return a report's figure, None where it was not measured."""
        return next((value for source in self.sources if (value := source(report)) is not None), None)

    def pair(self, before: Report, now: Report) -> tuple[float, float] | None:
        """Return two reports' figures of one source, None where they have none in common."""
        for source in self.sources:
            first, second = source(before), source(now)
            if first is not None and second is not None:
                return first, second
        return None

    def shown(self, value: float | None) -> str:
        """Return a value with its unit, `-` for none."""
        return shown(value, self.unit)


LOAD = Figure("load", "load time", "s", (lambda report: report.load_seconds,))
READY = Figure("ready", "ready after", "s", (lambda report: report.ready_seconds,))
LATENCY = Figure(
    "latency",
    "latency p95",
    "s",
    (lambda report: report.latency_seconds.p95 if report.latency_seconds else None,),
    of_request=True,
)
MEDIAN = Figure(
    "latency_p50",
    "latency p50",
    "s",
    (lambda report: report.latency_seconds.p50 if report.latency_seconds else None,),
    of_request=True,
)
THROUGHPUT = Figure(
    "throughput",
    "throughput",
    "/s",
    (lambda report: report.throughput_per_second,),
    more_is_better=True,
    of_request=True,
)
GPU_MEMORY = Figure(
    "gpu_memory",
    "peak GPU memory",
    "bytes",
    (
        # As the server counts it; servers that do not count leave what the driver says of all visible GPUs.
        lambda report: report.gpu_memory.torch_peak_bytes if report.gpu_memory else None,
        lambda report: report.gpu_memory.driver_bytes if report.gpu_memory else None,
    ),
)
FIGURES = (LOAD, READY, MEDIAN, LATENCY, THROUGHPUT, GPU_MEMORY)


def shown(value: float | None, unit: Unit) -> str:
    """Return an amount for people: three significant digits, in the unit that fits. `-` for none."""
    if value is None:
        return "-"
    if unit == "bytes":
        size, name = next(((size, name) for size, name in _BYTES if value >= size), (1.0, "bytes"))
        return f"{_digits(value / size)} {name}"
    if unit == "s":
        return f"{_digits(value)} s" if value >= 1 or value == 0 else f"{_digits(value * 1000)} ms"
    return f"{_digits(value)}/s"


def _digits(value: float) -> str:
    """Return a number with three significant digits, and none after the point from 100 on."""
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
