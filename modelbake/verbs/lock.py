"""Resolve models to facts: the commit, and the path, size and sha256 of every file. Writes models.lock.

With --check nothing is written: every difference between models.yaml, models.lock and upstream is listed,
and any makes the exit code non-zero.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from modelbake.errors import LockDrift
from modelbake.output import Output
from modelbake.verbs import model_arguments
from modelbake.workspace import Workspace

if TYPE_CHECKING:
    from modelbake.config import ModelSpec

SUMMARY = "write models.lock (or --check it)"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    model_arguments(parser)
    parser.add_argument("--check", action="store_true", help="change nothing; list all drift")
    parser.add_argument("--offline", action="store_true", help="with --check: do not ask upstream")
