"""What vLLM needs of a machine and a base image besides its packages, tried out before minutes go by.

Triton, which compiles vLLM's kernels, first compiles a helper of its own with a C compiler and Python's
headers, and loads it from the cache folder (triton/runtime/build.py). Without one of these vLLM fails only
after it has read all weights, and says so in a way that few can read.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import sysconfig
import tempfile
from pathlib import Path

from serving import LoadError

NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
COMPILERS = ("gcc", "clang")  # in the order in which Triton looks for them
SOURCE = "#include <Python.h>\nint modelbake_helper(void) { return 0; }\n"
ELSEWHERE = (
    "the `base:` of runtime.yaml has one; another base image needs gcc, libc6-dev and Python's headers"
)


def require_gpu() -> None:
    """LoadError where CUDA's driver finds no GPU."""
    remedy = "vLLM's packages compute on NVIDIA GPUs only; start the container with --gpus"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise LoadError(f"there is no GPU here, for there is no CUDA driver ({error}): {remedy}") from error
    code = int(driver.cuInit(0))
    if code == NO_DEVICE:
        raise LoadError(f"CUDA's driver finds no GPU: {remedy}")
    if code:
        raise LoadError(f"CUDA's driver does not start: cuInit returns error {code}")


def require_compiler() -> None:
    """LoadError where a small C program that includes Python.h cannot be compiled and loaded from /tmp."""
    given = os.environ.get("CC")
    found = (path for name in COMPILERS if (path := shutil.which(name)))
    compiler = given or next(found, None)
    if compiler is None:
        raise LoadError(f"there is no C compiler ({' or '.join(COMPILERS)}), which Triton needs: {ELSEWHERE}")
    include = sysconfig.get_paths(scheme="posix_prefix")["include"]
    with contextlib.ExitStack() as stack:
        try:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="modelbake-")))
            source, library = folder / "helper.c", folder / "helper.so"
            source.write_text(SOURCE)
            command = [compiler, str(source), "-shared", "-fPIC", "-o", str(library), f"-I{include}"]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        except OSError as error:
            raise LoadError(f"cannot compile for Triton with {compiler}: {error}") from error
        if done.returncode:
            words = (done.stderr or done.stdout).strip()[:500]
            raise LoadError(f"{compiler} cannot compile what Triton needs, {words!r}: {ELSEWHERE}")
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            words = (
                f"{folder.parent} has to let programs run, for Triton compiles into it: start the container"
            )
            raise LoadError(f"{words} with `--tmpfs /tmp:exec` ({error})") from error


def require_port(host: str, port: int) -> None:
    """OSError where the server could not listen."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family):
        pass
