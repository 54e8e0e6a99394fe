"""Who moves a channel, and from which commit: of the CI that runs this, or of this machine."""

from __future__ import annotations

import getpass
import os
import socket
from pathlib import Path

from modelbake.release.checkout import COMMIT, head_of

_ACTORS = ("GITHUB_ACTOR", "GITLAB_USER_LOGIN")
_COMMITS = ("GITHUB_SHA", "CI_COMMIT_SHA")


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
    named = (os.environ.get(name, "") for name in _COMMITS)
    return head_of(folder) or next((each for each in named if COMMIT.fullmatch(each)), None)
