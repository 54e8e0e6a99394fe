"""Asking a running container through the probe program inside it, and reading why a container ended.

The formats are those of images/start/probe.py and images/start/start.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modelbake.errors import SmokeError
from modelbake.expectations import shorten
from modelbake.gpus import driver_trouble

if TYPE_CHECKING:
    from modelbake.containers import ContainerState, ExecResult

PROBE = ("/opt/venv/bin/python", "/modelbake/probe.py")
_LARGEST_ORDER = 120_000  # bytes; Linux takes arguments of up to 128 KiB each
_SHOWN_LINES = 30
_NO_PROBE = (0, 2, 126, 127)  # of another program, of Python and of the engine without such a file
_SHOWN_CHARACTERS = 300  # of a line
_WRONG_WEIGHTS = 65
_CANNOT_START = 66
WRONG_WEIGHTS_HINT = "build it again with `build.py build --no-cache`"


class RunningContainer(Protocol):
    """What is needed of a container; `containers.Container` is one."""

    def state(self) -> ContainerState:
        """Return whether it runs, or how it ended."""

    def logs(self, tail: int = 200) -> str:
        """Return the last lines of its log."""

    def exec(self, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> ExecResult:
        """Run a command inside it."""


class _Read(BaseModel):
    # Later probes may say more; what is read has to be of the right kind.
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class Response(_Read):
    """One answer; status 0 and `error` where none came whole."""

    status: int
    body: str
    seconds: float
    error: str | None = None
    truncated: bool = False


class Repeat(_Read):
    """One request sent again: the good answers' seconds, and all of them together.

    `errors` counts bad answers, and after a request without any answer it and all that were to follow.
    """

    seconds: tuple[float, ...] = Field(strict=False)
    wall: float
    errors: int


class Driver(_Read):
    """The GPU driver's view: the first GPU's name, bytes used on all."""

    gpu: str
    memory_used_bytes: int | None


class Probed(_Read):
    """What one execution of the probe found out."""

    responses: tuple[Response, ...] = Field(strict=False)
    repeat: Repeat | None
    metrics: str | None
    driver: Driver | None


def ask(
    container: RunningContainer,
    port: int,
    requests: Sequence[Mapping[str, Any]],
    *,
    timeout: float,
    repeat: int = 0,
    limit: float = 0.0,
) -> Probed:
    """Send requests to the server in the container, the first one `repeat` times more.

    Args:
        container: where to ask.
        port: the server's, inside the container.
        requests: `method`, `path` and for POST `body`.
        timeout: seconds for each answer.
        repeat: how often the first request is sent again, one after the other, to measure it.
        limit: seconds after which no repetition is begun any more; where `repeat` is given.

    Raises:
        SmokeError: the probe cannot be run, or a request is too large for it.
        EngineError: the engine cannot run anything in the container, because it has ended for example.
    """
    order: dict[str, Any] = {"port": port, "requests": list(requests), "timeout": timeout}
    if repeat:
        order["repeat"] = {"index": 0, "count": repeat, "seconds": limit}
    text = json.dumps(order)
    if len(text) > _LARGEST_ORDER:
        raise SmokeError(
            f"a check's request takes {len(text):,} bytes, and at most {_LARGEST_ORDER:,} can be sent",
            subject=str(requests[0].get("path")),
            hint="give the check a smaller body",
        )
    done = container.exec([*PROBE, text])
    try:
        document = json.loads(done.stdout)
    except (ValueError, RecursionError):
        document = None
    if done.exit_code or not isinstance(document, dict):
        said = document.get("error") if isinstance(document, dict) else None
        words = str(said or (done.stderr or done.stdout).decode(errors="replace").strip())
        raise SmokeError(
            f"the probe {PROBE[1]} ended with exit code {done.exit_code}: {words[-_SHOWN_CHARACTERS:]}",
            hint="was this image built by `build.py build`?"
            if done.exit_code in _NO_PROBE
            else "it was killed, or cut off: look at the engine's log, and run it again",
        )
    try:
        probed = Probed.model_validate(document)
    except ValidationError as error:
        raise SmokeError(f"the probe {PROBE[1]} answered something else than expected") from error
    if len(probed.responses) != len(requests):
        raise SmokeError(f"the probe {PROBE[1]} answered {len(probed.responses)} of {len(requests)} requests")
    return probed


def why_ended(state: ContainerState, log: str, cuda: str = "") -> tuple[str, str]:
    """Return why a container is not running any more, in words, and what to do.

    `cuda` is the image's version of CUDA, "" where that is not known.
    """
    found = events_of(log)
    if state.oom_killed:
        return "the container was killed for lack of memory", "give the engine's machine more memory"
    if state.exit_code == _WRONG_WEIGHTS:
        wrong = [
            f"{event.get('file')}: {event['event']}:"
            f" expected {event.get('expected')}, got {event.get('actual')}"
            for event in found
            if event["event"] in ("mismatch", "missing", "extra")
        ]
        return (
            "the image refused to serve (exit code 65): its weights are not those of its manifest"
            + "".join(f"\n  {line}" for line in wrong[:_SHOWN_LINES]),
            WRONG_WEIGHTS_HINT,
        )
    if state.exit_code == _CANNOT_START:
        reasons = [
            str(event["error"]) for event in found if event.get("level") == "error" and "error" in event
        ]
        return (
            "the image cannot start its server (exit code 66)" + "".join(f"\n  {line}" for line in reasons),
            "",
        )
    ended = f"the container ended with exit code {state.exit_code}"
    if trouble := driver_trouble(log, cuda):
        return f"{ended}: {trouble.message}", trouble.hint
    return ended, ""


def shown_log(log: str) -> str:
    """Return the end of a container's log as the end of an error message."""
    lines = [line[:_SHOWN_CHARACTERS] for line in log.splitlines() if line.strip()][-_SHOWN_LINES:]
    if not lines:
        return "\nthe container's log is empty"
    return "\nthe end of the container's log:" + "".join(f"\n  {line}" for line in lines)


def short(response: Response) -> str:
    """Return what an answer is, in a few words."""
    if response.error is not None:
        return response.error
    return f"HTTP {response.status}" + (f" with {shorten(response.body)}" if response.body else "")


def events_of(log: str) -> list[dict[str, Any]]:
    """Return the events among the lines of a container's log; other lines are passed over."""
    return [event for line in log.splitlines() if (event := _event(line))]


def _event(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line) if line.startswith("{") else None
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None
