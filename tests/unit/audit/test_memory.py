"""An audit's memory does not grow with the image: measured on layers that are made up while they are read."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# In a process of its own, so that the most it ever had is that of this audit.
PROGRAM = """
import resource, sys
from tests.unit.audit.made_up import audit_of
findings = audit_of(int(sys.argv[1]), sys.argv[2])
print(findings.size, len(findings.found), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak(megabytes: int, compression: str) -> int:
    """Return the most memory of an audit of an image of this size, in MB."""
    command = [sys.executable, "-c", PROGRAM, str(megabytes), compression]
    size, found, most = map(int, subprocess.run(command, capture_output=True, check=True).stdout.split())
    assert size >= megabytes << 20
    assert found == 0
    return most // 1024


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_memory_is_flat(compression: str) -> None:
    most = 1024 if os.environ.get("MODELBAKE_LARGE_TESTS") else 64
    small, large = peak(16, compression), peak(most, compression)
    assert large < small + 16, f"{small} MB, and {large} MB for the large one"
