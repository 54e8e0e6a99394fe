"""Taking a running image's answers as goldens, and saying what that changes. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from modelbake.errors import GoldenError
from modelbake.expectations import Answer, difference, read_body, search, shorten
from modelbake.expected import Cosine
from modelbake.expected import Golden as GoldenExpected
from modelbake.goldens import Golden, Goldens, request_digest, wanted_goldens, why_not_kept
from modelbake.vectors import cosine, is_vector

if TYPE_CHECKING:
    from modelbake.config import CheckSpec, ModelSpec

_LARGEST = 1 << 20  # bytes of one value: what is kept in git is there for good
_DIGITS = 6  # of a vector's numbers: changes its direction by less than any model repeats it


def taken(check: CheckSpec, answer: Answer) -> dict[str, Any]:
    """Return the golden values that an answer gives, by name.

    Those that it cannot give are left out: the check then fails, and says what came instead.

    Raises:
        GoldenError: a value is larger than a repository should hold.
    """
    if answer.error is not None or answer.status != check.status:
        return {}
    values = {}
    for name, expression in check.goldens.items():
        try:
            value = search(expression, read_body(answer))
        except ValueError:
            continue
        if isinstance(check.expect[expression], Cosine):
            if not is_vector(value):
                continue
            value = [float(f"{float(x):.{_DIGITS}g}") for x in value]
        if value is None or why_not_kept(value):
            continue
        if (size := len(json.dumps(value))) > _LARGEST:
            raise GoldenError(
                f"golden {name} would have {size:,} bytes, and at most {_LARGEST:,} are kept",
                subject=f"check {check.name}",
                hint="expect a part of the answer, or a shorter one",
            )
        values[name] = value
    return values


def updated(model: ModelSpec, values: Mapping[str, Any], *, lock: str, device: str) -> Goldens:
    """Return goldens of just these values; ones that no check names any more are gone."""
    entries = {
        name: Golden(values[name], request_digest(check, expression))
        for name, (check, expression) in wanted_goldens(model).items()
    }
    return Goldens(entries, lock, device)


def changes(before: Goldens, after: Goldens) -> list[str]:
    """Return what an update changes, one text a golden."""
    said = []
    for name in sorted({*before.entries, *after.entries}):
        if name not in after.entries:
            said.append(f"{name}: gone, because no check names it")
            continue
        value = after.entries[name].value
        if name not in before.entries:
            said.append(f"{name}: new, {_described(value)}")
            continue
        said.append(f"{name}: {_changed(before.entries[name].value, value)}")
    if before.lock not in ("", after.lock):
        said.append(f"made of other weights now: lock {after.lock}, it was {before.lock}")
    if before.device not in ("", after.device):
        said.append(f"made on {after.device} now, before that on {before.device}")
    return said


def _changed(before: Any, value: Any) -> str:
    if before == value:
        return "as before"
    if is_vector(before) and is_vector(value) and len(before) == len(value):
        return f"{_described(value)}, of cosine {cosine(before, value):.6f} to the one before"
    words = difference(GoldenExpected(golden="before"), value, {"before": before})
    # What was the golden before is none any more.
    return (words or shorten(value)).replace("; the golden ", "; the one before ", 1)


def _described(value: Any) -> str:
    return f"a vector of {len(value)} numbers" if is_vector(value) and len(value) > 1 else shorten(value)
