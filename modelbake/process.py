"""What other processes may learn of this one: no secret from a child's environment, none from a core dump.

Children get their environment from us: a credential helper, buildx, the ssh of a proxy command, whatever a
library starts. So the variables that are secrets of ours are taken out of `os.environ` while a command runs,
and those who are meant to have them read `environment()`.

Sources: core(5) (a core_pattern that is a program is not bound by RLIMIT_CORE), prctl(2) PR_SET_DUMPABLE.
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

# Paths of secrets stay: a child that may read the file could find it anyhow.
SECRET_VARIABLES = frozenset(
    {
        *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MODELBAKE_INDEX_URL", "MODELBAKE_REGISTRY_PASSWORD"),
        *("COSIGN_PASSWORD", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
        *("AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN"),
        "AZURE_CLIENT_SECRET",
    }
)
_PR_SET_DUMPABLE = 4
_withheld: dict[str, str] = {}


@contextmanager
def secrets_withheld() -> Iterator[None]:
    """Within this block no child inherits a variable of SECRET_VARIABLES; afterwards they are back."""
    taken = {name: os.environ.pop(name) for name in SECRET_VARIABLES & os.environ.keys()}
    _withheld.update(taken)
    try:
        yield
    finally:
        for name, value in taken.items():
            os.environ[name] = value
            del _withheld[name]


def environment() -> Mapping[str, str]:
    """Return the environment this program was started with, its secrets included: never a child's."""
    return {**_withheld, **os.environ}


def without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what of an environment a child may have."""
    return {name: value for name, value in environ.items() if name not in SECRET_VARIABLES}


def forbid_core_dumps() -> None:
    """Let no crash write this process's memory anywhere, nor that of its children into a file.

    What a system does not offer is left out: the token is no less usable there.
    """
    with suppress(OSError, ValueError):
        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    with suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
