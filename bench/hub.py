"""The hub, in a process of its own: it shares neither our interpreter's lock nor our memory."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from tests.servers.environment import ROOT
from tests.servers.hub import Repo

TOKEN = "hf_thebenchtokenthatopensallofitsrepos"  # noqa: S105  # of a hub that lives as long as the bench


class HubProcess:
    """`python -m tests.servers.hub` at an address that builds reach; `close` ends it. `rate`: bytes/s."""

    def __init__(self, folder: Path, address: str, rate: float | None = None) -> None:
        self.root = folder / "hub"
        self.root.mkdir(parents=True)
        self.token_file = folder / "hub.token"
        self.token_file.touch(mode=0o600)
        self.token_file.write_text(TOKEN)
        command = [sys.executable, "-m", "tests.servers.hub", "--root", str(self.root)]
        command += ["--token-file", str(self.token_file), "--host", address]
        command += ["--rate", str(rate)] if rate else []
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        ready = json.loads(self._process.stdout.readline())
        self.url = str(ready["url"])
        self._control = str(ready["control"])

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(30)

    def repo(self, name: str, files: dict[str, bytes | Path]) -> Repo:
        """Make a private repository; files are linked, not copied."""
        return Repo.create(self.root, name, files)

    def forget(self) -> None:
        """Begin to count anew."""
        self._call("DELETE")

    def sent(self) -> int:
        """Return how many bytes of files it has sent (of anything but its API's answers)."""
        return sum(int(record["bytes_sent"]) for record in self._call("GET") if record["file"])

    def fetched(self) -> list[int]:
        """Return of each request for a file's bytes how many it has sent."""
        return [int(each["bytes_sent"]) for each in self._call("GET") if each["host"] == "cdn"]

    def asked(self) -> int:
        """Return how many requests it has had."""
        return len(self._call("GET"))

    def _call(self, method: str) -> Any:
        request = urllib.request.Request(f"{self._control}/__log__", method=method)  # noqa: S310
        with urllib.request.urlopen(request, timeout=30) as reply:  # noqa: S310  # http, to this machine
            return json.loads(reply.read())
