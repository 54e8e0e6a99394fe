"""The page of a history, as text and as a real browser shows it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelbake.charts import HEIGHT, WIDTH, axes, line, nice_step
from modelbake.errors import RenderError
from modelbake.historypage import render_page, sections, tiles, write_page
from tests.servers.browser import Browser
from tests.servers.environment import ROOT
from tests.unit.historical import GPU, HISTORY, measured, version

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


# --- in a browser -------------------------------------------------------------------------------------------

# Points that are drawn: within their plot, of a size, in a colour that is not that of what lies behind.
DRAWN = """
[...document.querySelectorAll("figure svg")].flatMap(svg => {
  const frame = svg.getBoundingClientRect()
  return [...svg.querySelectorAll("circle")].map(circle => {
    const box = circle.getBoundingClientRect(), style = getComputedStyle(circle)
    const behind = getComputedStyle(svg.parentElement).backgroundColor
    return box.width > 3 && box.left >= frame.left && box.right <= frame.right && box.top >= frame.top
      && box.bottom <= frame.bottom && (style.fill !== behind || style.stroke !== behind)
  })
})
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as started:
        yield started


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "minilm.html"
    write_page(path, "minilm", WHERE, HISTORY, templates=TEMPLATES)
    return path


@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_draws_all_points_and_fetches_nothing(browser: Browser, page: Path, dark: bool) -> None:
    browser.open(page, dark=dark)
    assert browser.complaints == []
    assert browser.requests == [page.as_uri()] or set(browser.requests) == {page.as_uri(), "data:,"}
    assert browser.evaluate(DRAWN) == [True] * POINTS
    assert browser.evaluate("document.title") == "minilm: performance per version"
    assert browser.evaluate("document.querySelectorAll('tbody tr').length") == 6
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in background[4:-1].split(","))
    assert (brightness < 200) == dark


def test_on_a_phone_nothing_sticks_out(browser: Browser, page: Path) -> None:
    browser.open(page, width=390)
    assert browser.evaluate("document.documentElement.scrollWidth") == 390
    assert browser.evaluate("document.querySelector('.table').scrollWidth") > 390, "control: that one scrolls"


def test_no_name_becomes_markup(browser: Browser, tmp_path: Path) -> None:
    bad = '"><script>console.error("ran")</script><img src="https://evil.example.com/x.png" onerror="x">'
    path = tmp_path / "bad.html"
    history = [version("1.0.0", measured(device=f"cuda:{bad}"))]
    write_page(path, f"</title>{bad}", bad, history, templates=TEMPLATES)
    browser.open(path)
    assert browser.complaints == [] and "https://evil.example.com/x.png" not in browser.requests
    assert browser.evaluate("document.querySelectorAll('script, img').length") == 0
    assert browser.evaluate("document.querySelector('h2').textContent") == f"cuda:{bad}"


def test_the_browser_would_tell(browser: Browser, tmp_path: Path) -> None:
    """Control: errors, exceptions, requests and points that are not drawn are found where there are any."""
    path = tmp_path / "noisy.html"
    path.write_text(
        '<script>console.error("boom"); setTimeout(() => { throw new Error("late") })</script>'
        '<img src="http://127.0.0.1:1/x.png">'
        '<figure><svg viewBox="0 0 10 10"><circle cx="99" cy="5" r="1"></circle></svg></figure>'
    )
    browser.open(path)
    said = " ".join(browser.complaints)
    assert "boom" in said and "Uncaught" in said
    assert "http://127.0.0.1:1/x.png" in browser.requests
    assert browser.evaluate(DRAWN) == [False]
