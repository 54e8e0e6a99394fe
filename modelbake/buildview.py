"""What a person sees of a build: live bars on a terminal, plain lines elsewhere, JSON lines if asked for.

The programs of the builder stages (`images/builder`) write JSON lines; `progress` moves a bar, `fetched`
becomes an audit line, and whatever else a step writes is passed on with the step's name before it.
"""

from __future__ import annotations

import json
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from modelbake.buildkit.progress import (
    BuildEvent,
    Log,
    Transfer,
    VertexDone,
    VertexError,
    VertexStarted,
    Warned,
    short_name,
)
from modelbake.output import Output

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_NAME_WIDTH = 36  # characters of a step or file; beside the bar it fits 80 columns
_LINE_EVERY_SECONDS = 5.0  # how often a transfer says a plain line; CI logs are read later, by people


class BuildView:
    """Shows build events. Use as a context manager, so that the terminal is left as it was found."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._said: dict[str, float] = {}
        self._tasks: dict[str, TaskID] = {}
        self._bars: Progress | None = _make_bars(output) if output.live else None
        self._usual_line = output.write_line
        self.fetched_bytes = 0

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
            self._output.write_line = self._line_above_the_bars
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()
            self._output.write_line = self._usual_line

    def __call__(self, event: BuildEvent) -> None:
        """Show one event."""
        if isinstance(event, VertexStarted):
            # No line: BuildKit also starts what it then finds cached, and what is run speaks for itself.
            self._bar(event.vertex, stage(short_name(event.name)), 0, 0)
        elif isinstance(event, VertexDone):
            self._drop_bar(event.vertex)
            step = short_name(event.name)
            how = "cached" if event.cached else f"done in {event.seconds:.1f} s"
            seconds = round(event.seconds, 3)
            self._say("step_done", f"{step}: {how}", step=step, cached=event.cached, seconds=seconds)
        elif isinstance(event, VertexError):
            self._drop_bar(event.vertex)  # what failed, the error that ends the build says, and better
        elif isinstance(event, Log):
            self._log(event)
        elif isinstance(event, Transfer):
            self._transfer(event.vertex + event.id, event.id, event.current, event.total, event.done)
        elif isinstance(event, Warned):
            self._say("build_warning", event.message, level="warning", url=event.url)

    def _log(self, log: Log) -> None:
        record = _record(log.line)
        match record.get("event"):
            case "progress" if "message" not in record:
                done = record["bytes"] >= record["total"]
                self._transfer(
                    log.vertex + record["file"], record["file"], record["bytes"], record["total"], done
                )
            case "fetched" if "message" not in record:
                self.fetched_bytes += int(record["bytes"])
                self._drop_bar(log.vertex + record["file"])
                wanted = ("source", "file", "bytes", "attempts", "sha256", "seconds")
                self._output.audit(**{key: record[key] for key in wanted})
            case "error":
                pass  # likewise
            case None:
                self._say("step_log", f"{stage(log.name)} | {log.line}", step=log.name)
            case name:
                text = record.get("message") or ", ".join(
                    f"{k}={v}" for k, v in record.items() if k != "event"
                )
                self._say(f"builder_{name}", f"{stage(log.name)} | {text}", step=log.name)

    def _transfer(self, key: str, name: str, current: int, total: int, done: bool) -> None:
        if self._bars:
            if done:
                self._drop_bar(key)
            else:
                self._bar(key, name, current, total)
            return
        now = time.monotonic()
        if total and not done and now - self._said.get(key, now - _LINE_EVERY_SECONDS) >= _LINE_EVERY_SECONDS:
            self._said[key] = now
            share = f"{current / total:.0%} of {total / 1e6:,.1f} MB"
            self._say("transfer_progress", f"{name}: {share}", file=name, bytes=current, total=total)

    def _say(self, event: str, message: str, *, level: str = "info", **fields: Any) -> None:
        self._output.event(event, message, level=level, **fields)

    def _bar(self, key: str, name: str, current: int, total: int) -> None:
        if not self._bars:
            return
        if key not in self._tasks:
            short = name if len(name) <= _NAME_WIDTH else f"...{name[3 - _NAME_WIDTH :]}"
            self._tasks[key] = self._bars.add_task(self._output.redactor(short), total=None, amount="")
        amount = f"{current / 1e6:,.1f}/{total / 1e6:,.1f} MB" if total else ""
        self._bars.update(self._tasks[key], completed=current, total=total or None, amount=amount)

    def _line_above_the_bars(self, line: str) -> None:
        if self._bars:
            self._bars.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _drop_bar(self, key: str) -> None:
        if self._bars and key in self._tasks:
            self._bars.remove_task(self._tasks.pop(key))


def stage(vertex_name: str) -> str:
    """Return `weights-0` of `[weights-0 2/3] RUN ...`, and the name itself where it names no stage."""
    if vertex_name.startswith("[") and "]" in vertex_name:
        words = vertex_name[1 : vertex_name.index("]")].split()
        return words[0] if words else vertex_name
    return vertex_name


_FIELDS = {
    "progress": {"file", "bytes", "total"},
    "fetched": {"source", "file", "bytes", "attempts", "sha256", "seconds"},
}


def _record(line: str) -> dict[str, Any]:
    """Return the JSON object of a line of our own programs; an empty one for any other line."""
    if not line.startswith('{"'):
        return {}
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    if not isinstance(record, dict) or not isinstance(record.get("event"), str):
        return {}
    whole = _FIELDS.get(record["event"], set()) <= record.keys() or "message" in record
    return record if whole else {}


def _make_bars(output: Output) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=16),
        TextColumn("{task.fields[amount]}", markup=False),
    )
    return Progress(*columns, console=Console(file=output.stderr), transient=True)
