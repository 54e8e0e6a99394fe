"""A Dask cluster as an administrator starts one: a scheduler and workers, processes of their own on loopback.

    with DaskCluster(folder) as cluster:
        cluster.worker("one", HF_TOKEN_PATH=...)
        cluster.ready(1)
        ... cluster.address, cluster.worker_pid("one"), cluster.logs(), cluster.pages()

Workers get the environment that is given here and no other: what they can do is what their own credentials
allow.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from html import unescape
from pathlib import Path
from typing import Any, Self
from urllib.error import HTTPError
from urllib.parse import urljoin, urlsplit

from tests.servers.environment import ROOT

_START_SECONDS = 60.0
_PLACES = ("info/main/workers.html", "info/main/logs.html", "info/main/exceptions.html", "metrics",
           "json/counts.json", "json/identity.json", "json/index.html", "sitemap.json")  # fmt: skip


class DaskCluster:
    """A scheduler; `environment` is that of its process, and what workers have beside their own.

    `protocol`: tcp, or tls with what the environment says of certificates.
    """

    def __init__(
        self, folder: Path, environment: Mapping[str, str] | None = None, protocol: str = "tcp"
    ) -> None:
        self.folder = folder
        self._protocol = protocol
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "PYTHONPATH": str(ROOT),
            "DASK_DISTRIBUTED__DIAGNOSTICS__NVML": "False",
            **(environment or {}),
        }
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.address = self.dashboard = ""

    def __enter__(self) -> Self:
        facts = self.folder / "scheduler.json"
        facts.unlink(missing_ok=True)
        options = ["--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0"]
        options += ["--protocol", self._protocol]
        try:
            self._start("scheduler", "dask_scheduler", *options, "--scheduler-file", str(facts))
            deadline = time.monotonic() + _START_SECONDS
            while not facts.exists() or not facts.read_text().endswith("}"):
                assert time.monotonic() < deadline, self.logs()
                time.sleep(0.05)
        except BaseException:
            self.close()
            raise
        said = json.loads(facts.read_text())
        self.address = said["address"].replace("tcp://", "dask://").replace("tls://", "dasks://")
        self.dashboard = f"http://127.0.0.1:{said['services']['dashboard']}/"
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill all that is left."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait(30)

    def worker(self, name: str, *, threads: int = 1, **environment: str) -> None:
        """Start a worker."""
        scheduler = self.address.replace("dask://", "tcp://")
        options = ["--nthreads", str(threads), "--no-nanny", "--name", name, "--host", "127.0.0.1"]
        options += ["--local-directory", str(self.folder / name), "--dashboard-address", "127.0.0.1:0"]
        self._start(name, "dask_worker", scheduler, *options, environment=environment)

    def ready(self, count: int) -> None:
        """Return when the scheduler has `count` workers."""
        deadline = time.monotonic() + _START_SECONDS
        while self.count("workers") != count:
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.05)

    def count(self, what: str) -> int:
        """Return one of the scheduler's counts: `workers`, `processing`, `tasks`, ..."""
        return int(json.loads(self._get(f"{self.dashboard}json/counts.json"))[what])

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a worker, or to the `scheduler`, and wait for its end."""
        self._processes[name].send_signal(number)
        self._processes[name].wait(30)

    def logs(self) -> str:
        """Return all that the scheduler and the workers have printed."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")))

    def pages(self, most: int = 200) -> dict[str, str]:
        """Return what the dashboards of the scheduler and of the workers show: every page that is linked."""
        found: dict[str, str] = {}
        waiting = [urljoin(self.dashboard, place) for place in _PLACES]
        while waiting and len(found) < most:
            url = waiting.pop(0)
            if url in found:
                continue
            try:
                found[url] = self._get(url)
            except (HTTPError, OSError):  # of a worker that is gone, or a page that needs bokeh
                found[url] = ""
            links = re.findall(r"(?:href|src)=[\"']([^\"'#]+)", found[url])
            if url.endswith("sitemap.json"):
                links += [f"/{path}" for path in json.loads(found[url])["paths"]]
            absolute = [urljoin(url, unescape(link)) for link in links]
            waiting += [each for each in absolute if self._is_page(each)]
        return found

    @staticmethod
    def _is_page(url: str) -> bool:
        parts = urlsplit(url)
        static = re.search(r"\.(?:css|js|png|svg|ico|gif)$|/statics?/|eventstream|\(", parts.path)
        return parts.scheme == "http" and parts.hostname == "127.0.0.1" and not static

    @staticmethod
    def _get(url: str) -> str:
        with urllib.request.urlopen(url, timeout=10) as reply:  # noqa: S310
            return str(reply.read().decode(errors="replace"))

    def _start(
        self, name: str, program: str, *options: str, environment: Mapping[str, Any] | None = None
    ) -> None:
        command = [sys.executable, "-m", f"distributed.cli.{program}", *options]
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**self._environment, **(environment or {})},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
