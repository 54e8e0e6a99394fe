"""What `promote`, `rollback` and `channels` refuse before they ask a registry anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelbake.cli import run

MODELS = """
registry: 127.0.0.1:1/ml
models: {minilm: {version: "1.0.0", source: "hf://a/b", runtime: weights}}
channels: {staging: {}, live: {}}
"""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["promote", "minilm", "1.0.0"], "--to"),
        (["promote", "minilm", "1.0.0", "--to", "life"], "did you mean 'live'"),
        (["promote", "minilm", "1.0.0", "--to", "production"], "channels are staging, live"),
        (["promote", "minilm", "v1", "--to", "live"], "expected a semantic version"),
        (["promote", "minilm", "live", "--to", "live"], "expected a semantic version"),
        (["promote", "minilm", "1.0.0", "--to", "live", "--over", "production"], "--over: expected sha256:"),
        (["promote", "mini", "1.0.0", "--to", "live"], "did you mean 'minilm'"),
        (["rollback", "minilm"], "--channel"),
        (["rollback", "minilm", "--channel", "stagin"], "did you mean 'staging'"),
        (["rollback", "minilm", "--channel", "live", "--to", "1.0"], "--to: expected a semantic version"),
        (["channels"], "name at least one model"),
        (["channels", "minilm", "--all"], "not both"),
    ],
)
def test_what_cannot_be_meant(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "models.yaml").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    assert run(words) == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.out == ""


@pytest.mark.parametrize(
    "words",
    [
        ["promote", "minilm", "1.0.0", "--to", "live"],
        ["rollback", "minilm", "--channel", "live"],
        ["channels", "--all"],
    ],
)
def test_a_registry_that_does_not_answer(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models.yaml").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("modelbake.registryhttp._FIRST_WAIT", 0.0)
    assert run(words) == 61
    printed = capsys.readouterr()
    assert "cannot be reached" in printed.err and printed.out == ""
