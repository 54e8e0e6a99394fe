"""What a person sees of weights on their way: a bar for each layer and one for all of them, or lines."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from modelbake.weightpath import shown

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from modelbake.locked import LockedModel
    from modelbake.output import Output
    from modelbake.plan import WeightGroup
    from modelbake.stream.flow import Verified

_LINE_EVERY_SECONDS = 5.0  # in CI
_NAME_WIDTH = 28  # characters


class TransferView:
    """Shows transfers on stderr. Every method may be called from any thread."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._lock = threading.Lock()
        self._bars: Progress | None = None
        self._whole: TaskID | None = None
        self._total = self._done = 0
        self._started = self._said = 0.0

    @contextmanager
    def layers(self, count: int, size: int) -> Iterator[None]:
        """Show the transfers of `count` layers of `size` bytes in all inside this block."""
        self._total, self._done = size, 0
        self._started = self._said = time.monotonic()
        usual = self._output.write_line
        if self._output.live:
            self._bars = _make_bars(self._output)
            self._whole = self._bars.add_task(f"{count} layer{'' if count == 1 else 's'}", total=size)
            self._bars.start()
            self._output.write_line = self._line_above_the_bars
        try:
            yield
        finally:
            if self._bars:
                self._bars.stop()
                self._output.write_line = usual
                self._bars = None

    @contextmanager
    def layer(self, group: WeightGroup) -> Iterator[Callable[[int], None]]:
        """Show one layer inside this block; the block is given what to call with counts of bytes."""
        bar = self._bars.add_task(_name(group), total=group.size) if self._bars else None
        try:
            yield lambda count: self._add(count, bar)
        finally:
            if self._bars and bar is not None:
                self._bars.remove_task(bar)

    def passed(self, group: WeightGroup) -> None:
        """Count a layer that is there already, or comes from elsewhere than the hub."""
        self._add(group.size, None)

    def verified(self, locked: LockedModel, verified: Verified, worker: str = "") -> None:
        """Leave the audit line of a file that has passed with the right bytes; `worker`: where, not here."""
        file = verified.file
        with self._lock:
            self._output.audit(
                source=locked.source_of(file.path).origin,
                file=file.path,
                bytes=file.size,
                attempts=verified.attempts,
                sha256=file.sha256,
                seconds=verified.seconds,
                worker=worker,
            )

    def stored(self, group: WeightGroup, digest: str, size: int) -> None:
        """Say that a layer is committed."""
        self._say("layer_stored", f"stored {_name(group)} as {digest[:19]}", digest=digest, bytes=size)

    def remembered(self, name: str, digest: str) -> None:
        """Say that the weights image is there."""
        self._say("weights_stored", f"{name} is {digest}", digest=digest)

    def _add(self, count: int, bar: TaskID | None) -> None:
        with self._lock:
            self._done += count
            now = time.monotonic()
            quiet = self._bars is not None or now - self._said < _LINE_EVERY_SECONDS
            self._said = self._said if quiet else now
        if self._bars:
            self._bars.advance(self._whole, count)  # type: ignore[arg-type]
            if bar is not None:
                self._bars.advance(bar, count)
        elif not quiet:
            rate = self._done / (now - self._started)
            left = max(0, self._total - self._done) / rate
            self._say(
                "transfer_progress",
                f"weights: {min(1, self._done / max(1, self._total)):.0%} of {self._total / 1e6:,.0f} MB,"
                f" {rate / 1e6:,.0f} MB/s, {left:,.0f} s left",
                bytes=self._done,
                total=self._total,
            )

    def _say(self, event: str, message: str, **fields: Any) -> None:
        with self._lock:
            self._output.event(event, message, **fields)

    def _line_above_the_bars(self, line: str) -> None:
        if self._bars:
            self._bars.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _name(group: WeightGroup) -> str:
    largest = shown(group.largest.path)
    more = f" +{len(group.files) - 1}" if len(group.files) > 1 else ""
    width = _NAME_WIDTH - len(more)
    return (largest if len(largest) <= width else f"...{largest[3 - width :]}") + more


def _make_bars(output: Output) -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn(f"{{task.description:<{_NAME_WIDTH}}}", markup=False),
        BarColumn(bar_width=12),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(file=output.stderr), transient=True)
