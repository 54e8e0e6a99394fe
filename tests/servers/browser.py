"""A headless Chromium that opens a page and tells what it did: errors, requests, and what a script sees.

    with Browser() as browser:
        browser.open(path, dark=True)
        assert not browser.complaints and browser.evaluate("document.title") == "..."

It is Debian's, unpacked into the cache (90 MB), and spoken to over two pipes.
https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.servers.debian_programs import Programs

# The shell, its data, and the libraries of its own that a Debian without a desktop lacks.
_PACKAGES = (
    "chromium-headless-shell", "chromium-common", "libasound2", "libasyncns0", "libatk1.0-0", "libatspi2.0-0",
    "libdav1d6", "libdbus-1-3", "libdouble-conversion3", "libdrm2", "libflac12", "libfontconfig1",
    "libfreetype6", "libgbm1", "libglib2.0-0", "libgraphite2-3", "libharfbuzz-subset0", "libharfbuzz0b",
    "libjpeg62-turbo", "liblcms2-2", "libminizip1", "libmp3lame0", "libmpg123-0", "libnspr4", "libnss3",
    "libogg0", "libopenh264-7", "libopenjp2-7", "libopus0", "libpng16-16", "libpulse0", "libsndfile1",
    "libvorbis0a", "libvorbisenc2", "libwayland-server0", "libx11-6", "libxau6", "libxcb1", "libxcomposite1",
    "libxdamage1", "libxdmcp6", "libxext6", "libxfixes3", "libxi6", "libxkbcommon0", "libxnvctrl0",
    "libxrandr2", "libxrender1",
)  # fmt: skip
_PATIENCE = 60.0  # seconds for one answer


class Browser:
    """One page of a Chromium. `complaints`: what console and security checks said; `requests`: URLs."""

    def __init__(self) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._loaded = False
        self._number = 0
        self._session = ""
        self._buffer = b""

    def __enter__(self) -> Self:
        root = Programs.unpack("bookworm", *_PACKAGES).root
        self._profile = tempfile.TemporaryDirectory(prefix="modelbake-browser-")
        ours, theirs = os.pipe(), os.pipe()
        # It reads commands from 3 and writes answers to 4.
        script = f'exec "$@" 3<&{ours[0]} 4>&{theirs[1]}'
        options = [
            *("--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", "--hide-scrollbars"),
            f"--user-data-dir={self._profile.name}",
        ]
        libraries = [*root.glob("**/lib/*-linux-gnu"), *root.glob("**/*-linux-gnu/pulseaudio")]
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", str(root / "usr/lib/chromium/chromium-headless-shell"), *options],
            env={"LD_LIBRARY_PATH": ":".join(map(str, libraries)), "HOME": self._profile.name},
            pass_fds=(ours[0], theirs[1]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(ours[0])
        os.close(theirs[1])
        self._to, self._from = ours[1], theirs[0]
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)
        self._profile.cleanup()

    def open(self, page: Path, *, dark: bool = False, width: int = 1280, height: int = 1500) -> None:
        """Open a page of this machine, and wait until it has loaded."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._ask("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])
        self.complaints, self.requests, self._loaded = [], [], False
        answer = self._ask("Page.navigate", url=page.resolve().as_uri())
        assert "errorText" not in answer, answer
        deadline = time.monotonic() + _PATIENCE
        while not self._loaded:
            self._receive(deadline)
        # What a page begins at the end of its loading shows up with the next answer but one.
        for _ in range(2):
            self.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")

    def evaluate(self, expression: str) -> Any:
        """Return what an expression is in the page, as JSON has it."""
        told = self._ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """Write what the window shows to a PNG file."""
        path.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot")["data"]))

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + _PATIENCE
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == self._number:
                assert "result" in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(self._from, 1 << 20) if ready else b""
            assert piece, f"the browser says nothing (exit code {self._process.poll()})"
            self._buffer += piece
        raw, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        told = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self.requests.append(told["request"]["url"])
            case "Runtime.consoleAPICalled":
                self.complaints.append(f"{told['type']}: {[each.get('value') for each in told['args']]}")
            case "Runtime.exceptionThrown":
                self.complaints.append(told["exceptionDetails"]["text"])
            case "Log.entryAdded":
                self.complaints.append(told["entry"]["text"])
        return message
