"""Where everything that is said goes: results to stdout, events to stderr.

Results are what other programs consume (a digest reference, a JSON document). Events are for people and
log collectors: plain lines by default, one JSON object a line with `--log-format json`. Every event passes
the redactor, so that a secret known to the program cannot be printed by it.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, TextIO

from modelbake.credentials import Redactor


class Output:
    """The program's two voices. `live` tells whether stderr is a terminal on which bars may be drawn."""

    def __init__(
        self,
        *,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
        log_format: str = "text",
        redactor: Redactor | None = None,
    ) -> None:
        self.stdout = stdout or sys.stdout
        self.stderr = stderr or sys.stderr
        self.log_format = log_format
        self.redactor = redactor or Redactor()
        self.live = log_format == "text" and self.stderr.isatty()

    def result(self, text: str) -> None:
        """Print one line of result."""
        print(self.redactor(text), file=self.stdout, flush=True)

    def result_json(self, document: Any) -> None:
        """Print a JSON document as the result."""
        self.result(json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False))

    def event(self, event: str, message: str, *, level: str = "info", **fields: Any) -> None:
        """Log one event: `message` for people, `event` and `fields` (JSON values) for machines."""
        if self.log_format == "json":
            moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            record = {"time": moment, "level": level, "event": event, "message": message, **fields}
            line = json.dumps(record, ensure_ascii=False, default=str)
        else:
            line = message if level == "info" else f"{level}: {message}"
        print(self.redactor(line), file=self.stderr, flush=True)

    def audit(
        self, *, source: str, file: str, bytes: int, attempts: int, sha256: str, seconds: float
    ) -> None:
        """Log one finished transfer; this line is what an auditor reads later. `seconds` is wall time."""
        rate = bytes / seconds / 1e6 if seconds else 0.0
        self.event(
            "transfer",
            f"fetched {file} ({bytes:,} bytes, {rate:.0f} MB/s, attempt {attempts})"
            f" sha256:{sha256[:12]} from {source}",
            source=source,
            file=file,
            bytes=bytes,
            attempts=attempts,
            sha256=sha256,
            seconds=round(seconds, 3),
        )
