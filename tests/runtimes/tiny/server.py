"""A server small enough to build in seconds: it answers what its weights are, and adds numbers."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

STARTED = time.monotonic()
WEIGHTS = Path(os.environ["MODELBAKE_WEIGHTS"])


class Handler(BaseHTTPRequestHandler):
    """GET /health, /metrics, /weights; POST /sum {"numbers": [...]}."""

    def do_GET(self) -> None:
        """Answer a GET."""
        if self.path == "/weights":
            files = [path for path in sorted(WEIGHTS.rglob("*")) if path.is_file()]
            digests = {
                str(path.relative_to(WEIGHTS)): hashlib.sha256(path.read_bytes()).hexdigest()
                for path in files
            }
            self._send(200, {"files": digests, "uid": os.getuid(), "environment": sorted(os.environ)})
        elif self.path == "/metrics":
            self._send(200, f"modelbake_load_seconds {LOADED:.6f}\n")
        else:
            self._send(200 if self.path == "/health" else 404, {"path": self.path})

    def do_POST(self) -> None:
        """Answer a POST."""
        time.sleep(float(os.environ.get("TINY_TAKES", 0)))
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._send(200, {"sum": sum(body["numbers"])})

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _send(self, status: int, answer: object) -> None:
        body = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


LOADED = time.monotonic() - STARTED
if __name__ == "__main__":
    if os.environ.get("TINY_FAILS"):
        sys.exit("told to fail")
    time.sleep(float(os.environ.get("TINY_WAITS", 0)))
    ThreadingHTTPServer(("0.0.0.0", int(os.environ["MODELBAKE_PORT"])), Handler).serve_forever()  # noqa: S104
