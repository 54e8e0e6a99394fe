"""Whether an answer is the declared one. No network, no engine; only a regular expression starts a process.

A check expects an HTTP status and, for some JMESPath expressions over the JSON body, a value: an equal one,
or what `expected` has words for. Whatever came instead is a failure that says what came, never an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jmespath
import jmespath.exceptions

from modelbake.expected import Approx, Between, Contains, Cosine, Equals, Golden, Matches, golden_of
from modelbake.goldens import why_not_kept
from modelbake.patterns import SearchError, found
from modelbake.records import refuse_constant
from modelbake.validation import Entry
from modelbake.vectors import cosine, is_number, is_vector

_SHOWN = 200  # characters of a value that a message or a report shows
_COSINE_DIGITS = 9
_PARTED = 60  # characters that are shown of where a text parts from the golden one
_DEEPEST = 100  # of lists and mappings within each other: what can be read can be too deep to be written
_NO_GOLDENS: Mapping[str, Any] = {}


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


def judge(
    status: int, expect: Mapping[str, Any], answer: Answer, goldens: Mapping[str, Any] = _NO_GOLDENS
) -> Outcome:
    """Compare an answer with the expected status and expressions. `goldens` has the golden values by name."""
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
        body = read_body(answer)
    except ValueError as error:
        came = f"{shorten(answer.body)} ({error})"
        return fail(Mismatch("body", "JSON", came), body=shorten(answer.body))
    values: dict[str, Any] = {}
    mismatches = []
    for expression, wanted in expect.items():
        try:
            value = search(expression, body)
        except ValueError as error:
            values[expression] = {"error": shorten(str(error))}
            mismatches.append(Mismatch(expression, describe(wanted), f"no value ({_printable(str(error))})"))
            continue
        values[expression] = _recorded(wanted, value, goldens)
        if (instead := difference(wanted, value, goldens)) is not None:
            mismatches.append(Mismatch(expression, describe(wanted), instead))
    return fail(*mismatches, body=values)


def read_body(answer: Answer) -> Any:
    """Return the JSON of an answer; ValueError says why there is none."""
    if answer.truncated:
        raise ValueError("it is too long")
    try:
        body = json.loads(answer.body, parse_constant=refuse_constant)
    except RecursionError as error:
        raise ValueError(str(error)) from error
    if _is_deep(body):
        raise ValueError(f"it is nested more than {_DEEPEST} times")
    return body


def search(expression: str, body: Any) -> Any:
    """Return what a JMESPath expression yields over a JSON value; ValueError where it cannot be evaluated."""
    try:
        return jmespath.search(expression, body)
    except (jmespath.exceptions.JMESPathError, TypeError, ArithmeticError, RecursionError) as error:
        # The last three are what its functions let through for values they were not made for.
        raise ValueError(str(error)) from error


def difference(wanted: Any, value: Any, goldens: Mapping[str, Any] = _NO_GOLDENS) -> str | None:
    """Return what came instead of an expected value, in words; None where it is as expected."""
    came = shorten(value) + (" (nothing is there)" if value is None else "")
    if isinstance(wanted, Contains):
        return None if isinstance(value, str) and wanted.contains in value else came
    if isinstance(wanted, Matches):
        try:
            return None if isinstance(value, str) and found(wanted.matches, value) else came
        except SearchError as error:
            return f"{came} ({error})"
    if (name := golden_of(wanted)) is not None and name not in goldens:
        # Of a run that takes goldens only: what it could not take it has not.
        return f"{came}; {why_not_kept(value) or 'there is no such golden'}"
    if isinstance(wanted, Cosine):
        golden = goldens[wanted.cosine]
        if not is_vector(value):
            return f"{came}, which is no vector"
        if not is_vector(golden):
            return f"{came}; the golden is no vector"
        if len(value) != len(golden):
            return f"a vector of {len(value)} numbers; the golden has {len(golden)}"
        near = _near_to(golden, value)
        return None if near >= wanted.at_least else f"{near:.{_COSINE_DIGITS}f}"
    if isinstance(wanted, Golden):
        golden = goldens[wanted.golden]
        return None if matches(golden, value) else f"{came}{_apart(golden, value)}"
    return None if matches(wanted, value) else came


def matches(expected: Any, actual: Any) -> bool:
    """Tell whether a JSON value is the expected one; `true` is not 1, while 1 is 1.0."""
    if isinstance(expected, Equals):
        return matches(expected.equals, actual)
    if isinstance(expected, Approx):
        return is_number(actual) and _near(expected, actual)
    if isinstance(expected, Between):
        return is_number(actual) and _within(expected, actual)
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
    if is_number(expected):
        return is_number(actual) and bool(expected == actual)
    return type(expected) is type(actual) and bool(expected == actual)


def describe(expected: Any) -> str:
    """Return an expectation for a message."""
    match expected:
        case Approx():
            return f"{expected.approx:g} ± {expected.tolerance:g}"
        case Between(at_least=None):
            return f"at most {expected.at_most:g}"
        case Between(at_most=None):
            return f"at least {expected.at_least:g}"
        case Between():
            return f"{expected.at_least:g} to {expected.at_most:g}"
        case Contains():
            return f"text with {shorten(expected.contains)} in it"
        case Matches():
            return f"text that matches {shorten(expected.matches)}"
        case Cosine():
            least = f"{expected.at_least:.{_COSINE_DIGITS}g}"
            return f"a cosine of at least {least} to golden {shorten(expected.cosine)}"
        case Golden():
            return f"golden {shorten(expected.golden)}"
        case Equals():
            return shorten(expected.equals)
    return shorten(expected)


def shorten(value: Any) -> str:
    """Return a value as JSON on one line, cut where it is long."""
    text = _encode(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"


def _encode(value: Any) -> str:
    return _printable(json.dumps(value, ensure_ascii=False, default=str))


def _is_deep(value: Any) -> bool:
    level = [value] if isinstance(value, list | dict) else []
    for _ in range(_DEEPEST):
        within = (each.values() if isinstance(each, dict) else each for each in level)
        level = [inner for values in within for inner in values if isinstance(inner, list | dict)]
    return bool(level)


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
    return value.model_dump(exclude_none=True) if isinstance(value, Entry) else value


def _recorded(wanted: Any, value: Any, goldens: Mapping[str, Any]) -> Any:
    """Return what the report keeps of a value: of a vector how near it came."""
    if isinstance(wanted, Cosine):
        golden = goldens.get(wanted.cosine)
        if is_vector(value) and is_vector(golden) and len(value) == len(golden):
            return {"cosine": _near_to(golden, value), "length": len(value)}
    return value if _is_short_json(value) else shorten(value)


def _near_to(golden: Sequence[float], value: Sequence[float]) -> float:
    """Return the cosine to as many digits as mean something: a golden's own rounding is not among them."""
    return round(cosine(value, golden), _COSINE_DIGITS)


def _apart(golden: Any, value: Any) -> str:
    """Return where two texts part: in long ones that is what one looks for."""
    if not isinstance(golden, str):
        return f"; the golden is {shorten(golden)}"
    if not isinstance(value, str):
        return f"; the golden is text: {shorten(golden)}"
    at = next((n for n, (a, b) in enumerate(zip(golden, value, strict=False)) if a != b), None)
    at = min(len(golden), len(value)) if at is None else at
    return (
        f"; from character {at + 1} on it is {shorten(value[at : at + _PARTED])},"
        f" and the golden {shorten(golden[at : at + _PARTED])}"
    )


def _near(expected: Approx, actual: float) -> bool:
    try:
        return math.isfinite(actual) and abs(actual - expected.approx) <= expected.tolerance
    except OverflowError:  # an integer beyond all floats
        return False


def _within(expected: Between, actual: float) -> bool:
    if isinstance(actual, float) and not math.isfinite(actual):  # 1e999 is JSON
        return False
    return (expected.at_least is None or actual >= expected.at_least) and (
        expected.at_most is None or actual <= expected.at_most
    )
