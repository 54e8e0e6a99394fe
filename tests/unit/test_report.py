from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modelbake.config import CheckSpec, ModelSpec, SmokeSpec
from modelbake.errors import ReportMissing, SmokeError
from modelbake.figures import GPU_MEMORY
from modelbake.report import (
    asked_of,
    discard_report,
    encode_report,
    find_report,
    read_report,
    report_path,
    request_of,
    write_report,
)
from modelbake.smokeentry import ToleranceEntry
from tests.unit.reporting import document, report

FAILED_CHECK = {"name": "c", "passed": False, "expected": 1, "actual": {"x": [2]}, "seconds": 0.1}


def put(root: Path, content: object) -> Path:
    path = root / "minilm" / "1.0.0.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = write_report(tmp_path, report())
    assert path == report_path(tmp_path, "minilm", "1.0.0") == tmp_path / "minilm" / "1.0.0.json"
    assert read_report(tmp_path, "minilm", "1.0.0") == report()
    assert [entry.name for entry in path.parent.iterdir()] == ["1.0.0.json"], "no temporary file stays"


def test_the_same_report_has_the_same_bytes(tmp_path: Path) -> None:
    first = write_report(tmp_path, report()).read_bytes()
    reordered = dict(reversed(document().items()))
    assert encode_report(type(report()).model_validate(reordered)) == first
    assert first.endswith(b"}\n")
    assert list(json.loads(first)) == sorted(json.loads(first))


def test_a_failed_run_replaces_a_report_that_passed(tmp_path: Path) -> None:
    write_report(tmp_path, report())
    write_report(tmp_path, report(passed=False, checks=[FAILED_CHECK]))
    assert read_report(tmp_path, "minilm", "1.0.0").passed is False


def test_discarding_leaves_no_report(tmp_path: Path) -> None:
    discard_report(tmp_path, "minilm", "1.0.0")
    write_report(tmp_path, report())
    discard_report(tmp_path, "minilm", "1.0.0")
    with pytest.raises(ReportMissing, match="there is no smoke report"):
        read_report(tmp_path, "minilm", "1.0.0")


def test_versions_have_reports_of_their_own(tmp_path: Path) -> None:
    write_report(tmp_path, report())
    with pytest.raises(ReportMissing, match=r"build\.py smoke minilm"):
        read_report(tmp_path, "minilm", "1.0.1")


def answered(actual: object) -> dict[str, Any]:
    """Return a passing report with this answer to a check."""
    return document(checks=[{**FAILED_CHECK, "passed": True, "actual": actual}])


def on_gpu(**memory: int) -> dict[str, Any]:
    """Return a report of a GPU's run with these figures of its memory."""
    known = {"torch_peak_bytes": 5, "driver_bytes": 5, **memory}
    return document(device="cuda:H200", gpu=True, gpu_memory=known)


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in document().items() if name != key}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not a report"),
        (b"\xff\xfe", "is not a report"),
        (b"[" * 100_000, "is not a report"),
        ([], "is not a report"),
        (b'{"schema": 1, "schema": 1}', "a key stands there twice"),
        (document(schema=2), "schema"),
        (document(extra=1), "extra"),
        (without("lock"), "lock"),
        (document(image_id="sha256:abc"), "image_id"),
        (document(image_id="sha256:" + "1" * 64 + "\n"), "image_id"),
        (document(passed="yes"), "passed"),
        (document(passed=1), "passed"),
        (document(image_bytes=-1), "image_bytes"),
        (document(image_bytes=1.5), "image_bytes"),
        (document(image_bytes=2**63), "image_bytes"),
        (on_gpu(torch_peak_bytes=10**400), "gpu_memory.torch_peak_bytes"),
        (on_gpu(driver_bytes=2**63), "gpu_memory.driver_bytes"),
        (answered(float("nan")), "NaN is not JSON"),
        (answered([float("-inf")]), "-Infinity is not JSON"),
        (json.dumps(answered("X")).replace('"X"', "-1e999").encode(), "-1e999 is beyond all numbers"),
        (answered("\ud800"), "half of a surrogate pair"),
        (answered({"\udfff": 1}), "half of a surrogate pair"),
        (json.dumps(answered("X")).encode().replace(b"X", b"\xed\xa0\x80"), "invalid continuation byte"),
        (document(ready_seconds=float("nan")), "NaN is not JSON"),
        (document(ready_seconds=10**400), "ready_seconds"),
        (document(started_at="yesterday"), "started_at"),
        (document(device="gpu"), "device"),
        (document(gpu=True), "`gpu` does not follow"),
        (document(device="cuda:H200"), "`gpu` does not follow"),
        (document(checks=[]), "checks"),
        (document(checks=[FAILED_CHECK]), "`passed` does not follow"),
        (document(passed=False), "`passed` does not follow"),
        (document(ready_seconds=None), "without ever having been ready"),
        (document(latency_seconds={"p50": 1}), "latency_seconds.p95"),
        (document(model="other"), "is the report of other 1.0.0"),
        (document(version="1.0.1"), "is the report of minilm 1.0.1"),
    ],
)
def test_what_no_run_writes_is_refused(tmp_path: Path, content: object, problem: str) -> None:
    path = put(tmp_path, content)
    with pytest.raises(ReportMissing, match=problem) as caught:
        read_report(tmp_path, "minilm", "1.0.0")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("actual", [0.5, 1e308, 10**400, "\U0001f600", {"ü": [None]}])
