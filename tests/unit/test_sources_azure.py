"""az:// as far as it needs no server: which right is taken, what is demanded, what each refusal means.

Against Azurite: tests/integration/test_sources_azure.py. Versions of blobs are here, as Azurite has none.
"""

from __future__ import annotations

import base64
import io
import os
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    IncompleteReadError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.identity import ClientSecretCredential, CredentialUnavailableError, DefaultAzureCredential
from azure.storage.blob import BlobProperties, UserDelegationKey

from modelbake import process
from modelbake.config import SourceSpec
from modelbake.errors import (
    RevisionNotFound,
    SourceAuthError,
    SourceError,
    SourceNotFound,
    SourceUnavailable,
)
from modelbake.locked import LockedFile
from modelbake.sources import clouds
from modelbake.sources.azure import AzureStore, open_store
from modelbake.sources.azure_access import Access, Token
from modelbake.sources.azure_errors import refusal, translated
from modelbake.sources.store import StoredFile

KEY = base64.b64encode(b"azureCANARYazure" * 4).decode()
SAS = "sv=2026-10-06&sp=rl&sig=sasCANARYsas%3D"
CONNECTION = (
    f"DefaultEndpointsProtocol=https;AccountName=team;AccountKey={KEY};EndpointSuffix=core.windows.net"
)
SPEC = SourceSpec(name="m", source="az://team/models/llama 3")
VERSION, ETAG = "2026-11-30T12:00:00.1234567Z", '"0x8DC01"'
NAME = "é 1+%20.bin"


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONNECTION_STRING", "ACCOUNT", "KEY", "SAS_TOKEN"):
        monkeypatch.delenv(f"AZURE_STORAGE_{name}", raising=False)
    for name in ("TENANT_ID", "CLIENT_ID", "CLIENT_SECRET", "TOKEN_CREDENTIALS", "AUTHORITY_HOST"):
        monkeypatch.delenv(f"AZURE_{name}", raising=False)
    monkeypatch.setattr(clouds, "trust", lambda: None)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AzureStore]:
    def opened(spec: SourceSpec = SPEC, **environment: str) -> AzureStore:
        for name, value in environment.items():
            monkeypatch.setenv(f"AZURE_STORAGE_{name}", value)
        return open_store(spec)

    return opened


def test_the_first_right_for_this_account_is_taken(opened: Callable[..., AzureStore]) -> None:
    def named(**environment: str) -> str:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(f"AZURE_STORAGE_{name}", value)
            return open_store(SPEC)._access.named

    everything = {"CONNECTION_STRING": CONNECTION, "KEY": KEY, "SAS_TOKEN": SAS}
    assert named(**everything) == "AZURE_STORAGE_CONNECTION_STRING"
    assert named(KEY=KEY, SAS_TOKEN=SAS, ACCOUNT="team") == "AZURE_STORAGE_KEY"
    assert named(SAS_TOKEN=f"?{SAS}") == "AZURE_STORAGE_SAS_TOKEN"
    assert named() == "DefaultAzureCredential"
    # What is another account's is neither used nor sent there.
    of_another = named(
        **{**everything, "CONNECTION_STRING": CONNECTION.replace("team", "other")}, ACCOUNT="other"
    )
    assert of_another == (
        "DefaultAzureCredential (AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_KEY, AZURE_STORAGE_SAS_TOKEN:"
        " of another account)"
    )
    by_endpoint = f"BlobEndpoint=https://other.blob.core.windows.net/;SharedAccessSignature={SAS}"
    assert "of another account" in named(CONNECTION_STRING=by_endpoint)
    assert named(CONNECTION_STRING=by_endpoint.replace("other", "team")) == "AZURE_STORAGE_CONNECTION_STRING"


def test_a_service_principal_is_found_though_no_child_may_have_its_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("TENANT_ID", "CLIENT_ID", "CLIENT_SECRET"):
        monkeypatch.setenv(f"AZURE_{name}", "principalCANARY")
    with process.secrets_withheld():
        assert "AZURE_CLIENT_SECRET" not in os.environ
        token = open_store(SPEC)._access.token
        assert token is not None and isinstance(token.credential, ClientSecretCredential)
        monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "ManagedIdentityCredential")
        token = open_store(SPEC)._access.token
        assert token is not None and isinstance(token.credential, DefaultAzureCredential)
        for name, value in (("TENANT_ID", "no such/tenant"), ("TOKEN_CREDENTIALS", "CANARY")):
            monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "")
            monkeypatch.setenv(f"AZURE_{name}", value)
            with pytest.raises(SourceAuthError, match="contradict") as caught:
                open_store(SPEC)
            assert "CANARY" not in str(caught.value)
            monkeypatch.setenv("AZURE_TENANT_ID", "principalCANARY")


