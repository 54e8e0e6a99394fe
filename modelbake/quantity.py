"""Amounts of bytes as people write them: `6 GB`, `500 MiB`. Pure."""

from __future__ import annotations

import re
from decimal import Decimal

from modelbake.grammar import Grammar

_UNITS = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_SHOWN = ("GB", "MB", "kB")


def _advise_size(text: str) -> str:
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", text.strip(), re.ASCII)
    if found is None:
        return ""
    number, unit = found.groups()
    if not unit:
        return f"say of what: {number} GB, for example"
    close = next((known for known in _UNITS if known.lower() in (unit.lower(), f"{unit.lower()}b")), None)
    better = f"{number} {close}"
    return f"did you mean {better}?" if close and SIZE.matches(better) else ""


SIZE = Grammar(
    "a size such as 6 GB or 500 MiB (units: B, kB, MB, GB, TB, KiB, MiB, GiB, TiB)",
    r"(?!0+(?:\.0+)? ?[A-Za-z])[0-9]{1,15}(?:\.[0-9]{1,6})? ?(?:[kMGT]?B|[KMGT]iB)",
    32,
    ("6 GB", "500 MiB"),
    _advise_size,
)


def bytes_of(text: str) -> int:
    """Return the bytes of a text of the grammar SIZE; parts of a byte count as none."""
    found = re.fullmatch(r"([0-9.]+) ?([A-Za-z]+)", text, re.ASCII)
    if found is None or not SIZE.matches(text):
        raise ValueError(f"expected {SIZE.expected}, got {text!r}")
    return int(Decimal(found[1]) * _UNITS[found[2]])


def size_text(count: int) -> str:
    """Return an amount of bytes for people, in decimal units: `6.12 GB`."""
    for unit in _SHOWN:
        if count >= _UNITS[unit]:
            return f"{count / _UNITS[unit]:.2f} {unit}"
    return f"{count} B"
