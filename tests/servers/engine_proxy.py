"""Proxies in front of a real engine: one that refuses sessions to the Docker SDK, or that speaks TLS, and one
that has the engine's BuildKit listen by itself.

Everything else passes, also upgraded connections: `buildx` gets its sessions as before.
"""

from __future__ import annotations

import re
import select
import socket
import socketserver
import ssl
from contextlib import suppress
from pathlib import Path

from tests.servers.running import RunsInThread

_SDK = re.compile(rb"^user-agent: docker-sdk-python", re.IGNORECASE | re.MULTILINE)
_UPGRADE = re.compile(rb"^upgrade:", re.IGNORECASE | re.MULTILINE)
_SESSION = re.compile(rb"POST /v[\d.]+/session ")


class _Connection(socketserver.BaseRequestHandler):
    server: EngineProxy

    def handle(self) -> None:
        client = self.request
        head = b""
        while b"\r\n\r\n" not in head:
            if not (data := client.recv(65536)):
                return
            head += data
        if _SDK.search(head):
            if self.server.refuse_sessions and _SESSION.match(head):
                self.server.refused += 1
                said = b'{"message":"page not found"}'
                client.sendall(
                    b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nConnection: close\r\n"
                    b"Content-Length: %d\r\n\r\n%b" % (len(said), said)
                )
                return
            if not _UPGRADE.search(head):  # one request a connection, so that each is seen
                head = head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
                head = re.sub(rb"\r\nConnection: keep-alive", b"", head)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as engine:
            engine.connect(self.server.engine)
            engine.sendall(head)
            _pump(client, engine, self.server.recorded)


def _pump(client: socket.socket, engine: socket.socket, record: bytearray) -> None:
    """Pass bytes both ways until the engine has said all. One thread: OpenSSL's connections bear no two."""
    sources = [client, engine]
    with suppress(OSError):
        while True:
            buffered = isinstance(client, ssl.SSLSocket) and client in sources and client.pending()
            for source in [client] if buffered else select.select(sources, [], [])[0]:
                data = source.recv(65536)
                if source is client:
                    if data:
                        engine.sendall(data)
                    else:
                        sources.remove(client)
                        engine.shutdown(socket.SHUT_WR)
                elif data:
                    record += data
                    client.sendall(data)
                else:
                    client.settimeout(1)
                    if isinstance(client, ssl.SSLSocket):
                        client.unwrap()
                    client.shutdown(socket.SHUT_WR)
                    return


class EngineProxy(RunsInThread, socketserver.ThreadingTCPServer):
    """Listen on loopback; `port` is where.

    `refused` is how many sessions were; `recorded` is all that the engine answered.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(
        self,
        engine: str,
        *,
        refuse_sessions: bool = False,
        certificate: tuple[Path, Path] | None = None,
        clients: Path | None = None,
    ) -> None:
        self.engine = engine.removeprefix("unix://")
        self.refuse_sessions = refuse_sessions
        self.refused = 0
        self.recorded = bytearray()
        self._tls: ssl.SSLContext | None = None
        if certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(*certificate)
            if clients is not None:  # the authority whose certificates they have to show
                self._tls.verify_mode = ssl.CERT_REQUIRED
                self._tls.load_verify_locations(clients)
        super().__init__(("127.0.0.1", 0), _Connection)
        self.port = int(self.server_address[1])

    def get_request(self) -> tuple[socket.socket, object]:
        connection, address = super().get_request()
        return (self._tls.wrap_socket(connection, server_side=True) if self._tls else connection), address

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that goes away is no matter of the proxy's


class _ToBuildKit(socketserver.BaseRequestHandler):
    server: BuildKit

    def handle(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as engine:
            engine.connect(self.server.engine)
            engine.sendall(
                b"POST /grpc HTTP/1.1\r\nHost: buildkit\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
            )
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                if not (byte := engine.recv(1)):
                    return
                head += byte
            assert head.startswith(b"HTTP/1.1 101"), head
            self.server.connections += 1
            _pump(self.request, engine, bytearray())


class BuildKit(RunsInThread, socketserver.ThreadingTCPServer):
    """The BuildKit inside an engine as what buildkitd is: gRPC at `address`, for buildx's driver `remote`.

    dockerd gives it to whoever asks for an upgrade at /grpc. It exports images for loading elsewhere only
    where the engine has containerd's image store.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, engine: str) -> None:
        self.engine = engine.removeprefix("unix://")
        self.connections = 0
        super().__init__(("127.0.0.1", 0), _ToBuildKit)
        self.address = f"tcp://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that goes away is no matter of the proxy's
