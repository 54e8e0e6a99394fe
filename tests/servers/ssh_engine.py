"""An SSH server whose only program is `docker system dial-stdio`: how Docker reaches an engine over SSH."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from pathlib import Path

import paramiko
from paramiko.common import AUTH_FAILED, AUTH_SUCCESSFUL, OPEN_SUCCEEDED

DIAL = b"docker system dial-stdio"


class _Login(paramiko.ServerInterface):
    def __init__(self, key: paramiko.PKey, engine: str) -> None:
        self._key, self._engine = key, engine

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return AUTH_SUCCESSFUL if key == self._key else AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        if command != DIAL:
            return False
        threading.Thread(target=self._dial, args=(channel,), daemon=True).start()
        return True

    def _dial(self, channel: paramiko.Channel) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as engine:
            engine.connect(self._engine)

            def back() -> None:
                with suppress(OSError, EOFError):
                    while data := engine.recv(65536):
                        channel.sendall(data)
                with suppress(OSError, EOFError):
                    channel.close()

            thread = threading.Thread(target=back, daemon=True)
            thread.start()
            with suppress(OSError, EOFError):
                while data := channel.recv(65536):
                    engine.sendall(data)
                engine.shutdown(socket.SHUT_RDWR)
            thread.join()


class SSHEngine:
    """Serve the engine at a unix socket over SSH; makes a home folder with which one may log in."""

    def __init__(self, engine: str, home: Path) -> None:
        self._engine = engine.removeprefix("unix://")
        self._host_key, self._login = paramiko.ECDSAKey.generate(), paramiko.ECDSAKey.generate()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._transports: list[paramiko.Transport] = []
        port = self._listener.getsockname()[1]
        self.host = f"ssh://ci@127.0.0.1:{port}"
        keys = home / ".ssh"
        keys.mkdir(mode=0o700, parents=True)
        self._login.write_private_key_file(str(keys / "id_ecdsa"))
        key = f"{self._host_key.get_name()} {self._host_key.get_base64()}"
        (keys / "known_hosts").write_text(f"[127.0.0.1]:{port} {key}\n")

    def __enter__(self) -> SSHEngine:
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for transport in self._transports:
            transport.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                transport = paramiko.Transport(connection)
                transport.add_server_key(self._host_key)
                transport.start_server(server=_Login(self._login, self._engine))
                self._transports.append(transport)
