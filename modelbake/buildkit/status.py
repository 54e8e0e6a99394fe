"""BuildKit's StatusResponse, decoded: from protocol buffers, or from the JSON of `buildx --progress=rawjson`.

Source: `api/services/control/control.proto` and `client/graph.go` of moby/buildkit.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from modelbake.buildkit import wire


@dataclass(frozen=True)
class Transfer:
    """Bytes (or items, where `total` is 0) that a step has moved so far, such as a base image's layer."""

    vertex: str
    id: str
    current: int
    total: int
    done: bool


@dataclass(frozen=True)
class Warned:
    """BuildKit warns about the Dockerfile."""

    vertex: str
    message: str
    url: str


@dataclass(frozen=True)
class VertexState:
    """One step as reported; times are seconds since 1970, None where not (yet) reached."""

    digest: str = ""
    name: str = ""
    cached: bool = False
    started: float | None = None
    completed: float | None = None
    error: str = ""


@dataclass(frozen=True)
class LogPiece:
    """Some bytes of a step's output; not whole lines, nor whole characters. `stream`: 1 or 2."""

    vertex: str = ""
    stream: int = 1
    data: bytes = b""


@dataclass(frozen=True)
class StatusUpdate:
    """One decoded StatusResponse."""

    vertexes: tuple[VertexState, ...] = ()
    transfers: tuple[Transfer, ...] = ()
    logs: tuple[LogPiece, ...] = ()
    warnings: tuple[Warned, ...] = ()


def decode_status(message: bytes) -> StatusUpdate:
    """Decode a StatusResponse from protocol buffers.

    Raises:
        WireError: it is not one.
    """
    vertexes, transfers, logs, warnings = [], [], [], []
    for number, value in wire.fields(message):
        if number == 1:
            vertexes.append(_vertex(wire.as_bytes(value)))
        elif number == 2:
            transfers.append(_transfer(wire.as_bytes(value)))
        elif number == 3:
            logs.append(_log_piece(wire.as_bytes(value)))
        elif number == 4:
            warnings.append(_warning(wire.as_bytes(value)))
    return StatusUpdate(tuple(vertexes), tuple(transfers), tuple(logs), tuple(warnings))


def status_from_json(document: Mapping[str, Any]) -> StatusUpdate:
    """Decode a StatusResponse from the JSON of `buildx --progress=rawjson` (`client.SolveStatus`).

    Raises:
        WireError: it is not one.
    """
    try:
        return StatusUpdate(
            vertexes=tuple(
                VertexState(
                    digest=str(each.get("digest", "")),
                    name=str(each.get("name", "")),
                    cached=bool(each.get("cached", False)),
                    started=_json_time(each.get("started")),
                    completed=_json_time(each.get("completed")),
                    error=str(each.get("error", "")),
                )
                for each in document.get("vertexes") or ()
            ),
            transfers=tuple(
                Transfer(
                    vertex=str(each.get("vertex", "")),
                    id=str(each.get("id", "")),
                    current=int(each.get("current", 0)),
                    total=int(each.get("total", 0)),
                    done=each.get("completed") is not None,
                )
                for each in document.get("statuses") or ()
            ),
            logs=tuple(
                LogPiece(
                    vertex=str(each.get("vertex", "")),
                    stream=int(each.get("stream", 1)),
                    data=base64.b64decode(each.get("data") or "", validate=True),
                )
                for each in document.get("logs") or ()
            ),
            warnings=tuple(
                Warned(
                    vertex=str(each.get("vertex", "")),
                    message=base64.b64decode(each.get("short") or "", validate=True).decode(errors="replace"),
                    url=str(each.get("url", "")),
                )
                for each in document.get("warnings") or ()
            ),
        )
    except (AttributeError, TypeError, ValueError, binascii.Error) as error:
        raise wire.WireError(f"not a build status: {error}") from error


def _vertex(message: bytes) -> VertexState:
    known: dict[str, Any] = {}
    for number, value in wire.fields(message):
        if number in (1, 3, 7):
            known[{1: "digest", 3: "name", 7: "error"}[number]] = wire.as_text(value)
        elif number == 4:
            known["cached"] = wire.as_int(value) != 0
        elif number in (5, 6):
            known["started" if number == 5 else "completed"] = _time(wire.as_bytes(value))
    return VertexState(**known)


def _transfer(message: bytes) -> Transfer:
    known: dict[str, Any] = {"id": "", "vertex": "", "current": 0, "total": 0, "done": False}
    for number, value in wire.fields(message):
        if number in (1, 2):
            known["id" if number == 1 else "vertex"] = wire.as_text(value)
        elif number in (4, 5):
            known["current" if number == 4 else "total"] = wire.as_int(value)
        elif number == 8:
            known["done"] = True
    return Transfer(**known)


def _log_piece(message: bytes) -> LogPiece:
    known: dict[str, Any] = {}
    for number, value in wire.fields(message):
        if number == 1:
            known["vertex"] = wire.as_text(value)
        elif number == 3:
            known["stream"] = wire.as_int(value)
        elif number == 4:
            known["data"] = wire.as_bytes(value)
    return LogPiece(**known)


def _warning(message: bytes) -> Warned:
    known = {1: "", 3: "", 5: ""}
    for number, value in wire.fields(message):
        if number in known:
            known[number] = wire.as_text(value)
    return Warned(vertex=known[1], message=known[3], url=known[5])


def _time(message: bytes) -> float:
    seconds = nanoseconds = 0
    for number, value in wire.fields(message):
        if number == 1:
            seconds = wire.as_int(value)
        elif number == 2:
            nanoseconds = wire.as_int(value)
    return seconds + nanoseconds / 1e9


def _json_time(text: Any) -> float | None:
    return datetime.fromisoformat(text).timestamp() if text else None
