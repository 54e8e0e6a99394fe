"""JSON that is read as strictly as it is written: what reports and goldens share."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class Record(BaseModel):
    """A part of such a file: every key is known, every value of its very kind, no value is in an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


def json_digest(document: Any) -> str:
    """Return `sha256:...` of a JSON document."""
    return f"sha256:{hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()}"


def parse(text: str | bytes) -> Any:
    """Return the JSON document that a text is.

    Python's own reader takes NaN and Infinity, makes infinity of 1e999, and keeps the last of two equal keys.

    Bytes are UTF-8 without a byte order mark; Python's reader guesses, and takes half characters.

    Raises:
        ValueError: it is none, or has one of these.
        RecursionError: it is nested too deeply.
    """
    return json.loads(
        text.decode() if isinstance(text, bytes) else text,
        object_pairs_hook=_without_duplicates,
        parse_constant=refuse_constant,
        parse_float=_finite,
    )


def refuse_constant(name: str) -> Any:
    """Refuse NaN and the infinities: `parse_constant` of json.loads. Raises ValueError."""
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is beyond all numbers")
    return number


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key stands there twice")
    return document
