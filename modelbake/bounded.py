"""Calls that end in time, whatever the server at the other end does.

A client's timeout is for the next bytes. A server that sends one byte every few seconds never lets it expire,
neither in the head of an answer nor between two chunks of its body.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar("_Result")


def within(seconds: float, call: Callable[[], _Result], *, late: Callable[[_Result], None]) -> _Result:
    """Return what `call` returns, or raise what it raises. Raises TimeoutError after so many seconds.

    It runs in a thread of its own, with the caller's context variables. One that is too late is left behind,
    a daemon; should it return after all, `late` gets the result, to close it.
    """
    context = contextvars.copy_context()
    ended = threading.Event()
    guard = threading.Lock()
    outcome: list[_Result] = []
    failure: list[BaseException] = []
    given_up = False

    def run() -> None:
        try:
            result = context.run(call)
        except BaseException as error:
            failure.append(error)
        else:
            with guard:
                outcome.append(result)
                wanted = not given_up
            if not wanted:
                late(result)
        finally:
            ended.set()

    threading.Thread(target=run, daemon=True).start()
    try:
        ended.wait(max(0.0, seconds))
    finally:
        with guard:
            given_up = not outcome
    if failure:
        raise failure[0]
    if not outcome:
        raise TimeoutError(f"no end after {seconds:.0f} s")
    return outcome[0]
