from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbake.expectations import Answer, judge, matches, shorten
from modelbake.schema import Approx

BODY = {"data": [{"embedding": [0.25, -1, 2]}], "model": "minilm", "ok": True, "none": None}


def answer(body: object = BODY, status: int = 200, **changes: Any) -> Answer:
    text = body if isinstance(body, str) else json.dumps(body)
    return Answer(status, text, 0.1, **changes)


def problems(expect: dict[str, Any], came: Answer | None = None, status: int = 200) -> list[str]:
    return [str(found) for found in judge(status, expect, came or answer()).mismatches]


def test_the_expected_answer_has_no_mismatch() -> None:
    expect = {
        "length(data[0].embedding)": 3,
        "data[0].embedding[0]": Approx(approx=0.25, tolerance=0.001),
        "data[0].embedding": [0.25, -1, 2],
        "model": "minilm",
        "ok": True,
        "none": None,
        "data[0]": {"embedding": [0.25, -1.0, 2]},
    }
    outcome = judge(200, expect, answer())
    assert outcome.mismatches == ()
    assert outcome.expected["body"]["data[0].embedding[0]"] == {"approx": 0.25, "tolerance": 0.001}
    assert outcome.actual["body"]["length(data[0].embedding)"] == 3
    json.dumps([outcome.expected, outcome.actual])


@pytest.mark.parametrize(
    ("expect", "said"),
    [
        ({"length(data[0].embedding)": 384}, "length(data[0].embedding): expected 384, got 3"),
        ({"model": "other"}, 'model: expected "other", got "minilm"'),
        ({"ok": 1}, "ok: expected 1, got true"),
        ({"ok": False}, "ok: expected false, got true"),
        ({"absent": 1}, "absent: expected 1, got null (nothing is there)"),
        ({"data[0].embedding": [0.25, -1]}, "data[0].embedding: expected [0.25, -1], got [0.25, -1, 2]"),
        ({"data[0].embedding[0]": Approx(approx=0.3, tolerance=0.01)}, "expected 0.3 ± 0.01, got 0.25"),
        ({"model": Approx(approx=1.0, tolerance=1.0)}, 'expected 1 ± 1, got "minilm"'),
        ({"ok": Approx(approx=1.0, tolerance=1.0)}, "expected 1 ± 1, got true"),
        ({"length(none)": 0}, "length(none): expected 0, got no value (In function length()"),
        ({"abs(model)": 0}, "abs(model): expected 0, got no value"),
    ],
)
def test_a_mismatch_says_both_sides(expect: dict[str, Any], said: str) -> None:
    (problem,) = problems(expect)
    assert said in problem


def test_every_mismatch_is_told() -> None:
    assert len(problems({"model": "a", "ok": False, "none": None})) == 2


@pytest.mark.parametrize(
    ("came", "said"),
    [
        (answer("<html>no</html>"), 'body: expected JSON, got "<html>no</html>"'),
        (answer(""), 'body: expected JSON, got ""'),
        (answer('{"a": NaN}'), "NaN is not JSON"),
        (answer("[" * 100_000), "body: expected JSON"),
        (answer("{}", truncated=True), "it is too long"),
        (answer({"error": "no"}, status=500), "status: expected HTTP 200, got HTTP 500 with"),
        (answer("", status=503), "status: expected HTTP 200, got HTTP 503"),
        (Answer(0, "", 0.1, error="TimeoutError: timed out"), "no whole answer (TimeoutError: timed out)"),
        (Answer(0, "", 0.1), "no whole answer (no answer)"),
        (Answer(200, "{}", 0.1, error="cut off"), "no whole answer (cut off)"),
    ],
)
def test_what_came_instead_is_a_failure_and_not_an_error(came: Answer, said: str) -> None:
    outcome = judge(200, {"a": 1}, came)
    (problem,) = map(str, outcome.mismatches)
    assert said in problem
    json.dumps(outcome.actual)


def test_a_status_alone_needs_no_json() -> None:
    assert problems({}, answer("plain text")) == []
    assert problems({}, answer("", status=404), status=404) == []


def test_long_values_are_cut() -> None:
    outcome = judge(200, {"long": 1}, answer({"long": ["x" * 10] * 1000}))
    assert len(str(outcome.mismatches[0])) < 400
    assert len(json.dumps(outcome.actual)) < 600
    assert "characters" in str(outcome.mismatches[0])
    assert shorten("x" * 10) == '"xxxxxxxxxx"'


@pytest.mark.parametrize(
    "body", ['{"a": "\\ud800"}', '{"a": {"\\ud800": 1}}', '{"a": "nan"}', '{"a": 1e999}']
)
@pytest.mark.parametrize("expression", ["a", "to_number(a)", "abs(a)"])
def test_what_no_file_can_hold_is_shown_all_the_same(body: str, expression: str) -> None:
    outcome = judge(200, {expression: "x"}, answer(body))
    (problem,) = outcome.mismatches
    str(problem).encode()
    json.dumps(outcome.actual, ensure_ascii=False, allow_nan=False).encode()


@pytest.mark.parametrize(
    ("expected", "actual", "same"),
    [
        (1, 1.0, True),
        (1, True, False),
        (True, True, True),
        (0, False, False),
        (None, None, True),
        (None, 0, False),
        ("1", 1, False),
        ([1, [2]], [1, [2]], True),
        ((1, 2), [1, 2], True),
        ([1], [1, 2], False),
        ([True], [1], False),
        ({"a": 1}, {"a": 1.0}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": 1}, {"b": 1}, False),
        ({}, [], False),
        (Approx(approx=1.0, tolerance=0.5), 1.5, True),
        (Approx(approx=1.0, tolerance=0.5), 1.5001, False),
        (Approx(approx=1.0, tolerance=0.5), 10**400, False),
        (Approx(approx=1.0, tolerance=0.5), None, False),
        (Approx(approx=1.0, tolerance=0.5), [1.0], False),
        ([Approx(approx=1.0, tolerance=0.5)], [1.2], True),
    ],
)
def test_equality_is_that_of_json(expected: object, actual: object, same: bool) -> None:
    assert matches(expected, actual) is same


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(json_values)
def test_every_value_matches_itself_through_json(value: object) -> None:
    assert matches(value, json.loads(json.dumps(value)))


@given(json_values, st.sampled_from(["a", "length(@)", "a[0].b", "keys(@)", "max(@)", "to_number(@)", "@.*"]))
def test_no_answer_is_an_error(value: object, expression: str) -> None:
    outcome = judge(200, {expression: 1}, answer(json.dumps(value)))
    json.dumps(outcome.actual)
