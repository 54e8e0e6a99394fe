"""Weights as pickles: benign ones, and ones whose loading makes a folder, and nothing worse."""

from __future__ import annotations

import importlib
import io
import os
import pickle
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Call:
    """Pickled, it is a call of `function`; the function and its arguments may be calls themselves."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._reduced = (function, arguments)

    def __call__(self) -> None:
        """Pickle wants to see something that can be called."""

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self._reduced


def save(value: Any, *, legacy: bool = False) -> bytes:
    """Return what torch.save writes: a zip archive, or what it was before torch 1.6."""
    torch: Any = importlib.import_module("torch")
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def archive(program: bytes) -> bytes:
    """Return an archive of torch.save with another pickle inside."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(save({}))) as given, zipfile.ZipFile(buffer, "w") as made:
        for name in given.namelist():
            made.writestr(name, program if name.endswith("data.pkl") else given.read(name))
    return buffer.getvalue()


def _tensor() -> Any:
    return importlib.import_module("torch").ones(4)


def _dotted(mark: str) -> bytes:
    """A global of a module that torch may name, by a path that leads on to another module."""
    texts = [b"\x8c" + bytes([len(text)]) + text for text in (b"torch.serialization", b"os.mkdir")]
    return b"\x80\x04" + texts[0] + texts[1] + b"\x93" + _text(mark) + b"\x85R."


def _text(text: str) -> bytes:
    return b"X" + len(text.encode()).to_bytes(4, "little") + text.encode()


def _imported(mark: str) -> Call:
    return Call(Call(getattr, Call(importlib.import_module, "os"), "mkdir"), mark)


HOSTILE: dict[str, Callable[[str], bytes]] = {
    "os.system": lambda mark: save(Call(os.system, f"mkdir '{mark}'")),
    "os.system in an old format": lambda mark: save(Call(os.system, f"mkdir '{mark}'"), legacy=True),
    "posix.mkdir": lambda mark: save({"weight": _tensor(), "more": Call(os.mkdir, mark)}),
    "eval": lambda mark: save({"weight": Call(eval, f"__import__('os').mkdir({mark!r})")}),
    "exec": lambda mark: save([Call(exec, f"import os; os.mkdir({mark!r})")]),
    "getattr": lambda mark: save({"state_dict": {"weight": _tensor(), "bias": _imported(mark)}}),
    "subprocess": lambda mark: save({"weight": _tensor(), "x": Call(subprocess.call, ["mkdir", mark])}),
    "a plain pickle": lambda mark: pickle.dumps(Call(os.mkdir, mark), protocol=2),
    "a plain pickle of protocol 5": lambda mark: pickle.dumps({"weight": Call(os.mkdir, mark)}, protocol=5),
    "a dotted name": lambda mark: archive(_dotted(mark)),
    "a pathlib object": lambda mark: save({"weight": Call(Path.mkdir, Path(mark))}),
}
"""By how they do it, functions that return such a pickle; `mark` is the folder that loading it makes."""