@pytest.mark.parametrize(
    ("connection", "endpoint", "url"),
    [
        (CONNECTION, "", "https://team.blob.core.windows.net"),
        (CONNECTION.replace("core.windows.net", "core.chinacloudapi.cn"), "", "https://team.blob.core.chinacloudapi.cn"),
        (f"AccountName=team;AccountKey={KEY};BlobEndpoint=http://127.0.0.1:1/team;", "", "http://127.0.0.1:1/team"),
        (f"AccountName=team;AccountKey={KEY};BlobEndpoint=http://127.0.0.1:1/team", "http://h/team", "http://h/team"),
        ("", "", "https://team.blob.core.windows.net"),
        ("", "https://blobs.example.com/team", "https://blobs.example.com/team"),
    ],
)  # fmt: skip
def test_where_the_account_is(
    opened: Callable[..., AzureStore], connection: str, endpoint: str, url: str
) -> None:
    spec = SPEC.model_copy(update={"server": endpoint})
    assert opened(spec, **({"CONNECTION_STRING": connection} if connection else {})).server == url


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"KEY": "CANARY no key"}, "AZURE_STORAGE_KEY does not hold an account's key"),
        ({"SAS_TOKEN": "CANARY no signature"}, "AZURE_STORAGE_SAS_TOKEN does not hold a shared access"),
        ({"SAS_TOKEN": "sig=CANARY\nx"}, "AZURE_STORAGE_SAS_TOKEN does not hold a shared access"),
        ({"CONNECTION_STRING": "AccountName=team;Key=CANARY"}, "has neither AccountKey nor"),
        ({"CONNECTION_STRING": "AccountName=team;AccountKey=CANARY!"}, "CONNECTION_STRING does not"),
    ],
)  # fmt: skip
def test_a_damaged_right_is_named_and_not_shown(
    opened: Callable[..., AzureStore], environment: dict[str, str], said: str
) -> None:
    with pytest.raises(SourceAuthError, match=said) as caught:
        opened(**environment)
    assert "DefaultAzureCredential" in caught.value.hint and "CANARY" not in str(caught.value)


def test_tokens_are_sent_over_tls_only(opened: Callable[..., AzureStore]) -> None:
    with pytest.raises(SourceAuthError, match="over TLS only"):
        opened(SPEC.model_copy(update={"server": "http://127.0.0.1:1/team"}))


def _file(version: str) -> LockedFile:
    return LockedFile(NAME, 10, "", version)


def test_an_address_is_of_one_blob_and_one_version(opened: Callable[..., AzureStore]) -> None:
    store = opened(KEY=KEY)
    for address in (store.address(_file(VERSION)), store.locate(_file(VERSION), None, None)):  # type: ignore[arg-type]
        url = urlsplit(address.url)
        query = parse_qs(url.query)
        assert (url.netloc, url.path) == (
            "team.blob.core.windows.net",
            "/models/llama%203/%C3%A9%201%2B%2520.bin",
        )
        assert (query["versionid"], query["sr"], query["sp"], query["spr"]) == (
            [VERSION],
            ["bv"],
            ["r"],
            ["https"],
        )
        assert dict(address.headers) == {} and KEY not in address.url
        assert address.own and address.expires, (
            "the account's own word, once its time is over another is signed"
        )
    address = store.address(_file(ETAG))
    query = parse_qs(urlsplit(address.url).query)
    assert "versionid" not in query and query["sr"] == ["b"] and dict(address.headers) == {"if-match": ETAG}
    given = opened(KEY="", SAS_TOKEN=SAS).address(_file(ETAG))
    assert given.url.endswith(f".bin?{SAS}") and dict(given.headers) == {"if-match": ETAG}
    assert "CANARY" not in repr(given)


