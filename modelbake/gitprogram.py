"""The program `git`, asked about a folder: it changes nothing, starts nothing, and gets no secret."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from modelbake.process import without_secrets

# Of a hook that runs us: they name another repository than the folder's, or another index.
_ANOTHERS = frozenset(
    {
        "GIT_DIR",
        "GIT_WORK_TREE",
        "GIT_INDEX_FILE",
        "GIT_OBJECT_DIRECTORY",
        "GIT_ALTERNATE_OBJECT_DIRECTORIES",
        "GIT_COMMON_DIR",
        "GIT_NAMESPACE",
        "GIT_PREFIX",
        "GIT_SHALLOW_FILE",
        "GIT_GRAFT_FILE",
    }
)
_SETTINGS = {"GIT_OPTIONAL_LOCKS": "0", "GIT_LITERAL_PATHSPECS": "1", "LC_ALL": "C"}


def run_git(
    folder: Path, *arguments: str, seconds: float, stdin: int = subprocess.DEVNULL
) -> subprocess.CompletedProcess[bytes]:
    """Return what git says of the repository that a folder lies in, whatever its exit status.

    Raises:
        OSError, ValueError: git cannot be run; FileNotFoundError where there is none.
        subprocess.TimeoutExpired: it has not answered for `seconds`.
    """
    # A repository's own settings may name programs that git is to start; this one starts nothing.
    command = ["git", "-C", str(folder), "-c", "core.fsmonitor=false", *arguments]
    env = {name: value for name, value in without_secrets(os.environ).items() if name not in _ANOTHERS}
    return subprocess.run(
        command, env=env | _SETTINGS, stdin=stdin, capture_output=True, timeout=seconds, check=False
    )
