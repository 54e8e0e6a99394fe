"""Virtual environments: made, compiled, compared, and with times that are the same in every build."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pip_errors import Code, InstallError, redact


def clamp_times(root: Path, seconds: int) -> None:
    """Give everything in a folder, and the folder, the same access and modification time."""
    for folder, folders, names in os.walk(root, topdown=False):
        for name in [*names, *folders]:
            os.utime(Path(folder) / name, (seconds, seconds), follow_symlinks=False)
    os.utime(root, (seconds, seconds))


def make_venv(path: Path, *, pip: bool) -> None:
    """Make an environment of this Python, with or without pip. Raises InstallError where it cannot."""
    options = [] if pip else ["--without-pip"]
    done = subprocess.run(
        [sys.executable, "-m", "venv", *options, str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return
    if "No space left" in done.stdout:
        raise InstallError(Code.DISK_FULL, f"the disk is full: cannot make {path}")
    reason = redact(" ".join(done.stdout.split()[-40:]))
    raise InstallError(
        Code.PYTHON,
        f"{sys.executable} cannot make a virtual environment (on Debian: package python3-venv): {reason}",
    )


def find_pip(spare: Path) -> Path:
    """Return a Python that has pip: this one, or one of an environment made at `spare`."""
    if importlib.util.find_spec("pip") is not None:
        return Path(sys.executable)
    make_venv(spare, pip=True)
    return spare / "bin/python"


def require_all(venvs: Sequence[Path], python: Path, scratch: Path) -> None:
    """Make sure that the packages of all these need nothing that none of them has. Raises InstallError.

    `python` has pip; at `scratch` an environment is made that sees the packages of all, and has none.
    """
    make_venv(scratch, pip=False)
    (site,) = scratch.glob("lib/python*/site-packages")
    seen = [str(path) for venv in venvs for path in sorted(venv.glob("lib/python*/site-packages"))]
    (site / "all.pth").write_text("".join(f"{path}\n" for path in seen), encoding="utf-8")
    checked = subprocess.run(
        [str(python), "-m", "pip", "--python", str(scratch / "bin/python"), "check"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"PATH": os.environ.get("PATH", ""), "PIP_CONFIG_FILE": os.devnull},
        text=True,
        check=False,
    )
    if checked.returncode:
        problems = "; ".join(line for line in checked.stdout.splitlines() if line and "[notice]" not in line)
        raise InstallError(
            Code.USAGE, f"the pinned packages do not fit together: {redact(problems)}; compile the pins again"
        )


def compile_packages(venv: Path) -> None:
    """Compile the packages. What cannot be compiled, such as a template, is left as it is."""
    command = [str(venv / "bin/python"), "-m", "compileall", "-q", "-q", "-j", "0"]
    command += ["--invalidation-mode", "unchecked-hash"]
    command += map(str, sorted(venv.glob("lib/python*/site-packages")))
    subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # The order of a set's items in byte code follows the hash seed.
        env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": ""},
        check=False,
    )