def test_what_a_run_can_have_seen_is_read(tmp_path: Path, actual: object) -> None:
    put(tmp_path, answered(actual))
    read = read_report(tmp_path, "minilm", "1.0.0")
    assert read.checks[0].actual == actual
    assert json.loads(encode_report(read))["checks"][0]["actual"] == actual
    put(tmp_path, on_gpu(torch_peak_bytes=2**63 - 1))
    assert GPU_MEMORY.shown(GPU_MEMORY.of(read_report(tmp_path, "minilm", "1.0.0"))) == "9,223,372 TB"


def test_a_report_is_found_or_absent_or_wrong(tmp_path: Path) -> None:
    assert find_report(tmp_path, "minilm", "1.0.0") is None
    path = put(tmp_path, b"{broken")
    with pytest.raises(ReportMissing, match="is not a report") as caught:
        find_report(tmp_path, "minilm", "1.0.0")
    assert str(path) in str(caught.value)
    write_report(tmp_path, report())
    assert find_report(tmp_path, "minilm", "1.0.0") == report()


def test_a_report_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "minilm" / "1.0.0.json").mkdir(parents=True)
    with pytest.raises(ReportMissing, match="cannot be read"):
        read_report(tmp_path, "minilm", "1.0.0")
    with pytest.raises(SmokeError, match="cannot be removed"):
        discard_report(tmp_path, "minilm", "1.0.0")
    with pytest.raises(SmokeError, match="cannot be written"):
        write_report(tmp_path, report())


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "reports").write_text("")
    with pytest.raises(SmokeError, match="cannot be written"):
        write_report(tmp_path / "reports", report())
    discard_report(tmp_path / "reports", "minilm", "1.0.0")
    with pytest.raises(ReportMissing, match="there is no smoke report"):
        read_report(tmp_path / "reports", "minilm", "1.0.0")


@pytest.mark.parametrize(
    ("model", "version"), [("../x", "1.0.0"), ("m", "../1"), ("", "1.0.0"), ("m", "1/2")]
)
def test_no_path_leads_out_of_the_folder(tmp_path: Path, model: str, version: str) -> None:
    with pytest.raises(ReportMissing, match="not a model name"):
        report_path(tmp_path, model, version)


def test_a_report_of_a_gpu_run(tmp_path: Path) -> None:
    changes = {
        "device": "cuda:NVIDIA H200",
        "gpu": True,
        "gpu_memory": {"torch_peak_bytes": 5, "driver_bytes": None},
    }
    write_report(tmp_path, report(**changes))
    assert read_report(tmp_path, "minilm", "1.0.0").device == "cuda:NVIDIA H200"


def model(**smoke: Any) -> ModelSpec:
    return ModelSpec(
        name="m", version="1.0.0", source="hf://a/b", runtime="r", device="cpu", smoke=SmokeSpec(**smoke)
    )


def test_a_report_of_an_earlier_toolkit_is_read(tmp_path: Path) -> None:
    put(tmp_path, without("request"))
    assert read_report(tmp_path, "minilm", "1.0.0").request is None


def test_speed_is_measured_with_the_first_request_that_is_meant_to_succeed() -> None:
    refused = CheckSpec(name="bad", method="GET", path="/no", status=404)
    first = CheckSpec(name="a", method="POST", path="/v1", body={"input": "x"})
    assert request_of(model()) is None
    assert request_of(model(checks=(refused,))) is None
    asked = request_of(model(checks=(refused, first)))
    assert asked == request_of(model(checks=(first.model_copy(update={"name": "b"}), refused), requests=9))
    for change in ({"body": {"input": "y"}}, {"path": "/v2"}, {"method": "GET", "body": None}):
        assert request_of(model(checks=(first.model_copy(update=change),))) != asked


def test_what_is_tolerated_is_not_asked_of_a_run() -> None:
    tolerance = ToleranceEntry(latency="20%")
    assert asked_of(model(tolerance=tolerance), {}) == asked_of(model(), {})
    assert asked_of(model(requests=9), {}) != asked_of(model(), {}), "control"
