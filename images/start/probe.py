"""Sends requests to the server of this very container, and prints what came back as one JSON object.

A smoke run executes it inside the container: so it needs no published port and works with a remote engine.

    probe.py '{"port": 8000, "requests": [{"method": "GET", "path": "/health"}]}'

The order is the first argument, else the environment variable MODELBAKE_PROBE; ``-`` reads it from stdin, for
bodies larger than an argument may be (128 KiB). Its keys:

    port        of 127.0.0.1
    requests    [{"method": "GET" | "POST", "path": "/...", "body": any JSON, "timeout": seconds}]
    repeat      {"index": N, "count": N, "seconds": N}: send that request again, one at a time, to measure it;
                none is begun once that many seconds are over, if they are given
    timeout     seconds that one request may take in all; 60 where nothing is said

The answer:

    responses   [{"status", "headers", "body", "seconds"}], in order. The body as text, its first 4 MiB;
                "truncated" is there where it had more. Where no whole answer came the status is 0, and
                "error" says why
    repeat      {"seconds": [...], "wall": seconds, "errors": N}, or null; seconds of good answers only. A
                request without any answer is the last one: it and all that were to follow are errors
    metrics     the text of GET /metrics, or null
    driver      {"gpu", "driver_version", "memory_used_bytes", "memory_total_bytes", "gpus": [...]}: what
                nvidia-smi says of whole devices, not of this process; null where there is no GPU

Exit code 0 where it could ask, whatever the server said; 2 where the order itself makes no sense, with
{"error": "..."} as the answer. Standard library only, for any Python from 3.9 on.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import sys
import time
from typing import Any, NamedTuple

MAX_ORDER = 64 * 1024 * 1024
MAX_BODY = 4 * 1024 * 1024
CHUNK = 64 * 1024
DEFAULT_TIMEOUT = 60.0
LONGEST = 86400
DRIVER_TIMEOUT = 10.0
MIB = 1024 * 1024


class OrderError(Exception):
    """The order is not of the form that the module's docstring gives."""


class Request(NamedTuple):
    """One HTTP request to make."""

    method: str
    path: str
    body: bytes | None
    timeout: float


class Order(NamedTuple):
    """Everything to do."""

    port: int
    requests: list[Request]
    repeat: int | None
    times: int
    limit: float


