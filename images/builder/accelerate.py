"""hf_transfer, in a process of its own.

hf_transfer.download() holds the interpreter lock until it is done, has no timeouts, reads whole answers into
memory and does not check their status. So it runs as a child that is killed when nothing arrives any more,
that can take no more memory than a limit and make no file longer than expected. It is given no token: the
caller uses it only for URLs that need none. The URL, which may be signed, goes through a pipe.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import resource
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

_CHUNK = 8 << 20  # bytes of a range
_CONNECTIONS = 8
_RETRIES = 3  # for a range; up to _CONNECTIONS may be retrying at a time
_MEMORY = 2 << 30  # bytes of address space: the chunks in flight, Python and the stacks of some threads
_POLL = 0.25  # seconds
_INHERITED = {"PATH", "LANG", "SSL_CERT_FILE", "SSL_CERT_DIR", "LD_LIBRARY_PATH"}
_PROXIES = {"http_proxy", "https_proxy", "all_proxy", "no_proxy"}


class AccelerationFailed(Exception):
    """hf_transfer could not do it; the text names no URL. `full`: for lack of disk space."""

    def __init__(self, reason: str, *, full: bool = False) -> None:
        super().__init__(reason)
        self.full = full


def download(
    url: str,
    path: Path,
    size: int,
    *,
    ca: Path | None,
    stall: float,
    stopped: Callable[[], bool],
    on_bytes: Callable[[int], None],
) -> None:
    """Download `url`, of `size` bytes, to `path` over parallel ranges.

    Args:
        url: must need no Authorization header and allow ranges.
        path: a file that exists.
        size: more cannot be written.
        ca: the only certificate authorities to trust besides the system's folder, or None.
        stall: seconds without a finished range after which the child is killed.
        stopped: asked several times a second whether to give up.
        on_bytes: called with the bytes of each finished range.

    Raises:
        AccelerationFailed: for whatever reason; `path` may be gone then, or hold anything.
    """
    environment = {
        name: value for name, value in os.environ.items() if name in _INHERITED or name.lower() in _PROXIES
    }
    # Each arena of the allocator and each thread would reserve address space.
    environment |= {"MALLOC_ARENA_MAX": "2", "TOKIO_WORKER_THREADS": "4"}
    if ca is not None:
        environment["SSL_CERT_FILE"] = str(ca)
    child = subprocess.Popen(
        [sys.executable, "-I", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # a panic's text could show the URL
        env=environment,
    )
    try:
        _feed(child, {"url": url, "path": str(path), "size": size, "parent": os.getpid()})
        result = _follow(child, stall, stopped, on_bytes)
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
    if result is None:
        raise AccelerationFailed("hf_transfer ended early")
    if result:
        raise AccelerationFailed(f"hf_transfer: {result}", full=result == _FULL)


_FULL = "no space left on the disk"


def _feed(child: subprocess.Popen[bytes], job: Mapping[str, object]) -> None:
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        child.stdin.write(json.dumps(job).encode())
        child.stdin.close()


def _follow(
    child: subprocess.Popen[bytes], stall: float, stopped: Callable[[], bool], on_bytes: Callable[[int], None]
) -> str | None:
    """Return the child's result: "" for success, a reason for failure, None if it gave none."""
    assert child.stdout is not None
    fd, rest, heard = child.stdout.fileno(), b"", time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while True:
            if stopped():
                raise AccelerationFailed("given up")
            if not selector.select(_POLL):
                if time.monotonic() - heard > stall:
                    raise AccelerationFailed(f"hf_transfer got nothing in {stall:.0f} s")
                continue
            data = os.read(fd, 1 << 16)
            if not data:
                return None
            heard = time.monotonic()
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                message = json.loads(line)
                if "result" in message:
                    return str(message["result"])
                on_bytes(int(message["bytes"]))


def _reason(error: BaseException) -> str:
    """Return what went wrong without any of the error's own text, which holds the URL."""
    text = str(error)
    if "os error 28" in text or "os error 122" in text:
        return _FULL
    if "certificate" in text.lower():
        return "the TLS certificate is not trusted"
    if status := re.search(r"HTTP status [a-z ]+error \((\d{3})", text):
        return f"the server answered {status[1]}"
    return "the connection failed" if "error sending request" in text else "the download failed"


def _main() -> None:
    import hf_transfer

    job = json.loads(sys.stdin.buffer.read())
    # Die with the parent, however it dies: while downloading, nothing here can look after it.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != job["parent"]:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (job["size"], job["size"]))

    def say(**message: object) -> None:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()

    try:
        hf_transfer.download(
            job["url"],
            job["path"],
            _CONNECTIONS,
            _CHUNK,
            parallel_failures=_CONNECTIONS,
            max_retries=_RETRIES,
            callback=lambda count: say(bytes=count),
        )
    except BaseException as error:  # a panic of the library is no Exception
        say(result=_reason(error))
    else:
        say(result="")


if __name__ == "__main__":
    _main()
