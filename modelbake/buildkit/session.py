"""The connection on which BuildKit asks its client for things.

`POST /session` upgrades an HTTP connection of the Docker SDK; from then on the engine is a gRPC client on
it and we are the server. The server is grpclib's, on a private unix socket, and a pump carries the bytes
between the two, because the SDK's connection may be plain, TLS or SSH. Everything runs in one thread with
an event loop of its own. What is answered: see `services`.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import tempfile
import threading
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpclib.server
import requests
from grpclib.encoding.base import CodecBase
from urllib3 import HTTPHeaderDict

from modelbake.buildkit.failure import Unsuitable, translating
from modelbake.buildkit.hijack import hijack
from modelbake.buildkit.services import Services
from modelbake.errors import EngineError
from modelbake.writing import private_folder

if TYPE_CHECKING:
    from docker import APIClient

_CHUNK = 64 * 1024
_SEND_SECONDS = 30  # an engine that takes no bytes for so long is gone
_CLOSE_SECONDS = 10
_LONGEST_UNIX_PATH = 90  # of a temporary folder: sun_path has 108 bytes in all

# grpclib reports a connection that ends while a request is answered; that is how every cancelled build ends.
logging.getLogger("grpclib").addHandler(logging.NullHandler())


class Session:
    """A session in which the engine may call `services`, open as long as the `with` block.

    Raises (on entry):
        Unsuitable: the engine offers no sessions.
        EngineNotFound: the connection broke.
    """

    def __init__(self, api: APIClient, services: Services) -> None:
        self.id = uuid.uuid4().hex
        self._api = api
        self._services = services
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._ready = threading.Event()
        self._broken: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._response: requests.Response | None = None

    def __enter__(self) -> Session:
        try:
            self._response = _upgrade(self._api, self.id, self._services.announced)
            sock, early = hijack(self._response)
            self._thread = threading.Thread(
                target=self._run, args=(sock, early), name="modelbake-session", daemon=True
            )
            self._thread.start()
            self._ready.wait()
        except BaseException:
            self.close()
            raise
        if self._broken:
            self.close()
            raise EngineError(f"no session with the engine: {self._broken}") from self._broken
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session: the connection, the server, the thread. May be called twice."""
        try:
            if self._thread is not None and self._thread.is_alive():
                self._ready.wait(_CLOSE_SECONDS)
                if self._loop is not None and self._stop is not None:
                    with suppress(RuntimeError):  # the loop ended by itself meanwhile
                        self._loop.call_soon_threadsafe(self._stop.set)
                self._thread.join(_CLOSE_SECONDS)
        finally:
            if self._response is not None:
                self._response.close()
                self._response = None

    def _run(self, sock: Any, early: bytes) -> None:
        try:
            asyncio.run(self._serve(sock, early))
        except Exception as error:
            self._broken = error
        finally:
            self._ready.set()

    async def _serve(self, sock: Any, early: bytes) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = grpclib.server.Server([self._services], codec=_Bytes())
        folder = tempfile.gettempdir()
        parent = Path(folder if len(folder) < _LONGEST_UNIX_PATH else "/tmp")  # noqa: S108
        with private_folder("modelbake-session-", parent) as private:
            path = str(private / "s")
            await server.start(path=path)
            reader, writer = await asyncio.open_unix_connection(path)
            # Nobody else is to connect, and nothing is to be left if we are killed.
            Path(path).unlink()
        try:
            pump = asyncio.create_task(_pump(sock, early, reader, writer))
            stop = asyncio.create_task(self._stop.wait())
            self._ready.set()
            await asyncio.wait({pump, stop}, return_when=asyncio.FIRST_COMPLETED)
            pump.cancel()
            stop.cancel()
            await asyncio.gather(pump, stop, return_exceptions=True)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            server.close()
            await server.wait_closed()


async def _pump(sock: Any, early: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry bytes both ways until one side ends."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    writer.write(early)

    def receive() -> None:
        # Until nothing is left: an SSL socket may hold decrypted bytes that no poll of its descriptor shows.
        try:
            while data := sock.recv(_CHUNK):
                writer.write(data)
        except (BlockingIOError, TimeoutError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError:
            pass
        loop.remove_reader(descriptor)
        ended.set()

    async def send() -> None:
        while data := await reader.read(_CHUNK):
            # Both directions in one thread: an SSL connection must not be used by two at a time.
            sock.settimeout(_SEND_SECONDS)
            try:
                sock.sendall(data)
            finally:
                sock.settimeout(0)
            receive()

    descriptor = sock.fileno()
    loop.add_reader(descriptor, receive)
    tasks = {asyncio.create_task(send()), asyncio.create_task(ended.wait())}
    try:
        receive()
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        loop.remove_reader(descriptor)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Bytes(CodecBase):
    """Messages stay bytes; `wire` reads and writes them."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        return bytes(message)

    def decode(self, data: bytes, message_type: Any) -> bytes:
        return data


def _upgrade(api: APIClient, session: str, methods: Iterable[str]) -> requests.Response:
    """Ask the engine to turn a connection into a session.

    Raises:
        Unsuitable: it answered anything but 101.
    """
    with translating("session"):
        request = api.prepare_request(requests.Request("POST", f"{api.base_url}/v{api.api_version}/session"))
        # BuildKit reads one header line for each method; only urllib3's own type can say a name twice.
        headers = HTTPHeaderDict(request.headers)
        headers["Connection"] = "Upgrade"
        headers["Upgrade"] = "h2c"
        headers["X-Docker-Expose-Session-Uuid"] = session
        headers["X-Docker-Expose-Session-Name"] = "modelbake"
        headers["X-Docker-Expose-Session-Sharedkey"] = ""
        for method in methods:
            headers.add("X-Docker-Expose-Session-Grpc-Method", method)
        request.headers = headers  # type: ignore[assignment]
        settings = api.merge_environment_settings(request.url or "", {}, True, None, None)
        response = api.send(request, timeout=api.timeout, **settings)
        if response.status_code == 101:
            return response
        said = response.text.strip()[:200]
        response.close()
    raise Unsuitable(f"the engine has no sessions (POST /session: {response.status_code} {said})")
