"""A Docker engine of the bench's own, used through the docker program as a user would."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bench.measure import Failed
from tests.servers.environment import run_script, shell_exports


class Engine:
    """One engine of `scripts/engine up --name NAME`; it is started at once, and `close` deletes it.

    Args:
        name: of the engine.
        cache: the cache folder of `scripts/`.
        login: a folder with the Docker configuration that knows the registry's password.
        containerd: whether it has containerd's image store.
    """

    def __init__(self, name: str, cache: Path, login: Path, *, containerd: bool = False) -> None:
        self.name = name
        self.login = login
        self._cache = cache
        self.close()  # of a run that was killed
        store = ["--containerd-snapshotter"] if containerd else []
        self.host = shell_exports("engine", "up", "--name", name, *store)["DOCKER_HOST"]
        self._data = cache / "engine" / name / "data"

    def close(self) -> None:
        """Stop it, and delete what it holds."""
        run_script("engine", "down", "--name", self.name, "--purge")

    @property
    def environment(self) -> dict[str, str]:
        """What the docker program needs to find the engine and the registry's password."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.login),
            "DOCKER_CONFIG": str(self.login),
            "DOCKER_HOST": self.host,
        }

    @property
    def program(self) -> str:
        """The docker program that belongs to the engine."""
        return str(_tools(self._cache) / "usr/bin/docker")

    def docker(self, *arguments: str, folder: Path | None = None) -> str:
        """Run the docker program; return its output. Raises Failed."""
        done = subprocess.run(
            [self.program, *arguments],
            env=self.environment,
            cwd=folder or self.login,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-6:])
            raise Failed(f"docker {' '.join(arguments[:2])} on engine {self.name}: {last}")
        return done.stdout.strip()

    def forget(self, keep: Sequence[str] = ()) -> None:
        """Delete all images but those of `keep` (references), and the whole build cache."""
        kept = {self.docker("image", "inspect", "--format", "{{.Id}}", reference) for reference in keep}
        listed = self.docker("image", "ls", "--all", "--quiet", "--no-trunc").split()
        if gone := [image for image in dict.fromkeys(listed) if image not in kept]:
            self.docker("image", "rm", "--force", *gone)
        self.docker("builder", "prune", "--all", "--force")

    def disk(self) -> int:
        """Return the bytes that its images take on disk, as the file system counts them."""
        folders = [
            str(self._data / name)
            for name in ("overlay2", "image", "containerd")
            if (self._data / name).exists()
        ]
        done = subprocess.run(
            ["du", "--summarize", "--total", "--block-size=1", *folders],
            capture_output=True,
            text=True,
            check=False,  # a file may go while it is looked at
        )
        return int(done.stdout.splitlines()[-1].split()[0])


def make_login(folder: Path, cache: Path, registry: str, login: str) -> Path:
    """Make a folder with a Docker configuration for a registry; `login` is base64 of user:password."""
    (folder / "cli-plugins").mkdir(parents=True)
    (folder / "cli-plugins/docker-buildx").symlink_to(
        _tools(cache) / "usr/libexec/docker/cli-plugins/docker-buildx"
    )
    add_login(folder, registry, login)
    return folder


def add_login(folder: Path, registry: str, login: str) -> None:
    """Let the Docker configuration know one more registry."""
    file = folder / "config.json"
    document = json.loads(file.read_text()) if file.exists() else {"auths": {}}
    document["auths"][registry] = {"auth": login}
    file.touch(mode=0o600)
    file.write_text(json.dumps(document))


def _tools(cache: Path) -> Path:
    """Return where `scripts/engine` unpacks the docker program and buildx."""
    return cache / "debian/trixie/root"
