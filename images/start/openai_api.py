"""The form of OpenAI's API: error bodies, request bodies, and checks of what a request says.

What is not understood is refused, with the parameter's name: nothing is ever ignored in silence.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from starlette.requests import Request


class ApiError(Exception):
    """A request that is refused, or failed: the HTTP status, and what OpenAI's error body says."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message.encode("utf-8", "backslashreplace").decode()
        # Like the message: a lone surrogate is good JSON, and cannot be answered in UTF-8.
        self.param = None if param is None else param.encode("utf-8", "backslashreplace").decode()
        self.code = code

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body, in OpenAI's shape."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


async def read_body(request: Request, limit: int) -> bytes:
    """The request's body; ApiError 413 where it has more than ``limit`` bytes."""
    body = bytearray()
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= limit:
            body += chunk
        elif size > 8 * limit:
            break
        # In between it is read and dropped: most clients read no answer before they have sent everything.
    if size > limit:
        raise ApiError(413, f"the body has more than {limit} bytes", code="body_too_large")
    return bytes(body)


def parse_object(data: bytes) -> dict[str, Any]:
    """A JSON object from a request's body; ApiError 400 for anything else."""
    try:
        body = json.loads(data, parse_constant=refuse_constant, object_pairs_hook=refuse_duplicates)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}"[:200], code="invalid_json") from error
    if not isinstance(body, dict):
        raise ApiError(400, "the body has to be a JSON object", code="invalid_json")
    return body


def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A key that stands there twice: one of the two values would be ignored in silence."""
    body = dict(pairs)
    if len(body) != len(pairs):
        raise ValueError("a key stands there twice")
    return body


def refuse_constant(name: str) -> NoReturn:
    """NaN and Infinity are no JSON, though Python reads them."""
    raise ValueError(f"{name} is no JSON number")


def check_model(body: Mapping[str, Any], model: str) -> None:
    """Refuse a request for another model; one that names none means this one."""
    asked = body.get("model")
    if asked is not None and asked != model:
        words = f"this server has the model {model!r} only"
        raise ApiError(404, words, param="model", code="model_not_found")


def check_known(body: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse what would otherwise be ignored in silence; null means not given, as in OpenAI's API."""
    for name, value in body.items():
        if name not in known and value is not None:
            words = f"parameter not supported: {name[:100]!r}; supported: {', '.join(sorted(known))}"
            raise ApiError(400, words, param=name[:100], code="unsupported_parameter")


def number(body: Mapping[str, Any], name: str, low: float, high: float) -> float | None:
    """A parameter that is a number from ``low`` to ``high``, or nothing."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise ApiError(400, f"{name} has to be a number from {low:g} to {high:g}", param=name)
    return float(value)


def whole_number(body: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    """A parameter that is a whole number from ``low`` to ``high``, or nothing."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ApiError(400, f"{name} has to be a whole number from {low} to {high}", param=name)
    return value


def flag(body: Mapping[str, Any], name: str) -> bool:
    """A parameter that is true or false; false where it is not given."""
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise ApiError(400, f"{name} has to be true or false", param=name)
    return bool(value)


def text(value: Any, name: str) -> str:
    """A string that has an encoding: JSON can spell half of a surrogate pair, which no tokenizer takes."""
    if not isinstance(value, str):
        raise ApiError(400, f"{name} has to be a string", param=name)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ApiError(400, f"{name} is not Unicode text: {error.reason}", param=name) from error
    return value
