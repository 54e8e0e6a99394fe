"""From what a smoke run found out to its report. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelbake import __version__
from modelbake.expectations import Answer, Mismatch, judge
from modelbake.gpus import driver_trouble
from modelbake.measurements import label_of, parse_metrics, summarize, total
from modelbake.report import MOST_BYTES, CheckReport, EngineFacts, GpuMemory, Report

if TYPE_CHECKING:
    from modelbake.config import CheckSpec
    from modelbake.engine import EngineInfo, LocalImage
    from modelbake.probing import Probed, Repeat, Response

_DIGITS = 6
# An idle GPU's driver counts a few MiB; a CUDA context takes more than a hundred of them.
_IN_USE_BYTES = 64 << 20


@dataclass(frozen=True)
class Judged:
    """One check's entry in the report, and what is wrong in words: nothing where it passed."""

    report: CheckReport
    problems: tuple[str, ...] = ()


@dataclass
class Run:
    """What a run has found out so far.

    `taken` has the answers that are to be goldens, by name; `cuda` is the image's version of CUDA, if known.
    """

    checks: list[Judged] = field(default_factory=list)
    ready_seconds: float | None = None
    measured: Probed | None = None
    taken: dict[str, Any] = field(default_factory=dict)
    cuda: str = ""

    @property
    def failed(self) -> list[Judged]:
        """The checks that did not pass."""
        return [check for check in self.checks if not check.report.passed]


def answer_of(response: Response) -> Answer:
    """Return a probe's response as an answer to judge."""
    return Answer(
        response.status, response.body, response.seconds, error=response.error, truncated=response.truncated
    )


def judge_check(check: CheckSpec, response: Response, goldens: Mapping[str, Any]) -> Judged:
    """Compare an answer with what a check declares. `goldens` has the golden values by name."""
    outcome = judge(check.status, check.expect, answer_of(response), goldens)
    return judged(check.name, outcome.expected, outcome.actual, response.seconds, outcome.mismatches)


def judge_repeats(repeat: Repeat) -> Judged:
    """Every repetition of a request that is meant to succeed has to be answered well."""
    count = len(repeat.seconds) + repeat.errors
    expected, actual = {"answered": count}, {"answered": len(repeat.seconds)}
    wrong = Mismatch("good answers", str(count), str(len(repeat.seconds)))
    return judged("repeat", expected, actual, repeat.wall, (wrong,) if repeat.errors else ())


def judge_device(
    measured: Probed, log: str = "", cuda: str = "", *, require_gpu: bool = False
) -> Judged | None:
    """A server that was given a GPU has to use it: by its own word, or else by what the driver counts.

    Where neither shows it, that fails a run that requires a GPU; of another nothing is known: None.
    `log` is the container's, `cuda` the image's version of CUDA: PyTorch falls back to the CPU where the
    driver is too old for it, and says so only there.
    """
    said = label_of(parse_metrics(measured.metrics or ""), "modelbake_info", "device")
    used = measured.driver.memory_used_bytes if measured.driver else None
    expected = {"device": "cuda"}
    if said is None:
        actual = {"device": None, "driver_bytes": used}
        if used is not None and used >= _IN_USE_BYTES:
            return judged("gpu", expected, actual, 0.0)
        if not require_gpu:
            return None
        counts = "nothing" if used is None else f"{used:,} bytes in use"
        unseen = Mismatch(
            "the server's device",
            "cuda, because models.yaml says `require_gpu: true`",
            f"no sign of it (/metrics has no modelbake_info{{device}}, and the driver shows {counts})",
        )
        return judged("gpu", expected, actual, 0.0, (unseen,))
    wrong = not said.startswith("cuda")
    trouble = driver_trouble(log, cuda) if wrong else None
    why = f" ({trouble.message}; {trouble.hint})" if trouble else ""
    problem = Mismatch("the server's device", "cuda", f"{said}{why}")
    return judged("gpu", expected, {"device": said}, 0.0, (problem,) if wrong else ())


def judged(
    name: str, expected: Any, actual: Any, seconds: float, problems: tuple[Mismatch | str, ...] = ()
) -> Judged:
    """Return a check's verdict; it passed where there are no problems."""
    report = CheckReport(
        name=name,
        passed=not problems,
        expected=expected,
        actual=actual,
        seconds=round(seconds, _DIGITS),
    )
    return Judged(report, tuple(map(str, problems)))


def make_report(
    run: Run,
    image: LocalImage,
    engine: EngineInfo,
    *,
    model: str,
    version: str,
    lock: str,
    asked: str,
    request: str | None = None,
    started_at: str,
    gpu: bool,
) -> Report:
    """Put a run's report together. `started_at` is UTC; `gpu` tells whether the container was given one."""
    measured = run.measured
    samples = parse_metrics(measured.metrics or "") if measured else []
    driver = measured.driver if measured else None
    latency, throughput = None, None
    if measured and measured.repeat:
        latency, throughput = summarize(measured.repeat.seconds, measured.repeat.wall)
    memory = None
    if gpu and measured:
        peak = total(samples, "modelbake_gpu_memory_peak_bytes")
        memory = GpuMemory(
            torch_peak_bytes=None if peak is None or peak > MOST_BYTES else int(peak),
            driver_bytes=driver.memory_used_bytes if driver else None,
        )
    return Report(
        model=model,
        version=version,
        image_id=image.id,
        lock=lock,
        asked=asked,
        request=request if latency else None,
        passed=bool(run.checks) and not run.failed,
        device=device_of(run, gpu=gpu),
        gpu=gpu,
        started_at=started_at,
        engine=EngineFacts(
            version=engine.version,
            api_version=engine.api_version,
            os=engine.os,
            arch=engine.arch,
            store=engine.store,
        ),
        load_seconds=total(samples, "modelbake_load_seconds"),
        ready_seconds=run.ready_seconds,
        latency_seconds=latency,
        throughput_per_second=throughput,
        image_bytes=image.size,
        gpu_memory=memory,
        checks=tuple(check.report for check in run.checks),
        toolkit_version=__version__,
    )


def device_of(run: Run, *, gpu: bool) -> str:
    """Return what a run was on: `cpu` or `cuda:NAME OF THE GPU`."""
    driver = run.measured.driver if run.measured else None
    return f"cuda:{driver.gpu if driver else 'unknown'}" if gpu else "cpu"


def counted(checks: int) -> str:
    """Return a number of checks in words: `1 check`, `2 checks`."""
    return f"{checks} check{'' if checks == 1 else 's'}"


def failure_message(run: Run) -> str:
    """Return one line for each thing that is wrong with each failed check."""
    lines = [f"{len(run.failed)} of {counted(len(run.checks))} failed"]
    lines += [f"  {check.report.name}: {problem}" for check in run.failed for problem in check.problems]
    return "\n".join(lines)
