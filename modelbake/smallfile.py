"""Reads a file that should be small; anything else is neither waited for nor read whole."""

from __future__ import annotations

import os
import stat
from pathlib import Path


class NotRegular(OSError):
    """Something else than a regular file: a folder, a device, or a named pipe, which one could wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.strerror = "it is not a regular file"


class TooLarge(OSError):
    """The file has more bytes than it should."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.strerror = f"it is larger than {most:,} bytes"


def read_small(path: Path, most: int) -> bytes:
    """Return a file's bytes, `most` at most. Raises NotRegular, TooLarge, and OSError as `open` does."""
    # O_NONBLOCK: opening a named pipe must not wait for somebody to write.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotRegular
        content = file.read(most + 1)
    if len(content) > most:
        raise TooLarge(most)
    return content
