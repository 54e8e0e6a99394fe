"""Shelves of web servers, registries and MLflow: see `shelves`."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.integration.shelves import Shelf
from tests.integration.world import World
from tests.servers.hub_certificate import make_certificate
from tests.servers.mlflow_server import MLflowServer
from tests.servers.oci_content import OciContent
from tests.servers.registry_streaming import StreamingProxy
from tests.servers.web import WebServer


def https_shelf(
    world: World, files: Mapping[str, bytes], folder: Path, folders: pytest.TempPathFactory
) -> Shelf:
    """A server with a certificate of its own authority and a password; the sha256 are in models.yaml."""
    outside = folders.mktemp("https")
    host, password = world.services.bridge, secrets.token_hex(12)
    made = make_certificate(outside, (host,))
    web = WebServer({}, host=host, user=("reader", password), certificate=made).__enter__()
    (outside / "netrc").write_text(f"machine {host} login reader password {password}\n")
    bundle = outside / "authorities.pem"  # whom builds trust already, and the server's
    trusted = world.environment.get("MODELBAKE_CA_BUNDLE")
    bundle.write_bytes(made.authority.read_bytes() + (Path(trusted).read_bytes() if trusted else b""))
    given: dict[str, str] = {}

    def put(path: str, content: bytes) -> None:
        web.files[f"team a/{path}"] = content
        given[path] = hashlib.sha256(content).hexdigest()
        configured = world.folder / "models.yaml"
        if configured.exists():  # who replaces a file has to say so
            document = json.loads(configured.read_text())
            document["models"]["tiny"]["files"] = given
            configured.write_text(json.dumps(document))

    for path, content in files.items():
        put(path, content)
    return Shelf(
        {"source": f"{web.url}/team%20a/", "files": given},
        put,
        keeps_versions=False,
        environment={"NETRC": str(outside / "netrc"), "MODELBAKE_CA_BUNDLE": str(bundle)},
        secrets=frozenset({password}),
        close=web.__exit__,
    )


def oci_shelf(
    world: World, files: Mapping[str, bytes], folder: Path, folders: pytest.TempPathFactory
) -> Shelf:
    """A ModelPack artifact under a tag, in the registry as builds reach it."""
    services = world.services
    proxy = StreamingProxy(services.registry, host=services.bridge).__enter__()
    login = (services.registry_user, services.password)
    content = OciContent(proxy.address, *login, f"{world.namespace}/packed")
    config = folders.mktemp("docker")
    pair = base64.b64encode(":".join(login).encode()).decode()
    (config / "config.json").write_text(json.dumps({"auths": {proxy.address: {"auth": pair}}}))
    held = dict(files)

    def put(path: str, data: bytes) -> None:
        held[path] = data
        content.modelpack("1", held)

    def close() -> None:
        content.close()
        proxy.__exit__(None, None, None)

    content.modelpack("1", held)
    environment = {"DOCKER_CONFIG": str(config), "MODELBAKE_INSECURE_REGISTRIES": proxy.address}
    return Shelf({"source": content.source("1")}, put, True, environment, frozenset(), close)


def mlflow_shelf(world: World, files: Mapping[str, bytes], folder: Path, server: MLflowServer) -> Shelf:
    """A registered model whose alias names the version; the tracking server serves the artifacts."""
    lost = frozenset(path for path in files if "%" in path)  # it unescapes names once more than asked
    name = f"pets é {secrets.token_hex(4)}"
    held = {path: data for path, data in files.items() if path not in lost}

    def put(path: str, data: bytes) -> None:
        held[path] = data
        server.alias(name, "champion", server.register(name, held))

    put("config.json", files["config.json"])
    return Shelf(
        {"source": f"mlflow:models/{name}/champion", "endpoint": server.endpoint},
        put,
        keeps_versions=True,
        environment=server.environment_for(server.reader),
        secrets=frozenset({server.reader.password}),
        lost=lost,
    )


WEB_SHELVES: dict[str, Callable[..., Shelf]] = {
    "https": https_shelf,
    "oci": oci_shelf,
    "mlflow": mlflow_shelf,
}
# The fixture of what its shelf needs besides, which comes last.
WEB_SERVERS = {"https": "tmp_path_factory", "oci": "tmp_path_factory", "mlflow": "mlflow_server"}
