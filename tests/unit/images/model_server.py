"""A runtime's server as a real process, and requests to it."""

from __future__ import annotations

import http.client
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import yaml

from tests.servers.running import free_port

IMAGES = Path(__file__).parents[3] / "images"


def missing(*modules: str) -> list[str]:
    """Those of the modules that are not installed; none of them is imported for that."""
    return [module for module in modules if importlib.util.find_spec(module) is None]


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def error(self) -> dict[str, Any]:
        """The error, once it is clear that the body has OpenAI's shape."""
        (error,) = self.json.values()
        assert set(self.json) == {"error"}
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == ("invalid_request_error" if self.status < 500 else "server_error")
        assert error["message"]
        return dict(error)


class ModelServer:
    """One server; its environment is that of its image."""

    def __init__(self, runtime: str, weights: Path, folder: Path, **environment: str) -> None:
        image = yaml.safe_load((IMAGES / runtime / "runtime.yaml").read_text())["env"]
        self.port = free_port()
        self.output = folder / f"{Path(runtime).name}-{self.port}.log"
        own = {
            "MODELBAKE_WEIGHTS": str(weights),
            "MODELBAKE_PORT": str(self.port),
            "MODELBAKE_MODEL": "served",
        }
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(IMAGES / runtime / "server.py")],
                env={"PATH": os.environ["PATH"], **image, **own, "MODELBAKE_VERSION": "1.2.3", **environment},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.DEVNULL,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def request(
        self, method: str, path: str, body: Any = None, *, data: bytes | None = None, timeout: float = 120
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            if body is not None:
                data = json.dumps(body).encode()
            connection.request(method, path, body=data)
            response = connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, headers, response.read().decode())
        finally:
            connection.close()

    def wait(self, path: str = "/health", status: int = 200) -> Reply:
        """Wait until a path answers with a status; the first answer of all is returned."""
        first: Reply | None = None
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.output.read_text()
            try:
                reply = self.request("GET", path)
            except OSError:
                time.sleep(0.02)
                continue
            first = first or reply
            if reply.status == status:
                return first
            time.sleep(0.1)
        raise AssertionError(self.output.read_text())

    def end(self, timeout: float = 60) -> int:
        """Wait until the process has ended; return its exit code."""
        return self.process.wait(timeout)

    def events(self, event: str | None = None) -> list[dict[str, Any]]:
        """What stdout holds, all of it JSON lines."""
        lines = [json.loads(line) for line in self.output.read_text().splitlines()]
        assert all(line["time"] and line["level"] for line in lines)
        return [line for line in lines if event in (None, line["event"])]

    def metrics(self) -> Mapping[tuple[str, tuple[tuple[str, str], ...]], float]:
        """The samples of /metrics by name and labels, parsed as Prometheus would."""
        parser: Any = importlib.import_module("prometheus_client.parser")
        reply = self.request("GET", "/metrics")
        assert reply.status == 200
        assert reply.headers["content-type"].startswith("text/plain")
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in parser.text_string_to_metric_families(reply.text)
            for sample in family.samples
        }


def run_python(script: str, *argv: str) -> Any:
    """Run a script that prints JSON in another process, so that what it imports stays out of this one."""
    done = subprocess.run(
        [sys.executable, "-c", script, *argv],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
