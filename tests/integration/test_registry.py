"""The registry client against a real registry with a password, in clear and with TLS."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from modelbake.credentials import Secret
from modelbake.dockerconfig import RegistryAuth, RegistryCredentials
from modelbake.errors import RegistryAuthError, RegistryError, RegistryUnavailable
from modelbake.manifest import OCI_MANIFEST, Manifest, digest_of
from modelbake.registry import Registry
from tests.integration.conftest import TestRegistry
from tests.servers.environment import run_script, shell_exports
from tests.servers.registry_proxy import RegistryProxy

LAYER = b"not really a tar"


@dataclass
class Repository:
    """A repository of its own, filled past the client that is tested."""

    host: str
    credentials: RegistryCredentials
    name: str

    def __post_init__(self) -> None:
        self.http = httpx2.Client(
            base_url=f"http://{self.host}/v2/{self.name}/",
            auth=(self.credentials.username, self.credentials.password.reveal()),
            trust_env=False,
        )

    def upload(self, content: bytes) -> str:
        started = self.http.post("blobs/uploads/")
        digest = digest_of(content)
        separator = "&" if "?" in started.headers["Location"] else "?"
        done = self.http.put(f"{started.headers['Location']}{separator}digest={digest}", content=content)
        assert done.status_code == 201, done.text
        return digest

    def remove(self) -> None:
        """Delete every manifest that a tag names."""
        with Registry(self.host, self.credentials) as registry:
            for tag in registry.tags(self.name):
                if found := registry.manifest(self.name, tag):
                    self.http.delete(f"manifests/{found.digest}")

    def manifest(self, marker: str) -> Manifest:
        """Return a manifest whose blobs are there."""
        config = json.dumps({"marker": marker}).encode()
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": self.upload(config),
                "size": len(config),
            },
            "layers": [
                {
                    "mediaType": "application/vnd.oci.image.layer.v1.tar",
                    "digest": self.upload(LAYER),
                    "size": len(LAYER),
                }
            ],
        }
        return Manifest.of(OCI_MANIFEST, json.dumps(document).encode())


@pytest.fixture
def credentials(registry: TestRegistry) -> RegistryCredentials:
    return RegistryCredentials(registry.user, registry.password)


@pytest.fixture
def repository(registry: TestRegistry, credentials: RegistryCredentials) -> Iterator[Repository]:
    made = Repository(registry.host, credentials, f"test/client-{uuid.uuid4().hex[:12]}")
    with made.http:
        yield made
        made.remove()


@pytest.fixture
def client(registry: TestRegistry, credentials: RegistryCredentials) -> Iterator[Registry]:
    with Registry(registry.host, credentials) as connected:
        yield connected


def test_the_right_password_opens_it(client: Registry) -> None:
    client.ping()


def test_a_wrong_password_does_not(registry: TestRegistry) -> None:
    wrong = RegistryCredentials(registry.user, Secret("wrong-password"))
    with (
        Registry(registry.host, wrong) as client,
        pytest.raises(RegistryAuthError, match="refused") as caught,
    ):
        client.ping()
    assert "wrong-password" not in str(caught.value)
    assert "docker login" in caught.value.hint


def test_no_password_does_not(registry: TestRegistry) -> None:
    with Registry(registry.host) as client, pytest.raises(RegistryAuthError, match="there are none"):
        client.ping()


def test_what_is_put_is_read_back(client: Registry, repository: Repository) -> None:
    assert client.tags(repository.name) == []
    assert client.manifest(repository.name, "1.0.0") is None
    manifest = repository.manifest("a")
    assert client.put_manifest(repository.name, "1.0.0", manifest) == manifest.digest
    assert client.manifest(repository.name, "1.0.0") == manifest
    assert client.manifest(repository.name, manifest.digest) == manifest
    assert client.tags(repository.name) == ["1.0.0"]
    assert client.blob_size(repository.name, manifest.layers[0].digest) == len(LAYER)
    assert client.blob_size(repository.name, digest_of(b"absent")) is None


def test_a_manifest_without_its_blobs_is_refused(client: Registry, repository: Repository) -> None:
    document = json.loads(repository.manifest("a").body)
    document["layers"][0]["digest"] = digest_of(b"absent")
    manifest = Manifest.of(OCI_MANIFEST, json.dumps(document).encode())
    with pytest.raises(RegistryError, match=r"would not take the manifest \(HTTP 404|HTTP 400"):
        client.put_manifest(repository.name, "1.0.0", manifest)
    assert client.manifest(repository.name, "1.0.0") is None


def test_tags_of_several_pages(client: Registry, repository: Repository) -> None:
    manifest = repository.manifest("a")
    tags = sorted(f"v{number}" for number in range(105))  # a page is 100 tags where nothing is asked for
    for tag in tags:
        client.put_manifest(repository.name, tag, manifest)
    assert client.tags(repository.name) == tags


def test_a_registry_behind_a_broken_line(
    registry: TestRegistry, credentials: RegistryCredentials, repository: Repository
) -> None:
    manifest = repository.manifest("a")
    with (
        RegistryProxy(registry.host) as proxy,
        Registry(proxy.address, credentials, sleep=lambda seconds: None) as client,
    ):
        for action in (500, 429, "reset", "garbage", "truncate"):
            fault = proxy.fail(".*", r"/manifests/", action)
            client.put_manifest(repository.name, "1.0.0", manifest)
            assert client.manifest(repository.name, "1.0.0") == manifest
            assert fault.fired == 1, action


def test_a_registry_that_is_down(credentials: RegistryCredentials) -> None:
    with (
        Registry("127.0.0.1:1", credentials, sleep=lambda seconds: None) as client,
        pytest.raises(RegistryUnavailable, match="is it up"),
    ):
        client.ping()


def test_credentials_of_a_docker_config(
    registry: TestRegistry, credentials: RegistryCredentials, tmp_path: Path
) -> None:
    pair = f"{registry.user}:{registry.password.reveal()}".encode()
    document = {"auths": {registry.host: {"auth": base64.b64encode(pair).decode()}}}
    (tmp_path / "config.json").write_text(json.dumps(document))
    found = RegistryAuth(tmp_path / "config.json", environ={}).for_registry(registry.host)
    assert found == credentials
    with Registry(registry.host, found) as client:
        client.ping()


@pytest.fixture(scope="module")
def tls_registry() -> Iterator[dict[str, str]]:
    name = "clienttls"
    yield shell_exports("registry", "up", "--name", name, "--tls")
    run_script("registry", "down", "--name", name, "--purge")


def test_tls_on_this_machine(tls_registry: dict[str, str]) -> None:
    """It says in clear that it wants TLS; its own authority has to be named."""
    host = tls_registry["MODELBAKE_REGISTRY"]
    password = Path(tls_registry["MODELBAKE_REGISTRY_PASSWORD_FILE"]).read_text().strip()
    credentials = RegistryCredentials(tls_registry["MODELBAKE_REGISTRY_USER"], Secret(password))
    with Registry(host, credentials, Path(tls_registry["MODELBAKE_REGISTRY_CA"])) as client:
        client.ping()
    with Registry(host, credentials) as client, pytest.raises(RegistryUnavailable, match="CA_BUNDLE"):
        client.ping()


@pytest.fixture(scope="module")
def mtls_registry() -> Iterator[dict[str, str]]:
    name = "clientcert"
    yield shell_exports("registry", "up", "--name", name, "--client-certificate")
    run_script("registry", "down", "--name", name, "--purge")


@pytest.mark.promise("access")
def test_a_registry_that_wants_a_client_certificate(
    mtls_registry: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without one the password is not even asked for; another registry's folder is not used."""
    host = mtls_registry["MODELBAKE_REGISTRY"]
    password = Path(mtls_registry["MODELBAKE_REGISTRY_PASSWORD_FILE"]).read_text().strip()
    credentials = RegistryCredentials(mtls_registry["MODELBAKE_REGISTRY_USER"], Secret(password))
    (tmp_path / "127.0.0.1").symlink_to(Path(mtls_registry["MODELBAKE_CERTS_DIR"]) / host)
    monkeypatch.setenv("MODELBAKE_CERTS_DIR", str(tmp_path))
    with (
        Registry(host, credentials, Path(mtls_registry["MODELBAKE_REGISTRY_CA"])) as client,
        pytest.raises(RegistryUnavailable) as caught,
    ):
        client.ping()
    assert f"client.cert and client.key in /etc/docker/certs.d/{host}" in caught.value.hint


@pytest.mark.control("access")
def test_a_client_certificate_of_dockers_layout_opens_it(
    mtls_registry: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its authority is beside the certificate: nothing else names it."""
    host = mtls_registry["MODELBAKE_REGISTRY"]
    password = Path(mtls_registry["MODELBAKE_REGISTRY_PASSWORD_FILE"]).read_text().strip()
    credentials = RegistryCredentials(mtls_registry["MODELBAKE_REGISTRY_USER"], Secret(password))
    monkeypatch.setenv("MODELBAKE_CERTS_DIR", mtls_registry["MODELBAKE_CERTS_DIR"])
    with Registry(host, credentials) as client:
        client.ping()
        assert client.tags("ml/absent") == []
