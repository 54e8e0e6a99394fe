from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modelbake.config import CheckSpec, ModelSpec, SmokeSpec
from modelbake.errors import GoldenError, GpuUnavailable, UsageError
from modelbake.expected import Golden
from modelbake.golden_update import updated
from modelbake.goldens import write_goldens
from modelbake.gpus import ALL
from modelbake.trial import Trial

LOCK = "sha256:" + "a" * 64


def model(device: str = "any", *, golden: bool = False, **smoke: Any) -> ModelSpec:
    expect = {"text": Golden(golden="greeting")} if golden else {"text": "hi"}
    checks = (CheckSpec(name="greet", method="GET", path="/greet", expect=expect),)
    settings: dict[str, Any] = {"name": "m", "version": "1.0.0", "source": "hf://a/b", "runtime": "r"}
    return ModelSpec(**settings, device=device, smoke=SmokeSpec(checks=checks, **smoke))  # type: ignore[arg-type]


def trial(folder: Path, **asked: Any) -> Trial:
    return Trial(folder / "reports", folder / "goldens", **asked)


def test_a_run_that_cannot_lead_to_a_release_is_not_begun(tmp_path: Path) -> None:
    with pytest.raises(GpuUnavailable, match=r"m 1\.0\.0: models\.yaml says `require_gpu: true`"):
        trial(tmp_path).require_possible(model(require_gpu=True), False)
    with pytest.raises(GpuUnavailable, match="`device: cuda`"):
        trial(tmp_path).require_possible(model("cuda"), False)
    with pytest.raises(UsageError, match="`device: cpu`"):
        trial(tmp_path, gpus=ALL).require_possible(model("cpu"), True)
    with pytest.raises(UsageError, match="--gpus names GPUs, and the model's runtime serves nothing"):
        trial(tmp_path, gpus=ALL).require_possible(model(), True, serves=False)
    with pytest.raises(GoldenError, match="golden greeting is missing"):
        trial(tmp_path).require_possible(model(golden=True), False)


def test_what_serves_nothing_needs_no_gpu(tmp_path: Path) -> None:
    trial(tmp_path).require_possible(model("cuda"), False, serves=False)
    trial(tmp_path, gpus=ALL).require_possible(model(), True)  # control


def test_a_run_that_can_is(tmp_path: Path) -> None:
    trial(tmp_path).require_possible(model(require_gpu=True), True)
    trial(tmp_path).require_possible(model(), False)
    trial(tmp_path, update_goldens=True).require_possible(model(golden=True), False)
    write_goldens(
        tmp_path / "goldens", "m", updated(model(golden=True), {"greeting": "hi"}, lock=LOCK, device="cpu")
    )
    trial(tmp_path).require_possible(model(golden=True), False)


def test_what_is_asked_names_the_golden_values_and_nothing_else_of_them(tmp_path: Path) -> None:
    spec, folder = model(golden=True), tmp_path / "goldens"
    write_goldens(folder, "m", updated(spec, {"greeting": "hi"}, lock=LOCK, device="cpu"))
    asked = trial(tmp_path).asked(spec)
    write_goldens(folder, "m", updated(spec, {"greeting": "hi"}, lock=LOCK[:-1] + "b", device="cuda:H100"))
    assert trial(tmp_path).asked(spec) == asked
    write_goldens(folder, "m", updated(spec, {"greeting": "ho"}, lock=LOCK, device="cpu"))
    assert trial(tmp_path).asked(spec) != asked
    plain = trial(tmp_path).asked(model())
    (folder / "m.json").unlink()
    assert trial(tmp_path).asked(model()) == plain, "a golden that no check names is not asked for"
