from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from modelbake.errors import ModelbakeError, SourceError, UsageError, WrongBytes
from modelbake.parallel import parallel, pausing, try_all


@pytest.mark.parametrize("threads", [1, 2, 50])
@pytest.mark.parametrize("run", [parallel, try_all])
def test_results_are_in_the_order_of_the_items(run: object, threads: int) -> None:
    def action(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item * item

    assert run(range(20), action, threads) == [item * item for item in range(20)]  # type: ignore[operator]
    assert run([], action, threads) == []  # type: ignore[operator]


def test_as_many_at_once_as_asked_for_and_no_more() -> None:
    guard = threading.Lock()
    running = most = 0

    def action(item: int) -> None:
        nonlocal running, most
        with guard:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with guard:
            running -= 1

    parallel(range(12), action, 3)
    assert most == 3


def test_what_is_none_is_a_result_too() -> None:
    assert parallel([1, 2], lambda item: None, 2) == [None, None]


class TestErrors:
    def test_after_the_first_nothing_new_is_begun(self) -> None:
        begun: list[int] = []

        def action(item: int) -> int:
            begun.append(item)
            if item == 2:
                raise WrongBytes("wrong", subject="file 2")
            return item

        with pytest.raises(WrongBytes, match="wrong") as caught:
            parallel(range(100), action, 1)
        assert begun == [0, 1, 2] and caught.value.subject == "file 2"

    def test_the_first_error_is_raised_and_not_what_it_caused(self) -> None:
        stop = threading.Event()

        def action(item: int) -> int:
            if item == 3:
                time.sleep(0.05)
                raise WrongBytes("the cause")
            assert stop.wait(5)
            raise SourceError("stopped")

        started = time.monotonic()
        with pytest.raises(WrongBytes, match="the cause"):
            parallel(range(4), action, 4, stop=stop)
        assert time.monotonic() - started < 5

    def test_the_event_is_not_set_where_all_went_well(self) -> None:
        stop = threading.Event()
        parallel([1, 2, 3], lambda item: item, 2, stop=stop)
        assert not stop.is_set(), "whoever shares it would stop too"

    def test_a_defect_is_raised_as_it_is(self) -> None:
        def action(item: int) -> int:
            return 1 // item

        with pytest.raises(ZeroDivisionError):
            parallel([1, 0, 1], action, 2)
        with pytest.raises(ZeroDivisionError):
            try_all([1, 0, 1], action, 2)

    def test_all_are_tried_whatever_becomes_of_others(self) -> None:
        def action(item: int) -> int:
            if item % 2:
                raise UsageError(str(item))
            return item

        outcomes = try_all(range(6), action, 3)
        assert [str(each) if isinstance(each, ModelbakeError) else each for each in outcomes] == [
            0, "1", 2, "3", 4, "5"
        ]  # fmt: skip


SCRIPT = """
import os, sys, threading, time
from modelbake.parallel import parallel
heeding = sys.argv[1] == "heeding"
stop = threading.Event()
def action(item):
    os.write(1, b"begun\\n")
    if not heeding:
        time.sleep(60)
    stop.wait(60)
    time.sleep(0.2)
    os.write(1, b"cleaned up\\n")
try:
    parallel([1, 2], action, 2, stop=stop if heeding else None)
except KeyboardInterrupt:
    os.write(1, b"interrupted\\n")
"""


@pytest.mark.parametrize("heeding", [True, False])
def test_ctrl_c_does_not_wait_for_threads_but_lets_them_clean_up(heeding: bool) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "heeding" if heeding else "deaf"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["begun\n"] * 2
        started = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        rest = process.stdout.read().split("\n")
        process.wait(10)
    assert time.monotonic() - started < 10
    assert rest == (["cleaned up"] * 2 if heeding else []) + ["interrupted", ""]


def test_a_pause_is_short_once_something_has_failed() -> None:
    stop = threading.Event()
    pause = pausing(stop)
    began = time.monotonic()
    pause(0.1)
    assert time.monotonic() - began >= 0.1
    threading.Timer(0.1, stop.set).start()
    pause(60)
    assert 2 <= time.monotonic() - began < 20, "cut short, and still a moment for what is finished"
    began = time.monotonic()
    pause(0.1)
    assert 0.1 <= time.monotonic() - began < 2, "never longer than asked for"
