"""What one does without a Docker engine: `olot` appends files to an OCI layout, `skopeo copy` pushes it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.measure import Failed
from tests.servers.environment import ROOT

_OLOT = "olot==1.2.1"
_RELEASE = "bookworm"
_PACKAGES = ("skopeo", "golang-github-containers-common", "libgpgme11", "libassuan0")
_UNPACK = (
    "import sys; from pathlib import Path; from debian_packages import Release;"
    " release = Release(Path(sys.argv[1]), sys.argv[2]); release.unpack(*sys.argv[3:])"
)


@dataclass(frozen=True)
class Appended:
    """How long each step took, in seconds; `kept`: a push that was told to compress nothing."""

    append: float
    push: float
    kept: float

    @property
    def seconds(self) -> float:
        """Of what one gets without asking for more."""
        return self.append + self.push


class Appender:
    """Both programs, installed into the bench's folder of tools."""

    def __init__(self, cache: Path, tools: Path, login: Path) -> None:
        self._login = login
        command = [sys.executable, "-c", _UNPACK, str(cache), _RELEASE, *_PACKAGES]
        _run(command, {**os.environ, "PYTHONPATH": str(ROOT / "scripts")})
        self._root = cache / "debian" / _RELEASE / "root"
        self._olot = tools / "olot/bin/olot"
        if not self._olot.exists():
            _run([sys.executable, "-m", "venv", str(tools / "olot")], os.environ.copy())
            pip = [str(tools / "olot/bin/python"), "-m", "pip", "install", "--quiet", _OLOT]
            _run(pip, os.environ.copy())

    def fetch(self, reference: str, layout: Path) -> None:
        """Copy an image into a new OCI layout."""
        self._copy(f"docker://{reference}", f"oci:{layout}:latest", "--src-tls-verify=false")

    def append_and_push(self, base: Path, files: Sequence[Path], work: Path, target: str) -> Appended:
        """Append files to a copy of the layout `base`, and push it as `target`. Raises Failed.

        The copy is made before the clock starts. Pushed twice: as skopeo does it (it compresses), and as it
        can be told to, with `--preserve-digests`.
        """
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(base, work)
        began = time.monotonic()
        _run([str(self._olot), str(work), *map(str, files)], os.environ.copy())
        appended = time.monotonic()
        self._push(work, target)
        pushed = time.monotonic()
        self._push(work, f"{target}-kept", "--preserve-digests")
        kept = time.monotonic()
        shutil.rmtree(work)
        return Appended(appended - began, pushed - appended, kept - pushed)

    def _push(self, layout: Path, target: str, *options: str) -> None:
        self._copy(f"oci:{layout}:latest", f"docker://{target}", "--dest-tls-verify=false", *options)

    def _copy(self, source: str, target: str, *options: str) -> None:
        command = [str(self._root / "usr/bin/skopeo"), "--insecure-policy", "copy", "--quiet", *options]
        command += ["--authfile", str(self._login / "config.json"), source, target]
        libraries = sorted({str(path.parent) for path in self._root.glob("usr/lib/*/libgpgme.so.11")})
        _run(command, {**os.environ, "LD_LIBRARY_PATH": ":".join(libraries)})


def _run(command: Sequence[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-6:])
        raise Failed(f"{Path(command[0]).name}: exit {done.returncode}: {last}")
