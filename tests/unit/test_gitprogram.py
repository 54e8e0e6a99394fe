"""git is asked about the folder that is named, and starts nothing that a repository names."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from modelbake.gitprogram import run_git


def repository(folder: Path) -> Path:
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    (folder / "a").write_text("a")
    return folder.resolve()


def test_a_hooks_variables_do_not_lead_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, other = repository(tmp_path / "asked"), repository(tmp_path / "other")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / "index"))
    said = run_git(asked, "rev-parse", "--show-toplevel", seconds=60)
    assert said.stdout.decode().strip() == str(asked)
    control = subprocess.run(
        ["git", "-C", str(asked), "rev-parse", "--show-toplevel"], capture_output=True, check=True
    )
    assert control.stdout.decode().strip() == str(other)


def test_a_program_of_the_repositorys_settings_is_not_started(tmp_path: Path) -> None:
    folder, trace = repository(tmp_path / "asked"), tmp_path / "started"
    program = tmp_path / "monitor"
    program.write_text(f"#!/bin/sh\ntouch {trace}\n")
    program.chmod(0o755)
    subprocess.run(["git", "-C", str(folder), "config", "core.fsmonitor", str(program)], check=True)
    assert run_git(folder, "status", "--porcelain", seconds=60).stdout == b"?? a\n"
    assert not trace.exists()
    subprocess.run(["git", "-C", str(folder), "status"], capture_output=True, check=True)
    assert trace.exists(), "control: git alone starts it"


def test_it_gets_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = repository(tmp_path / "asked")
    monkeypatch.setenv("HF_TOKEN", "hf_gitCANARYgitCANARYgit")
    monkeypatch.setenv("HARMLESS", "yes")
    said = run_git(folder, "-c", "alias.show-environment=!env", "show-environment", seconds=60).stdout
    assert b"HARMLESS=yes" in said
    assert b"CANARY" not in said
