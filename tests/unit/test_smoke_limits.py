from __future__ import annotations

import json
from typing import Any

import pytest

from modelbake.probing import Driver, Probed, Repeat
from modelbake.smoke_limits import LimitsJudged, judge_limits
from modelbake.smokeentry import Limits

GB = 10**9
METRICS = f"modelbake_load_seconds 12.5\nmodelbake_gpu_memory_peak_bytes {5 * GB}\n"


def probed(
    metrics: str | None = METRICS, repeat: Repeat | None = None, driver: Driver | None = None
) -> Probed:
    return Probed(responses=(), repeat=repeat, metrics=metrics, driver=driver)


def repeat(*seconds: float, wall: float = 2.0) -> Repeat:
    return Repeat(seconds=seconds, wall=wall, errors=0)


def judge(measured: Probed, *, gpu: bool = True, require_gpu: bool = False, **limits: Any) -> LimitsJudged:
    return judge_limits(Limits(**limits), measured, gpu=gpu, require_gpu=require_gpu)


@pytest.mark.parametrize(
    ("limits", "measured", "problem"),
    [
        ({"max_load_seconds": 12.5}, probed(), None),
        ({"max_load_seconds": 12.0}, probed(), "expected at most 12 s, got 12.5 s"),
        (
            {"max_load_seconds": 12.0},
            probed(None),
            "(the server's /metrics has no modelbake_load",
        ),
        ({"max_load_seconds": 12.0}, probed("modelbake_load_seconds NaN\n"), "no measurement"),
        ({"min_throughput": 2.0}, probed(repeat=repeat(0.1, 0.2, 0.1, 0.2)), None),
        (
            {"min_throughput": 2.5},
            probed(repeat=repeat(0.1, 0.2, 0.1, 0.2)),
            "at least 2.5 answers/s, got 2 answ",
        ),
        ({"min_throughput": 2.0}, probed(), "no request was repeated"),
        ({"min_throughput": 2.0}, probed(repeat=repeat()), "no repeated request was answered well"),
        ({"max_latency": 0.2}, probed(repeat=repeat(0.1, 0.2)), None),
        (
            {"max_latency": 0.1},
            probed(repeat=repeat(0.1, 0.2)),
            "at most 0.1 s (p95), got 0.2 s (p95)",
        ),
        ({"max_latency": 0.1}, probed(repeat=repeat(*[0.05] * 19, 9.0)), None),
        ({"max_latency": 0.1}, probed(), "no request was repeated"),
        ({"max_gpu_memory": "5 GB"}, probed(), None),
        (
            {"max_gpu_memory": "4.9 GB"},
            probed(),
            "expected at most 4.9 GB, got 5.00 GB (as the server counts)",
        ),
        ({"max_gpu_memory": "6 GB"}, probed("", driver=Driver(gpu="H", memory_used_bytes=5 * GB)), None),
        (
            {"max_gpu_memory": "4 GB"},
            probed("", driver=Driver(gpu="H", memory_used_bytes=5 * GB)),
            "got 5.00 GB (as the driver counts)",
        ),
        ({"max_gpu_memory": "4 GB"}, probed(""), "no measurement (neither does /metrics have"),
        (
            {"max_gpu_memory": "4 GB"},
            probed("", driver=Driver(gpu="H", memory_used_bytes=None)),
            "no measurement (neither",
        ),
    ],
)
def test_a_limit_is_kept_or_fails(limits: dict[str, Any], measured: Probed, problem: str | None) -> None:
    made = judge(measured, **limits)
    (verdict,) = made.verdicts
    (name,) = limits
    assert verdict.report.name == f"limit: {name}"
    assert verdict.report.passed is (problem is None), verdict.problems
    assert problem is None or problem in verdict.problems[0]
    assert made.warnings == ()
    json.dumps([verdict.report.expected, verdict.report.actual])


def test_the_report_says_what_was_measured() -> None:
    made = judge(
        probed(repeat=repeat(0.5, 0.5)),
        max_gpu_memory="1 GB",
        max_load_seconds=60,
        min_throughput=0.5,
        max_latency=1,
    )
    assert [(v.report.name, v.report.expected, v.report.actual, v.report.passed) for v in made.verdicts] == [
        (
            "limit: max_gpu_memory",
            {"at_most_bytes": GB},
            {"measured_bytes": 5 * GB, "source": "server"},
            False,
        ),
        ("limit: max_load_seconds", {"at_most": 60.0}, {"measured": 12.5}, True),
        ("limit: min_throughput", {"at_least": 0.5}, {"measured": 1.0}, True),
        ("limit: max_latency", {"at_most": 1.0}, {"measured": 0.5}, True),
    ]


def test_gpu_memory_on_a_cpu_is_not_passed_in_silence() -> None:
    made = judge(probed(), gpu=False, max_gpu_memory="1 GB")
    assert made.verdicts == ()
    assert made.warnings == ("limit: max_gpu_memory: not measured, because the run was on a CPU",)
    made = judge(probed(), gpu=False, require_gpu=True, max_gpu_memory="1 GB")
    (verdict,) = made.verdicts
    assert not verdict.report.passed
    assert "models.yaml says `require_gpu: true`" in verdict.problems[0]
    assert made.warnings == ()


def test_without_limits_nothing_is_judged() -> None:
    assert judge(probed(None)) == LimitsJudged(())
