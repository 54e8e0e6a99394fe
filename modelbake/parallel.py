"""Doing the same to several things at once, in threads that Ctrl-C does not wait for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from modelbake.errors import ModelbakeError

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_GRACE_SECONDS = 3.0  # for actions that clean up after Ctrl-C
_MOMENT_SECONDS = 2.0
_LOOK_SECONDS = 0.5


def parallel(
    items: Sequence[_Item],
    action: Callable[[_Item], _Result],
    threads: int,
    *,
    stop: threading.Event | None = None,
) -> list[_Result]:
    """Run `action` for every item and return what it returned, in their order.

    After the first error nothing new is begun, and that error is raised. `stop` is set then, and by Ctrl-C,
    and never otherwise: actions which look at it can end early, and after Ctrl-C have a few seconds to clean
    up.
    """
    outcomes, first = _run(items, action, threads, stop, stop_at_error=True)
    if first is not None:
        raise first
    return [outcome for outcome in outcomes if not isinstance(outcome, ModelbakeError | _NotBegun)]


def try_all(
    items: Sequence[_Item], action: Callable[[_Item], _Result], threads: int
) -> list[_Result | ModelbakeError]:
    """Run `action` for every item, whatever becomes of the others; return results and errors in order."""
    outcomes, _ = _run(items, action, threads, None, stop_at_error=False)
    return [outcome for outcome in outcomes if not isinstance(outcome, _NotBegun)]


def pausing(stop: threading.Event) -> Callable[[float], None]:
    """Return what sleeps for some seconds, and once `stop` is set for a moment at most.

    That moment is for what is finished and only has to be written down: it may be refused once more for now.
    """

    def pause(seconds: float) -> None:
        began = time.monotonic()
        if stop.wait(seconds):
            time.sleep(max(0.0, min(_MOMENT_SECONDS, seconds - (time.monotonic() - began))))

    return pause


class _NotBegun:
    """Stands for an item that was left out after an error."""


def _run(
    items: Sequence[_Item],
    action: Callable[[_Item], _Result],
    threads: int,
    heeded: threading.Event | None,
    *,
    stop_at_error: bool,
) -> tuple[list[_Result | ModelbakeError | _NotBegun], ModelbakeError | None]:
    """Run `action` for every item; the threads are daemons, so that Ctrl-C ends the program at once."""
    outcomes: list[_Result | ModelbakeError | _NotBegun] = [_NotBegun() for _ in items]
    errors: list[ModelbakeError] = []
    defects: list[BaseException] = []
    indexes = iter(range(len(items)))
    guard, stop = threading.Lock(), heeded or threading.Event()

    def work(ended: threading.Event) -> None:
        try:
            go_on()
        finally:
            ended.set()

    def go_on() -> None:
        while not stop.is_set():
            with guard:
                index = next(indexes, None)
            if index is None:
                return
            try:
                outcomes[index] = action(items[index])
            except ModelbakeError as error:
                outcomes[index] = error
                errors.append(error)
                if stop_at_error:
                    stop.set()
            except BaseException as defect:  # raised again below, in the thread that called
                defects.append(defect)
                stop.set()

    # Not Thread.join: where Ctrl-C interrupts it, Python 3.11 takes the thread for one that has ended.
    begun: list[threading.Event] = []
    try:
        for _ in range(min(threads, len(items))):
            begun.append(threading.Event())
            threading.Thread(target=work, args=(begun[-1],), daemon=True).start()
        for ended in begun:
            # A signal may reach another thread: Python acts on it in this one, as soon as that wakes up.
            while not ended.wait(_LOOK_SECONDS):
                pass
    except BaseException:  # Ctrl-C, nearly always
        stop.set()
        deadline = time.monotonic() + (_GRACE_SECONDS if heeded else 0.0)
        for ended in begun:
            ended.wait(max(0.0, deadline - time.monotonic()))
        raise
    if defects:
        raise defects[0]
    return outcomes, errors[0] if errors else None
