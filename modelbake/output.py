"""Where everything that is said goes: results to stdout, events to stderr.

Results are what other programs consume (a digest reference, a JSON document). Events are for people and
log collectors: plain lines by default, one JSON object a line with `--log-format json`. Every event passes
the redactor, so that a secret known to the program cannot be printed by it.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

from modelbake.credentials import Redactor
from modelbake.errors import UsageError

# What a terminal acts on, or shows in another place than it stands: controls, marks of direction, no width.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff]"
)


def visible(text: str) -> str:
    """Return a text with escapes, also JSON's, in place of what would do something to a terminal."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


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
        # A stream that was closed by the caller (`>&-`) is None.
        self.stdout = stdout or sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115
        self.stderr = stderr or sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
        for stream in (self.stdout, self.stderr):
            if isinstance(stream, TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # a file name need not be text
        self.log_format = log_format
        self.redactor = redactor or Redactor()
        self.wording: Callable[[str], str] = lambda text: text  # see wording.py; set once options are known
        self.write_line: Callable[[str], None] = self._plain_line  # replaced while bars are drawn
        self.live = log_format == "text" and self.stderr.isatty()

    def result(self, text: str) -> None:
        """Print one line of result."""
        self._print_result(visible(self.redactor(self.wording(text))))

    def result_json(self, document: Any) -> None:
        """Print a JSON document as the result."""
        text = visible(json.dumps(self._masked(document), indent=2, sort_keys=True, ensure_ascii=False))
        self._print_result(text)

    def event(self, event: str, message: str, *, level: str = "info", **fields: Any) -> None:
        """Log one event: `message` and `hint` for people, `event` and `fields` (JSON values) for machines."""
        message = self.wording(message)
        if isinstance(hint := fields.get("hint"), str):
            fields["hint"] = self.wording(hint)
        if self.log_format == "json":
            moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            record = {"time": moment, "level": level, "event": event, "message": message, **fields}
            line = json.dumps(self._masked(record), ensure_ascii=False, default=str)
        else:
            line = self.redactor(message if level == "info" else f"{level}: {message}")
        self.write_line(visible(line))

    def audit(
        self,
        *,
        source: str,
        file: str,
        bytes: int,
        attempts: int,
        sha256: str,
        seconds: float,
        worker: str = "",
    ) -> None:
        """Log one finished transfer; this line is what an auditor reads later.

        `seconds` is wall time, `worker` the one of a cluster that has done it, '' for this process.
        """
        # The rate of a small file is that of its request, and tells nothing.
        rate = f", {bytes / seconds / 1e6:.0f} MB/s" if seconds and bytes >= 1_000_000 else ""
        self.event(
            "transfer",
            f"fetched {file} ({bytes:,} bytes{rate}, attempt {attempts}) sha256:{sha256[:12]} from {source}"
            + (f" by {worker}" if worker else ""),
            source=source,
            file=file,
            bytes=bytes,
            attempts=attempts,
            sha256=sha256,
            seconds=round(seconds, 3),
            **({"worker": worker} if worker else {}),
        )

    def _plain_line(self, line: str) -> None:
        with suppress(OSError):  # who does not want to hear how it goes may still want the result
            # In one piece: threads say something at the same time.
            self.stderr.write(f"{line}\n")
            self.stderr.flush()

    def _print_result(self, text: str) -> None:
        try:
            print(text, file=self.stdout, flush=True)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise UsageError(f"the result cannot be written ({error.strerror})", subject="stdout") from error

    def _masked(self, value: Any) -> Any:
        """Mask secrets in every text of a document, before JSON's escapes could hide them."""
        if isinstance(value, str):
            return self.redactor(value)
        if isinstance(value, Mapping):
            return {self._masked(key): self._masked(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self._masked(each) for each in value]
        return value
