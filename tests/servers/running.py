"""How the small servers of tests run: in a thread, as long as a `with` block."""

from __future__ import annotations

import socketserver
import threading
from typing import Self


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
