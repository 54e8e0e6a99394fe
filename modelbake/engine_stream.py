"""The engine's long answers: streams of JSON objects, one a line, that tell failures under HTTP 200."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelbake.errors import EngineError

if TYPE_CHECKING:
    from modelbake.output import Output

_TOLD_EVERY = 10.0  # seconds between two lines of progress


@dataclass(frozen=True)
class LayerProgress:
    """How far a layer is: `current` of `total` bytes (0 where unknown), `status` in the engine's words."""

    layer: str
    status: str
    current: int
    total: int


def json_objects(chunks: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a stream, one a line, however it is cut into chunks.

    Raises:
        EngineError: a line is not a JSON object.
    """
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (_json_object(line) for line in lines if line.strip())
    if rest.strip():
        yield _json_object(rest)


def layer_progress(message: Mapping[str, Any]) -> LayerProgress | None:
    """Return what a message of a push or a pull says of a layer, None where it says nothing of one."""
    layer = message.get("id")
    if not layer:
        return None
    detail = part(message, "progressDetail")
    return LayerProgress(
        str(layer), str(message.get("status", "")), int(detail.get("current", 0)), int(detail.get("total", 0))
    )


def problem_of(message: Mapping[str, Any]) -> str:
    """Return the failure that a message reports, "" where it reports none."""
    problem = message.get("errorDetail") or message.get("error")
    if not problem:
        return ""
    return str(problem.get("message") if isinstance(problem, dict) else problem)


def part(message: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return an object inside a message, an empty one where there is none."""
    value = message.get(key)
    return value if isinstance(value, dict) else {}


def telling(output: Output, event: str, verb: str) -> Callable[[LayerProgress], None]:
    """Return a listener that tells now and then how far the layers are; `verb`: pushed, pulled."""
    layers: dict[str, tuple[int, int]] = {}
    told = time.monotonic()

    def tell(progress: LayerProgress) -> None:
        nonlocal told
        if progress.total:
            layers[progress.layer] = (min(progress.current, progress.total), progress.total)
        if time.monotonic() - told < _TOLD_EVERY or not layers:
            return
        told = time.monotonic()
        done, total = (sum(column) for column in zip(*layers.values(), strict=True))
        output.event(event, f"{verb} {done:,} of {total:,} bytes", bytes=done, total=total)

    return tell


def _json_object(line: bytes) -> dict[str, Any]:
    try:
        document = json.loads(line)
    except ValueError as error:
        raise EngineError("the engine's answer is not JSON (a cut connection?)") from error
    if not isinstance(document, dict):
        raise EngineError("the engine's answer is not a JSON object")
    return document
