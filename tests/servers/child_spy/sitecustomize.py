"""Imported by every Python that has this folder in PYTHONPATH: writes down each program it starts.

One JSON line a program, in the file that CHILD_SPY names: what is started, its arguments, and the environment
that it is given. So a test sees what anybody with `ps` or /proc would.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

_FILE = os.environ.get("CHILD_SPY", "")
# The event's name, and where among its arguments the command line and the environment are.
# https://docs.python.org/3/library/audit_events.html
_EVENTS = {
    "subprocess.Popen": (1, 3),
    "os.exec": (1, 2),
    "os.posix_spawn": (1, 2),
    "os.spawn": (2, 3),
    "os.system": (0, None),
}


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in _EVENTS or not _FILE:
        return
    command, environment = _EVENTS[event]
    given = None if environment is None else arguments[environment]
    inherited: Mapping[Any, Any] = os.environ if given is None else given
    line = {
        "command": repr(arguments[command]),
        "environment": {_text(name): _text(value) for name, value in inherited.items()},
    }
    with open(_FILE, "a", encoding="utf-8") as file:  # noqa: PTH123 - pathlib would be imported for it
        file.write(json.dumps(line) + "\n")


def _text(value: str | bytes) -> str:
    return os.fsdecode(value).encode("utf-8", "backslashreplace").decode()


sys.addaudithook(_watch)
