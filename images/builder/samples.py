"""The samples of large files, written beside the files for `verify: quick`; see weight_sample.py.

A sample is a file of its own, named by the sha256 of the file it was taken of, with 64 hex digits in it.
Modes, owner and time are fixed: the same files give the same layer.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_MODES = (0o644, 0o755)


def write_samples(folder: Path, samples: Mapping[str, str]) -> None:
    """Write samples (a file's sha256 -> its sample) to a folder and, like it, its parent; OSError if need be.

    Without samples there is no folder.
    """
    if not samples:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for sha256, sample in sorted(samples.items()):
        (folder / sha256).write_text(f"{sample}\n", encoding="ascii")
        _seal(folder / sha256, _MODES[0])
    for path in (folder, folder.parent):
        _seal(path, _MODES[1])


def _seal(path: Path, mode: int) -> None:
    if os.geteuid() == 0:
        os.chown(path, 0, 0)
    path.chmod(mode)
    os.utime(path, ns=(0, 0))
