"""`scripts/verify_image.py` as a module."""

from __future__ import annotations

import importlib.util
from typing import Any

from tests.servers.environment import ROOT


def _loaded() -> Any:
    spec = importlib.util.spec_from_file_location("verify_image", ROOT / "scripts/verify_image.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


verify_image = _loaded()
