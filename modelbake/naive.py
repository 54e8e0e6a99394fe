"""What a plain `pip install` of a runtime's packages takes, as `python -m bench.slim` has measured it.

`images/RUNTIME/naive.json` keeps it by the digest of the requirements file: other pins are another figure,
and have none until they are measured.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelbake.plan import BuildPlan

NAIVE_FILE = "naive.json"


def naive_size(plan: BuildPlan) -> int | None:
    """Return the bytes of the packages where nothing is left out, None where that has not been measured."""
    if plan.requirements is None:
        return None
    try:
        known = json.loads((plan.runtime.directory / NAIVE_FILE).read_text(encoding="utf-8"))
        requirements = (plan.runtime.directory / plan.requirements).read_bytes()
        size = known[f"sha256:{hashlib.sha256(requirements).hexdigest()}"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # it is a comparison for people, and no build depends on it
    return size if isinstance(size, int) and size > 0 else None
