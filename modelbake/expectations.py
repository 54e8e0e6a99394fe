"""Whether an answer is the declared one. Pure: no network, no engine.

A check expects an HTTP status and, for some JMESPath expressions over the JSON body, a value: an equal one,
or for numbers one within a tolerance. Whatever came instead is a failure that says what came, never an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jmespath
import jmespath.exceptions

from modelbake.schema import Approx

_SHOWN = 200  # characters of a value that a message or a report shows


@dataclass(frozen=True)
class Answer:
    """What came back for one request: status 0 and `error` where no whole answer came; body as text."""

    status: int
    body: str
    seconds: float
    error: str | None = None
    truncated: bool = False


@dataclass(frozen=True)
class Mismatch:
    """One difference: the expression (or `status`, `body`), and both sides, shortened or in words."""

    what: str
    expected: str
    actual: str

    def __str__(self) -> str:
        return f"{self.what}: expected {self.expected}, got {self.actual}"


@dataclass(frozen=True)
class Outcome:
    """A check's result: both sides as JSON for the report, and the differences, none where it passed."""

    expected: Any
    actual: Any
    mismatches: tuple[Mismatch, ...]


def judge(status: int, expect: Mapping[str, Any], answer: Answer) -> Outcome:
    """Compare an answer with the expected status and expressions."""
    expected: dict[str, Any] = {"status": status}
    if expect:
        expected["body"] = {expression: _plain(value) for expression, value in expect.items()}
    actual: dict[str, Any] = {"status": answer.status}

    def fail(*mismatches: Mismatch, **shown: Any) -> Outcome:
        return Outcome(expected, actual | shown, mismatches)

    if answer.error is not None or answer.status == 0:
        why = answer.error or "no answer"
        return fail(Mismatch("status", f"HTTP {status}", f"no whole answer ({why})"), error=shorten(why))
    if answer.status != status:
        came = f"HTTP {answer.status}" + (f" with {shorten(answer.body)}" if answer.body else "")
        return fail(Mismatch("status", f"HTTP {status}", came), body=shorten(answer.body))
    if not expect:
        return fail()
    try:
        if answer.truncated:
            raise ValueError("it is too long")
        body = json.loads(answer.body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        came = f"{shorten(answer.body)} ({error})"
        return fail(Mismatch("body", "JSON", came), body=shorten(answer.body))
    values: dict[str, Any] = {}
    mismatches = []
    for expression, wanted in expect.items():
        try:
            value = jmespath.search(expression, body)
        except (
            jmespath.exceptions.JMESPathError,
            TypeError,
            ValueError,
            ArithmeticError,
            RecursionError,
        ) as error:
            # The last are what its functions let through for values they were not made for.
            values[expression] = {"error": shorten(str(error))}
            mismatches.append(Mismatch(expression, describe(wanted), f"no value ({_printable(str(error))})"))
            continue
        values[expression] = value if _is_short_json(value) else shorten(value)
        if not matches(wanted, value):
            came = shorten(value) + (" (nothing is there)" if value is None else "")
            mismatches.append(Mismatch(expression, describe(wanted), came))
    return fail(*mismatches, body=values)


def matches(expected: Any, actual: Any) -> bool:
    """Tell whether a JSON value is the expected one; `true` is not 1, while 1 is 1.0."""
    if isinstance(expected, Approx):
        return _is_number(actual) and _near(expected, actual)
    if isinstance(expected, Mapping):
        return (
            isinstance(actual, dict)
            and expected.keys() == actual.keys()
            and all(matches(value, actual[key]) for key, value in expected.items())
        )
    if isinstance(expected, list | tuple):
        return (
            isinstance(actual, list)
            and len(actual) == len(expected)
            and all(matches(*pair) for pair in zip(expected, actual, strict=True))
        )
    if _is_number(expected):
        return _is_number(actual) and bool(expected == actual)
    return type(expected) is type(actual) and bool(expected == actual)


def describe(expected: Any) -> str:
    """Return an expectation for a message."""
    if isinstance(expected, Approx):
        return f"{expected.approx:g} ± {expected.tolerance:g}"
    return shorten(expected)


def shorten(value: Any) -> str:
    """Return a value as JSON on one line, cut where it is long."""
    text = _encode(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"


def _encode(value: Any) -> str:
    return _printable(json.dumps(value, ensure_ascii=False, default=str))


def _printable(text: str) -> str:
    """Return a text that every file and terminal takes: JSON can name half characters (lone surrogates)."""
    return text.encode(errors="backslashreplace").decode()


def _is_short_json(value: Any) -> bool:
    try:
        return len(json.dumps(value, ensure_ascii=False, allow_nan=False).encode()) <= _SHOWN
    except (TypeError, ValueError):  # not of JSON, not a number, or half characters
        return False


def _plain(value: Any) -> Any:
    """Return an expectation as JSON for the report."""
    if isinstance(value, Approx):
        return {"approx": value.approx, "tolerance": value.tolerance}
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _near(expected: Approx, actual: float) -> bool:
    try:
        return math.isfinite(actual) and abs(actual - expected.approx) <= expected.tolerance
    except OverflowError:  # an integer beyond all floats
        return False


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
