from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbake.config import CheckSpec
from modelbake.expectations import Answer, describe, difference, judge, matches, shorten
from modelbake.expected import Approx, Between, Contains, Cosine, Equals, Golden, Matches
from modelbake.golden_update import taken
from modelbake.validation import Entry
from modelbake.vectors import cosine, is_vector

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


def test_no_answer_is_too_deep_to_be_judged() -> None:
    """Python reads JSON that is so deep that Python cannot write it."""
    for depth in range(99, 1001):
        (problem,) = problems({"@": 3}, answer("[" * depth + "]" * depth))
        assert problem.startswith("@: expected 3" if depth <= 100 else "body: expected JSON")


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


# --- the words --------------------------------------------------------------------------------------------

VECTOR = [0.6, 0.8, 0.0]
GOLDENS = {"hello": VECTOR, "greeting": "Hello there, how are you?", "zero": [0, 0], "short": [1.0]}


@pytest.mark.parametrize(
    ("wanted", "value", "came"),
    [
        (Equals(equals={"contains": 1}), {"contains": 1}, None),
        (Equals(equals={"contains": 1}), {"contains": 2}, '{"contains": 2}'),
        (Equals(equals=None), None, None),
        (Contains(contains="weights"), "the weights are", None),
        (Contains(contains="weights"), "the Weights are", '"the Weights are"'),
        (Contains(contains="a"), ["a"], '["a"]'),
        (Contains(contains="a"), None, "null (nothing is there)"),
        (Matches(matches=r"^\d{3}$"), "123", None),
        (Matches(matches=r"\d"), "a1b", None),
        (Matches(matches=r"^\d{3}$"), "1234", '"1234"'),
        (Matches(matches="1"), 1, "1"),
        (Matches(matches="(?i)HELLO \u00e4"), "hello \u00e4", None),
        (Between(at_least=1.0), 1, None),
        (Between(at_least=1.0), 0.999, "0.999"),
        (Between(at_most=1.0), 1, None),
        (Between(at_most=1.0), 1.001, "1.001"),
        (Between(at_least=1.0, at_most=2.0), 1.5, None),
        (Between(at_least=1.0, at_most=2.0), 10**400, "1" + "0" * 199 + "… (401 characters)"),
        (Between(at_least=0.0), True, "true"),
        (Between(at_least=0.0), "1", '"1"'),
        (Between(at_least=0.0), float("inf"), "Infinity"),
        (Cosine(cosine="hello"), [6.0, 8.0, 0.0], None),
        (Cosine(cosine="hello"), [0.0, 0.0, 1.0], "0.000000"),
        (Cosine(cosine="hello"), [-0.6, -0.8, 0], "-1.000000"),
        (Cosine(cosine="hello", at_least=0.9), [0.6, 0.8, 0.3], None),
        (Cosine(cosine="hello", at_least=0.99), [0.6, 0.8, 0.3], "0.957826"),
        (Cosine(cosine="hello"), [0.6, 0.8], "a vector of 2 numbers; the golden has 3"),
        (Cosine(cosine="hello"), "0.6", '"0.6", which is no vector'),
        (Cosine(cosine="hello"), [0.6, 0.8, True], "[0.6, 0.8, true], which is no vector"),
        (Cosine(cosine="hello"), [0, 0, 0], "[0, 0, 0], which is no vector"),
        (Cosine(cosine="hello"), [10**400, 0, 0], "which is no vector"),
        (Cosine(cosine="zero"), [1, 0], "[1, 0]; the golden is no vector"),
        (Cosine(cosine="absent"), [1, 0], "[1, 0]; there is no such golden"),
        (Golden(golden="absent"), None, "there is no such golden"),
        (Cosine(cosine="short"), [1e-200], None),
        (Golden(golden="greeting"), "Hello there, how are you?", None),
        (
            Golden(golden="greeting"),
            "Hello there, how is it?",
            'from character 18 on it is "is it?", and the golden "are you?"',
        ),
        (Golden(golden="greeting"), "Hello", "from character 6 on"),
        (Golden(golden="greeting"), None, "null (nothing is there); the golden is text"),
        (Golden(golden="hello"), VECTOR, None),
        (Golden(golden="hello"), [0.6, 0.8, 0.1], "; the golden is [0.6, 0.8, 0.0]"),
    ],
)
def test_what_each_word_takes(wanted: object, value: object, came: str | None) -> None:
    said = difference(wanted, value, GOLDENS)
    assert (said is None) is (came is None), said
    assert came is None or (said is not None and came in said)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Equals(equals=[1]), "[1]"),
        (Contains(contains="a"), 'text with "a" in it'),
        (Matches(matches="^a"), 'text that matches "^a"'),
        (Between(at_least=1.0), "at least 1"),
        (Between(at_most=2.5), "at most 2.5"),
        (Between(at_least=1.0, at_most=2.0), "1 to 2"),
        (Cosine(cosine="hello"), 'a cosine of at least 0.999 to golden "hello"'),
        (Cosine(cosine="hello", at_least=0.9999999), 'a cosine of at least 0.9999999 to golden "hello"'),
        (Golden(golden="greeting"), 'golden "greeting"'),
    ],
)
def test_what_is_expected_is_said_in_words(wanted: object, words: str) -> None:
    assert describe(wanted) == words


