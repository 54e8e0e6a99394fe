"""What a smoke run does with a started container: waits for it, asks it, measures it, judges what came.

All requests go through the image's own probe, inside the container.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from modelbake.errors import EngineError, NotReady, SmokeError
from modelbake.golden_update import taken
from modelbake.gpus import driver_trouble
from modelbake.probing import Probed, RunningContainer, ask, short, shown_log, why_ended
from modelbake.smoke_limits import judge_limits
from modelbake.verdict import (
    Judged,
    Run,
    answer_of,
    judge_check,
    judge_device,
    judge_repeats,
    judged,
)

if TYPE_CHECKING:
    from modelbake.config import CheckSpec, SmokeSpec
    from modelbake.output import Output

_POLL_SECONDS = 0.5
_HEALTH_SECONDS = 10.0  # for one answer; a server that is still loading may not answer at all
_ANSWER_SECONDS = 300.0  # for one declared request: a large model on a CPU takes its time
_MEASURING_SECONDS = 600.0  # for all repetitions; what a slow model has answered by then is measured
_ENDING_SECONDS = 2.0  # how long after its process the engine may still call a container running


def exercise(
    container: RunningContainer,
    smoke: SmokeSpec,
    port: int,
    health: str,
    run: Run,
    *,
    gpu: bool,
    output: Output,
    goldens: Mapping[str, Any] | None,
) -> None:
    """Wait until a started container is ready, ask and measure it; all that is found out goes into `run`.

    `goldens` has the golden values by name; where it is None, each answer is taken for its own golden.
    Raises NotReady where it ends or does not become ready; `run` then has a failed check that says so.
    """
    run.ready_seconds = _wait(container, smoke.startup_seconds, port, health, run)
    output.event("smoke_ready", f"ready after {run.ready_seconds:.1f} s", seconds=run.ready_seconds)
    if not smoke.checks:
        output.event(
            "smoke_without_checks",
            f"models.yaml declares no checks (`smoke: checks`): {health} is all that was asked",
            level="warning",
        )
    answering = True
    for check in smoke.checks:
        probed = _ask(container, port, [_request(check)], run, check.name)
        if goldens is None:
            run.taken |= taken(check, answer_of(probed.responses[0]))
        verdict = judge_check(check, probed.responses[0], run.taken if goldens is None else goldens)
        answering = answering and probed.responses[0].error is None
        run.checks.append(verdict)
        _tell(verdict, output)
    # Only a server that answers says something about its speed.
    repeated = smoke.meant_to_succeed if answering else None
    run.measured = _measure(container, repeated, smoke.requests, port, run, output)
    verdicts = [judge_repeats(run.measured.repeat)] if run.measured.repeat else []
    if gpu:
        device = judge_device(run.measured, container.logs(), run.cuda, require_gpu=smoke.require_gpu)
        verdicts += [device] if device else []
        if device is None:
            output.event(
                "gpu_not_seen",
                "gpu: not checked: /metrics has no modelbake_info{device}, and the driver no use of a GPU",
                level="warning",
            )
    limits = judge_limits(smoke.limits, run.measured, gpu=gpu, require_gpu=smoke.require_gpu)
    for verdict in (*verdicts, *limits.verdicts):
        run.checks.append(verdict)
        _tell(verdict, output)
    for warning in limits.warnings:
        output.event("limit_not_measured", warning, level="warning")


def _measure(
    container: RunningContainer,
    check: CheckSpec | None,
    times: int,
    port: int,
    run: Run,
    output: Output,
) -> Probed:
    """Send a check's request again and again, if there is one, then ask for the server's metrics."""
    if check is None:
        return _ask(container, port, [], run, "metrics")
    output.event(
        "smoke_measuring",
        f"{check.name}: is asked {times} times more, for {_MEASURING_SECONDS:g} s at most",
        check=check.name,
        requests=times,
        seconds=_MEASURING_SECONDS,
    )
    probed = _ask(container, port, [_request(check)], run, "repeat", times)
    if probed.repeat and (asked := len(probed.repeat.seconds) + probed.repeat.errors) < times:
        output.event(
            "smoke_measured_less",
            f"repeat: {asked} of {times} requests took {probed.repeat.wall:.0f} s; the others were not sent",
            level="warning",
            requests=asked,
        )
    return probed


def _wait(container: RunningContainer, limit: float, port: int, health: str, run: Run) -> float:
    """Ask the health path until it answers 200; return the seconds that took."""
    started = time.monotonic()
    last = "nothing"

    def not_ready(problem: str, hint: str) -> NotReady:
        seconds = time.monotonic() - started
        run.checks.append(judged("ready", {"status": 200}, {"last_answer": last}, seconds, (problem,)))
        return NotReady(problem + shown_log(container.logs()), hint=hint)

    while True:
        state = container.state()
        if not state.running:
            raise not_ready(*why_ended(state, container.logs(), run.cuda))
        left = limit - (time.monotonic() - started)
        if left <= 0:
            problem = f"it was not ready within {limit:g} s; GET {health} last answered {last}"
            if trouble := driver_trouble(container.logs(), run.cuda):
                raise not_ready(f"{problem}; {trouble.message}", trouble.hint)
            raise not_ready(problem, "raise `smoke: startup_seconds` if the model takes longer here")
        try:
            request = {"method": "GET", "path": health}
            probed = ask(container, port, [request], timeout=min(max(left, 1.0), _HEALTH_SECONDS))
        except (EngineError, SmokeError):
            if _still_runs(container):
                raise
            continue
        answer = probed.responses[0]
        if answer.status == 200 and answer.error is None:
            seconds = round(time.monotonic() - started, 3)
            run.checks.append(judged("ready", {"status": 200}, {"status": 200}, seconds))
            return seconds
        last = short(answer)
        time.sleep(_POLL_SECONDS)


def _ask(
    container: RunningContainer,
    port: int,
    requests: Sequence[Mapping[str, Any]],
    run: Run,
    name: str,
    repeat: int = 0,
) -> Probed:
    """Ask a container that was ready; where it has ended, say so rather than that it could not be asked."""
    cause: Exception | None = None
    try:
        probed = ask(
            container, port, requests, timeout=_ANSWER_SECONDS, repeat=repeat, limit=_MEASURING_SECONDS
        )
        if not any(response.error for response in probed.responses) or _still_runs(container):
            return probed
    except (EngineError, SmokeError) as error:
        if _still_runs(container):
            raise
        cause = error
    log = container.logs()
    problem, hint = why_ended(container.state(), log, run.cuda)
    problem = f"while answering {name}: {problem}"
    run.checks.append(judged(name, {"running": True}, {"running": False}, 0.0, (problem,)))
    raise NotReady(problem + shown_log(log), hint=hint) from cause


def _still_runs(container: RunningContainer) -> bool:
    deadline = time.monotonic() + _ENDING_SECONDS
    while container.state().running:
        if time.monotonic() > deadline:
            return True
        time.sleep(0.1)
    return False


def _request(check: CheckSpec) -> dict[str, Any]:
    request: dict[str, Any] = {"method": check.method, "path": check.path}
    return request if check.body is None else request | {"body": check.body}


def _tell(verdict: Judged, output: Output) -> None:
    report = verdict.report
    output.event(
        "smoke_check",
        f"{report.name}: {'; '.join(verdict.problems) or 'as expected'} ({report.seconds:.3f} s)",
        level="error" if verdict.problems else "info",
        check=report.name,
        passed=report.passed,
        seconds=report.seconds,
    )
