"""Whether a version got worse than the last released one: two reports, and how much models.yaml tolerates.

Judged where a version is about to be released, by `push` and `publish`: the registry has the earlier
report, and a smoke run alone needs no registry. Nothing is compared that models.yaml does not name, because
figures of a busy machine are noise; and only figures of the same device, and of the same request, say
anything about each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelbake.errors import PerformanceRegressed
from modelbake.figures import GPU_MEMORY, LATENCY, LOAD, THROUGHPUT, Figure
from modelbake.report import Report
from modelbake.reportstore import kept_reports
from modelbake.versiontag import precedence, released_versions

if TYPE_CHECKING:
    from modelbake.output import Output
    from modelbake.smokeentry import ToleranceEntry
    from modelbake.stream.repository import RegistryRepository

_TOLERATED = (LATENCY, THROUGHPUT, LOAD, GPU_MEMORY)  # each has a key of its name in `smoke: tolerance`
_ROUNDING = 1e-9  # 20% more than 0.01 s are 0.012 s, whatever binary fractions make of it
_MOST_VERSIONS = 10  # that are looked through for a report of the same device


@dataclass(frozen=True)
class Judgement:
    """What of two reports is worse than tolerated, what is not, and what cannot be compared: a line each."""

    worse: tuple[str, ...]
    tolerated: tuple[str, ...]
    unjudged: tuple[str, ...]


def judge(tolerance: ToleranceEntry, before: Report, now: Report) -> Judgement:
    """Compare two reports of one device. Pure."""
    worse: list[str] = []
    tolerated: list[str] = []
    unjudged: list[str] = []
    for figure in _TOLERATED:
        percent = getattr(tolerance, figure.key)
        if percent is None:
            continue
        pair = figure.pair(before, now)
        if figure.of_request and before.request != now.request:
            unjudged.append(f"{figure.label}: the two versions were asked different requests")
        elif pair is None:
            unjudged.append(f"{figure.label}: not measured in both versions")
        else:
            line = (
                f"{figure.label}: {figure.shown(pair[1])}, {before.version} had {figure.shown(pair[0])}"
                f" ({change(*pair)}, {percent} {'less' if figure.more_is_better else 'more'} is tolerated)"
            )
            allowed = is_within(figure, *pair, float(percent.removesuffix("%")) / 100)
            (tolerated if allowed else worse).append(line)
    return Judgement(tuple(worse), tuple(tolerated), tuple(unjudged))


def is_within(figure: Figure, before: float, now: float, tolerated: float) -> bool:
    """Tell whether a figure got worse by no more than a fraction of what it was."""
    slack = before * _ROUNDING
    if figure.more_is_better:
        return now >= before * (1 - tolerated) - slack
    return now <= before * (1 + tolerated) + slack


def change(before: float, now: float) -> str:
    """Return a change in percent of what was: `+25.0%`."""
    if before == now:
        return "unchanged"
    if before == 0:
        return "was 0"
    return f"{(now / before - 1) * 100:+.1f}%"


class Gate:
    """What a version of a model has to stand up to before its release; asks the registry once a device."""

    def __init__(
        self,
        repository: RegistryRepository,
        model: str,
        version: str,
        tolerance: ToleranceEntry,
        output: Output,
    ) -> None:
        self._repository = repository
        self._model = model
        self._version = version
        self._tolerance = tolerance
        self._output = output
        self._before: dict[str, Report | None] = {}

    @property
    def is_open(self) -> bool:
        """Whether models.yaml tolerates everything."""
        return all(getattr(self._tolerance, figure.key) is None for figure in _TOLERATED)

    def lets_pass(self, report: Report) -> bool:
        """Tell whether a report is good enough, without a word. Raises RegistryError."""
        before = None if self.is_open else self._find(report.device)
        return before is None or not judge(self._tolerance, before, report).worse

    def require(self, report: Report) -> None:
        """Raise PerformanceRegressed for a report that is worse than tolerated; says what was compared."""
        if self.is_open:
            return
        subject = f"{self._model} {self._version}"
        before = self._find(report.device)
        if before is None:
            self._output.event(
                "performance_not_compared",
                f"{subject}: no earlier version has a report of {report.device} in the registry:"
                " there is nothing to compare it with",
                device=report.device,
            )
            return
        judgement = judge(self._tolerance, before, report)
        for line in judgement.unjudged:
            self._output.event("performance_not_compared", f"{subject}: {line}", level="warning")
        if judgement.worse:
            raise PerformanceRegressed(
                f"worse than {before.version} on {report.device}, by more than `smoke: tolerance` allows\n"
                + "\n".join(f"  {line}" for line in judgement.worse),
                subject=subject,
                hint=f"`build.py smoke {self._model}`, or `publish` again, measures anew; where this is"
                " meant, raise the tolerance in models.yaml",
            )
        for line in judgement.tolerated:
            self._output.event("performance_compared", f"{subject}: {line}", compared_with=before.version)

    def _find(self, device: str) -> Report | None:
        """Return the report of the newest release before this version that was measured on a device."""
        if device not in self._before:
            self._before[device] = self._search(device)
        return self._before[device]

    def _search(self, device: str) -> Report | None:
        versions = released_versions(self._repository.registry, self._repository.path)
        older = [each for each in versions if precedence(each) < precedence(self._version)]
        for version in older[:_MOST_VERSIONS]:
            manifest = self._repository.manifest(version)
            if manifest is None:
                continue
            for report in kept_reports(self._repository, manifest, self._model, version, self._output):
                if report.device == device:
                    return report
        return None
