"""An engine on another machine: lock, build, smoke and push through TCP with TLS, and through OpenSSH."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from modelbake.engine import connect
from modelbake.errors import EngineNotFound
from tests.integration.world import World, _unpacked_tools
from tests.servers.engine_proxy import EngineProxy
from tests.servers.hub_certificate import Certificate, make_certificate, make_client_certificate
from tests.servers.sshd import SSHD, host_release

pytestmark = pytest.mark.engine

SMALL = {"config.json": b"{}\n", "model.safetensors": b"\1" * 70_000}


@pytest.fixture
def small(world: World) -> World:
    world.repo("acme/tiny", SMALL)
    world.models(tiny={})
    world.run("lock")
    return world


def goes_the_whole_way(world: World, **environment: str) -> None:
    """Build, test and push; the engine is asked for each of them at another address than the usual one."""
    assert (
        world.build_py("build", "tiny", DOCKER_HOST="tcp://127.0.0.1:1").code == EngineNotFound.exit_code
    ), "control: DOCKER_HOST decides"
    world.build_py("build", "tiny", "--no-cache", **environment).ok()
    world.build_py("smoke", "tiny", **environment).ok()
    pushed = world.build_py("push", "tiny", **environment).ok().out.strip()
    assert pushed.endswith(world.services.manifest(f"{world.namespace}/tiny", "1.0.0")["digest"])
    assert world.build_py("doctor", **environment).ok()


@pytest.fixture
def certificates(tmp_path: Path) -> tuple[Certificate, Callable[..., Path]]:
    """An authority with a server's certificate, and what makes folders for DOCKER_CERT_PATH of it."""
    made = make_certificate(tmp_path / "made")

    def folder(name: str, *, authority: Certificate = made, client: Certificate | None = made) -> Path:
        target = tmp_path / name
        target.mkdir()
        shutil.copy(authority.authority, target / "ca.pem")
        if client is not None:
            keys = make_client_certificate(client, tmp_path / f"{name}-client")
            shutil.copy(keys / "client.cert", target / "cert.pem")
            shutil.copy(keys / "client.key", target / "key.pem")
        return target

    return made, folder


def test_over_tls_with_client_certificates(
    small: World, certificates: tuple[Certificate, Callable[..., Path]]
) -> None:
    server, folder = certificates
    keys = (server.cert, server.key)
    with EngineProxy(small.services.docker_host, certificate=keys, clients=server.authority) as proxy:
        host = f"tcp://127.0.0.1:{proxy.port}"
        goes_the_whole_way(
            small, DOCKER_HOST=host, DOCKER_TLS_VERIFY="1", DOCKER_CERT_PATH=str(folder("good"))
        )
        assert b"101 " in bytes(proxy.recorded[: 1 << 30]), "sessions and execs came this way"


def test_tls_that_fails(
    engine_host: str,
    certificates: tuple[Certificate, Callable[..., Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, folder = certificates
    other = make_certificate(tmp_path / "other")
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    with EngineProxy(engine_host, certificate=(server.cert, server.key), clients=server.authority) as proxy:
        monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("DOCKER_CERT_PATH", str(folder("good")))
        connect().close()
        for path, said in (
            (folder("wrong-authority", authority=other), "not of the authority given"),
            (
                folder("wrong-client", client=other),
                ".",
            ),  # the server's word for it may be lost with the connection
            (folder("no-client", client=None), "lacks cert.pem and key.pem"),
            (tmp_path / "nowhere", "lacks ca.pem and cert.pem and key.pem"),
        ):
            monkeypatch.setenv("DOCKER_CERT_PATH", str(path))
            with pytest.raises(EngineNotFound, match=said) as caught:
                connect()
            assert "DOCKER_CERT_PATH" in caught.value.hint
            assert str(path) in f"{caught.value.message} {caught.value.hint}"
        monkeypatch.delenv("DOCKER_CERT_PATH")
        monkeypatch.delenv("DOCKER_TLS_VERIFY")
        with pytest.raises(EngineNotFound) as caught:
            connect()
        assert "DOCKER_TLS_VERIFY=1" in caught.value.hint


def test_over_openssh(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("an SSH server of our own takes root")
    if not host_release():
        pytest.skip("OpenSSH's server is taken from Debian's packages")
    docker = _unpacked_tools() / "usr/bin/docker"
    with SSHD(small.services.docker_host, docker, small.folder) as server:
        goes_the_whole_way(small, DOCKER_HOST=server.host)
        assert "Accepted publickey for root" in server.said()
        (small.folder / ".ssh/known_hosts").write_text("")
        refused = small.build_py("build", "tiny", DOCKER_HOST=server.host)
        assert refused.code == EngineNotFound.exit_code
        assert "not found in known_hosts" in refused.err
        assert "DOCKER_HOST" in refused.err
