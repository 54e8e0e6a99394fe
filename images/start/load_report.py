"""What transformers says of a model that it has loaded, where it says so only to its log."""

from __future__ import annotations

import logging
import re


class LoadReport(logging.Handler):
    """What transformers misses among the weights: it fills that with random numbers, and only logs it.

    Libraries over transformers hand on no report but this one; tests keep its form in sight.
    """

    LINE = re.compile(r"^(?P<name>\S.*?) *\| MISSING", re.MULTILINE)

    def __init__(self) -> None:
        super().__init__()
        self.missing: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Look for missing weights in one record."""
        plain = re.sub(r"\x1b\[[0-9;]*m", "", record.getMessage())
        self.missing.extend(line["name"] for line in self.LINE.finditer(plain))

    def __enter__(self) -> LoadReport:
        logging.getLogger("transformers").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("transformers").removeHandler(self)
