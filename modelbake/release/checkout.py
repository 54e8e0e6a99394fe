"""The git repository that models.yaml lies in, as the program `git` sees it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from modelbake.gitprogram import run_git
from modelbake.release.provenance import Checkout, repository_of

COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_SECONDS = 20.0


def checkout_of(folder: Path, environment: Mapping[str, str]) -> Checkout | None:
    """Return the commit that a folder is at; None without git, outside of a repository, before any commit.

    A remote's address is not asked for: people keep tokens in it. `environment` of a CI job names one.
    """
    commit = head_of(folder)
    uri = repository_of(environment)
    if commit is None:
        named = environment.get("GITHUB_SHA") or environment.get("CI_COMMIT_SHA") or ""
        return Checkout(named, uri) if uri and COMMIT.fullmatch(named) else None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return Checkout(commit, uri, changed=changed != "")


def head_of(folder: Path) -> str | None:
    """Return the commit that is checked out where a folder lies; None where git knows none."""
    commit = (_git(folder, "rev-parse", "--verify", "HEAD") or "").strip()
    return commit if COMMIT.fullmatch(commit) else None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = run_git(folder, *arguments, seconds=_SECONDS)
    except (OSError, ValueError, subprocess.SubprocessError):  # no git here
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None
