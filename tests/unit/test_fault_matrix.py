"""The matrix of faults reports nothing as holding that was not tried, or whose control found nothing."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import LOST
from tests.fault_matrix import holds, matrix
from tests.servers.environment import ROOT
from tests.unit.inner_pytest import run_pytest

_TESTS = """
import os

import pytest


@pytest.mark.promise("hub-names")
def test_fault():
    pass


@pytest.mark.control("hub-names")
def test_control():
    pass


@pytest.mark.promise("lock")
def test_fault_of_lock():
    pass


@pytest.mark.control("lock")
def test_control_that_finds_nothing():
    pytest.skip("not here")


@pytest.mark.promise("start")
@pytest.mark.xfail
def test_fault_that_gets_through():
    assert False


@pytest.mark.promise("start")
def test_another_one():
    pass


@pytest.mark.control("start")
def test_control_of_start():
    pass


@pytest.mark.promise("hub-names")
@pytest.mark.skipif("not os.environ.get('DIES')")
def test_fault_that_ends_everything():
    os._exit(3)
"""


def counts_of(folder: Path, *options: str, dies: str = "") -> dict[str, dict[str, int]]:
    file, tests = folder / "counts.json", folder / "test_some.py"
    tests.write_text(_TESTS)
    run_pytest(
        folder,
        *("-q", "--faults", str(file), *options),
        environment={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "DIES": dies},
    )
    found: dict[str, dict[str, int]] = json.loads(file.read_text())
    return found


def test_a_row_holds_only_if_it_was_tried_and_its_control_found_something(tmp_path: Path) -> None:
    rows = {row["key"]: row for row in matrix([counts_of(tmp_path, "-n0")])}
    assert holds(rows["hub-names"])
    assert rows["hub-names"]["skipped"] == 1
    assert not holds(rows["lock"])
    assert rows["lock"]["control"] == "0 of 0 found"
    assert not holds(rows["start"])
    assert rows["start"]["through"] == 1
    assert not holds(rows["parsers"])  # nobody tried it


def test_a_test_whose_process_dies_is_lost_and_not_forgotten(tmp_path: Path) -> None:
    assert counts_of(tmp_path, "-n1", dies="yes")[LOST] == {"through": 1}
