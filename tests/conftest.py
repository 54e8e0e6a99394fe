"""Counts the faults that tests inject, by the promise they attack (see `tests/promises.py`).

``--faults FILE`` runs only the tests that attack a promise and their controls, and writes the counts as JSON.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.leaks import LeakSearch
from tests.promises import PROMISES

# `eval "$(scripts/registry up)"` in the shell that runs the tests: each test says itself what it has.
for _name in ("MODELBAKE_REGISTRY", "MODELBAKE_REGISTRY_USER", "MODELBAKE_REGISTRY_PASSWORD_FILE"):
    os.environ.pop(_name, None)

_KINDS = ("promise", "control")
LOST = "(lost)"  # the row of tests that ended without a report of their own
_ROW = ("tried", "through", "skipped", "controls", "controls_missed")


@dataclass
class Tally:
    """How many faults one test has injected."""

    tried: int = 0

    def count(self, cases: int = 1) -> None:
        """Count faults that were injected."""
        self.tried += cases


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """For a test that injects several faults, or as many as hypothesis likes."""
    counted = Tally()
    yield counted
    request.node.user_properties.append(("tried", counted.tried))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", type=Path, metavar="FILE", help="run the fault tests; write their counts")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    others = []
    for item in items:
        marks = [mark for kind in _KINDS for mark in item.iter_markers(kind)]
        unknown = [key for mark in marks for key in mark.args if key not in PROMISES]
        if unknown:
            raise pytest.UsageError(f"{item.nodeid}: no promise {unknown[0]!r} in tests/promises.py")
        item.user_properties += [(mark.name, key) for mark in marks for key in mark.args]
        if not marks:
            others.append(item)
    if config.getoption("--faults"):
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in set(others)]


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts what it runs in the background with Ctrl-C ignored: tests that send it would wait
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.pluginmanager.register(LeakSearch())
    if config.getoption("--faults") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Counter(config))


class _Counter:
    """Adds up what the tests report, those of other processes too."""

    def __init__(self, config: pytest.Config) -> None:
        self._file: Path = config.getoption("--faults")
        self._counts: dict[str, dict[str, int]] = {}
        self._skipped: set[str] = set()
        self._lost = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # Set-up and teardown count only where they fail; what `tally` counted is known after teardown.
        properties: list[tuple[str, Any]] = report.user_properties
        if report.failed and not any(kind in _KINDS for kind, _ in properties):
            # A process of pytest-xdist that died: nobody knows which promise its test attacked.
            self._lost += 1
        if report.skipped:
            self._skipped.add(report.nodeid)
        for kind, key in properties:
            if kind not in _KINDS:
                continue
            row = self._counts.setdefault(key, dict.fromkeys(_ROW, 0))
            wrong = report.failed
            if kind == "control":
                # One that was skipped has found nothing.
                row["controls"] += (report.when == "call" and not report.skipped) or wrong
                row["controls_missed"] += wrong
                continue
            # An expected failure (`xfail`) is reported as skipped: its fault got through all the same.
            got_through = wrong or (report.skipped and hasattr(report, "wasxfail"))
            row["through"] += got_through
            row["skipped"] += report.skipped and not got_through
            if report.when == "teardown" and report.nodeid not in self._skipped:
                counted = [count for name, count in properties if name == "tried"]
                row["tried"] += counted[0] if counted else 1

    def pytest_sessionfinish(self) -> None:
        counts = {**self._counts, **({LOST: {"through": self._lost}} if self._lost else {})}
        self._file.write_text(json.dumps(counts, indent=1, sort_keys=True) + "\n")
