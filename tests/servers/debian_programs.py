"""Programs of Debian packages that tests use as users would, unpacked into the cache by `scripts/`."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.servers.environment import ROOT

_UNPACK = """\
import sys
from debian_packages import Release
from local_service import cache_folder, main
release = Release(cache_folder(), sys.argv[1])
main(lambda: release.unpack(*sys.argv[2:]) or print(release.root) or 0)
"""


@dataclass(frozen=True)
class Programs:
    """The packages of one Debian release, unpacked below `root`."""

    root: Path

    @classmethod
    def unpack(cls, release: str, *packages: str) -> Programs:
        """Download and unpack packages, exactly these, where they are not there yet."""
        command = [sys.executable, "-c", _UNPACK, release, *packages]
        done = subprocess.run(command, cwd=ROOT / "scripts", stdout=subprocess.PIPE, text=True, check=True)
        return cls(Path(done.stdout.strip()))

    def run(self, program: str, *arguments: str, check: bool = True) -> str:
        """Run a program with the shared libraries that were unpacked beside it; return its stdout."""
        libraries = [str(folder) for folder in self.root.glob("**/lib/*-linux-gnu")]
        command = [str(self.root / "usr/bin" / program), *arguments]
        env = {"LD_LIBRARY_PATH": ":".join(libraries), "HOME": str(self.root.parent), "PATH": "/usr/bin:/bin"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or not check, f"{program}: {done.stderr}"
        return done.stdout
