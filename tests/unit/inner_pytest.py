"""pytest in a process of its own, with what this project adds to it and none of its settings."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.servers.environment import ROOT


def run_pytest(
    folder: Path, *options: str, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run the tests of a folder; return how it ended and what it said."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-c", "/dev/null", "-W", "ignore"]
    return subprocess.run(
        [*command, f"--rootdir={folder}", *options, str(folder)],
        cwd=ROOT,
        env=dict(environment),
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
