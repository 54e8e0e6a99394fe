"""A model's history as one self-contained page: plots and a table, nothing fetched, no script.

The page is `templates/history.html.j2`; here is what it says. Every value is escaped by the template engine,
and a content security policy forbids the browser whatever the page does not bring along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from modelbake import __version__
from modelbake.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Point, axes, line
from modelbake.diskspace import saying_full
from modelbake.errors import RenderError
from modelbake.figures import GPU_MEMORY, LATENCY, LOAD, MEDIAN, THROUGHPUT, Figure, Unit, shown
from modelbake.regression import change

if TYPE_CHECKING:
    from modelbake.history import Version
    from modelbake.report import Report

_PLOTTED = (LOAD, LATENCY, THROUGHPUT, GPU_MEMORY)
_IN_TABLE = (LOAD, MEDIAN, LATENCY, THROUGHPUT, GPU_MEMORY)


@dataclass(frozen=True)
class Mark:
    """A point of a plot and its words; `released`: whether it is filled."""

    x: float
    y: float
    words: str
    released: bool


@dataclass(frozen=True)
class Plot:
    """One figure over all versions; `paths` and `bridges` are points of SVG polylines.

    `vertical`, `horizontal`: place and words of the axes' ticks; `summary` says what can be seen.
    """

    title: str
    better: str
    summary: str
    paths: tuple[str, ...]
    bridges: tuple[str, ...]
    marks: tuple[Mark, ...]
    vertical: tuple[tuple[float, str], ...]
    horizontal: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Section:
    """The plots of one device, or of the image."""

    title: str
    plots: tuple[Plot, ...]


@dataclass(frozen=True)
class Tile:
    """A figure of the newest version and its change; `tone`: better, worse or nothing."""

    label: str
    value: str
    change: str
    tone: str


def write_page(path: Path, model: str, where: str, history: Sequence[Version], *, templates: Path) -> None:
    """Write the page of a history, the newest version first. Raises RenderError."""
    text = render_page(model, where, history, templates=templates)
    try:
        with saying_full(path, len(text.encode())):
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RenderError(f"cannot be written ({error.strerror})", subject=str(path)) from error


def render_page(model: str, where: str, history: Sequence[Version], *, templates: Path) -> str:
    """Return the page; the same history gives the same bytes. `where`: the repository, without a version."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    try:
        return environment.get_template("history.html.j2").render(
            model=model,
            where=where,
            toolkit=__version__,
            versions=len(history),
            tiles=tiles(history),
            sections=sections(list(reversed(history))),
            header=[figure.label for figure in _IN_TABLE],
            rows=[row for version in history for row in _rows(version)],
            frame={"w": WIDTH, "h": HEIGHT, "l": LEFT, "r": WIDTH - RIGHT, "t": TOP, "b": HEIGHT - BOTTOM},
        )
    except jinja2.TemplateError as error:
        where = f"{getattr(error, 'name', None) or 'history.html.j2'}:{getattr(error, 'lineno', '?')}"
        raise RenderError(str(error), subject=str(templates / where)) from error


def sections(versions: Sequence[Version]) -> list[Section]:
    """Return the plots of a history, the oldest version first: GPUs, the CPU, the image. Pure.

    A device has axes of its own: beside a CPU's figures a GPU's would be a flat line. What was never measured
    is left out.
    """
    devices = {report.device for version in versions for report in version.reports if report.passed}
    made = []
    for device in sorted(devices, reverse=True):
        plots = (
            _plot(figure.label, figure.unit, versions, values, more_is_better=figure.more_is_better)
            for figure in _PLOTTED
            if any(values := [_value(figure, version, device) for version in versions])
        )
        if drawn := tuple(plots):
            made.append(Section(device, drawn))
    sizes = [version.size for version in versions]
    if any(sizes):
        made.append(Section("image", (_plot("size as hosts pull it", "bytes", versions, sizes),)))
    return made


def _value(figure: Figure, version: Version, device: str) -> float | None:
    """Return a figure of a version on a device; what a failed run has measured is not plotted."""
    reports = (report for report in version.reports if report.device == device and report.passed)
    return next((figure.of(report) for report in reports), None)


def _plot(
    title: str,
    unit: Unit,
    versions: Sequence[Version],
    values: Sequence[float | None],
    *,
    more_is_better: bool = False,
) -> Plot:
    shared = axes([version.version for version in versions], max(value or 0.0 for value in values))
    drawn = line(values, shared.vertical[-1].value)
    marks = tuple(
        Mark(
            point.x,
            point.y,
            f"{versions[point.index].version}: {shown(values[point.index], unit)}",
            versions[point.index].released,
        )
        for point in drawn.points
    )
    return Plot(
        title=title,
        better="more is better" if more_is_better else "less is better",
        summary=", ".join(mark.words for mark in marks),
        paths=tuple(_path(part) for part in drawn.parts if len(part) > 1),
        bridges=tuple(map(_path, drawn.bridges)),
        marks=marks,
        vertical=tuple((tick.at, shown(tick.value, unit) if tick.value else "0") for tick in shared.vertical),
        horizontal=tuple((tick.at, versions[int(tick.value)].version) for tick in shared.horizontal),
    )


def _path(points: Sequence[Point]) -> str:
    return " ".join(f"{point.x},{point.y}" for point in points)


def tiles(history: Sequence[Version]) -> list[Tile]:
    """Return the figures of the newest released version, and how they changed on that device. Pure."""
    released = [version for version in history if version.released and version.reports]
    if not released:
        return []
    now = max(released[0].reports, key=lambda report: report.device)  # `cuda:` sorts behind `cpu`
    earlier = (report for version in released[1:] for report in version.reports)
    before = next((report for report in earlier if report.device == now.device), None)
    found = [_tile(figure, before, now) for figure in _PLOTTED if figure.of(now) is not None]
    return [Tile("newest release", now.version, f"{now.started_at[:10]}, {now.device}", ""), *found]


def _tile(figure: Figure, before: Report | None, now: Report) -> Tile:
    value = figure.shown(figure.of(now))
    pair = figure.pair(before, now) if before else None
    if before is None or pair is None or (figure.of_request and before.request != now.request):
        return Tile(figure.label, value, "", "")
    tone = "" if pair[0] == pair[1] else "worse"
    if pair[0] != pair[1] and (pair[1] > pair[0]) == figure.more_is_better:
        tone = "better"
    return Tile(figure.label, value, f"{change(*pair)} since {before.version}", tone)


def _rows(version: Version) -> list[dict[str, Any]]:
    """Return the lines of the table about one version: one a device."""
    facts = {
        "version": version.version,
        "released": version.released,
        "digest": version.digest or "",
        "size": shown(version.size, "bytes"),
    }
    measured = [
        {
            **facts,
            "figures": [figure.shown(figure.of(report)) for figure in _IN_TABLE],
            "date": report.started_at[:10],
            "device": report.device,
            "passed": report.passed,
        }
        for report in version.reports
    ]
    nothing = {**facts, "figures": ["-"] * len(_IN_TABLE), "date": "-", "device": "no report", "passed": True}
    return measured or [nothing]
