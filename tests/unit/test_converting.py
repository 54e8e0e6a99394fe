"""What `lock` takes from an engine that has converted pickles: a list of the expected files, and no other."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modelbake.converting import listed_files
from modelbake.errors import EngineError

SHA = "ab" * 32
EXPECTED = ["a/model.safetensors", "model.safetensors"]


def document(**change: Any) -> dict[str, Any]:
    files = [{"path": path, "size": 10, "sha256": SHA} for path in EXPECTED]
    files[1] |= change
    return {"schema": 1, "files": files}


def test_a_list_in_any_order_is_taken() -> None:
    raw = document()
    raw["files"].reverse()
    files = listed_files(json.dumps(raw).encode(), EXPECTED)
    assert [(file.path, file.size, file.sha256) for file in files] == [(path, 10, SHA) for path in EXPECTED]


@pytest.mark.promise("parsers")
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"null",
        b"\xff",
        b"[" * 100_000,
        b'{"files": 1}',
        b'{"files": [1]}',
        b'{"files": [{}]}',
        json.dumps({"files": []}).encode(),
        *(
            json.dumps(document(**change)).encode()
            for change in (
                {"path": "../model.safetensors"},
                {"path": "a/model.safetensors"},
                {"path": 1},
                {"size": -1},
                {"size": True},
                {"size": 1.5},
                {"size": 2**63},
                {"sha256": "ab"},
                {"sha256": None},
                {"sha256": SHA.upper()},
            )
        ),
    ],
)
def test_any_other_list_is_refused(content: bytes) -> None:
    with pytest.raises(EngineError) as caught:
        listed_files(content, EXPECTED)
    assert caught.value.subject == "converted.json"
