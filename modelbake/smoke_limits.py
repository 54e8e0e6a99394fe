"""What a model may need at most: the limits of models.yaml against what a smoke run measured. Pure.

A limit that could not be measured is not kept silently: the run fails, and says what is missing. Only GPU
memory on a CPU, where the model may run without a GPU, gets a warning in place of a verdict.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelbake.measurements import parse_metrics, summarize, total
from modelbake.quantity import bytes_of, size_text
from modelbake.verdict import Judged, judged

if TYPE_CHECKING:
    from modelbake.probing import Probed
    from modelbake.smokeentry import Limits

PREFIX = "limit: "
PEAK = "modelbake_gpu_memory_peak_bytes"
LOAD = "modelbake_load_seconds"
_ON_A_CPU = "the run was on a CPU"
_NO_REPEAT = "no request was repeated: a check that is meant to succeed has to be answered first"
_NO_ANSWER = "no repeated request was answered well"


@dataclass(frozen=True)
class LimitsJudged:
    """A verdict for each limit that is judged, in the order of models.yaml's schema, and what to warn of."""

    verdicts: tuple[Judged, ...]
    warnings: tuple[str, ...] = ()


def judge_limits(limits: Limits, measured: Probed, *, gpu: bool, require_gpu: bool) -> LimitsJudged:
    """Compare what was measured with the limits.

    Args:
        limits: what models.yaml says.
        measured: what the run found out at its end.
        gpu: the run was on a GPU.
        require_gpu: models.yaml wants a run on one.
    """
    samples = parse_metrics(measured.metrics or "")
    repeat = measured.repeat
    latency, throughput = summarize(repeat.seconds, repeat.wall) if repeat else (None, None)
    unanswered = _NO_ANSWER if repeat else _NO_REPEAT
    verdicts: list[Judged] = []
    warnings: list[str] = []
    if limits.max_gpu_memory is not None:
        if gpu or require_gpu:
            verdicts.append(_judge_memory(limits.max_gpu_memory, measured, gpu=gpu))
        else:
            warnings.append(f"{PREFIX}max_gpu_memory: not measured, because {_ON_A_CPU}")
    if limits.max_load_seconds is not None:
        missing = f"the server's /metrics has no {LOAD}"
        load = total(samples, LOAD)
        verdicts.append(_judge("max_load_seconds", load, "s", missing, at_most=limits.max_load_seconds))
    if limits.min_throughput is not None:
        least = limits.min_throughput
        verdicts.append(_judge("min_throughput", throughput, "answers/s", unanswered, at_least=least))
    if limits.max_latency is not None:
        p95 = latency.p95 if latency else None
        verdicts.append(_judge("max_latency", p95, "s (p95)", unanswered, at_most=limits.max_latency))
    return LimitsJudged(tuple(verdicts), tuple(warnings))


def _judge(
    name: str,
    came: float | None,
    unit: str,
    missing: str,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
) -> Judged:
    expected = {"at_most": at_most} if at_most is not None else {"at_least": at_least}
    words = f"at most {at_most:g} {unit}" if at_most is not None else f"at least {at_least:g} {unit}"
    if came is None:
        return _unmeasured(name, expected, words, missing)
    kept = (at_most is None or came <= at_most) and (at_least is None or came >= at_least)
    problem = f"expected {words}, got {came:g} {unit}"
    return judged(f"{PREFIX}{name}", expected, {"measured": came}, 0.0, () if kept else (problem,))


def _judge_memory(text: str, measured: Probed, *, gpu: bool) -> Judged:
    """Judge the server's own count of its peak, else what the driver says is taken of the GPUs given."""
    name, most = "max_gpu_memory", bytes_of(text)
    expected, words = {"at_most_bytes": most}, f"at most {text}"
    if not gpu:
        missing = f"{_ON_A_CPU}, and models.yaml says `require_gpu: true`"
        return _unmeasured(name, expected, words, missing)
    peak, source = total(parse_metrics(measured.metrics or ""), PEAK), "server"
    if peak is None:
        peak, source = measured.driver.memory_used_bytes if measured.driver else None, "driver"
    if peak is None:
        missing = f"neither does /metrics have {PEAK}, nor does nvidia-smi answer in the container"
        return _unmeasured(name, expected, words, missing)
    measured_bytes: dict[str, object] = {"measured_bytes": int(peak), "source": source}
    problem = f"expected {words}, got {size_text(int(peak))} (as the {source} counts)"
    return judged(f"{PREFIX}{name}", expected, measured_bytes, 0.0, (problem,) if peak > most else ())


def _unmeasured(name: str, expected: object, words: str, missing: str) -> Judged:
    problem = f"expected {words}, got no measurement ({missing})"
    return judged(f"{PREFIX}{name}", expected, {"not_measured": missing}, 0.0, (problem,))
