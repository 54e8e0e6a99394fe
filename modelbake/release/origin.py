"""Who moves a channel, and from which commit: of the CI that runs this, or of this machine."""

from __future__ import annotations

import getpass
import os
import re
import socket
import subprocess
from pathlib import Path

from modelbake.process import without_secrets

_ACTORS = ("GITHUB_ACTOR", "GITLAB_USER_LOGIN")
_COMMITS = ("GITHUB_SHA", "CI_COMMIT_SHA")
_COMMIT = re.compile(r"[0-9a-f]{40,64}")
_PATIENCE = 10.0  # seconds for git


def who() -> str:
    """Return the CI's actor, or `user@host`."""
    for name in _ACTORS:
        if actor := os.environ.get(name):
            return actor
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a uid without a name, as in containers
        user = f"uid-{os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def commit_of(folder: Path) -> str | None:
    """Return the commit that is checked out where a folder lies, else the CI's, None without either."""
    try:
        asked = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "--verify", "HEAD"],
            env=without_secrets(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
        found = asked.stdout.strip()
    except (OSError, subprocess.SubprocessError, ValueError):  # no git here
        found = ""
    candidates = (found, *(os.environ.get(name, "") for name in _COMMITS))
    return next((each for each in candidates if _COMMIT.fullmatch(each)), None)
