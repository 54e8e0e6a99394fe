"""Whose something on an engine is: in a label, so that another run can tell whether that process still lives.

Nobody can tidy up after `kill -9` but the next run, and that one must not take away what a third run, beside
it, is using.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_PROC = Path("/proc")
_FORM = re.compile(r"(?P<place>[0-9a-f-]+/\d+)/(?P<pid>\d+)/(?P<started>\d+)")


def this_process() -> str:
    """Return who this process is; "" on systems that do not say so."""
    return owner_of(os.getpid())


def owner_of(pid: int) -> str:
    """Return `BOOT/NAMESPACE/PID/START` of a process; "" where that cannot be known.

    A pid alone is taken again by another process, in another container it is another one, and on another
    machine or after a restart as well.
    """
    try:
        return f"{_place()}/{pid}/{_started(pid)}"
    except (OSError, IndexError):
        return ""


def is_gone(owner: str) -> bool:
    """Tell whether a process is known to have ended; False where it cannot be seen from here."""
    found = _FORM.fullmatch(owner)
    try:
        if found is None or found["place"] != _place():
            return False
        return _started(int(found["pid"])) != int(found["started"])
    except FileNotFoundError:
        return True
    except (OSError, IndexError):
        return False


def _place() -> str:
    """Return the boot of this machine and the namespace in which its pids are counted."""
    boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{(_PROC / 'self/ns/pid').stat().st_ino}"


def _started(pid: int) -> int:
    """Return when a process began, in clock ticks since the boot: field 22 of proc(5)'s stat."""
    # The second field, the program's name, may hold spaces and parentheses.
    fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return int(fields[19])
