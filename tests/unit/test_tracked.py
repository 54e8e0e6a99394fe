"""What git is asked about weights, with real repositories."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from modelbake.errors import UsageError
from modelbake.tracked import git_state, ignore_lines, removal_steps


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "protocol.file.allow=always"]
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with `llama/`: a file in a commit, one that was removed, one ignored, one new."""
    root = tmp_path / "a repository"
    folder = root / "llama"
    folder.mkdir(parents=True)
    git(tmp_path, "init", "-q", str(root))
    (root / ".gitignore").write_text("*.gguf\n")
    for name in ("kept.safetensors", "removed.safetensors"):
        (folder / name).write_text(name)
    git(root, "add", ".")
    git(root, "commit", "-qm", "weights")
    git(root, "rm", "-q", "--cached", "llama/removed.safetensors")
    git(root, "commit", "-qm", "without")
    (folder / "ignored.gguf").write_text("x")
    (folder / "new [1].bin").write_text("x")
    return root


NAMES = ["kept.safetensors", "removed.safetensors", "ignored.gguf", "new [1].bin"]


def test_what_git_tracks_keeps_and_would_take(repository: Path) -> None:
    state = git_state(repository / "llama", NAMES)
    assert state is not None and state.root == repository
    assert state.tracked == ("llama/kept.safetensors",)
    assert state.in_history == ("llama/kept.safetensors", "llama/removed.safetensors")
    assert state.unignored == ("llama/new [1].bin", "llama/removed.safetensors")
    assert state.only(["new [1].bin"]).known == ()


def test_outside_of_a_repository_nothing_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no git here
    (tmp_path / "llama").mkdir()
    assert git_state(tmp_path / "llama", NAMES) is None
    (tmp_path / ".git").mkdir()
    with pytest.raises(UsageError, match="git is not installed"):
        git_state(tmp_path / "llama", NAMES)


def test_a_repository_that_git_will_not_read_is_said(tmp_path: Path) -> None:
    (tmp_path / ".git").write_text("gitdir: nowhere\n")
    with pytest.raises(UsageError, match="does not say whether it tracks"):
        git_state(tmp_path, NAMES)


def test_without_a_commit_and_at_the_top(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "a.bin").write_text("x")
    state = git_state(tmp_path, ["a.bin"])
    assert state is not None and state.unignored == ("a.bin",) and removal_steps(state) == []


def test_a_file_that_only_another_branch_has_counts(repository: Path) -> None:
    git(repository, "switch", "-qc", "other")
    (repository / "llama/other.bin").write_text("x")
    git(repository, "add", "llama/other.bin")
    git(repository, "commit", "-qm", "other")
    git(repository, "switch", "-q", "-")
    (repository / "llama/other.bin").write_text("x")
    state = git_state(repository / "llama", ["other.bin"])
    assert state is not None and state.in_history == ("llama/other.bin",)


def test_variables_of_a_hook_do_not_name_another_repository(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(tmp_path, "init", "-q", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere/.git"))
    state = git_state(repository / "llama", NAMES)
    assert state is not None and state.tracked == ("llama/kept.safetensors",)


def test_the_steps_name_exact_paths_and_who_else_has_them(repository: Path) -> None:
    state = git_state(repository / "llama", NAMES)
    assert state is not None
    steps = "\n".join(removal_steps(state))
    assert f"cd '{repository}' && git rm --cached -- llama/kept.safetensors" in steps
    assert (
        "git filter-repo --invert-paths --path llama/kept.safetensors --path llama/removed.safetensors"
    ) in steps
    assert "every clone, fork and pull request" in steps and "push --force" in steps


def test_the_lines_for_gitignore_match_these_files_alone(repository: Path) -> None:
    state = git_state(repository / "llama", NAMES)
    assert state is not None
    with (repository / ".gitignore").open("a") as file:
        file.write("\n".join(ignore_lines(state)) + "\n")
    (repository / "llama/new 1.bin").write_text("x")
    later = git_state(repository / "llama", [*NAMES, "new 1.bin"])
    assert later is not None and later.unignored == ("llama/new 1.bin",)
