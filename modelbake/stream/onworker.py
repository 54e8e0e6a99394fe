"""Where a piece of work runs: on a worker of a Dask cluster, or in some thread or process without a name.

A worker cannot end a thread. So the work itself looks whether it is still wanted: it is not once who asked
for it has cancelled it, or is gone.

Source: https://distributed.dask.org/en/stable/worker-state.html (a task that was running when it was given up
is `cancelled`); Worker.log_event and Worker.get_current_task.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

_LOOK_SECONDS = 0.5


class Worker(Protocol):
    """Who does the work."""

    @property
    def name(self) -> str:
        """What people call it; '' where it has no name."""

    def telling(
        self, topic: str, ticket: str, stop: threading.Event
    ) -> Any:  # a context manager of Callable[[int], None]
        """Inside this block tell how many bytes have passed; set `stop` once the work is not wanted."""


class Nobody:
    """No worker in particular: the work is always wanted, and nobody listens."""

    name = ""

    @contextmanager
    def telling(self, topic: str, ticket: str, stop: threading.Event) -> Iterator[Callable[[int], None]]:
        """See Worker."""
        yield lambda count: None


class DaskWorker:
    """The worker of a Dask cluster on which this thread runs a task."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._key = worker.get_current_task()

    @property
    def name(self) -> str:
        """Its name in the cluster: the address, or what it was started with."""
        return str(self._worker.name)

    @contextmanager
    def telling(self, topic: str, ticket: str, stop: threading.Event) -> Iterator[Callable[[int], None]]:
        """See Worker."""
        ended, passed = threading.Event(), [0]

        def look() -> None:
            told = 0
            while not ended.wait(_LOOK_SECONDS):
                if not self._wanted():
                    stop.set()
                    return
                if topic and passed[0] != told:
                    told = passed[0]
                    self._worker.log_event(topic, {"ticket": ticket, "bytes": told})

        def on_bytes(count: int) -> None:
            passed[0] += count

        threading.Thread(target=look, daemon=True).start()
        try:
            yield on_bytes
        finally:
            ended.set()

    def _wanted(self) -> bool:
        task = self._worker.state.tasks.get(self._key)
        return task is not None and task.state != "cancelled"


def this_worker() -> Worker:
    """Return the worker that runs this thread."""
    if "distributed" not in sys.modules:
        return Nobody()
    from distributed import get_worker

    try:
        return DaskWorker(get_worker())
    except (ValueError, KeyError):  # no worker; a worker's thread that runs no task
        return Nobody()
