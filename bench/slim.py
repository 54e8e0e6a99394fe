"""What slimming takes away from the real packages of the CUDA builds, and that they still serve.

    python -m bench.slim [--wheels DIR] [--only RUNTIME]

For each runtime with layers: its requirements by a plain `pip install` (no option but the one that names the
wheels, with pip's byte code), and by `images/builder/install.py` as an image has them; bytes of both, and of
each rule. Then the runtime's own server is started from the slimmed packages, on the CPU where there is no
GPU, and has to answer; vLLM, which computes on GPUs only, has to come as far as it can without one
(tests/servers/vllm_without_gpu.py). `images/RUNTIME/naive.json` keeps the plain figure. A rule that removes
nothing from any runtime is an error. It takes PyPI, 25 GB of disk and about half an hour.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.results import Row, table
from modelbake.naive import NAIVE_FILE
from tests.servers.environment import ROOT
from tests.servers.minilm import minilm

IMAGES = ROOT / "images"
# What was asked of these two; of the others only that slimming makes them no larger.
BARS = {"transformers": 0.70, "embeddings": 0.70}
NO_LARGER = 1.00
_PYTHON = "python3.11"  # as the base images have it
_CLEAN = {"PIP_CONFIG_FILE": os.devnull, "PATH": os.environ["PATH"], "HOME": "/nonexistent"}
_MAKE = "import sys; from pathlib import Path; from tests.servers.{0} import {1}; {1}(Path(sys.argv[1]))"
_MAKERS = {
    "transformers": _MAKE.format("minilm", "tiny_llama"),
    "vllm": _MAKE.format("minilm", "tiny_llama"),
    "diffusers": _MAKE.format("tiny_diffusion", "tiny_diffusion"),
}
_REQUESTS: Mapping[str, tuple[str, Any, Sequence[str]]] = {
    "transformers": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "temperature": 0},
        ("choices", "usage"),
    ),
    "embeddings": ("/v1/embeddings", {"input": ["hello", "world"]}, ("data",)),
    "diffusers": ("/v1/images/generations", {"prompt": "a cat", "size": "64x64", "steps": 1}, ("data",)),
}
RUNTIMES = tuple(sorted([*_REQUESTS, "vllm"]))
_START_SECONDS = 300


class Failed(Exception):
    """A step failed; the text says how."""


@dataclass(frozen=True)
class Slimming:
    """One runtime, measured. `rules`: pattern -> bytes that are gone, for each that removed something."""

    runtime: str
    naive: int
    slim: int
    rules: Mapping[str, int]

    def row(self) -> Row:
        """Return the row of the table."""
        seen = "served a request" if self.runtime in _REQUESTS else "imported and configured without a GPU"
        note = f"{self.slim / 1e6:,.0f} MB over {self.naive / 1e6:,.0f} MB; {seen} from them"
        what = f"{self.runtime} CUDA packages, unpacked / plain pip install"
        return Row(what, bar_of(self.runtime), self.slim / self.naive, note=note)


def bar_of(runtime: str) -> float:
    """Return what the ratio of a runtime may be."""
    return BARS.get(runtime, NO_LARGER)


def measure(runtime: str, folder: Path, wheels: Path | None = None) -> Slimming:
    """Install both, serve from the slimmed ones, and remove both. Raises Failed."""
    settings = yaml.safe_load((IMAGES / runtime / "runtime.yaml").read_text())
    requirements = IMAGES / runtime / settings["builds"]["cuda"]
    wheels = wheels or _download(requirements, folder / "wheels")
    try:
        naive = _naive(requirements, folder / "naive", wheels)
        shutil.rmtree(folder / "naive")
        rules = _slim(settings.get("slim") or {}, requirements, folder / "slim", wheels)
        _run([_PYTHON, "-m", "pip", "--python", str(folder / "slim/bin/python"), "check"])
        _serve(runtime, folder, folder / "slim/bin/python", settings["env"])
        slim = size_of(folder / "slim")
    finally:
        for name in ("naive", "slim"):
            shutil.rmtree(folder / name, ignore_errors=True)
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    (IMAGES / runtime / NAIVE_FILE).write_text(json.dumps({f"sha256:{digest}": naive}, indent=2) + "\n")
    return Slimming(runtime, naive, slim, rules)


def dead_rules(measured: Sequence[Slimming]) -> list[str]:
    """Return the patterns that removed nothing from any runtime: of all runtimes', and each runtime's own."""
    sys.path.insert(0, str(IMAGES / "builder"))
    try:
        from slim_rules import RULES  # type: ignore[import-not-found]  # it is a program of the images
    finally:
        sys.path.remove(str(IMAGES / "builder"))
    useful = {pattern for each in measured for pattern in each.rules}
    dead = [pattern for pattern in RULES if pattern not in useful]
    for each in measured:
        slim = yaml.safe_load((IMAGES / each.runtime / "runtime.yaml").read_text()).get("slim") or {}
        own = [*slim.get("remove", {}), *slim.get("stub", {})]
        dead += [f"{each.runtime}: {pattern}" for pattern in own if pattern not in each.rules]
    return dead


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder, as a layer has them."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _download(requirements: Path, wheels: Path) -> Path:
    command = [
        _PYTHON,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--require-hashes",
        "--dest",
        str(wheels),
    ]
    _run([*command, "--requirement", str(requirements)])
    return wheels


def _naive(requirements: Path, venv: Path, wheels: Path) -> int:
    _run([_PYTHON, "-m", "venv", "--without-pip", str(venv)])
    command = [_PYTHON, "-m", "pip", "--python", str(venv / "bin/python"), "install", "--quiet"]
    _run([*command, "--no-index", "--find-links", str(wheels), "--requirement", str(requirements)])
    return size_of(venv)


def _slim(own: Mapping[str, Any], requirements: Path, venv: Path, wheels: Path) -> dict[str, int]:
    """Install as an image does; return the bytes that each rule removed."""
    with tempfile.TemporaryDirectory() as folder:
        instructions = Path(folder) / "slim.json"
        instructions.write_text(json.dumps({"remove": {}, "stub": {}, "keep": [], **own}))
        (Path(folder) / "pip_config").write_text(
            f"[global]\nno-index = true\nfind-links = {wheels.absolute()}\n"
        )
        program = [_PYTHON, str(IMAGES / "builder/install.py"), str(venv), str(requirements)]
        said = _run([*program, "--slim", str(instructions), "--secrets", folder])
    events = [json.loads(line) for line in said.splitlines()]
    return {event["pattern"]: event["bytes"] for event in events if event["event"] == "slimmed"}


def _serve(runtime: str, folder: Path, python: Path, environment: Mapping[str, str]) -> None:
    """Start the runtime's server from its packages, and ask it once. Raises Failed."""
    if make := _MAKERS.get(runtime):
        weights = folder / f"model-{runtime}"
        _run([str(python), "-c", make, str(weights)], PYTHONPATH=str(ROOT))
    else:
        weights = minilm()
    if runtime not in _REQUESTS:
        program = [str(python), str(ROOT / "tests/servers/vllm_without_gpu.py")]
        own = {"MODELBAKE_WEIGHTS": str(weights), "MODELBAKE_MODEL": "bench", "HOME": str(folder)}
        _run([*program, str(IMAGES / runtime), str(IMAGES / "start")], **{**environment, **own})
        return
    path, body, keys = _REQUESTS[runtime]
    with _server(runtime, folder, python, weights, environment) as port:
        status, answer = _ask(port, "POST", path, json.dumps(body).encode())
        if status != 200 or not all(key in json.loads(answer) for key in keys):
            raise Failed(f"{runtime} answered {path} with {status}: {answer.decode()[:500]}")
        status, metrics = _ask(port, "GET", "/metrics")
        if status != 200 or b"modelbake_load_seconds" not in metrics:
            raise Failed(f"{runtime} has no metrics ({status})")


