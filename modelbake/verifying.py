"""The smoke run of an image that serves nothing: it verifies its weights and ends, and that is all to see.

The formats are those of images/start/start.py.
"""

from __future__ import annotations

import time
from typing import Any

from modelbake.errors import NotReady
from modelbake.probing import RunningContainer, events_of, shown_log, why_ended
from modelbake.verdict import Run, judged

_POLL_SECONDS = 0.2
_NAME = "verified"


def watch(container: RunningContainer, limit: float, run: Run) -> None:
    """Wait until a started container has verified its weights; all that is found out goes into `run`.

    Args:
        container: it runs start.py with nothing to become.
        limit: seconds that it may take.
        run: what the report is made of.

    Raises:
        NotReady: it ended otherwise or not in time, or does not say that it has verified anything.
    """
    started = time.monotonic()
    expected = {"exit_code": 0, "event": _NAME}

    def not_ready(problem: str, hint: str, actual: dict[str, Any]) -> NotReady:
        seconds = time.monotonic() - started
        run.checks.append(judged(_NAME, expected, actual, seconds, (problem,)))
        return NotReady(problem + shown_log(container.logs()), hint=hint)

    while (state := container.state()).running:
        if time.monotonic() - started > limit:
            raise not_ready(
                f"it had not verified its weights within {limit:g} s",
                "raise `smoke: startup_seconds` if that takes longer here",
                {"exit_code": None},
            )
        time.sleep(_POLL_SECONDS)
    seconds = time.monotonic() - started
    log = container.logs()
    if state.exit_code != 0:
        raise not_ready(*why_ended(state, log), {"exit_code": state.exit_code})
    if not any(event["event"] == _NAME for event in events_of(log)):
        raise not_ready(
            "it ended well, but does not say that it has verified its weights",
            "was this image built by `build.py`?",
            {"exit_code": 0, "event": None},
        )
    run.ready_seconds = round(seconds, 3)
    run.checks.append(judged(_NAME, expected, expected, seconds))
