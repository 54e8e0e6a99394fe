"""gs:// against a server with generations, rights and signed addresses: what is read, and every refusal."""

from __future__ import annotations

import functools
import io
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from google.auth.credentials import AnonymousCredentials

from modelbake.config import SourceSpec
from modelbake.errors import (
    RevisionNotFound,
    SourceAuthError,
    SourceError,
    SourceNotFound,
    SourceUnavailable,
    UsageError,
    WrongBytes,
)
from modelbake.locked import LockedFile, LockedSource
from modelbake.sources import clouds, gcs, opener
from modelbake.sources.gcs import GcsStore, open_store
from modelbake.sources.opener import Address
from modelbake.sources.selecting import MOST_FILES
from modelbake.sources.storesource import StoreSource
from modelbake.trust import trust
from tests.promises import cases
from tests.servers.gcs import Account, GcsServer
from tests.servers.running import free_port

NAME = "é 1+%20.safetensors"
CONTENT = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcsServer]:
    with GcsServer(tmp_path_factory.mktemp("gcs")) as running:
        yield running


@pytest.fixture(autouse=True)
def authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let those of the system be read once; it takes long."""
    monkeypatch.setattr(clouds, "trust", once)
    monkeypatch.setattr(opener, "trust", once)


@functools.cache
def once() -> ssl.SSLContext:
    return trust()


@pytest.fixture
def become(server: GcsServer, monkeypatch: pytest.MonkeyPatch) -> Callable[[Account | None], None]:
    """Return what makes this process one of the server's accounts, or nobody."""

    def become(account: Account | None) -> None:
        for name in ("GOOGLE_APPLICATION_CREDENTIALS", "STORAGE_EMULATOR_HOST"):
            monkeypatch.delenv(name, raising=False)
        for name, value in server.environment_for(account).items():
            monkeypatch.setenv(name, value)

    become(server.reader)
    return become


@pytest.fixture
def spec(server: GcsServer, become: Callable[[Account | None], None]) -> SourceSpec:
    bucket = server.bucket()
    server.put(bucket, f"llama 3/{NAME}", CONTENT)
    server.put(bucket, "llama 3/sub/empty", b"")
    server.put(bucket, "llama 3/sub/", b"")  # as consoles make a folder
    server.put_composed(bucket, "llama 3/composed", [b"1", b"23"])
    server.put(bucket, "llama 30/other", b"of another model")
    return SourceSpec(name="m", source=f"gs://{bucket}/llama 3", server=server.endpoint)


def lock(spec: SourceSpec, previous: LockedSource | None = None) -> LockedSource:
    return StoreSource(open_store).resolve(spec, previous).locked


def file_of(locked: LockedSource, path: str = NAME) -> LockedFile:
    return next(file for file in locked.files if file.path == path)


def read(store: GcsStore, file: LockedFile, start: int = 0) -> bytes:
    return b"".join(store.reader(threading.Event()).read(file, start))


def _open(address: Address) -> Any:
    request = urllib.request.Request(address.url, headers=dict(address.headers))  # noqa: S310 - the server's
    return urllib.request.urlopen(request)  # noqa: S310


def test_generations_are_locked_and_read_from_the_middle(server: GcsServer, spec: SourceSpec) -> None:
    bucket = spec.source.split("/")[2]
    locked = lock(spec)
    assert [file.path for file in locked.files] == ["composed", "sub/empty", NAME]
    file = file_of(locked)
    second = server.put(bucket, f"llama 3/{NAME}", b"replaced")
    store = open_store(locked)
    assert file.version != second and read(store, file, 10_000) == CONTENT[10_000:], "the old one is kept"
    server.seen.clear()
    again = lock(spec, locked)
    assert file_of(again).version == second and again.commit != locked.commit
    media = [path for _, path in server.seen if "alt=media" in path]
    assert len(media) == 1 and f"generation={second}" in media[0], "what did not change is not read again"


