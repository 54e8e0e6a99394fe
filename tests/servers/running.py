"""How the small servers of tests run: in a thread, as long as a `with` block."""

from __future__ import annotations

import itertools
import os
import socket
import socketserver
import threading
from typing import Self

_TRIED = itertools.count(os.getpid())  # another process of tests begins elsewhere


def free_port() -> int:
    """Return a port for a server that is started later, below those that systems hand out by themselves.

    One of these would be given to any connection or server of a test beside this one meanwhile.
    """
    for number in _TRIED:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", 20_000 + number % 12_000))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise AssertionError("unreachable")


class RunsInThread(socketserver.BaseServer):
    """Put before a server class: serves from the beginning of the `with` block to its end."""

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()
