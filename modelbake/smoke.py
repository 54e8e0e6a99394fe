"""The smoke run: a built image started as production would, asked what models.yaml declares, and measured.

All requests are made by the image's own probe program, run inside the container: no port is published, so
it works with an engine on another machine and without a network. The container is gone afterwards, and the
report says what happened; a run that fails replaces an older report that says it passed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from modelbake import __version__
from modelbake.containers import ContainerSpec
from modelbake.errors import GpuUnavailable, NotReady, SmokeFailed
from modelbake.expectations import Mismatch, judge
from modelbake.measurements import label_of, parse_metrics, summarize, total
from modelbake.probing import Probed, RunningContainer, ask, shown_log, why_ended
from modelbake.report import (
    CheckReport,
    EngineFacts,
    GpuMemory,
    Report,
    discard_report,
    write_report,
)

if TYPE_CHECKING:
    from modelbake.config import CheckSpec, ModelSpec, SmokeSpec
    from modelbake.engine import Engine, EngineInfo, LocalImage
    from modelbake.output import Output

_READY_CHECK = "ready"
_REPEAT_CHECK = "repeat"
_GPU_CHECK = "gpu"
_POLL_SECONDS = 0.5
_HEALTH_SECONDS = 10.0  # for one answer; a server that is still loading may not answer at all
_ANSWER_SECONDS = 300.0  # for one declared request: a large model on a CPU takes its time


@dataclass(frozen=True)
class Judged:
    """One check's entry in the report, and what is wrong, nothing where it passed."""

    report: CheckReport
    mismatches: tuple[Mismatch, ...] = ()


@dataclass
class Run:
    """What has been found out so far; a run that breaks off has at least `checks`."""

    checks: list[Judged] = field(default_factory=list)
    ready_seconds: float | None = None
    measured: Probed | None = None
    log: str = ""

    @property
    def failed(self) -> list[Judged]:
        """The checks that did not pass."""
        return [check for check in self.checks if not check.report.passed]


def smoke(
    engine: Engine,
    model: ModelSpec,
    image: LocalImage,
    *,
    runtime_port: int,
    health: str,
    lock: str,
    reports: Path,
    output: Output,
) -> Report:
    """Run a built image, write REPORTS/MODEL/VERSION.json and return what it says.

    Args:
        engine: where the image is, and where it runs.
        model: its device and its declared checks.
        image: what to run.
        runtime_port: the port that its server listens on, inside.
        health: the path that answers 200 once the model does.
        lock: the digest of the weights' lock, for the report.
        reports: the folder of all reports.
        output: where progress goes.

    Raises:
        GpuUnavailable: the model needs a GPU; nothing was started, and an older report stays.
        NotReady: the container ended, or did not become ready in time; says why, with its log.
        SmokeFailed: checks failed; lists each of them.
    """
    gpu = wants_gpu(model.device, engine.info.gpu)
    # From here on an older report must not pass for this run, not even when the machine loses its power.
    discard_report(reports, model.name, model.version)
    output.event(
        "smoke_started",
        f"running {model.name} {model.version} on {'the GPU' if gpu else 'the CPU'}",
        model=model.name,
        version=model.version,
        image_id=image.id,
        gpu=gpu,
    )
    started_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    spec = ContainerSpec(image=image.id, name_prefix=f"modelbake-{model.name}", gpus="all" if gpu else None)
    run = Run()
    try:
        with engine.start(spec) as container:
            exercise(container, model.smoke, runtime_port, health, run, gpu=gpu, output=output)
    except NotReady:
        report = make_report(run, model, image, engine.info, lock=lock, started_at=started_at, gpu=gpu)
        write_report(reports, report)
        raise
    report = make_report(run, model, image, engine.info, lock=lock, started_at=started_at, gpu=gpu)
    path = write_report(reports, report)
    if not report.passed:
        raise SmokeFailed(failure_message(run), subject=f"{model.name} {model.version}", hint=f"see {path}")
    output.event(
        "smoke_passed",
        f"{model.name} {model.version} passed {len(report.checks)} checks on {report.device}",
        **report.model_dump(mode="json", by_alias=True, exclude={"checks"}),
    )
    return report


