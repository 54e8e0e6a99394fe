"""The page of a history as a real browser shows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from modelbake.historypage import write_page
from tests.servers.browser import Browser
from tests.servers.environment import ROOT
from tests.unit.historical import HISTORY, measured, version

TEMPLATES = ROOT / "templates"
WHERE = "registry.example.com/ml/minilm"
POINTS = 3 * 4 + 2 * 3 + 3  # GPU: 3 versions, 4 figures; CPU: 2 versions, 3 figures; 3 images

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
