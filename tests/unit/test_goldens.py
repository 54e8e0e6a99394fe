from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from modelbake.config import CheckSpec, ModelSpec, SmokeSpec
from modelbake.errors import GoldenError
from modelbake.expectations import Answer, difference
from modelbake.expected import Cosine
from modelbake.expected import Golden as GoldenExpected
from modelbake.golden_update import changes, taken, updated
from modelbake.goldens import (
    Golden,
    Goldens,
    encode_goldens,
    read_goldens,
    request_digest,
    require_goldens,
    why_not_kept,
    write_goldens,
)

LOCK, OTHER_LOCK = "sha256:" + "a" * 64, "sha256:" + "b" * 64
VECTOR = [0.25, -1.0, 2.0]


def check(**changes: Any) -> CheckSpec:
    settings: dict[str, Any] = {
        "name": "embed",
        "method": "POST",
        "path": "/embed",
        "body": {"input": "hello"},
        "expect": {"vector": Cosine(cosine="hello"), "text": GoldenExpected(golden="greeting"), "n": 3},
    }
    return CheckSpec(**settings | changes)


def model(*checks: CheckSpec) -> ModelSpec:
    smoke = SmokeSpec(checks=checks or (check(),))
    return ModelSpec(name="m", version="1.0.0", source="hf://a/b", runtime="r", smoke=smoke)


def goldens(**values: Any) -> Goldens:
    return updated(model(), {"hello": VECTOR, "greeting": "hi", **values}, lock=LOCK, device="cpu")


def answer(body: Any, status: int = 200) -> Answer:
    return Answer(status, json.dumps(body), 0.1)


# --- the file -----------------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path: Path) -> None:
    made = goldens(greeting="half a character: \ud800, and ä")
    path = write_goldens(tmp_path / "goldens", "m", made)
    assert read_goldens(tmp_path / "goldens", "m") == made
    assert path.read_bytes() == encode_goldens("m", made)
    assert path.stat().st_mode & 0o777 == 0o644


def test_the_file_is_sorted_and_has_a_line_for_each_golden() -> None:
    text = encode_goldens("m", goldens()).decode()
    document = json.loads(text)
    assert list(document) == sorted(document) == ["device", "goldens", "lock", "model", "schema"]
    assert list(document["goldens"]) == ["greeting", "hello"]
    (line,) = [line for line in text.splitlines() if '"hello"' in line]
    assert line.endswith('"value": [0.25, -1.0, 2.0]}')
    turned = Goldens(dict(reversed(list(goldens().entries.items()))), LOCK, "cpu")
    assert encode_goldens("m", turned).decode() == text


def test_a_file_with_these_bytes_is_left_alone(tmp_path: Path) -> None:
    path = write_goldens(tmp_path, "m", goldens())
    os.utime(path, (1, 1))
    write_goldens(tmp_path, "m", goldens())
    assert path.stat().st_mtime == 1
    write_goldens(tmp_path, "m", goldens(greeting="bye"))
    assert path.stat().st_mtime > 1, "control"


def test_no_goldens_need_no_file(tmp_path: Path) -> None:
    """`smoke --all --update-goldens` also runs models of which no check names a golden."""
    path = write_goldens(tmp_path / "goldens", "m", Goldens())
    assert not path.parent.exists()
    write_goldens(tmp_path, "m", goldens(a=1))
    write_goldens(tmp_path, "m", Goldens(lock="sha256:" + "0" * 64, device="cpu"))
    assert read_goldens(tmp_path, "m").entries == {}, "what was there is gone"


def test_no_file_is_no_goldens(tmp_path: Path) -> None:
    assert read_goldens(tmp_path / "absent", "m") == Goldens()


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"schema": 1', '"schema": 2', "schema: "),
        ('"model": "m"', '"model": "x"', "has the goldens of x"),
        (LOCK, "sha256:a", "lock: "),
        ('"device": "cpu"', '"device": 1', "device: "),
        ('"device": "cpu"', '"device": "cpu", "more": 1', "more: "),
        ('"value": "hi"', '"value": NaN', "NaN is not JSON"),
        ('"value": "hi"', '"value": [-1e999]', "-1e999 is beyond all numbers"),
        ('"device": "cpu"', '"device": "cpu", "device": "cpu"', "a key stands there twice"),
        ('"value": "hi"', '"value": {"a": 1, "a": 2}', "a key stands there twice"),
        ('"value": "hi"', '"value": "hi"}', "is not a file of goldens"),
        ('"greeting"', '"Greeting one"', "goldens.'Greeting one': expected a name of lower-case"),
        ('"request": "sha256', '"request": "md5', "request: "),
    ],
)
def test_what_is_no_file_of_goldens(tmp_path: Path, old: str, new: str, problem: str) -> None:
    path = write_goldens(tmp_path, "m", goldens())
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(GoldenError) as caught:
        read_goldens(tmp_path, "m")
    assert problem in caught.value.message
    assert str(path) in str(caught.value)
    assert "--update-goldens" in caught.value.hint


def test_a_file_that_cannot_be_read_or_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "m.json").mkdir()
    with pytest.raises(GoldenError, match=r"m\.json: cannot be read"):
        read_goldens(tmp_path, "m")
    with pytest.raises(GoldenError, match=r"m\.json: cannot be written"):
        write_goldens(tmp_path, "m", goldens())


# --- what they belong to -----------------------------------------------------------------------------------


def test_goldens_of_these_requests_are_enough() -> None:
    require_goldens(model(), goldens(), Path("goldens"))
    require_goldens(model(check(expect={"n": 3})), Goldens(), Path("goldens"))


