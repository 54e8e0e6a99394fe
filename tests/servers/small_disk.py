"""A disk as small as a test likes: a file system in memory (which only root can mount)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class SmallDisk:
    """A mounted file system; `path` is where."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resize(self, size: int) -> None:
        """Leave so many bytes free."""
        found = os.statvfs(self.path)
        size += (found.f_blocks - found.f_bfree) * found.f_frsize
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.path)], check=True)

    def free(self) -> int:
        """Return the bytes that are free."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    @contextmanager
    def full(self, left: int = 0) -> Iterator[None]:
        """Fill it but for some bytes, as long as the `with` block lasts."""
        ballast = self.path / "ballast"
        try:
            with ballast.open("wb", buffering=0) as file:
                os.posix_fallocate(file.fileno(), 0, max(1, self.free() - left))
            yield
        finally:
            ballast.unlink(missing_ok=True)


@contextmanager
def small_disk(path: Path, size: int) -> Iterator[SmallDisk]:
    """Mount one at a new folder; unmount it at the end."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    path.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"cannot mount here: {made.stderr}")
    try:
        yield SmallDisk(path)
    finally:
        # Lazily: whoever has just been ended may hold it for a moment yet. It may be gone already.
        subprocess.run(["umount", "--lazy", str(path)], capture_output=True, check=False)