def test_a_report_keeps_the_cosine_and_not_the_vector() -> None:
    expect = {"data[0].embedding": Cosine(cosine="v"), "model": Contains(contains="mini")}
    outcome = judge(200, expect, answer(), {"v": [0.25, -1, 2.0]})
    assert outcome.mismatches == ()
    assert outcome.expected["body"] == {
        "data[0].embedding": {"cosine": "v", "at_least": 0.999},
        "model": {"contains": "mini"},
    }
    assert outcome.actual["body"] == {"data[0].embedding": {"cosine": 1.0, "length": 3}, "model": "minilm"}


def test_a_search_that_runs_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelbake.patterns.SEARCH_SECONDS", 1.0)
    said = difference(Matches(matches="^(a+)+$"), "a" * 40 + "!")
    assert said is not None and "no result after 1 s: the expression backtracks too much" in said
    assert difference(Matches(matches="^(a+)+$"), "a" * 40) is None, (
        "control: the same expression, another text"
    )


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=5))
def test_every_vector_points_where_it_points(vector: list[float]) -> None:
    if is_vector(vector):
        assert cosine(vector, vector) == pytest.approx(1.0)
        assert cosine(vector, [-x for x in vector]) == pytest.approx(-1.0)
    else:
        assert not any(vector)


@given(st.lists(st.floats(-1, 1).map(lambda x: round(x, 12)), min_size=1, max_size=400))
def test_a_vector_is_as_near_as_can_be_to_its_own_golden(vector: list[float]) -> None:
    wanted = Cosine(cosine="v", at_least=1.0)
    check = CheckSpec(name="embed", method="GET", path="/x", expect={"v": wanted})
    golden = taken(check, answer({"v": vector}))
    if is_vector(vector):
        assert difference(wanted, vector, golden) is None


def test_a_vector_that_is_a_little_apart_is_not_the_golden() -> None:
    said = difference(Cosine(cosine="v", at_least=1.0), [1.0, 1e-4], {"v": [1.0, 0.0]})
    assert said == "0.999999995"


@given(
    json_values, st.sampled_from([Cosine(cosine="hello"), Golden(golden="greeting"), Between(at_least=0.0)])
)
def test_no_value_is_too_strange_for_a_word(value: object, wanted: Entry) -> None:
    outcome = judge(200, {"@": wanted}, answer(json.dumps(value)), GOLDENS)
    json.dumps([outcome.expected, outcome.actual], allow_nan=False)
