"""The smoke run: a built image started as production would, asked what models.yaml declares, and measured.

All requests are made by the image's own probe program, inside the container: no port is published, so it
works with an engine on another machine and without a network. The container is gone afterwards, and the
report says what happened; a run that fails replaces an older report that says that one passed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelbake.containers import ContainerSpec
from modelbake.errors import EngineError, GpuUnavailable, NotReady, SmokeError, SmokeFailed
from modelbake.probing import Probed, RunningContainer, ask, short, shown_log, why_ended
from modelbake.report import (
    Report,
    asked_of,
    discard_report,
    measured_check,
    request_of,
    write_report,
)
from modelbake.verdict import (
    Judged,
    Run,
    counted,
    failure_message,
    judge_check,
    judge_device,
    judge_repeats,
    judged,
    make_report,
)
from modelbake.verifying import watch

if TYPE_CHECKING:
    from modelbake.config import CheckSpec, ModelSpec, SmokeSpec
    from modelbake.engine import Engine, LocalImage
    from modelbake.output import Output

_POLL_SECONDS = 0.5
_HEALTH_SECONDS = 10.0  # for one answer; a server that is still loading may not answer at all
_ANSWER_SECONDS = 300.0  # for one declared request: a large model on a CPU takes its time
_MEASURING_SECONDS = 600.0  # for all repetitions; what a slow model has answered by then is measured
_ENDING_SECONDS = 2.0  # how long after its process the engine may still call a container running


def smoke(
    engine: Engine,
    model: ModelSpec,
    image: LocalImage,
    *,
    runtime_port: int | None,
    health: str | None,
    lock: str,
    reports: Path,
    output: Output,
) -> Report:
    """Run a built image, write REPORTS/MODEL/VERSION.json and return what it says.

    Args:
        engine: where the image is, and where it runs.
        model: its device and its declared checks.
        image: what to run.
        runtime_port: the port that its server listens on, inside; None where it only verifies its weights.
        health: the path that answers 200 once the model does; None where there is no server.
        lock: the digest of the weights' lock, for the report.
        reports: the folder of all reports.
        output: where progress goes.

    Raises:
        GpuUnavailable: the model needs a GPU; nothing was started, and an older report stays.
        NotReady: the container ended, or did not become ready in time; says why, with its log.
        SmokeFailed: checks failed; lists each of them, with the container's log.
        SmokeError, EngineError: the run could not be carried out; there is no report then.
    """
    serves = runtime_port is not None and health is not None
    gpu = serves and wants_gpu(model, engine.info.gpu)
    # From here on an older report must not pass for this run, not even when the machine loses its power.
    discard_report(reports, model.name, model.version)
    where = "the GPU" if gpu else "the CPU"
    output.event(
        "smoke_started",
        f"running {model.name} {model.version} on {where}",
        model=model.name,
        version=model.version,
        image_id=image.id,
        gpu=gpu,
    )
    if serves and not gpu and model.device == "any":
        output.event("smoke_without_gpu", "this engine has no GPU: the report will say so", level="warning")
    started_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    run = Run()
    subject = f"{model.name} {model.version}"
    log = ""

    def report() -> Report:
        made = make_report(
            run,
            image,
            engine.info,
            model=model.name,
            version=model.version,
            lock=lock,
            asked=asked_of(model),
            request=request_of(model),
            started_at=started_at,
            gpu=gpu,
        )
        write_report(reports, made)
        return made

    spec = ContainerSpec(image=image.id, name_prefix=f"modelbake-{model.name}", gpus="all" if gpu else None)
    try:
        with engine.start(spec) as container:
            if runtime_port is None or health is None:
                watch(container, model.smoke.startup_seconds, run)
            else:
                exercise(container, model.smoke, runtime_port, health, run, gpu=gpu, output=output)
            if run.failed:
                log = container.logs()
    except NotReady as error:
        error.subject = subject
        report()
        raise
    finished = report()
    if run.failed:
        raise SmokeFailed(failure_message(run) + shown_log(log), subject=subject)
    output.event(
        "smoke_passed",
        f"{subject} passed {counted(len(finished.checks))} on {finished.device}",
        **finished.model_dump(mode="json", by_alias=True, exclude={"checks"}),
    )
    return finished


def wants_gpu(model: ModelSpec, engine_has_gpu: bool) -> bool:
    """Tell whether a model runs on a GPU here. Raises GpuUnavailable where it must and there is none."""
    if model.device == "cuda" and not engine_has_gpu:
        raise GpuUnavailable(
            "the model says `device: cuda`, and this engine has no GPU",
            subject=f"{model.name} {model.version}",
            hint="set DOCKER_HOST to an engine with the NVIDIA container toolkit,"
            " or write `device: any` to allow a CPU",
        )
    return model.device != "cpu" and engine_has_gpu


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
    """Wait until a started container is ready, ask and measure it; all that is found out goes into `run`.

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
        verdict = judge_check(check, probed.responses[0])
        answering = answering and probed.responses[0].error is None
        run.checks.append(verdict)
        _tell(verdict, output)
    # Only a request that is meant to succeed says something about speed, and only of a server that answers.
    run.measured = _measure(
        container, measured_check(smoke.checks) if answering else None, smoke.requests, port, run, output
    )
    verdicts = [judge_repeats(run.measured.repeat)] if run.measured.repeat else []
    verdicts += [judge_device(run.measured)] if gpu else []
    for verdict in verdicts:
        run.checks.append(verdict)
        _tell(verdict, output)


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
            raise not_ready(*why_ended(state, container.logs()))
        left = limit - (time.monotonic() - started)
        if left <= 0:
            raise not_ready(
                f"it was not ready within {limit:g} s; GET {health} last answered {last}",
                "raise `smoke: startup_seconds` if the model takes longer than that here",
            )
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
    problem, hint = why_ended(container.state(), log)
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
