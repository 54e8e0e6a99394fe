"""What the demo and the integration tests need around them: the scripts' exports, and what a build reaches.

Builds run in the engine's network, so whatever serves them (the hub, the wheels) listens on the address of
the engine's bridge on this machine.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import docker

ROOT = Path(__file__).resolve().parent.parent.parent
_CPU_TORCH = re.compile(r"^torch==(?P<version>[\w.]+)\+cpu\b.*?--hash=sha256:(?P<sha256>\w{64})", re.M | re.S)


def shell_exports(
    script: str, *arguments: str, environment: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Run one of `scripts/` and return what its `export NAME=value` lines set. Its stderr is passed on."""
    return dict(
        line.removeprefix("export ").split("=", 1)
        for line in shlex.split(run_script(script, *arguments, environment=environment), comments=True)
        if "=" in line
    )


def run_script(script: str, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """Run one of `scripts/` and return its stdout. Raises CalledProcessError when it fails."""
    command = [sys.executable, str(ROOT / "scripts" / script), *arguments]
    env = {**os.environ, **(environment or {})}
    return subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def bridge_address(docker_host: str) -> str:
    """Return the address of this machine as seen from the engine's containers and build steps."""
    with docker.APIClient(base_url=docker_host) as api:
        return str(api.inspect_network("bridge")["IPAM"]["Config"][0]["Gateway"])


class Wheels:
    """Serves PyTorch's CPU build to builds, where this machine's pip has one (`cpu`); else serves nothing.

    The registry of Python packages has CUDA builds only, several GB of them. A machine that has the CPU build
    as a file or in an index of its own has it out of a build's reach: this brings it in.
    """

    def __init__(self, address: str, cache: Path) -> None:
        pinned = _CPU_TORCH.search((ROOT / "images/embeddings/requirements.cpu.txt").read_text())
        assert pinned, "images/embeddings/requirements.cpu.txt pins no CPU build of torch"
        self.folder = cache / "wheels"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.cpu = bool(list(self.folder.glob("*.whl"))) or self._download(pinned["version"])
        handler = functools.partial(_Quiet, directory=str(self.folder))
        self._server = http.server.ThreadingHTTPServer((address, 0), handler)
        self.host = address
        self.url = f"http://{address}:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _download(self, version: str) -> bool:
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        wanted = f"torch=={version}"
        # Asked first what it would take, because the CUDA build would be downloaded for nothing.
        dry_run = [*pip, "install", "--dry-run", "--ignore-installed", "--no-deps", "--report", "-", wanted]
        report = json.loads(subprocess.run(dry_run, stdout=subprocess.PIPE, check=True).stdout)
        if "cpu" not in report["install"][0]["metadata"]["version"]:
            return False
        subprocess.run([*pip, "download", "--no-deps", "--dest", str(self.folder), wanted], check=True)
        return True


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the one who waits for a build watches the build."""


def build_environment(folder: Path, wheels: Wheels) -> dict[str, str]:
    """Return the variables that give builds this machine's package index, its CA and the wheels."""
    lines = ["[global]"]
    if index := os.environ.get("PIP_INDEX_URL") or _pip_setting("global.index-url"):
        lines.append(f"index-url = {index}")
    if wheels.cpu:
        lines += [f"find-links = {wheels.url}", f"trusted-host = {wheels.host}"]
    config = folder / "pip-of-builds.ini"
    config.touch(mode=0o600)
    config.write_text("\n".join(lines) + "\n")
    environment = {"MODELBAKE_PIP_CONFIG": str(config)}
    if ca := os.environ.get("PIP_CERT") or _pip_setting("global.cert"):
        environment["MODELBAKE_CA_BUNDLE"] = ca
    return environment


def _pip_setting(name: str) -> str:
    command = [sys.executable, "-m", "pip", "config", "get", name]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
