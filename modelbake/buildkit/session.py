"""The connection on which BuildKit asks its client for things: secrets and registry credentials.

`POST /session` upgrades an HTTP connection of the Docker SDK; from then on the engine is a gRPC client on
it and we are the server. The server is grpclib's, on a private unix socket, and a pump carries the bytes
between the two, because the SDK's connection may be plain, TLS or SSH. Everything runs in one thread with
an event loop of its own. Services: `session/` of moby/buildkit.

Only what was handed in is ever answered; a secret of another name does not exist, and credentials are
looked up for the one registry that the engine names.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import tempfile
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpclib.const
import grpclib.server
import requests
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError
from urllib3 import HTTPHeaderDict

from modelbake.buildkit import wire
from modelbake.buildkit.failure import Unsuitable, translating
from modelbake.credentials import Secret
from modelbake.errors import EngineError, ModelbakeError

if TYPE_CHECKING:
    from docker import APIClient

    from modelbake.dockerconfig import RegistryAuth

_GET_SECRET = "/moby.buildkit.secrets.v1.Secrets/GetSecret"  # noqa: S105 - a method's name
_CREDENTIALS = "/moby.filesync.v1.Auth/Credentials"
# With these BuildKit asks for tokens in place of a password. They are not served: it then asks for
# Credentials and fetches the token itself. But they are answered by us: grpclib's own answer to an unknown
# method lacks the content type, without which BuildKit's client does not see the UNIMPLEMENTED in it.
_ABSENT = tuple(
    f"/moby.filesync.v1.Auth/{name}" for name in ("FetchToken", "GetTokenAuthority", "VerifyTokenAuthority")
)
_HEALTH = "/grpc.health.v1.Health/Check"
_SERVING = 1  # grpc.health.v1.HealthCheckResponse.ServingStatus

_CHUNK = 64 * 1024
_SEND_SECONDS = 30  # an engine that takes no bytes for so long is gone
_CLOSE_SECONDS = 10
_LONGEST_UNIX_PATH = 90  # of a temporary folder: sun_path has 108 bytes in all

# Docker Hub answers under this name, and is known under another one to everybody else.
_HUB_HOST = "registry-1.docker.io"
_HUB_NAME = "docker.io"

# grpclib reports a connection that ends while a request is answered; that is how every cancelled build ends.
logging.getLogger("grpclib").addHandler(logging.NullHandler())


_Method = Callable[[bytes], Awaitable[bytes]]


class Session:
    """A session, open as long as the `with` block.

    Raises (on entry):
        Unsuitable: the engine offers no sessions.
        EngineNotFound: the connection broke.
    """

    def __init__(
        self, api: APIClient, *, secrets: Mapping[str, Secret], registries: RegistryAuth | None = None
    ) -> None:
        self.id = uuid.uuid4().hex
        self.asked: list[str] = []  # every secret's id and registry's host the engine wanted, in order
        self.failure: ModelbakeError | None = None  # why credentials could not be looked up
        self._api = api
        self._secrets = dict(secrets)
        self._registries = registries
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._ready = threading.Event()
        self._broken: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._response: requests.Response | None = None

    def __enter__(self) -> Session:
        methods = self._methods()
        try:
            self._response = _upgrade(self._api, self.id, methods)
            sock, early = hijack(self._response)
            self._thread = threading.Thread(
                target=self._run, args=(methods, sock, early), name="modelbake-session", daemon=True
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

    def _methods(self) -> dict[str, _Method]:
        return {
            _GET_SECRET: self._get_secret,
            _HEALTH: self._check_health,
            _CREDENTIALS: self._credentials,
        }

    async def _get_secret(self, request: bytes) -> bytes:
        name = _only_text(request)
        self.asked.append(name)
        secret = self._secrets.get(name)
        if secret is None:
            raise GRPCError(grpclib.const.Status.NOT_FOUND, f"secret {name}: not found")
        return wire.bytes_field(1, secret.reveal_bytes())

    async def _check_health(self, request: bytes) -> bytes:
        return wire.varint_field(1, _SERVING)

    async def _credentials(self, request: bytes) -> bytes:
        host = _only_text(request)
        self.asked.append(host)
        if self._registries is None:
            return b""
        try:
            # A credential helper is a program that may ask a server: health checks must go on meanwhile.
            found = await asyncio.to_thread(
                self._registries.for_registry, _HUB_NAME if host == _HUB_HOST else host
            )
        except ModelbakeError as error:
            self.failure = error
            raise GRPCError(grpclib.const.Status.UNKNOWN, f"no credentials for {host}") from None
        if found is None:
            return b""
        if found.identity_token:
            return wire.bytes_field(2, found.identity_token.reveal_bytes())
        return wire.bytes_field(1, found.username.encode()) + wire.bytes_field(
            2, found.password.reveal_bytes()
        )

    def _run(self, methods: dict[str, _Method], sock: Any, early: bytes) -> None:
        try:
            asyncio.run(self._serve(methods, sock, early))
        except Exception as error:
            self._broken = error
        finally:
            self._ready.set()

    async def _serve(self, methods: dict[str, _Method], sock: Any, early: bytes) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = grpclib.server.Server([_Service(methods)], codec=_Bytes())
        folder = tempfile.gettempdir()
        with tempfile.TemporaryDirectory(
            prefix="modelbake-session-",
            dir=folder if len(folder) < _LONGEST_UNIX_PATH else "/tmp",  # noqa: S108
        ) as private:
            path = str(Path(private) / "s")
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


def hijack(response: requests.Response) -> tuple[Any, bytes]:
    """Take the connection below a response: (a socket-like object, non-blocking; bytes already read from it).

    The object is a socket, an SSL socket or a paramiko channel: it has recv, sendall, settimeout, fileno.
    The HTTP reader may have buffered bytes that follow the response's header; they are drained from it.
    """
    reader: Any = response.raw._fp.fp  # type: ignore[union-attr]
    sock = reader.channel if hasattr(reader, "channel") else reader.raw._sock
    sock.settimeout(0)
    early = bytearray()
    # One byte at a time: the reader returns it from its buffer, and blocks or fails only once that is empty.
    with suppress(BlockingIOError, TimeoutError, ssl.SSLWantReadError):
        while byte := reader.read(1):
            early += byte
    return sock, bytes(early)


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


class _Service:
    """Unary methods on raw messages, as grpclib wants them."""

    def __init__(self, methods: dict[str, _Method]) -> None:
        self._methods = methods

    def __mapping__(self) -> dict[str, grpclib.const.Handler]:
        return {
            path: grpclib.const.Handler(_unary(method), grpclib.const.Cardinality.UNARY_UNARY, bytes, bytes)
            for path, method in {**dict.fromkeys(_ABSENT, _absent), **self._methods}.items()
        }


async def _absent(request: bytes) -> bytes:
    raise GRPCError(grpclib.const.Status.UNIMPLEMENTED, "not served")


def _unary(method: _Method) -> Callable[[Any], Awaitable[None]]:
    async def answer(stream: Any) -> None:
        request = await stream.recv_message()
        try:
            await stream.send_message(await method(request or b""))
        except wire.WireError as error:
            raise GRPCError(grpclib.const.Status.INVALID_ARGUMENT, str(error)) from None

    return answer


class _Bytes(CodecBase):
    """Messages stay bytes; `wire` reads and writes them."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        return bytes(message)

    def decode(self, data: bytes, message_type: Any) -> bytes:
        return data


def _only_text(request: bytes) -> str:
    """Return field 1 of a request, a string."""
    for number, value in wire.fields(request):
        if number == 1:
            return wire.as_text(value)
    return ""


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
