"""Small files of a bundle, asked for ahead of their turn: else each one waits for the answers about the last.

A layer's files flow one after the other, and of a small file nearly all the time is the hub's answering. So
the next few are read while the current one flows; of each layer at most FILES x SMALL bytes wait in memory.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelbake.locked import LockedFile
    from modelbake.stream.flow import FileBytes, Reader

FILES = 8  # on their way at once
SMALL = 256 << 10  # bytes; a larger file is worth a conversation of its own


class ReadAhead:
    """A Reader for one pass over a layer: `files` will be asked for in this order, once each.

    Close it when the pass ends, for whatever reason: nothing more is read then.
    """

    def __init__(self, reader: Reader, files: Sequence[LockedFile]) -> None:
        self._reader = reader
        self._coming = deque(file for file in files if file.size <= SMALL)
        self._begun: dict[str, Kept] = {}
        self._closed = threading.Event()

    def read(self, file: LockedFile, start: int = 0) -> FileBytes | Kept:
        """Return the bytes of a file from `start` on. Iterating raises what the reader raises."""
        while self._coming and len(self._begun) < FILES:
            ahead = self._coming.popleft()
            if ahead is not file:
                self._begun[ahead.path] = Kept(self._reader.read(ahead), self._closed)
        return self._begun.pop(file.path, None) or self._reader.read(file, start)

    def close(self) -> None:
        """Let what is being read end at its next piece."""
        self._closed.set()


class Kept:
    """A file that a thread reads into memory. The thread is a daemon: Ctrl-C does not wait for it.

    `seconds`: wall time that reading took, known when the first piece is handed out.
    """

    def __init__(self, source: FileBytes, closed: threading.Event) -> None:
        self._source = source
        self._closed = closed
        self._pieces: list[bytes] = []
        self._error: BaseException | None = None
        self._read_whole = threading.Event()
        self.seconds = 0.0
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def attempts(self) -> int:
        """Requests so far."""
        return self._source.attempts

    def __iter__(self) -> Iterator[bytes]:
        self._read_whole.wait()
        yield from self._pieces
        if self._error is not None:
            raise self._error

    def _read(self) -> None:
        started = time.monotonic()
        try:
            for piece in self._source:
                if self._closed.is_set():
                    return
                self._pieces.append(piece)
        except BaseException as error:  # raised again above, in the thread that wants the bytes
            self._error = error
        finally:
            self.seconds = time.monotonic() - started
            self._read_whole.set()
