"""Rows of the table: as people read them, and as results.json has them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One figure; lower is better. `value` None: it could not be measured, and `note` says why."""

    what: str
    bar: float
    value: float | None
    unit: str = "ratio"
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the figure is at most the bar."""
        return self.value is not None and self.value <= self.bar

    def as_json(self) -> dict[str, Any]:
        """Return the row as plain values."""
        value = None if self.value is None else round(self.value, 6)
        row = {"what": self.what, "value": value, "bar": self.bar, "met": self.met, "unit": self.unit}
        return {**row, "note": self.note} if self.note else row


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text, with what is to be known of each below it."""
    width = max(len(row.what) for row in rows)
    lines = [f"{'what':<{width}}  {'value':>10}  {'bar':>8}  met"]
    for row in rows:
        value = "-" if row.value is None else _number(row.value)
        lines.append(f"{row.what:<{width}}  {value:>10}  {_number(row.bar):>8}  {'yes' if row.met else 'NO'}")
        if row.note:
            lines.append(f"    {row.note}")
    missed = [row.what for row in rows if not row.met]
    lines.append(f"{len(rows) - len(missed)} of {len(rows)} met")
    return "\n".join(lines)


def write_results(path: Path, rows: Sequence[Row]) -> None:
    """Write results.json."""
    path.write_text(json.dumps([row.as_json() for row in rows], indent=2, ensure_ascii=False) + "\n")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