def wants_gpu(device: str, engine_has_gpu: bool) -> bool:
    """Tell whether a model runs on a GPU here. Raises GpuUnavailable where it must and there is none."""
    if device == "cuda" and not engine_has_gpu:
        raise GpuUnavailable(
            "the model says `device: cuda`, and this engine has no GPU",
            hint="set DOCKER_HOST to an engine with the NVIDIA container toolkit,"
            " or write `device: any` to allow a CPU",
        )
    return device in ("cuda", "any") and engine_has_gpu


def exercise(
    container: RunningContainer,
    smoke: SmokeSpec,
    port: int,
    health: str,
    run: Run,
    *,
    gpu: bool,
    output: Output,
) -> None:
    """Wait until the container is ready, ask it everything, measure it; `run` holds what was found out."""
    run.ready_seconds = _wait(container, smoke.startup_seconds, port, health, run)
    output.event("smoke_ready", f"ready after {run.ready_seconds:.1f} s", seconds=run.ready_seconds)
    for check in smoke.checks:
        run.checks.append(judged := _carry_out(container, check, port))
        words = "; ".join(map(str, judged.mismatches)) or "as expected"
        output.event(
            "smoke_check",
            f"{check.name}: {words} ({judged.report.seconds:.3f} s)",
            level="error" if judged.mismatches else "info",
            check=check.name,
            passed=judged.report.passed,
            seconds=judged.report.seconds,
        )
    # Only a request that is meant to succeed says something about speed.
    repeated = next((check for check in smoke.checks if 200 <= check.status < 300), None)
    count = smoke.requests if repeated else 0
    run.measured = ask(
        container,
        port,
        [_request(repeated)] if repeated else [],
        repeat=count,
        timeout=_ANSWER_SECONDS,
    )
    if repeated and run.measured.repeat is not None:
        run.checks.append(judge_repeats(count, run.measured.repeat.errors, run.measured.repeat.wall))
    if gpu:
        run.checks.append(judge_gpu(run.measured))
    run.log = container.logs()


def _wait(
    container: RunningContainer, limit: float, port: int, health: str, run: Run
) -> float:
    """Poll the health path until it answers 200; return the seconds it took."""
    started = time.monotonic()
    last = "nothing"
    request = {"method": "GET", "path": health}
    expected = {"status": 200}

    def give_up(problem: str, hint: str = "") -> NotReady:
        seconds = round(time.monotonic() - started, 3)
        actual = {"last_answer": last, "problem": problem}
        run.checks.append(Judged(CheckReport(name=_READY_CHECK, passed=False, expected=expected, actual=actual, seconds=seconds)))
        return NotReady(f"{problem}{shown_log(container.logs())}", hint=hint)

    while True:
        state = container.state()
        if not state.running:
            problem, hint = why_ended(state, container.logs())
            raise give_up(problem, hint)
        left = limit - (time.monotonic() - started)
        if left <= 0:
            raise give_up(
                f"not ready within {limit:g} s; the last answer to GET {health} was: {last}",
                "is `smoke: startup_seconds` too short for this model on this machine?",
            )
        if (probed := _while_running(container, port, request, min(left, _HEALTH_SECONDS))) is not None:
            answer = probed.responses[0]
            if answer.status == 200:
                seconds = round(time.monotonic() - started, 3)
                report = CheckReport(name=_READY_CHECK, passed=True, expected=expected, actual=expected, seconds=seconds)
                run.checks.append(Judged(report))
                return seconds
            last = answer.error or f"HTTP {answer.status}"
        time.sleep(min(_POLL_SECONDS, max(left, 0)))