def test_checksums_are_compared(spec: SourceSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {file.path: file.checksum for file in open_store(spec).listing()}
    algorithms = {path: each[0] for path, each in said.items() if isinstance(each, tuple)}
    assert algorithms == {NAME: "md5", "sub/empty": "md5", "composed": "crc32c"}
    listing = GcsStore.listing
    for path, algorithm in ((NAME, "md5"), ("composed", "crc32c")):

        def wrong(self: GcsStore, path: str = path, algorithm: str = algorithm) -> Iterator[object]:
            for file in listing(self):
                checksum = (algorithm, "00" * (4 if algorithm == "crc32c" else 16))
                yield replace(file, checksum=checksum) if file.path == path else file

        monkeypatch.setattr(GcsStore, "listing", wrong)
        with pytest.raises(WrongBytes, match=algorithm):
            lock(spec)


def test_a_builder_gets_a_signed_address_of_one_generation(server: GcsServer, spec: SourceSpec) -> None:
    file = file_of(lock(spec))
    address = open_store(spec).address(file)
    assert dict(address.headers) == {} and f"generation={file.version}" in address.url
    with _open(address) as answer:
        assert answer.read() == CONTENT
    with pytest.raises(urllib.error.HTTPError, match="403"):
        _open(replace(address, url=address.url.replace(file.version, "1")))


def test_who_cannot_sign_gives_a_token_that_reads_only(
    server: GcsServer, spec: SourceSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = file_of(lock(spec))
    # As those of workload identity and the metadata server are: they get tokens, and have no key.
    monkeypatch.setattr(gcs, "service_account", SimpleNamespace(Credentials=AnonymousCredentials))
    store = open_store(spec)
    address = store.address(file)
    token = address.headers["authorization"]
    assert token.startswith("Bearer ") and token not in repr(address)
    with _open(address) as answer:
        assert answer.read() == CONTENT
    assert store._access.credentials.scopes == ["https://www.googleapis.com/auth/devstorage.read_only"]


def test_a_token_that_ends_is_renewed_before_the_next_request(server: GcsServer, spec: SourceSpec) -> None:
    file = file_of(lock(spec))
    store = open_store(spec)
    address = store.locate(file, None, None)  # type: ignore[arg-type]
    before = dict(address.headers)
    store._access.credentials.expiry = store._access.credentials.expiry.replace(year=2020)
    assert dict(address.headers) != before and read(store, file) == CONTENT


def test_what_is_gone_is_said_to_be(server: GcsServer, spec: SourceSpec) -> None:
    bucket, locked = spec.source.split("/")[2], lock(spec)
    file = file_of(locked)
    server.delete(bucket, f"llama 3/{NAME}", file.version)
    with pytest.raises(RevisionNotFound, match=r"%20\.safetensors: there is no generation") as caught:
        read(open_store(locked), file)
    assert "build.py lock m" in caught.value.hint
    with pytest.raises(SourceNotFound, match="no such bucket"):
        list(open_store(spec.model_copy(update={"source": "gs://no-such-bucket/x"})).listing())


@pytest.mark.parametrize("version", ["1&alt=json", "x", "-1"])
def test_a_version_that_is_no_generation_is_asked_of_nobody(spec: SourceSpec, version: str) -> None:
    store, file = open_store(spec), LockedFile(NAME, 1, "", version)
    for ask in (lambda: store.address(file), lambda: read(store, file)):
        with pytest.raises(RevisionNotFound, match=r"%20\.safetensors: .* is no generation"):
            ask()


def test_every_refusal_names_what_was_tried(
    server: GcsServer,
    spec: SourceSpec,
    become: Callable[[Account | None], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    file = file_of(lock(spec))
    may_list = server.account("lister", frozenset({"list"}))
    key = server.reader.key_file.read_text()
    told = []
    for account, said in (
        (server.stranger, "stranger@models.iam.gserviceaccount.com are refused"),
        (server.wrong, "token service refuses"),
        (None, "none were found"),
    ):
        become(account)
        with pytest.raises(SourceAuthError, match=said) as caught:
            list(open_store(spec).listing())
        told.append(caught.value)
    become(may_list)
    assert list(open_store(spec).listing())
    with pytest.raises(SourceAuthError, match=r"lister@.* are refused") as caught:
        read(open_store(spec), file)
    assert "roles/storage.objectViewer" in caught.value.hint
    told.append(caught.value)
    damaged = tmp_path / "damaged.json"
    damaged.write_text('{"type": "service_account"')
    for path in (damaged, tmp_path / "missing.json"):
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
        with pytest.raises(SourceAuthError, match="missing or damaged") as caught:
            open_store(spec)
        told.append(caught.value)
    assert all("GOOGLE_APPLICATION_CREDENTIALS" in each.hint for each in told)
    assert not any(line in str(each) for each in told for line in key.split("\\n") if len(line) > 30)


def test_the_emulators_variable_is_followed(
    server: GcsServer, spec: SourceSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.endpoint)
    server.seen.clear()
    with pytest.raises(SourceAuthError, match="without credentials"):  # this one wants some
        list(open_store(spec.model_copy(update={"server": ""})).listing())
    assert server.seen


def test_what_is_no_store_is_said_to_be(spec: SourceSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs, "_RETRY", gcs._RETRY.with_timeout(0.5))
    nobody = spec.model_copy(update={"server": f"http://127.0.0.1:{free_port()}"})
    with pytest.raises(SourceUnavailable, match="cannot be reached"):
        list(open_store(nobody).listing())
    unversioned = {"items": [{"name": "llama 3/x", "size": "1"}]}
    answers: list[Any] = [[], {"items": [7]}, unversioned, {"items": {"a": "b"}}]
    for answer in answers:
        monkeypatch.setattr("google.cloud._http.JSONConnection.api_request", lambda *_, **__: answer)  # noqa: B023
        with pytest.raises(SourceError, match=r"no Google Cloud Storage|does not"):
            list(open_store(spec).listing())


def test_listings_have_many_pages(server: GcsServer, spec: SourceSpec) -> None:
    bucket, count = spec.source.split("/")[2], cases(1_500, MOST_FILES)
    server.fill(bucket, "many/", count)
    server.seen.clear()
    many = spec.model_copy(update={"source": f"gs://{bucket}/many"})
    assert len(list(open_store(many).listing())) == count
    assert len([path for _, path in server.seen if "/o?" in path]) == -(-count // 1000)


def test_a_damaged_bundle_of_authorities_is_refused(
    spec: SourceSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(clouds, "trust", trust)
    (tmp_path / "ca.pem").write_text("none")
    monkeypatch.setenv("MODELBAKE_CA_BUNDLE", str(tmp_path / "ca.pem"))
    with pytest.raises(UsageError, match=r"ca\.pem"):
        open_store(spec)


def test_uploads_are_read_back_and_replace_nothing(
    server: GcsServer, spec: SourceSpec, become: Callable[[Account | None], None]
) -> None:
    with pytest.raises(SourceAuthError, match=r"reader@.* are refused") as caught:
        open_store(spec).upload("new", io.BytesIO(b"1"), 1)
    assert "roles/storage.objectCreator" in caught.value.hint
    become(server.owner)
    store = open_store(spec)
    large = bytes(range(256)) * (9 << 12)  # 9 MiB, which is sent as a resumable upload
    for name, content in (("new/é 1", b"1"), ("new/empty", b""), ("new/large", large)):
        store.upload(name, io.BytesIO(content), len(content))
    found = {file.path: file for file in store.listing()}
    assert read(store, LockedFile("new/large", len(large), "", found["new/large"].version)) == large
    assert found["new/empty"].size == 0 and "new/é 1" in found
    with pytest.raises(SourceError, match="is there already"):
        store.upload("new/é 1", io.BytesIO(b"2"), 1)
    assert {file.path: file for file in store.listing()} == found
