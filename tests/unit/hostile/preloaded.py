"""What the process imports of which `forked` forks: the builder stage's program and the libraries it uses."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.unit.hostile.forked import BUILDER

sys.path.insert(0, str(BUILDER))

import fetch  # type: ignore[import-not-found]

# As the program does it before huggingface_hub is imported.
fetch._isolate_huggingface_hub(Path(tempfile.gettempdir()) / "modelbake-of-nobody")

import hub  # type: ignore[import-not-found]  # noqa: E402
import store  # type: ignore[import-not-found]  # noqa: E402
import transfer  # type: ignore[import-not-found]  # noqa: E402

IMPORTED = (hub, store, transfer)
