"""The smoke run: a built image started as production would, asked what models.yaml declares, and measured.

All requests are made by the image's own probe program, inside the container: no port is published, so it
works with an engine on another machine and without a network. The container is gone afterwards, and the
report says what happened; a run that fails replaces an older report that says that one passed.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from modelbake.containers import ContainerSpec
from modelbake.diskspace import telling_need
from modelbake.errors import GpuUnavailable, NotReady, SmokeFailed, UsageError
from modelbake.exercise import exercise
from modelbake.golden_update import changes, updated
from modelbake.goldens import (
    Goldens,
    read_goldens,
    remedy,
    require_goldens,
    wanted_goldens,
    write_goldens,
)
from modelbake.gpus import ALL, Gpus
from modelbake.probing import shown_log
from modelbake.report import Report, asked_of, discard_report, request_of, write_report
from modelbake.verdict import Run, counted, device_of, failure_message, make_report
from modelbake.verifying import watch

if TYPE_CHECKING:
    from modelbake.config import ModelSpec
    from modelbake.engine import Engine, LocalImage
    from modelbake.output import Output


def smoke(
    engine: Engine,
    model: ModelSpec,
    image: LocalImage,
    *,
    runtime_port: int | None,
    health: str | None,
    lock: str,
    reports: Path,
    goldens: Path,
    output: Output,
    update_goldens: bool = False,
    gpus: Gpus | None = None,
    cuda: str = "",
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
        goldens: the folder of all golden answers.
        output: where progress goes.
        update_goldens: take the answers of a run that passes otherwise as goldens, whatever was there.
        gpus: the GPUs that it is given, all of them where nothing is said.
        cuda: the image's version of CUDA, as far as it is known; for messages.

    Raises:
        UsageError: GPUs are named for a model that runs without.
        GpuUnavailable: the model needs a GPU; nothing was started, and an older report stays. Or the engine
            cannot give it these, or the driver is too old for the image.
        GoldenError: a golden is missing or answers another request; likewise.
        NotReady: the container ended, or did not become ready in time; says why, with its log.
        SmokeFailed: checks failed; lists each of them, with the container's log.
        SmokeError, EngineError: the run could not be carried out; there is no report then.
    """
    serves = runtime_port is not None and health is not None
    gpu = wants_gpu(model, engine.info.gpu, gpus, serves=serves)
    kept = read_goldens(goldens, model.name)
    if not update_goldens:
        require_goldens(model, kept, goldens)
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
        so = "nothing is pushed on its report" if model.smoke.require_gpu else "the report will say so"
        output.event("smoke_without_gpu", f"this engine has no GPU: {so}", level="warning")
    others = "" if update_goldens else _whose(model, kept, lock)
    if others:
        output.event("goldens_of_others", f"{others}; they are compared all the same", level="warning")
    started_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    run = Run(cuda=cuda)
    subject = f"{model.name} {model.version}"
    log = ""
    used = kept

    def report() -> Report:
        made = make_report(
            run,
            image,
            engine.info,
            model=model.name,
            version=model.version,
            lock=lock,
            asked=asked_of(model, used.values),
            request=request_of(model),
            started_at=started_at,
            gpu=gpu,
        )
        write_report(reports, made)
        return made

    for name in engine.remove_leftovers():
        output.event(
            "leftover_removed", f"removed {name}, which a run that was killed has left", container=name
        )
    given = gpus or ALL
    spec = ContainerSpec(
        image=image.id,
        name_prefix=f"modelbake-{model.name}",
        # Whatever its later starts compare: this one decides whether the version may be released.
        environment={"MODELBAKE_VERIFY": "full"},
        gpus=given if gpu else None,
    )
    try:
        with (
            telling_need(engine, "a container needs a few MB for its files and log"),
            engine.start(spec) as container,
        ):
            if runtime_port is None or health is None:
                watch(container, model.smoke.startup_seconds, run)
            else:
                exercise(
                    container,
                    model.smoke,
                    runtime_port,
                    health,
                    run,
                    gpu=gpu,
                    output=output,
                    goldens=None if update_goldens else kept.values,
                )
            if run.failed:
                log = container.logs()
    except NotReady as error:
        error.subject = subject
        report()
        raise
    if update_goldens and not run.failed:
        used = updated(model, run.taken, lock=lock, device=device_of(run, gpu=gpu))
        path = write_goldens(goldens, model.name, used)
        for change in changes(kept, used):
            output.event("golden", f"{path}: {change}", model=model.name)
    finished = report()
    if run.failed:
        hint = "" if update_goldens else _golden_hint(model, run, others)
        raise SmokeFailed(failure_message(run) + shown_log(log), subject=subject, hint=hint)
    output.event(
        "smoke_passed",
        f"{subject} passed {counted(len(finished.checks))} on {finished.device}",
        **finished.model_dump(mode="json", by_alias=True, exclude={"checks"}),
    )
    return finished


def wants_gpu(
    model: ModelSpec, engine_has_gpu: bool, gpus: Gpus | None = None, *, serves: bool = True
) -> bool:
    """Tell whether a model runs on a GPU here. `gpus` are the ones that somebody asked for by name.

    What does not serve only verifies its weights, and never uses one.

    Raises:
        GpuUnavailable: it must, or somebody asked for GPUs, and there is none.
        UsageError: somebody asked for GPUs, and the model runs without.
    """
    subject = f"{model.name} {model.version}"
    if gpus is not None and (model.device == "cpu" or not serves):
        why = "the model says `device: cpu`" if serves else "the model's runtime serves nothing"
        raise UsageError(f"--gpus names GPUs, and {why}", subject=subject, hint="leave --gpus out")
    if not serves:
        return False
    if gpus is not None and gpus.cdi:
        return True  # of a remote engine before 28 nobody knows its CDI names; it says itself what is wrong
    if engine_has_gpu:
        return model.device != "cpu"
    if model.device == "cuda" or gpus is not None:
        asks = "the model says `device: cuda`" if model.device == "cuda" else "--gpus names GPUs"
        raise GpuUnavailable(
            f"{asks}, and this engine has no GPU",
            subject=subject,
            hint="set DOCKER_HOST to an engine with the NVIDIA container toolkit,"
            + (
                " or write `device: any` to allow a CPU" if model.device == "cuda" else " or leave --gpus out"
            ),
        )
    return False


def _whose(model: ModelSpec, goldens: Goldens, lock: str) -> str:
    """Return that the goldens of a model are other weights' answers, "" where they are these weights'."""
    if not wanted_goldens(model) or goldens.lock == lock:
        return ""
    return f"the goldens were made of other weights (their lock was {goldens.lock}, and is {lock} now)"


def _golden_hint(model: ModelSpec, run: Run, others: str) -> str:
    """Return what to do about answers that are not the golden ones, "" where none of these failed."""
    failed = {check.report.name for check in run.failed}
    if not any(check.name in failed and check.goldens for check in model.smoke.checks):
        return ""
    return f"{others or 'if the new answers are right'}: {remedy(model.name)} takes them"
