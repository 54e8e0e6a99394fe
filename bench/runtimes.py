"""The runtime of the bench, `tests/runtimes/tiny`, and what becomes of it: app, dependency, base."""

from __future__ import annotations

import base64
import functools
import hashlib
import http.server
import shutil
import threading
import zipfile
from pathlib import Path

from bench.engine import Engine
from bench.measure import Failed
from tests.servers.environment import ROOT

_PACKAGE = "benchdep"


def copy_runtime(folder: Path) -> Path:
    """Copy the runtime into a new folder of runtimes; return that folder."""
    shutil.copytree(ROOT / "tests/runtimes/tiny", folder / "tiny")
    return folder


def change_app(folder: Path) -> None:
    """Change the program that serves the weights."""
    server = folder / "tiny/server.py"
    server.write_text(server.read_text() + "\n# the bench changed this program\n")


def add_dependency(folder: Path, wheels: Path) -> None:
    """Let the runtime need one package more, pinned by hash."""
    wheel = _make_wheel(wheels)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (folder / "tiny/requirements.txt").write_text(f"{_PACKAGE}==1.0 --hash=sha256:{digest}\n")
    description = folder / "tiny/runtime.yaml"
    description.write_text(description.read_text() + "builds: {cuda: requirements.txt}\n")


def patch_base(engine: Engine, base: str, name: str) -> str:
    """Push a base image that differs from `base` in its only layer; return its reference by digest.

    Exported and imported again, because a patched distribution is another first layer, not one more on top.
    """
    container = engine.docker("create", base, "true")
    engine.docker("start", "--attach", container)
    environment = engine.docker("inspect", "--format", "{{range .Config.Env}}{{println .}}{{end}}", container)
    changes = [part for line in environment.split("\n") if line for part in ("--change", f"ENV {line}")]
    patch = ROOT / "pyproject.toml"  # any file
    engine.docker("cp", str(patch), f"{container}:/etc/patched")
    archive = engine.login / "base.tar"
    engine.docker("export", "--output", str(archive), container)
    engine.docker("rm", container)
    engine.docker("import", *changes, str(archive), name)
    archive.unlink()
    engine.docker("push", "--quiet", name)
    digests = engine.docker(
        "image", "inspect", "--format", "{{range .RepoDigests}}{{println .}}{{end}}", name
    )
    repository = name.rpartition(":")[0]
    for digest in digests.split():
        if digest.startswith(f"{repository}@"):
            return digest
    raise Failed(f"{name} was pushed, and the engine knows no digest of it")


class WheelServer:
    """Serves a folder of wheels to builds; `close` ends it. `pip_config` makes pip look nowhere else."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder = folder / "wheels"
        self.folder.mkdir()
        handler = functools.partial(_Quiet, directory=str(self.folder))
        self._server = http.server.ThreadingHTTPServer((address, 0), handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.pip_config = folder / "pip.ini"
        self.pip_config.write_text(
            f"[global]\nno-index = true\nfind-links = http://{address}:{self._server.server_port}/\n"
            f"trusted-host = {address}\n"
        )

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def _make_wheel(folder: Path) -> Path:
    """Write a wheel of one module: the same bytes each time."""
    info = f"{_PACKAGE}-1.0.dist-info"
    files = {
        f"{_PACKAGE}.py": "ANSWER = 42\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {_PACKAGE}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: bench\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [f"{name},{_record_hash(text)},{len(text)}" for name, text in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,"]) + "\n"
    wheel = folder / f"{_PACKAGE}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name), text)
    return wheel


def _record_hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256={base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"
