"""OpenSSH's own server on loopback, on whose host `docker` reaches an engine; nothing is installed.

Debian's package is unpacked into the cache. Its user `sshd`, which sshd insists on, is there in a mount
namespace of the server alone: nobody else sees the changed /etc/passwd. Takes root.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

import paramiko

from tests.servers.debian_programs import Programs

_RUN_FOLDER = Path("/run/sshd")  # compiled in; empty, and nobody's but root's
_START = 'mount --bind "$1" /etc/passwd && shift && exec "$@"'
_USER = "sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n"


def host_release() -> str:
    """Return the codename of this machine's Debian, "" elsewhere."""
    facts = dict(line.partition("=")[::2] for line in Path("/etc/os-release").read_text().splitlines())
    return facts.get("VERSION_CODENAME", "") if facts.get("ID") == "debian" else ""


class SSHD:
    """Serves root of this machine with the key in `home`/.ssh; `docker` there is at an engine's unix socket.

    `host` is its DOCKER_HOST.
    """

    def __init__(self, engine: str, docker: Path, home: Path) -> None:
        self._home = home
        self._programs = Programs.unpack(host_release(), "openssh-server", "libwrap0")
        keys = home / ".ssh"
        keys.mkdir(mode=0o700)
        host_key, login = paramiko.ECDSAKey.generate(), paramiko.ECDSAKey.generate()
        login.write_private_key_file(str(keys / "id_ecdsa"))
        host_key.write_private_key_file(str(keys / "host_key"))
        (keys / "authorized_keys").write_text(f"{login.get_name()} {login.get_base64()}\n")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = int(free.getsockname()[1])
        known = f"{host_key.get_name()} {host_key.get_base64()}"
        (keys / "known_hosts").write_text(f"[127.0.0.1]:{self._port} {known}\n")
        (keys / "passwd").write_text(Path("/etc/passwd").read_text() + _USER)
        (keys / "sshd_config").write_text(
            f"Port {self._port}\nListenAddress 127.0.0.1\nHostKey {keys}/host_key\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {keys}/authorized_keys\nStrictModes no\nPasswordAuthentication no\n"
            f"PermitRootLogin prohibit-password\n"
            f"SetEnv PATH={docker.parent}:/usr/bin:/bin DOCKER_HOST={engine}\n"
        )
        self._log = keys / "log"
        self.host = f"ssh://root@127.0.0.1:{self._port}"

    def __enter__(self) -> SSHD:
        self._made = not _RUN_FOLDER.exists()
        _RUN_FOLDER.mkdir(mode=0o755, exist_ok=True)
        keys = self._home / ".ssh"
        libraries = ":".join(str(folder) for folder in self._programs.root.glob("**/lib/*-linux-gnu"))
        sshd = str(self._programs.root / "usr/sbin/sshd")
        command = ["unshare", "--mount", "sh", "-c", _START, "sh", str(keys / "passwd")]
        command += [sshd, "-D", "-f", str(keys / "sshd_config"), "-E", str(self._log)]
        self._process = subprocess.Popen(command, env={**os.environ, "LD_LIBRARY_PATH": libraries})
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self.said()
            try:
                socket.create_connection(("127.0.0.1", self._port), 1).close()
                return self
            except OSError:
                time.sleep(0.05)
        raise TimeoutError(self.said())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(20)
        if self._made:
            _RUN_FOLDER.rmdir()

    def said(self) -> str:
        """What is in its log."""
        return self._log.read_text() if self._log.exists() else ""
