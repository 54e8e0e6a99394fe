"""Tables of plain text for stdout: columns that people can read and `awk` can count. Pure."""

from __future__ import annotations

from collections.abc import Container, Sequence


def printable(text: str) -> str:
    """Return a text on one line that cannot steer a terminal: it may come from a registry."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Container[int] = ()) -> list[str]:
    """Return the lines of a table, two spaces between columns; `right`: the columns aligned to the right."""
    cells = [[printable(text) for text in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = (
            text.rjust(width) if column in right else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join(padded).rstrip()

    return [line(row) for row in cells]