def test_every_missing_golden_is_named(tmp_path: Path) -> None:
    with pytest.raises(GoldenError) as caught:
        require_goldens(model(), Goldens(), Path("goldens"))
    assert str(caught.value).splitlines() == [
        "goldens/m.json: ",
        "  golden hello is missing (check embed: vector)",
        "  golden greeting is missing (check embed: text)",
        "  hint: run `build.py smoke m --update-goldens` (or `publish` with it): it takes the running image's"
        " answers; look at them, commit them",
    ]


@pytest.mark.parametrize(
    "changed",
    [
        {"body": {"input": "bye"}},
        {"path": "/other"},
        {"method": "GET"},
        {"expect": {"vectors[0]": Cosine(cosine="hello")}},
    ],
)
def test_a_golden_of_another_request_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(GoldenError, match="golden hello answers another request or expression"):
        require_goldens(model(check(**changed)), goldens(), Path("goldens"))


def test_how_near_a_vector_has_to_come_is_not_part_of_the_request() -> None:
    loose = check(expect={"vector": Cosine(cosine="hello", at_least=0.5)}, status=201, name="renamed")
    require_goldens(model(loose), goldens(), Path("goldens"))


# --- making them -------------------------------------------------------------------------------------------


def test_answers_are_taken() -> None:
    values = taken(check(), answer({"vector": [0.123456789, -1e-9, 2], "text": "hi", "n": 4}))
    assert values == {"hello": [0.123457, -1e-9, 2.0], "greeting": "hi"}


@pytest.mark.parametrize(
    "came",
    [
        answer({"vector": VECTOR, "text": "hi"}, status=500),
        answer({"vector": [0, 0], "text": None}),
        answer({"vector": "no", "n": 3}),
        answer([]),
        Answer(200, "no json", 0.1),
        Answer(200, json.dumps({"vector": VECTOR, "text": "hi"}), 0.1, truncated=True),
        Answer(0, "", 0.1, error="cut off"),
    ],
)
def test_what_is_no_answer_is_not_taken(came: Answer) -> None:
    assert taken(check(), came) == {}


def test_a_golden_is_not_larger_than_git_should_hold() -> None:
    with pytest.raises(GoldenError, match="golden greeting would have 1,048,579 bytes, and at most"):
        taken(check(), answer({"vector": VECTOR, "text": "x" * (1 << 20) + "y"}))
    assert set(taken(check(), answer({"vector": VECTOR, "text": "x" * 1000}))) == {"hello", "greeting"}, (
        "control"
    )


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("text", [float("inf"), [float("-inf")], nested(300), {"a": nested(300)}])
def test_what_no_file_can_keep_is_not_taken(text: Any) -> None:
    assert why_not_kept(text).startswith("no file of goldens can keep it")
    body = json.dumps({"text": text}).replace("Infinity", "1e999")
    assert taken(check(expect={"text": GoldenExpected(golden="greeting")}), Answer(200, body, 0.1)) == {}


@pytest.mark.parametrize("text", ["\ud800", nested(50), {"a": [1, 1.5, None, True, ""]}, 10**30, 1e-320])
def test_what_is_taken_is_read_as_it_was(tmp_path: Path, text: Any) -> None:
    asked = check(expect={"text": GoldenExpected(golden="greeting")})
    values = taken(asked, Answer(200, json.dumps({"text": text}), 0.1))
    made = updated(model(asked), values, lock=LOCK, device="cpu")
    write_goldens(tmp_path, "m", made)
    assert read_goldens(tmp_path, "m").values == {"greeting": text}


def test_a_vector_is_as_good_as_its_own_golden() -> None:
    vector = [random.Random(place).gauss(0, 1) for place in range(384)]
    wanted = Cosine(cosine="hello", at_least=1)
    values = taken(check(expect={"vector": wanted}), answer({"vector": vector}))
    assert values["hello"] != vector and difference(wanted, vector, values) is None
    off = difference(wanted, [vector[0] + 0.01, *vector[1:]], values)  # control
    assert off is not None and off.startswith("0.9999")


def test_only_what_checks_name_is_kept() -> None:
    made = updated(model(), {"hello": VECTOR, "greeting": "hi", "old": 1}, lock=LOCK, device="cuda:H100")
    assert made.values == {"hello": VECTOR, "greeting": "hi"}
    assert (made.lock, made.device) == (LOCK, "cuda:H100")
    assert made.entries["hello"].request == request_digest(check(), "vector")


def test_an_update_says_what_changes() -> None:
    before = Goldens({**goldens().entries, "old": Golden(1, LOCK)}, OTHER_LOCK, "cuda:H100")
    after = goldens(hello=[0.25, -1.0, 1.0], greeting="high")
    assert changes(before, after) == [
        'greeting: "high"; from character 3 on it is "gh", and the golden ""',
        "hello: a vector of 3 numbers, of cosine 0.947756 to the one before",
        "old: gone, because no check names it",
        f"made of other weights now: lock {LOCK}, it was {OTHER_LOCK}",
        "made on cpu now, before that on cuda:H100",
    ]
    assert changes(goldens(), goldens()) == ["greeting: as before", "hello: as before"]
    assert changes(Goldens(), goldens()) == ['greeting: new, "hi"', "hello: new, a vector of 3 numbers"]
    longer = changes(goldens(), goldens(hello=[1.0, 2.0], greeting={"a": 1}))
    assert longer == [
        'greeting: {"a": 1}; the one before is text: "hi"',
        "hello: [1.0, 2.0]; the one before is [0.25, -1.0, 2.0]",
    ]
