"""What BuildKit reports while it works, as events.

A Trace turns a run of StatusUpdates (see `status`), which repeat themselves and are cut anywhere, into
BuildEvents, which do neither.

Redaction comes after decoding: in the stream a secret is base64 of protocol buffers, where no search
finds it. A log line is put together from its pieces before it is redacted, for the same reason.
"""

from __future__ import annotations

import codecs
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from modelbake.buildkit.status import StatusUpdate, Transfer, VertexState, Warned

__all__ = [
    "BuildEvent",
    "Log",
    "Trace",
    "Transfer",
    "VertexDone",
    "VertexError",
    "VertexStarted",
    "Warned",
]

TAIL_LINES = 15  # log lines remembered of each stream of each step, to be shown when it fails
_MOUNT = re.compile(r"--mount=\S+\s+")
_DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
_LONGEST_LINE = 64 * 1024  # characters; a longer line is passed on in pieces
_OVERLAP = 4096  # characters kept back at such a cut, so that no secret is cut in two
# Colours, cursor movements, titles (ECMA-48 CSI and OSC), then every other control character but tab.
_CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0a-\x1f\x7f-\x9f]"
)


@dataclass(frozen=True)
class VertexStarted:
    """A step began. `vertex` is its digest, the key of all its events; `name` is for people."""

    vertex: str
    name: str


@dataclass(frozen=True)
class VertexDone:
    """A step ended well; `cached`: nothing was run. `seconds` is its own time."""

    vertex: str
    name: str
    cached: bool
    seconds: float


@dataclass(frozen=True)
class VertexError:
    """A step failed, or was cancelled because another one did (`cancelled`)."""

    vertex: str
    name: str
    message: str
    cancelled: bool


@dataclass(frozen=True)
class Log:
    """One whole line that a step wrote, without its newline; `stream` is 'stdout' or 'stderr'."""

    vertex: str
    name: str
    stream: str
    line: str


BuildEvent = VertexStarted | VertexDone | VertexError | Log | Transfer | Warned


@dataclass
class _Step:
    """What a Trace knows about one vertex."""

    name: str = ""
    error: str = ""
    started: float | None = None
    running: bool = False
    replayed: bool = False
    written: int = 0  # lines
    tails: dict[int, deque[tuple[int, str]]] = field(default_factory=dict)  # by stream: (number, line)

    def remember(self, stream: int, line: str) -> None:
        self.written += 1
        self.tails.setdefault(stream, deque(maxlen=TAIL_LINES)).append((self.written, line))

    def last_lines(self) -> tuple[str, ...]:
        """The last lines of each stream in the order they came: one must not push the other's reason out."""
        return tuple(line for _, line in sorted(line for tail in self.tails.values() for line in tail))


class _Lines:
    """Puts pieces of one stream together to lines."""

    def __init__(self, redact: Callable[[str], str]) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._redact = redact
        self._rest = ""

    def feed(self, data: bytes, *, final: bool = False) -> Iterator[str]:
        *whole, self._rest = (self._rest + self._decode(data, final)).split("\n")
        for line in whole:
            yield self._clean(line)
        if len(self._rest) > _LONGEST_LINE:
            known = self._redact(self._rest)
            self._rest = known[-_OVERLAP:]
            yield self._clean(known[:-_OVERLAP])
        if final and self._rest:
            yield self._clean(self._rest)
            self._rest = ""

    def _clean(self, line: str) -> str:
        # A carriage return starts the line anew on a terminal: what stood before it is not meant to stay.
        return self._redact(_CONTROL.sub("", line.rstrip("\r").rpartition("\r")[2]))


class Trace:
    """Follows one build: feed it StatusUpdates, get BuildEvents; ask it afterwards what failed.

    `redact` is applied to every text: names, log lines, errors, warnings.
    """

    def __init__(self, redact: Callable[[str], str] = str) -> None:
        self._redact = redact
        self._steps: dict[str, _Step] = {}
        self._lines: dict[tuple[str, int], _Lines] = {}
        self._began: float | None = None  # by the engine's clock: when the first step of this build did

    def update(self, status: StatusUpdate) -> Iterator[BuildEvent]:
        """Yield what is new in `status`. BuildKit repeats itself; the events do not."""
        for vertex in status.vertexes:
            yield from self._started(vertex)
        for piece in status.logs:
            if self._steps.setdefault(piece.vertex, _Step()).replayed:
                continue
            lines = self._lines.setdefault((piece.vertex, piece.stream), _Lines(self._redact))
            yield from self._logged(piece.vertex, piece.stream, lines.feed(piece.data))
        for each in status.transfers:
            yield Transfer(each.vertex, self._redact(each.id), each.current, each.total, each.done)
        for vertex in status.vertexes:
            yield from self._ended(vertex)
        for warning in status.warnings:
            yield Warned(warning.vertex, self._redact(warning.message), warning.url)

    def finish(self) -> Iterator[BuildEvent]:
        """Yield the lines that had no newline at their end when the build ended."""
        for vertex, stream in list(self._lines):
            yield from self._flush(vertex, stream)

    @property
    def failed(self) -> tuple[str, str, tuple[str, ...]] | None:
        """The first step that failed by itself: (name, error, last log lines); None where there is none."""
        for step in self._steps.values():
            if step.error and not _is_cancelled(step.error):
                return step.name, step.error, step.last_lines()
        return None

    def _started(self, vertex: VertexState) -> Iterator[BuildEvent]:
        step = self._steps.setdefault(vertex.digest, _Step())
        step.name = self._redact(_CONTROL.sub(" ", vertex.name)) or step.name
        if self._began is None:
            self._began = vertex.started
        # Of a step in its cache BuildKit first tells the old story, log and all, as if it happened now.
        step.replayed = (
            vertex.completed is not None
            and self._began is not None
            and vertex.completed < self._began
            and not vertex.error
        )
        if vertex.started is None or vertex.started == step.started or step.replayed:
            return
        # BuildKit may begin a step anew, such as a context that it loads in two parts.
        step.started, step.error = vertex.started, ""
        if not step.running:
            step.running = True
            yield VertexStarted(vertex.digest, step.name)

    def _ended(self, vertex: VertexState) -> Iterator[BuildEvent]:
        step = self._steps[vertex.digest]
        if vertex.completed is None or not step.running:
            return
        step.running = False
        for key in [key for key in self._lines if key[0] == vertex.digest]:
            yield from self._flush(*key)
        if vertex.error:
            step.error = self._redact(vertex.error)
            yield VertexError(vertex.digest, step.name, step.error, _is_cancelled(step.error))
        else:
            seconds = max(0.0, vertex.completed - (step.started or vertex.completed))
            yield VertexDone(vertex.digest, step.name, vertex.cached, seconds)

    def _flush(self, vertex: str, stream: int) -> Iterator[BuildEvent]:
        yield from self._logged(vertex, stream, self._lines.pop((vertex, stream)).feed(b"", final=True))

    def _logged(self, vertex: str, stream: int, lines: Iterator[str]) -> Iterator[BuildEvent]:
        step = self._steps.setdefault(vertex, _Step())
        for line in lines:
            step.remember(stream, line)
            yield Log(vertex, step.name, "stderr" if stream == 2 else "stdout", line)


def _is_cancelled(error: str) -> bool:
    return error.endswith(("context canceled", "Canceled: grpc: the client connection is closing"))


def short_name(vertex_name: str) -> str:
    """Return a step's name without the mounts of its RUN, and with digests cut to 12 digits."""
    return _DIGEST.sub(r"\1", _MOUNT.sub("", vertex_name))
