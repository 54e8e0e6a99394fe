"""What the page of a history says; tests/integration/test_history_page.py looks at it in a browser."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from modelbake.charts import HEIGHT, WIDTH, axes, line, nice_step
from modelbake.errors import RenderError
from modelbake.historypage import render_page, sections, tiles, write_page
from tests.servers.environment import ROOT
from tests.unit.historical import GPU, HISTORY, measured, version
from tests.unit.reporting import report

TEMPLATES = ROOT / "templates"
WHERE = "registry.example.com/ml/minilm"
POINTS = 3 * 4 + 2 * 3 + 3  # GPU: 3 versions, 4 figures; CPU: 2 versions, 3 figures; 3 images


class TestCharts:
    @pytest.mark.parametrize("most", [0.0001, 0.03, 0.9, 1, 4, 7, 10, 99, 101, 5.3e9, 1e15])
    def test_steps_are_round_and_few(self, most: float) -> None:
        step = nice_step(most)
        digits = step / 10 ** math.floor(math.log10(step) + 1e-9)
        assert any(math.isclose(digits, good) for good in (1, 2, 2.5, 5, 10))
        assert 2 <= math.ceil(most / step - 1e-9) <= 4

    def test_all_points_are_within_the_frame(self) -> None:
        values = [1.0, None, 3.0, 2.0, 0.0]
        top = axes(["1.0.0"] * 5, 3.0).vertical[-1].value
        drawn = line(values, top)
        assert [point.index for point in drawn.points] == [0, 2, 3, 4]
        assert all(0 < point.x < WIDTH and 0 < point.y < HEIGHT for point in drawn.points)
        assert [len(part) for part in drawn.parts] == [1, 3]
        assert [[point.index for point in bridge] for bridge in drawn.bridges] == [[0, 2]]
        heights = {point.index: point.y for point in drawn.points}
        assert heights[2] < heights[3] < heights[0] < heights[4], "more is higher"

    def test_labels_that_would_overlap_are_left_out_and_the_newest_is_not(self) -> None:
        labels = [f"1.{number}.0-rc.1" for number in range(40)]
        shown = [int(tick.value) for tick in axes(labels, 1.0).horizontal]
        assert shown[0] == 39 and 1 <= len(shown) <= 5
        assert [int(tick.value) for tick in axes(["1.0.0", "1.1.0"], 1.0).horizontal] == [1, 0]

    def test_nothing_but_zeros(self) -> None:
        assert [tick.value for tick in axes(["1.0.0"], 0.0).vertical] == [0.0, 1.0]


class TestPage:
    def test_each_device_has_plots_of_its_own(self) -> None:
        found = sections(list(reversed(HISTORY)))
        assert [(section.title, len(section.plots)) for section in found] == [
            (GPU, 4), ("cpu", 3), ("image", 1),
        ]  # fmt: skip
        assert sum(len(plot.marks) for section in found for plot in section.plots) == POINTS
        latency = found[0].plots[1]
        assert latency.summary == "1.0.0: 10 ms, 2.0.0: 20 ms, 2.1.0-rc.1: 5 ms"
        assert [mark.released for mark in latency.marks] == [True, True, False]

    def test_the_tiles_are_of_the_newest_release(self) -> None:
        first, load, latency, *_ = tiles(HISTORY)
        assert (first.value, load.change, load.tone) == ("2.0.0", "unchanged since 1.0.0", "")
        assert (latency.value, latency.change, latency.tone) == ("20 ms", "+100.0% since 1.0.0", "worse")
        assert tiles([HISTORY[0], HISTORY[2]]) == []

    def test_what_failed_is_not_plotted(self) -> None:
        failed = {"name": "c", "passed": False, "expected": 1, "actual": 2, "seconds": 0.1}
        here = version("1.0.0", measured(passed=False, checks=[failed]), released=False)
        assert sections([here]) == []
        assert "failed" in render_page("m", WHERE, [here], templates=TEMPLATES)

    def test_a_device_without_a_figure_has_no_heading(self) -> None:
        bare = report(load_seconds=None, latency_seconds=None, throughput_per_second=None)
        found = sections([version("1.0.0", bare)])
        assert [section.title for section in found] == ["image"]
        assert "<h2>cpu</h2>" not in render_page("m", WHERE, [version("1.0.0", bare)], templates=TEMPLATES)
        page = render_page("m", WHERE, [version("1.0.0", report())], templates=TEMPLATES)
        assert "<h2>cpu</h2>" in page, "control: with a figure there is one"

    def test_the_same_history_has_the_same_bytes(self) -> None:
        pages = {render_page("minilm", WHERE, HISTORY, templates=TEMPLATES) for _ in range(2)}
        assert len(pages) == 1

    def test_no_version_at_all(self) -> None:
        assert "nothing to plot yet" in render_page("minilm", WHERE, [], templates=TEMPLATES)

    def test_a_page_that_cannot_be_written_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(RenderError, match="cannot be written"):
            write_page(tmp_path / "no" / "x.html", "m", WHERE, HISTORY, templates=TEMPLATES)
        with pytest.raises(RenderError, match=r"history\.html\.j2"):
            write_page(tmp_path / "x.html", "m", WHERE, HISTORY, templates=tmp_path)