@contextmanager
def _server(
    runtime: str, folder: Path, python: Path, weights: Path, environment: Mapping[str, str]
) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    own = {"MODELBAKE_WEIGHTS": str(weights), "MODELBAKE_PORT": str(port), "MODELBAKE_MODEL": "bench"}
    env = {"PATH": "/usr/bin:/bin", **environment, **own, "MODELBAKE_VERSION": "1.0.0", "HOME": str(folder)}
    log = folder / f"{runtime}.log"
    command = [str(python), str(IMAGES / runtime / "server.py")]
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, env={**env, "PYTHONPATH": str(IMAGES / "start")}, stdout=output, stderr=output
        ) as process,
    ):
        try:
            deadline = time.monotonic() + _START_SECONDS
            while True:
                with suppress(OSError, http.client.HTTPException):
                    if _ask(port, "GET", "/health")[0] == 200:
                        break
                if process.poll() is not None or time.monotonic() > deadline:
                    raise Failed(f"{runtime} does not serve:\n{log.read_text(errors='replace')[-3000:]}")
                time.sleep(0.5)
            yield port
        finally:
            process.kill()


def _ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(method, path, body=body)
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def _run(command: Sequence[str], **environment: str) -> str:
    done = subprocess.run(
        command, env={**_CLEAN, **environment}, cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Failed(f"{' '.join(command[:6])} ...: {(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all; 0 when every runtime served, is small enough, and no rule is dead."""
    parser = argparse.ArgumentParser(prog="python -m bench.slim", description=(__doc__ or "").split(".")[0])
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="wheels that are here already")
    parser.add_argument("--only", choices=RUNTIMES, help="one runtime; dead rules are not looked for")
    options = parser.parse_args(arguments)
    measured = []
    with tempfile.TemporaryDirectory(prefix="modelbake-slim-") as folder:
        try:
            for runtime in [options.only] if options.only else RUNTIMES:
                measured.append(measure(runtime, Path(folder), options.wheels))
                for pattern, size in measured[-1].rules.items():
                    sys.stderr.write(f"{size / 1e6:10,.1f} MB  {pattern}\n")
        except Failed as error:
            sys.stderr.write(f"bench: {error}\n")
            return 1
    rows = [each.row() for each in measured]
    sys.stdout.write(f"{table(rows)}\n")
    dead = [] if options.only else dead_rules(measured)
    for pattern in dead:
        sys.stderr.write(f"bench: a rule that removes nothing: {pattern}\n")
    return int(bool(dead) or not all(row.met for row in rows))


if __name__ == "__main__":
    sys.exit(main())