def read_order(argv: list[str]) -> Order:
    """Find and check the order."""
    if len(argv) > 1:
        raise OrderError("expected one argument at most")
    text = argv[0] if argv else os.environ.get("MODELBAKE_PROBE", "")
    if text == "-":
        text = sys.stdin.read(MAX_ORDER)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise OrderError(f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise OrderError("expected a JSON object")
    unknown = sorted(set(document) - {"port", "requests", "repeat", "timeout"})
    if unknown:
        raise OrderError(f"unknown keys: {', '.join(unknown)}")
    port = check_number(document.get("port"), "port", 1, 65535)
    timeout = check_seconds(document.get("timeout", DEFAULT_TIMEOUT), "timeout")
    entries = document.get("requests", [])
    if not isinstance(entries, list):
        raise OrderError("expected requests to be a list")
    requests = [check_request(entry, f"requests[{number}]", timeout) for number, entry in enumerate(entries)]
    repeat = document.get("repeat")
    if repeat is None:
        return Order(port, requests, None, 0, 0.0)
    if not isinstance(repeat, dict) or set(repeat) | {"seconds"} != {"index", "count", "seconds"}:
        raise OrderError("expected repeat to have index, count and perhaps seconds")
    index = check_number(repeat["index"], "repeat.index", 0, len(requests) - 1)
    times = check_number(repeat["count"], "repeat.count", 0, 1_000_000)
    limit = check_seconds(repeat.get("seconds", LONGEST), "repeat.seconds")
    return Order(port, requests, index, times, limit)


def check_request(entry: Any, name: str, timeout: float) -> Request:
    """Check one entry of ``requests``."""
    if not isinstance(entry, dict):
        raise OrderError(f"expected {name} to be an object")
    unknown = sorted(set(entry) - {"method", "path", "body", "timeout"})
    if unknown:
        raise OrderError(f"unknown keys in {name}: {', '.join(unknown)}")
    method, path = entry.get("method", "GET"), entry.get("path")
    if method not in ("GET", "POST"):
        raise OrderError(f"expected {name}.method to be GET or POST")
    if not isinstance(path, str) or not path.startswith("/") or not path.isascii() or not path.isprintable():
        raise OrderError(f"expected {name}.path to be printable ASCII that starts with /")
    if " " in path:
        raise OrderError(f"expected {name}.path to have no space")
    body = json.dumps(entry["body"]).encode("ascii") if entry.get("body") is not None else None
    return Request(method, path, body, check_seconds(entry.get("timeout", timeout), f"{name}.timeout"))


def check_number(value: Any, name: str, lowest: int, highest: int) -> int:
    """A whole number between two others, these included."""
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise OrderError(f"expected {name} to be a whole number from {lowest} to {highest}")
    return value


def check_seconds(value: Any, name: str) -> float:
    """A time of at most a day, in seconds."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= LONGEST:
        raise OrderError(f"expected {name} to be seconds, more than 0 and at most {LONGEST}")
    return float(value)


def send(port: int, request: Request) -> dict[str, Any]:
    """Make one request; whatever happens is told in the answer."""
    started = time.monotonic()
    deadline = started + request.timeout
    answer: dict[str, Any] = {"status": 0, "headers": {}, "body": "", "seconds": 0.0}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=request.timeout)
    body = bytearray()
    try:
        headers = {"Content-Type": "application/json"} if request.body is not None else {}
        connection.request(request.method, request.path, body=request.body, headers=headers)
        # The socket lets go of the connection's own reference once the server has closed it, hence this one.
        sock = connection.sock
        response = connection.getresponse()
        answer["headers"] = {name.lower(): value for name, value in response.getheaders()}
        while len(body) <= MAX_BODY:
            # A limit for the whole answer: the socket's own begins again with every byte.
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"no whole answer within {request.timeout:g} s")
            if sock is not None and sock.fileno() >= 0:
                sock.settimeout(left)
            chunk = response.read1(CHUNK)
            if not chunk:
                break
            body += chunk
        if response.length and len(body) <= MAX_BODY:  # read1 does not tell that the connection was cut.
            raise http.client.IncompleteRead(bytes(body), response.length)
        answer["status"] = response.status
    except (OSError, http.client.HTTPException) as error:
        answer["error"] = f"{type(error).__name__}: {error}"
        body.clear()
    finally:
        connection.close()
    answer["seconds"] = time.monotonic() - started
    if len(body) > MAX_BODY:
        answer["truncated"] = True
    answer["body"] = bytes(body[:MAX_BODY]).decode("utf-8", "replace")
    return answer


def repeat(port: int, request: Request, count: int, limit: float) -> dict[str, Any]:
    """Make one request again and again; return how long each good answer took, and all of them together."""
    started = time.monotonic()
    good: list[float] = []
    errors = 0
    for sent in range(count):
        if time.monotonic() - started >= limit:
            break
        answer = send(port, request)
        if "error" in answer:
            errors += count - sent  # A server that hangs would take the whole timeout, again and again.
            break
        if 200 <= answer["status"] < 300:
            good.append(answer["seconds"])
        else:
            errors += 1
    return {"seconds": good, "wall": time.monotonic() - started, "errors": errors}


def read_metrics(port: int) -> str | None:
    """The text of GET /metrics, or nothing."""
    answer = send(port, Request("GET", "/metrics", None, 10.0))
    return str(answer["body"]) if answer["status"] == 200 and "error" not in answer else None


def ask_driver() -> dict[str, Any] | None:
    """What nvidia-smi says of the GPUs that this container sees; nothing where it is not there or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = "--query-gpu=name,driver_version,memory.used,memory.total"
    try:
        done = subprocess.run(
            [program, query, "--format=csv,noheader,nounits"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=DRIVER_TIMEOUT,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_driver(done.stdout.decode("utf-8", "replace"))


def parse_driver(text: str) -> dict[str, Any] | None:
    """Read nvidia-smi's lines ``name, driver, used MiB, total MiB``; a number it does not know is null."""
    rows = [[field.strip() for field in line.split(",")] for line in text.splitlines()]
    gpus = [
        {
            "gpu": row[0],
            "driver_version": row[1],
            "memory_used_bytes": mib(row[2]),
            "memory_total_bytes": mib(row[3]),
        }
        for row in rows
        if len(row) == 4
    ]
    if not gpus:
        return None
    totals: dict[str, Any] = {
        "gpu": gpus[0]["gpu"],
        "driver_version": gpus[0]["driver_version"],
        "gpus": gpus,
    }
    for key in ("memory_used_bytes", "memory_total_bytes"):
        values = [gpu[key] for gpu in gpus]
        totals[key] = None if None in values else sum(int(value) for value in values if value is not None)
    return totals


def mib(text: str) -> int | None:
    """MiB in digits -> bytes; ``[N/A]`` and the like -> nothing."""
    return int(text) * MIB if text.isascii() and text.isdigit() else None


def main(argv: list[str]) -> int:
    """Carry out the order; print one JSON object."""
    try:
        order = read_order(argv)
    except OrderError as error:
        print(json.dumps({"error": str(error)}))
        return 2
    responses = [send(order.port, request) for request in order.requests]
    repeated: dict[str, Any] | None = None
    if order.repeat is not None and "error" in responses[order.repeat]:
        repeated = {"seconds": [], "wall": 0.0, "errors": order.times}
    elif order.repeat is not None:
        repeated = repeat(order.port, order.requests[order.repeat], order.times, order.limit)
    answer = {
        "responses": responses,
        "repeat": repeated,
        "metrics": read_metrics(order.port),
        "driver": ask_driver(),
    }
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
