"""probe.py, run as the real program against a real HTTP server."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

PROBE = Path(__file__).parents[3] / "images" / "start" / "probe.py"
MIB = 1024 * 1024
GPU = "Example GPU, 580.65.06, 1024, 143771\n"


class Handler(BaseHTTPRequestHandler):
    """Answers each path in its own way."""

    def do_GET(self) -> None:
        if self.path == "/metrics":
            self.answer(200, b"requests_total 3\n")
        elif self.path == "/large":
            self.answer(200, b"x" * (5 * MIB))
        elif self.path == "/binary":
            self.answer(200, b"\xff\x00\n")
        elif self.path == "/once":
            self.server.asked += 1  # type: ignore[attr-defined]
            if self.server.asked > 2:  # type: ignore[attr-defined]
                time.sleep(5)
            self.answer(200, b"{}")
        elif self.path == "/late":
            time.sleep(0.4)
            self.answer(200, b"{}")
        elif self.path == "/slow":
            time.sleep(5)
        elif self.path == "/drip":
            self.send_response(200)
            self.end_headers()
            for _ in range(40):
                self.wfile.write(b".")
                time.sleep(0.1)
        elif self.path == "/cut":
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"short")
        elif self.path == "/garbage":
            self.wfile.write(b"not HTTP\r\n\r\n")
        else:
            self.answer(404, b"{}")

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        body = {"echo": json.loads(data), "type": self.headers["Content-Type"]}
        self.answer(200, json.dumps(body).encode())

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("X-Example", "yes")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle(self) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # The probe went away, as it should.
            super().handle()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = 0  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def run(*argv: str, stdin: str = "", **environment: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, str(PROBE), *argv],
        env={**os.environ, "PATH": "", **environment},
        input=stdin.encode(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == b""
    assert len(done.stdout.splitlines()) == 1
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return done.returncode, answer


def probe(port: int, *requests: dict[str, Any], **others: Any) -> dict[str, Any]:
    code, answer = run(json.dumps({"port": port, "requests": requests, **others}))
    assert code == 0
    assert set(answer) == {"responses", "repeat", "metrics", "driver"}
    return answer


def test_answers_come_back_in_order(port: int) -> None:
    body = {"input": "h\u00e9llo \u4f60"}
    answer = probe(port, {"method": "GET", "path": "/no"}, {"method": "POST", "path": "/e", "body": body})
    missing, echo = answer["responses"]
    assert (missing["status"], missing["body"], missing["headers"]["x-example"]) == (404, "{}", "yes")
    assert echo["status"] == 200
    assert json.loads(echo["body"]) == {"echo": body, "type": "application/json"}
    assert 0 < echo["seconds"] < 5
    assert answer["metrics"] == "requests_total 3\n"
    assert answer["repeat"] is None
    assert answer["driver"] is None


def test_repeat_measures_one_request(port: int) -> None:
    post = {"method": "POST", "path": "/e", "body": 1}
    answer = probe(port, {"method": "GET", "path": "/no"}, post, repeat={"index": 1, "count": 5})
    assert len(answer["responses"]) == 2
    assert len(answer["repeat"]["seconds"]) == 5
    assert answer["repeat"]["errors"] == 0
    assert answer["repeat"]["wall"] >= sum(answer["repeat"]["seconds"])


def test_repeat_counts_errors(port: int) -> None:
    answer = probe(port, {"method": "GET", "path": "/no"}, repeat={"index": 0, "count": 3})
    assert (answer["repeat"]["seconds"], answer["repeat"]["errors"]) == ([], 3)


def test_repeat_ends_with_the_first_request_that_gets_no_answer(port: int) -> None:
    started = time.monotonic()
    order = {"method": "GET", "path": "/once", "timeout": 1}
    answer = probe(port, order, repeat={"index": 0, "count": 50})
    assert answer["responses"][0]["status"] == 200
    assert (len(answer["repeat"]["seconds"]), answer["repeat"]["errors"]) == (1, 49)
    assert time.monotonic() - started < 30


def test_what_got_no_answer_is_not_repeated(port: int) -> None:
    started = time.monotonic()
    answer = probe(port, {"method": "GET", "path": "/slow", "timeout": 1}, repeat={"index": 0, "count": 50})
    assert answer["repeat"] == {"seconds": [], "wall": 0.0, "errors": 50}
    assert time.monotonic() - started < 30


def test_repeat_has_an_overall_limit(port: int) -> None:
    started = time.monotonic()
    order = {"method": "GET", "path": "/late"}
    answer = probe(port, order, repeat={"index": 0, "count": 50, "seconds": 1})
    assert 1 <= len(answer["repeat"]["seconds"]) <= 3
    assert answer["repeat"]["errors"] == 0, "what was not sent is no error"
    assert time.monotonic() - started < 10


def test_a_large_answer_is_cut(port: int) -> None:
    (response,) = probe(port, {"method": "GET", "path": "/large"})["responses"]
    assert (response["status"], len(response["body"]), response["truncated"]) == (200, 4 * MIB, True)


def test_a_large_body_goes_out(port: int) -> None:
    order = {"port": port, "requests": [{"method": "POST", "path": "/e", "body": "x" * (3 * MIB)}]}
    code, answer = run("-", stdin=json.dumps(order))
    assert code == 0
    assert len(json.loads(answer["responses"][0]["body"])["echo"]) == 3 * MIB


def test_bytes_that_are_no_text(port: int) -> None:
    (response,) = probe(port, {"method": "GET", "path": "/binary"})["responses"]
    assert response["body"] == "\ufffd\0\n"


@pytest.mark.parametrize("path", ["/slow", "/drip"])
def test_an_answer_that_takes_too_long(port: int, path: str) -> None:
    started = time.monotonic()
    (response,) = probe(port, {"method": "GET", "path": path, "timeout": 0.5})["responses"]
    assert time.monotonic() - started < 4
    assert response["status"] == 0
    assert "TimeoutError" in response["error"]


@pytest.mark.parametrize("path", ["/cut", "/garbage"])
def test_an_answer_that_is_broken(port: int, path: str) -> None:
    (response,) = probe(port, {"method": "GET", "path": path})["responses"]
    assert response["status"] == 0
    assert response["error"]


def test_nobody_listens(port: int) -> None:
    answer = probe(1, {"method": "GET", "path": "/"}, repeat={"index": 0, "count": 2})
    assert "ConnectionRefusedError" in answer["responses"][0]["error"]
    assert answer["repeat"]["errors"] == 2
    assert answer["metrics"] is None


def test_the_order_from_the_environment(port: int) -> None:
    order = json.dumps({"port": port, "requests": [{"method": "GET", "path": "/no"}]})
    assert run(MODELBAKE_PROBE=order)[1]["responses"][0]["status"] == 404


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "JSON object"),
        ('{"requests": []}', "port"),
        ('{"port": 8000, "request": []}', "unknown keys: request"),
        ('{"port": 8000, "requests": [{"path": "/", "verb": 1}]}', "requests[0]: verb"),
        ('{"port": 8000, "requests": [{"path": "/", "method": "PUT"}]}', "requests[0].method"),
        ('{"port": 8000, "requests": [{"path": "http://elsewhere/"}]}', "requests[0].path"),
        ('{"port": 8000, "requests": [{"path": "/ HTTP/1.1"}]}', "requests[0].path"),
        ('{"port": 8000, "requests": [{"path": "/", "timeout": 0}]}', "requests[0].timeout"),
        ('{"port": 8000, "requests": [], "repeat": {"index": 0, "count": 1}}', "repeat.index"),
        ('{"port": 8000, "requests": [], "repeat": {"index": 0, "times": 1}}', "repeat to have"),
        (
            '{"port": 8000, "requests": [{"path": "/", "method": "GET"}],'
            ' "repeat": {"index": 0, "count": 1, "seconds": 0}}',
            "repeat.seconds",
        ),
    ],
)
def test_an_order_that_makes_no_sense(order: str, words: str) -> None:
    code, answer = run(order)
    assert code == 2
    assert words in answer["error"]


def driver(tmp_path: Path, script: str) -> Any:
    """What the probe says where this script is nvidia-smi."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    code, answer = run(json.dumps({"port": 1, "requests": []}), PATH=f"{tmp_path}:/bin:/usr/bin")
    assert code == 0
    return answer["driver"]


def test_the_drivers_view(tmp_path: Path) -> None:
    answer = driver(tmp_path, f"printf '%s' '{GPU}{GPU}'")
    assert (answer["gpu"], answer["driver_version"]) == ("Example GPU", "580.65.06")
    assert answer["memory_used_bytes"] == 2 * 1024 * MIB
    assert answer["memory_total_bytes"] == 2 * 143771 * MIB
    assert [gpu["memory_used_bytes"] for gpu in answer["gpus"]] == [1024 * MIB] * 2


def test_a_driver_that_does_not_know_the_memory(tmp_path: Path) -> None:
    answer = driver(tmp_path, "echo 'Example GPU, 580.65.06, [N/A], [N/A]'")
    assert answer["gpu"] == "Example GPU"
    assert answer["memory_used_bytes"] is None


@pytest.mark.parametrize("script", ["exit 9", "echo 'No devices were found'", "exit 0"])
def test_a_driver_without_a_gpu(tmp_path: Path, script: str) -> None:
    assert driver(tmp_path, script) is None
