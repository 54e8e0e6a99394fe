"""An engine on another machine: build, smoke and push through TLS; build and smoke through OpenSSH."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from modelbake.engine import connect
from modelbake.errors import EngineNotFound, UsageError
from tests.integration.world import World, _unpacked_tools
from tests.servers.engine_proxy import EngineProxy
from tests.servers.hub_certificate import Certificate, make_certificate, make_client_certificate
from tests.servers.sshd import SSHD, host_release

pytestmark = pytest.mark.engine

SMALL = {"config.json": b"{}\n", "model.safetensors": os.urandom(70_000)}  # in no build's cache


@pytest.fixture
def small(world: World) -> World:
    world.repo("acme/tiny", SMALL)
    world.models(tiny={})
    world.run("lock")
    return world


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
        environment = {
            "DOCKER_HOST": f"tcp://127.0.0.1:{proxy.port}",
            "DOCKER_TLS_VERIFY": "1",
            "DOCKER_CERT_PATH": str(folder("good")),
        }
        for verb in ("build", "smoke", "push"):
            ran = small.build_py(verb, "tiny", **environment).ok()
        assert proxy.recorded.count(b"HTTP/1.1 101 ") > 1, (
            "a session and commands in the container came this way"
        )
    assert ran.out.strip().endswith(small.services.manifest(f"{small.namespace}/tiny", "1.0.0")["digest"])


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


def test_over_openssh(small: World) -> None:
    if os.geteuid() != 0:
        pytest.skip("an SSH server of our own takes root")
    if not host_release():
        pytest.skip("OpenSSH's server is taken from Debian's packages")
    docker = _unpacked_tools() / "usr/bin/docker"
    with SSHD(small.services.docker_host, docker, small.folder) as server:
        for verb in ("build", "smoke"):
            small.build_py(verb, "tiny", DOCKER_HOST=server.host).ok()
        assert "Accepted publickey for root" in server.said()
        (small.folder / ".ssh/known_hosts").write_text("")
        refused = small.build_py("build", "tiny", DOCKER_HOST=server.host)
        assert refused.code == EngineNotFound.exit_code
        assert "not found in known_hosts" in refused.err
        assert "DOCKER_HOST" in refused.err


def test_a_builder_that_is_none(small: World) -> None:
    """`test_buildkit.py` builds on one; here buildx is asked for it by the command line."""
    plugins = _unpacked_tools() / "usr/libexec/docker/cli-plugins"
    path = f"{plugins}:{small.environment['PATH']}"
    for name, said in (("none-such", "docker buildx ls"), ("", "names no builder")):
        refused = small.build_py("build", "tiny", f"--builder={name}", PATH=path)
        assert refused.code == UsageError.exit_code
        assert said in refused.err
    assert any("--builder=none-such" in each["command"] for each in small.children())
