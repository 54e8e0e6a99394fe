"""A smoke report to start from, for tests."""

from __future__ import annotations

from typing import Any

from modelbake.report import Report

ASKED = "sha256:" + "3" * 64
IMAGE_ID = "sha256:" + "1" * 64


def document(**changes: Any) -> dict[str, Any]:
    """Return a passing report of minilm 1.0.0 as JSON, with some keys changed."""
    return {
        "schema": 1,
        "model": "minilm",
        "version": "1.0.0",
        "image_id": IMAGE_ID,
        "lock": "sha256:" + "2" * 64,
        "asked": ASKED,
        "request": None,
        "passed": True,
        "device": "cpu",
        "gpu": False,
        "started_at": "2025-01-31T12:00:00Z",
        "engine": {
            "version": "26.1.5",
            "api_version": "1.45",
            "os": "linux",
            "arch": "amd64",
            "store": "classic",
        },
        "load_seconds": 1.5,
        "ready_seconds": 2.25,
        "latency_seconds": {"p50": 0.01, "p95": 0.02, "max": 0.03},
        "throughput_per_second": 95.5,
        "image_bytes": 1000,
        "gpu_memory": None,
        "checks": [{"name": "ready", "passed": True, "expected": 200, "actual": 200, "seconds": 2.25}],
        "toolkit_version": "0.1.0",
        **changes,
    }


def report(**changes: Any) -> Report:
    """Return that report."""
    return Report.model_validate(document(**changes))