class Entra:
    """A credential that counts its tokens, of a second each where told."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.given = seconds, 0

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        assert scopes == ("https://storage.azure.com/.default",)
        self.given += 1
        return AccessToken(f"token{self.given}", int(time.time() + self.seconds))


def test_reading_takes_a_token_that_is_good_at_every_request(opened: Callable[..., AzureStore]) -> None:
    store = opened()
    for seconds, given in ((3600, 1), (60, 2)):
        entra = Entra(seconds)
        store._access = Access("team", store.server, "x", token=Token(entra))
        headers = store.locate(_file(ETAG), None, None).headers  # type: ignore[arg-type]
        first, second = dict(headers), dict(headers)
        assert entra.given == given
        assert [first["authorization"], second["authorization"]] == ["Bearer token1", f"Bearer token{given}"]
        assert second["if-match"] == ETAG and second["x-ms-version"]


def test_a_builder_gets_a_signature_by_a_delegated_key(
    opened: Callable[..., AzureStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, asked = opened(), []

    def delegate(*times: Any) -> UserDelegationKey:
        asked.append(times)
        key = UserDelegationKey()  # type: ignore[no-untyped-call]
        key.signed_oid = key.signed_tid = "7"
        key.signed_start, key.signed_expiry = "2026-11-30T00:00:00Z", "2026-12-01T00:00:00Z"
        key.signed_service, key.signed_version, key.value = "b", "2026-06-06", KEY
        return key

    monkeypatch.setattr(store._service, "get_user_delegation_key", delegate)
    for version in (VERSION, ETAG):
        query = parse_qs(urlsplit(store.address(_file(version)).url).query)
        assert query["sp"] == ["r"] and query["skoid"] == ["7"]
    assert len(asked) == 1, "one key signs them all"

    def refuse(*times: Any) -> UserDelegationKey:
        raise _answer(403, "AuthorizationPermissionMismatch")

    store = opened()
    monkeypatch.setattr(store._service, "get_user_delegation_key", refuse)
    with pytest.raises(SourceAuthError) as caught:
        store.address(_file(ETAG))
    assert "Storage Blob Delegator on the whole account" in caught.value.hint


def _blob(name: Any = f"llama 3/{NAME}", **facts: Any) -> Any:
    blob: Any = BlobProperties(name=name)
    blob.etag, blob.size, blob.blob_type, blob.metadata = "0x8DC01", 10, "BlockBlob", {}
    for key, value in facts.items():
        target = blob.content_settings if key.startswith("content_") else blob
        setattr(target, key, value)
    return blob


@pytest.fixture
def listed(
    opened: Callable[..., AzureStore], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[AzureStore, list[StoredFile]]]]:
    def listed(*blobs: Any) -> tuple[AzureStore, list[StoredFile]]:
        store = opened(KEY=KEY)
        found = SimpleNamespace(by_page=lambda: iter([blobs]))
        client = SimpleNamespace(
            __enter__=lambda self: self,
            list_blobs=lambda prefix, **_: found if prefix == "llama 3/" else None,
        )
        monkeypatch.setattr(store._service, "get_container_client", lambda name: _Entered(client))
        return store, list(store.listing())

    yield listed


class _Entered:
    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __enter__(self) -> Any:
        return self._inner

    def __exit__(self, *_: object) -> None: ...


def test_versions_and_checksums_of_a_listing(
    listed: Callable[..., tuple[AzureStore, list[StoredFile]]],
) -> None:
    md5 = bytearray(range(16))
    _, files = listed(
        _blob(content_md5=md5, version_id=VERSION),
        _blob("llama 3/b", content_md5=md5, blob_type="AppendBlob", etag='"0x8DC02"'),
        _blob("llama 3/folder", metadata={"hdi_isfolder": "true"}),
        _blob("llama 3/folder/"),
    )
    assert files == [
        StoredFile(NAME, 10, VERSION, ("md5", md5.hex())),
        StoredFile("b", 10, '"0x8DC02"', None),
    ]


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"content_encoding": "gzip"}, "has a Content-Encoding"),
        ({"blob_tier": "Archive"}, "in the archive tier"),
    ],
)
def test_what_cannot_be_read_is_said_before_it_is_tried(
    listed: Callable[..., tuple[AzureStore, list[StoredFile]]], facts: dict[str, str], said: str
) -> None:
    store, _ = listed(_blob(**facts))
    with pytest.raises(SourceError, match=said) as caught:
        store.locate(_file(ETAG), None, None)  # type: ignore[arg-type]
    assert "exclude" in caught.value.hint


def test_what_is_no_store_is_said_to_be(listed: Callable[..., tuple[AzureStore, list[StoredFile]]]) -> None:
    for blob in (_blob(size=None), _blob(etag=None), _blob(name=None), 7):
        with pytest.raises(SourceError, match=r"no Azure Blob Storage|does not"):
            listed(blob)


ACCESS = Access("team", "https://team.blob.core.windows.net", "AZURE_STORAGE_KEY")


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (401, "NoAuthenticationInformation", SourceAuthError),
        (403, "AuthorizationPermissionMismatch", SourceAuthError),
        (400, "InvalidAuthenticationInfo", SourceAuthError),
        (404, "BlobNotFound", RevisionNotFound),
        (404, "ContainerNotFound", SourceNotFound),
        (404, "", RevisionNotFound),
        (412, "ConditionNotMet", RevisionNotFound),
        (409, "BlobArchived", SourceError),
    ],
)
def test_what_a_refusal_for_a_blob_means(status: int, code: str, kind: type[SourceError]) -> None:
    error = refusal(status, code, ACCESS, "m: az://team/models: a.bin")
    assert type(error) is kind
    if kind is RevisionNotFound:
        assert "build.py lock m" in error.hint
    if kind is SourceAuthError:
        assert "Storage Blob Data Reader" in error.hint and code in error.message


def test_what_says_nothing_is_left_to_others(opened: Callable[..., AzureStore]) -> None:
    assert refusal(418, "", ACCESS, "m: x") is None
    with pytest.raises(SourceUnavailable, match="answers 418"):
        opened(KEY=KEY).refuse(_file(ETAG), 418, {})
    with pytest.raises(SourceAuthError, match="AuthenticationFailed"):
        opened().refuse(_file(ETAG), 403, {"X-Ms-Error-Code": "AuthenticationFailed"})
    with pytest.raises(SourceAuthError) as caught:
        opened().refuse(_file(ETAG), 403, {"x-ms-error-code": "<b>CANARY"})
    assert "CANARY" not in str(caught.value)


def _answer(
    status: int, code: str | None = "", kind: type[HttpResponseError] = HttpResponseError
) -> Exception:
    error = kind("CANARY: what the server says")
    error.status_code = status
    if code is not None:
        error.error_code = code  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (_answer(403, "AuthorizationFailure"), SourceAuthError),
        (_answer(401, "x", ClientAuthenticationError), SourceAuthError),
        (_answer(400, "InvalidAuthenticationInfo"), SourceAuthError),
        (_answer(0, None, ClientAuthenticationError), SourceAuthError),
        (CredentialUnavailableError("CANARY AADSTS700016 CANARY"), SourceAuthError),
        (_answer(404, "ContainerNotFound"), SourceNotFound),
        (_answer(503, "ServerBusy"), SourceUnavailable),
        (_answer(429), SourceUnavailable),
        (_answer(400, "InvalidUri"), SourceError),
        (_answer(0), SourceError),
        (IncompleteReadError("CANARY"), SourceError),
        (ServiceRequestError("CANARY"), SourceUnavailable),
        (ServiceResponseError("CANARY"), SourceUnavailable),
        (ConnectionResetError("CANARY"), SourceUnavailable),
        (ValueError("CANARY"), SourceError),
        (SourceNotFound("as it was"), SourceNotFound),
    ],
)
def test_every_error_of_the_libraries_is_translated(error: Exception, kind: type[SourceError]) -> None:
    with pytest.raises(SourceError) as caught, translated(ACCESS, "m: az://team/models"):
        raise error
    assert type(caught.value) is kind and "CANARY" not in str(caught.value)
    if isinstance(error, CredentialUnavailableError):
        assert "AADSTS700016" in caught.value.message


def test_nothing_is_replaced_by_an_upload(
    opened: Callable[..., AzureStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        pytest.raises(SourceError, match=r"a\.bin is there already"),
        translated(ACCESS, "m", exists="a.bin"),
    ):
        raise _answer(409, "BlobAlreadyExists")
    store, told = opened(KEY=KEY), []
    blob = SimpleNamespace(upload_blob=lambda *_, **options: told.append(options))
    monkeypatch.setattr(store._service, "get_blob_client", lambda *_: _Entered(blob))
    store.upload("a.bin", io.BytesIO(b"1"), 1)
    assert told[0]["overwrite"] is False and told[0]["length"] == 1
