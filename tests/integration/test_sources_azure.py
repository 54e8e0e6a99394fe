"""Weights in Azure Blob Storage, against Azurite: keys, signatures, Entra ID's tokens, and every refusal."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from modelbake.config import SourceSpec
from modelbake.errors import RevisionNotFound, SourceAuthError, SourceError, SourceNotFound, SourceUnavailable
from modelbake.locked import LockedFile, LockedSource
from modelbake.sources import azure
from modelbake.sources.azure import AzureStore, open_store
from modelbake.sources.storesource import StoreSource
from tests.integration.world import World
from tests.promises import cases
from tests.servers.azurite_server import ACCOUNT, AzuriteServer
from tests.servers.running import RunsInThread, free_port

pytestmark = pytest.mark.engine

NAME = "é 1+%20.safetensors"
CONTENT = bytes(range(256)) * 40
HUSH = "identityCANARYheader"


class Place:
    """A container with files below a prefix, and the environment of whoever reads them."""

    def __init__(self, server: AzuriteServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server, self._monkeypatch = server, monkeypatch
        self.container = server.container()
        self.put(NAME, CONTENT)
        self.put("sub/empty", b"")
        server.put_blocks(self.container, "llama 3/blocks", [b"1", b"23"])
        server.put(self.container, "llama 30/other", b"of another model")
        self.spec = SourceSpec(
            name="m", source=f"az://{ACCOUNT}/{self.container}/llama 3", server=server.account_url
        )
        self.become()

    def put(self, path: str, content: bytes) -> str:
        return self.server.put(self.container, f"llama 3/{path}", content)

    def become(self, **rights: str) -> None:
        for name in ("CONNECTION_STRING", "ACCOUNT", "KEY", "SAS_TOKEN"):
            self._monkeypatch.delenv(f"AZURE_STORAGE_{name}", raising=False)
        for name, value in rights.items():
            self._monkeypatch.setenv(f"AZURE_STORAGE_{name}", value)

    def rights(self) -> list[dict[str, str]]:
        """Each of what the environment may hold."""
        return [
            {"CONNECTION_STRING": self.server.connection_string()},
            {"KEY": self.server.key},
            {"SAS_TOKEN": self.server.sas(self.container)},
        ]

    def fetch(self, file: LockedFile) -> bytes:
        """What a builder gets."""
        address = open_store(self.spec).address(file)
        request = urllib.request.Request(address.url, headers=dict(address.headers))  # noqa: S310
        tls = self.server.certificate
        context = ssl.create_default_context(cafile=str(tls.authority)) if tls else None
        with urllib.request.urlopen(request, context=context) as answer:  # noqa: S310
            return bytes(answer.read())


@pytest.fixture
def place(azure_server: AzuriteServer, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setitem(azure._RETRIES, "retry_total", 0)
    made = Place(azure_server, monkeypatch)
    made.become(KEY=azure_server.key)
    return made


def lock(spec: SourceSpec) -> LockedSource:
    return StoreSource(open_store).resolve(spec, None).locked


def file_of(locked: LockedSource, path: str = NAME) -> LockedFile:
    return next(file for file in locked.files if file.path == path)


def read(store: AzureStore, file: LockedFile, start: int = 0) -> bytes:
    return b"".join(store.reader(threading.Event()).read(file, start))


def test_every_right_locks_reads_and_addresses(place: Place) -> None:
    locks = []
    for right in place.rights():
        place.become(**right)
        locks.append(lock(place.spec))
        file = file_of(locks[-1])
        assert read(open_store(place.spec), file, 10_000) == CONTENT[10_000:]
        assert place.fetch(file) == CONTENT
    assert locks[0] == locks[1] == locks[2]
    assert [file.path for file in locks[0].files] == ["blocks", "sub/empty", NAME]
    assert file_of(locks[0]).sha256 == hashlib.sha256(CONTENT).hexdigest()
    md5 = {file.path: file.checksum for file in open_store(place.spec).listing()}
    assert md5["blocks"] is None, "what was put in blocks has no checksum of the whole"
    assert md5[NAME] == ("md5", hashlib.md5(CONTENT).hexdigest())


def test_what_is_replaced_or_deleted_is_said_to_be(place: Place) -> None:
    file = file_of(lock(place.spec))
    place.put(NAME, CONTENT[::-1])
    with pytest.raises(RevisionNotFound, match=r"%20\.safetensors: there is no such version") as caught:
        read(open_store(place.spec), file)
    assert "build.py lock m" in caught.value.hint
    with pytest.raises(urllib.error.HTTPError, match="412"):
        place.fetch(file)
    place.server.delete(place.container, f"llama 3/{NAME}")
    with pytest.raises(RevisionNotFound):
        read(open_store(place.spec), file)
    with pytest.raises(SourceNotFound, match="no such container"):
        list(open_store(place.spec.model_copy(update={"source": "az://team/nobody-s/x"})).listing())


def test_every_refusal_names_what_was_tried(place: Place) -> None:
    file = file_of(lock(place.spec))
    server, container = place.server, place.container
    for right in (
        {"KEY": server.wrong_key},
        {"CONNECTION_STRING": server.connection_string(server.wrong_key)},
        {"SAS_TOKEN": server.sas(container, seconds=-60)},
        {"SAS_TOKEN": server.sas("other")},
    ):
        place.become(**right)
        with pytest.raises(
            SourceAuthError, match=rf"from AZURE_STORAGE_{next(iter(right))} is refused"
        ) as told:
            list(open_store(place.spec).listing())
        with pytest.raises(SourceAuthError, match="is refused"):
            read(open_store(place.spec), file)
        assert "DefaultAzureCredential" in told.value.hint and "Storage Blob Data Reader" in told.value.hint
        assert not any(value in str(told.value) for value in right.values())
    place.become(SAS_TOKEN=server.sas(container, permission="l"))
    assert list(open_store(place.spec).listing())
    with pytest.raises(SourceAuthError, match="is refused"):
        read(open_store(place.spec), file)
    place.become(KEY=server.key)
    nobody = place.spec.model_copy(update={"server": f"http://127.0.0.1:{free_port()}/team"})
    with pytest.raises(SourceUnavailable, match="cannot be reached"):
        list(open_store(nobody).listing())


def test_a_signature_that_ends_meanwhile_is_made_anew(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    file = file_of(lock(place.spec))
    lasting = iter([-2 * azure._GOOD_FOR, azure._GOOD_FOR, *[-2 * azure._GOOD_FOR] * 2])
    signed, store = AzureStore._signed, open_store(place.spec)

    def sign(self: AzureStore, file: LockedFile) -> str:
        monkeypatch.setattr(azure, "_GOOD_FOR", next(lasting))
        return signed(self, file)

    monkeypatch.setattr(AzureStore, "_signed", sign)
    assert read(store, file) == CONTENT
    with pytest.raises(SourceAuthError, match="from AZURE_STORAGE_KEY is refused"):
        read(store, file)


def test_listings_have_many_pages(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    count, page = cases(60, 5_500), cases(25, 5_000)
    monkeypatch.setattr(azure, "_PAGE", page)
    with place.server.client() as client, ThreadPoolExecutor(8) as pool:
        put = client.get_container_client(place.container).upload_blob
        list(pool.map(lambda number: put(f"many/{number:06}", b"x"), range(count)))
    spec = place.spec.model_copy(update={"source": f"az://{ACCOUNT}/{place.container}/many"})
    assert len(list(open_store(spec).listing())) == count


def test_uploads_are_read_back_and_replace_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.become(SAS_TOKEN=place.server.sas(place.container))
    with pytest.raises(SourceAuthError, match="is refused") as caught:
        open_store(place.spec).upload("new", io.BytesIO(b"1"), 1)
    assert "Storage Blob Data Contributor" in caught.value.hint
    place.become(KEY=place.server.key)
    monkeypatch.setattr(azure, "_BLOCK", 1 << 20)
    store = open_store(place.spec)
    large = bytes(range(256)) * (11 << 10)  # three blocks
    for name, content in (("new/é 1", b"1"), ("new/empty", b""), ("new/large", large)):
        store.upload(name, io.BytesIO(content), len(content))
    found = {file.path: file for file in store.listing()}
    assert read(store, LockedFile("new/large", len(large), "", found["new/large"].version)) == large
    assert found["new/empty"].size == 0
    with pytest.raises(SourceError, match="is there already"):
        store.upload("new/é 1", io.BytesIO(b"2"), 1)
    assert {file.path: file for file in store.listing()} == found


class _Identity(http.server.BaseHTTPRequestHandler):
    server: Identity

    def log_message(self, format: str, *args: object) -> None: ...

    def do_GET(self) -> None:
        known = self.headers.get("X-IDENTITY-HEADER") == HUSH
        answer = {
            "access_token": self.server.token(),
            "expires_on": str(int(time.time() + 3600)),
            "resource": "https://storage.azure.com",
            "token_type": "Bearer",
        }
        body = json.dumps(answer if known else {"statusCode": 400, "message": "no identity"}).encode()
        self.send_response(200 if known else 400)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Identity(RunsInThread, http.server.ThreadingHTTPServer):
    """A managed identity, as App Service and Container Apps offer it.

    https://learn.microsoft.com/azure/app-service/overview-managed-identity#rest-endpoint-reference
    """

    def __init__(self, token: Callable[[], str]) -> None:
        super().__init__(("127.0.0.1", 0), _Identity)
        self.token = token


@pytest.fixture
def managed(
    azure_tls_server: AzuriteServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Place, dict[str, str], list[float]]]:
    """Yield a place over TLS, the environment of a machine with an identity, and how long its tokens last."""
    monkeypatch.setitem(azure._RETRIES, "retry_total", 0)
    lasting = [3600.0]
    assert azure_tls_server.certificate is not None
    with Identity(lambda: azure_tls_server.token(lasting[0])) as identity:
        environment = {
            "IDENTITY_ENDPOINT": f"http://127.0.0.1:{identity.server_port}/msi/token",
            "IDENTITY_HEADER": HUSH,
            "AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential",
            "MODELBAKE_CA_BUNDLE": str(azure_tls_server.certificate.authority),
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield Place(azure_tls_server, monkeypatch), environment, lasting


def test_a_managed_identity_reads_and_delegates(managed: tuple[Place, Any, list[float]]) -> None:
    place, _, lasting = managed
    locked = lock(place.spec)
    file = file_of(locked)
    assert read(open_store(place.spec), file, 10_000) == CONTENT[10_000:]
    address = open_store(place.spec).address(file)
    assert "skoid=" in address.url and "sp=r&" in address.url and "authorization" not in address.headers
    assert place.fetch(file) == CONTENT
    place.put(NAME, b"replaced")
    with pytest.raises(RevisionNotFound):
        read(open_store(place.spec), file)
    lasting[0] = -60
    with pytest.raises(SourceAuthError, match="from DefaultAzureCredential is refused"):
        list(open_store(place.spec).listing())
    with pytest.raises(SourceAuthError, match="from DefaultAzureCredential is refused"):
        read(open_store(place.spec), file)


def test_who_has_nothing_is_told_what_was_tried(
    managed: tuple[Place, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, _, _ = managed
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
    with pytest.raises(SourceAuthError, match="no token of Entra ID") as caught:
        list(open_store(place.spec).listing())
    assert "AZURE_STORAGE_CONNECTION_STRING" in caught.value.hint and "az, PowerShell" in caught.value.hint


def test_lock_by_an_identity_tells_no_secret(
    world: World, managed: tuple[Place, dict[str, str], list[float]]
) -> None:
    place, environment, lasting = managed
    world.environment |= environment
    world.secrets.add(place.server.key)
    world.models(tiny={"source": place.spec.source, "endpoint": place.spec.server})
    place.put("config.json", b'{"kind": "tiny"}\n')
    place.put("model.safetensors", CONTENT)
    arguments = ("lock", "tiny", "--log-format", "json")
    ran = world.build_py(*arguments).ok()
    assert "AccessToken" not in ran.err and "eyJ" not in ran.err + ran.out
    first = (world.folder / "models.lock").read_bytes()
    lasting[0] = -60
    place.put("config.json", b'{"kind": "tiny", "more": 1}\n')
    refused = world.build_py(*arguments)
    assert refused.code == SourceAuthError.exit_code and "DefaultAzureCredential" in refused.err
    assert "eyJ" not in refused.err + refused.out
    assert (world.folder / "models.lock").read_bytes() == first, "nothing half-written"
    assert world.leaks() == []
