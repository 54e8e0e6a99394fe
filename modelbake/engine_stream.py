"""The engine's long answers: streams of JSON objects, one a line, that tell failures under HTTP 200."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from modelbake.errors import EngineError


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


def _json_object(line: bytes) -> dict[str, Any]:
    try:
        document = json.loads(line)
    except ValueError as error:
        raise EngineError("the engine's answer is not JSON (a cut connection?)") from error
    if not isinstance(document, dict):
        raise EngineError("the engine's answer is not a JSON object")
    return document
