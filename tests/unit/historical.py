"""A history of a model to start from, for tests."""

from __future__ import annotations

from typing import Any

from modelbake.history import Version
from modelbake.report import Report
from tests.unit.reporting import report

GPU = "cuda:NVIDIA H200"
REQUEST = "sha256:" + "4" * 64


def measured(
    version: str = "1.0.0",
    *,
    device: str = GPU,
    latency: float = 0.01,
    throughput: float = 100.0,
    load: float = 2.0,
    peak: float | None = 1000,
    **more: Any,
) -> Report:
    """Return a report with these figures."""
    gpu = device.startswith("cuda:")
    return report(
        **{
            "version": version,
            "request": REQUEST,
            "device": device,
            "gpu": gpu,
            "latency_seconds": {"p50": latency / 2, "p95": latency, "max": latency},
            "throughput_per_second": throughput,
            "load_seconds": load,
            "gpu_memory": {"torch_peak_bytes": peak, "driver_bytes": 5000} if gpu else None,
            **more,
        }
    )


def version(name: str, *reports: Report, released: bool = True, size: int = 5_000_000) -> Version:
    """Return a version with these reports."""
    digest = f"sha256:{hash(name) & 0xFFFF:064x}" if released else None
    return Version(name, digest, size if released else None, reports)


HISTORY = [  # the newest first
    version("2.1.0-rc.1", measured("2.1.0-rc.1", latency=0.005), released=False),
    version("2.0.0", measured("2.0.0", device="cpu", latency=0.4), measured("2.0.0", latency=0.02)),
    version("1.1.0"),
    version("1.0.0", measured("1.0.0", device="cpu", latency=0.3), measured("1.0.0", latency=0.01)),
]
