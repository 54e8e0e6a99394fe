"""Azure Blob Storage as a process: Azurite, Microsoft's emulator, one account and, with TLS, bearer tokens.

    with AzuriteServer(folder) as azure:            # AzuriteServer(folder, tls=True): https and bearer tokens
        container = azure.container()
        etag = azure.put(container, "llama 3/model.safetensors", data)
        azure.account_url                           # http://127.0.0.1:PORT/team

Differs from the real service: the account is the first part of the path, not of the host; there are no blob
versions (`x-ms-version-id` is never given, a `versionid` that is asked for is ignored), so an ETag is all
that names a content, and a replaced blob is gone. A bearer token's signature is not looked at, only its
audience, its issuer's form and its end, and whoever has one may do everything (no role assignments). A
refused key is 403 `AuthorizationFailure`, with `tls` 400 `InvalidAuthenticationInfo`; the service says 403
`AuthenticationFailed` to both. No soft delete. Needs Node.js 22, from `.venv/stores`.
"""

from __future__ import annotations

import base64
import datetime
import json
import secrets
import ssl
import urllib.request
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from azure.core.credentials import AccessToken
from azure.storage.blob import (
    BlobBlock,
    BlobServiceClient,
    ContainerSasPermissions,
    UserDelegationKey,
    generate_container_sas,
)

from tests.servers.hub_certificate import Certificate, make_certificate
from tests.servers.store_process import AZURITE, STORES, StoreProcess

ACCOUNT = "team"
TENANT = str(uuid.UUID(int=7))
_PROGRAM = AZURITE / "node_modules/azurite/dist/src/blob/main.js"


class AzuriteServer(StoreProcess):
    """One account; `key` opens everything, `sas` and `token` are what the cloud gives for a while."""

    name = "azurite"
    ready_path = "/"

    def __init__(self, folder: Path, host: str = "127.0.0.1", tls: bool = False) -> None:
        self.scheme = "https" if tls else "http"
        super().__init__(folder, host)
        self.key = base64.b64encode(secrets.token_bytes(64)).decode()
        self.wrong_key = base64.b64encode(secrets.token_bytes(64)).decode()
        self.account_url = f"{self.endpoint}/{ACCOUNT}"
        self.certificate: Certificate | None = None  # its `authority` is what a client must trust

    def command(self) -> list[str]:
        options = ["--blobHost", self.host, "--blobPort", str(self.port), "--location", str(self.folder)]
        if self.certificate:
            options += ["--cert", str(self.certificate.cert), "--key", str(self.certificate.key)]
            options += ["--oauth", "basic"]
        # The SDK speaks a newer version of the API. By default it would tell its makers of every start.
        options += ["--skipApiVersionCheck", "--disableTelemetry"]
        return [str(STORES / "bin/node"), str(_PROGRAM), *options]

    def environment(self) -> dict[str, str]:
        return {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{self.key}"}

    def prepare(self) -> None:
        if self.scheme == "https":
            self.certificate = make_certificate(self.folder / "tls", [self.host, "localhost"])
            context = ssl.create_default_context(cafile=str(self.certificate.authority))
            self.opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context))

    # --- credentials ----------------------------------------------------------------------------

    def connection_string(self, key: str | None = None) -> str:
        """What AZURE_STORAGE_CONNECTION_STRING holds."""
        return (
            f"DefaultEndpointsProtocol={self.scheme};AccountName={ACCOUNT};"
            f"AccountKey={key or self.key};BlobEndpoint={self.account_url};"
        )

    def token(self, seconds: float = 3600, audience: str = "https://storage.azure.com") -> str:
        """A bearer token as Entra ID gives it, for so long from now (negative: ended); only with `tls`."""
        now = datetime.datetime.now(datetime.UTC).timestamp()
        claims = {
            "aud": audience,
            "iss": f"https://sts.windows.net/{TENANT}/",
            "iat": int(now) - 7200,
            "nbf": int(now) - 7200,
            "exp": int(now + seconds),
            "oid": TENANT,
            "tid": TENANT,
        }
        parts = [_base64url(json.dumps(part).encode()) for part in ({"alg": "RS256", "typ": "JWT"}, claims)]
        return ".".join([*parts, _base64url(b"signature")])

    def credential(self, seconds: float = 3600) -> StaticToken:
        """The same for an SDK."""
        return StaticToken(self.token(seconds), seconds)

    def sas(self, container: str, seconds: float = 3600, permission: str = "rl") -> str:
        """A query that opens a container for so long, signed by the account's key."""
        return str(
            generate_container_sas(
                ACCOUNT,
                container,
                account_key=self.key,
                permission=ContainerSasPermissions.from_string(permission),
                start=_now(-7200),
                expiry=_now(seconds),
            )
        )

    def delegation_sas(self, container: str, seconds: float = 3600) -> str:
        """The same signed by a user delegation key, which a bearer token gets; only with `tls`."""
        key: UserDelegationKey = self.client(self.credential()).get_user_delegation_key(
            _now(-7200), _now(max(seconds, 60))
        )
        return str(
            generate_container_sas(
                ACCOUNT,
                container,
                user_delegation_key=key,
                permission=ContainerSasPermissions(read=True, list=True),
                start=_now(-7200),
                expiry=_now(seconds),
            )
        )

    def client(self, credential: Any = None) -> BlobServiceClient:
        """The SDK's client; with the account's key unless told. It tries once."""
        verify: dict[str, Any] = (
            {"connection_verify": str(self.certificate.authority)} if self.certificate else {}
        )
        credential = credential or {"account_name": ACCOUNT, "account_key": self.key}
        return BlobServiceClient(self.account_url, credential=credential, retry_total=0, **verify)

    # --- content --------------------------------------------------------------------------------

    def container(self) -> str:
        """Make a container and return its name."""
        name = f"models-{secrets.token_hex(6)}"
        with self.client() as client:
            client.create_container(name)
        return name

    def put(self, container: str, name: str, data: bytes) -> str:
        """Put a blob with its Content-MD5, as the SDK does for one request; return its ETag."""
        with self.client() as client:
            blob = client.get_blob_client(container, name)
            from_sdk = blob.upload_blob(data, overwrite=True)
        return str(from_sdk["etag"])

    def put_blocks(self, container: str, name: str, blocks: Sequence[bytes]) -> str:
        """Put a blob in blocks, which has no Content-MD5; return its ETag."""
        with self.client() as client:
            blob = client.get_blob_client(container, name)
            names = [f"{number:08}" for number in range(len(blocks))]
            for block, data in zip(names, blocks, strict=True):
                blob.stage_block(block, data)
            return str(blob.commit_block_list([BlobBlock(block) for block in names])["etag"])

    def delete(self, container: str, name: str) -> None:
        """Delete a blob for good."""
        with self.client() as client:
            client.get_blob_client(container, name).delete_blob()


class StaticToken:
    """A TokenCredential of the SDKs that always has the same token."""

    def __init__(self, token: str, seconds: float) -> None:
        self._token = AccessToken(token, int(_now(seconds).timestamp()))

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        """The token, whatever it is for."""
        return self._token


def _now(seconds: float) -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
