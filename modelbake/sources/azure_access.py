"""Who asks Azure Blob Storage, and where an account is: the environment, then `DefaultAzureCredential`.

The environment is that of the `az` program: AZURE_STORAGE_CONNECTION_STRING; AZURE_STORAGE_KEY or
AZURE_STORAGE_SAS_TOKEN, of the account AZURE_STORAGE_ACCOUNT if that is set. What is said of another account
than the source's is not for it. Without them there is Entra ID: a service principal or workload identity of
the environment, a managed identity, the login of `az`, PowerShell or `azd`.
https://learn.microsoft.com/azure/storage/blobs/authorize-data-operations-cli#set-environment-variables-for-authorization-parameters
https://learn.microsoft.com/python/api/azure-identity/azure.identity.defaultazurecredential
"""

from __future__ import annotations

import base64
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from azure.core.pipeline.transport import RequestsTransport

from modelbake.credentials import Secret
from modelbake.errors import SourceAuthError
from modelbake.process import environment

CHAIN = (
    "AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_KEY, AZURE_STORAGE_SAS_TOKEN, then DefaultAzureCredential"
    ": service principal or workload identity of the environment, managed identity, az, PowerShell, azd"
)
_NAMES = ("AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN")
_SCOPE = "https://storage.azure.com/.default"
_SPARE = 300  # seconds before its end that a token is not used any more
_QUERY = re.compile(r"\??([!-~]+)")


@dataclass(frozen=True)
class Access:
    """What opens an account, one of three. `url`: of its blob service. `named`: where the right was found."""

    account: str
    url: str
    named: str
    key: Secret | None = None
    sas: Secret | None = None
    token: Token | None = None

    def credential(self) -> Any:
        """Return it as the library takes it."""
        if self.key is not None:
            return {"account_name": self.account, "account_key": self.key.reveal()}
        if self.sas is not None:
            return self.sas.reveal()
        return self.token.credential if self.token is not None else None


class Token:
    """A bearer token of Entra ID, asked for anew before it ends."""

    def __init__(self, credential: Any) -> None:
        self.credential = credential
        self._one = threading.Lock()
        self._value, self._end = "", 0.0

    def header(self) -> str:
        """Return what Authorization has to say. Raises AzureError."""
        with self._one:
            if time.time() > self._end - _SPARE:
                token = self.credential.get_token(_SCOPE)
                self._value, self._end = token.token, token.expires_on
            return f"Bearer {self._value}"


def find_access(account: str, server: str, transport: RequestsTransport, subject: str) -> Access:
    """Return what this machine's environment opens of an account.

    `server`: the URL of its blob service as models.yaml names it, or "". Raises SourceAuthError where that
    cannot be used; whether it opens anything, only the service knows.
    """
    environ = environment()
    usual = f"https://{account}.blob.core.windows.net"
    if (text := environ.get("AZURE_STORAGE_CONNECTION_STRING", "")) and (
        found := _of_connection(text, account, server or usual, subject)
    ):
        return found
    if environ.get("AZURE_STORAGE_ACCOUNT") in (None, "", account):
        if key := environ.get("AZURE_STORAGE_KEY"):
            return Access(
                account, server or usual, "AZURE_STORAGE_KEY", key=_key(key, "AZURE_STORAGE_KEY", subject)
            )
        if sas := environ.get("AZURE_STORAGE_SAS_TOKEN"):
            return Access(
                account,
                server or usual,
                "AZURE_STORAGE_SAS_TOKEN",
                sas=_sas(sas, "AZURE_STORAGE_SAS_TOKEN", subject),
            )
    of_another = [name for name in _NAMES if environ.get(name)]
    besides = f" ({', '.join(of_another)}: of another account)" if of_another else ""
    if server.startswith("http://"):
        raise SourceAuthError(
            f"there is no key or signature for it{besides}, and Entra ID's tokens are sent over TLS only",
            subject=subject,
            hint=f"tried: {CHAIN}",
        )
    return Access(
        account,
        server or usual,
        f"DefaultAzureCredential{besides}",
        token=Token(_default(transport, subject)),
    )


def _default(transport: RequestsTransport, subject: str) -> Any:
    from azure.identity import ClientSecretCredential, DefaultAzureCredential

    environ = environment()
    principal = [environ.get(f"AZURE_{name}", "") for name in ("TENANT_ID", "CLIENT_ID", "CLIENT_SECRET")]
    chosen = environ.get("AZURE_TOKEN_CREDENTIALS", "").strip().lower()
    try:
        # The chain's first link, which would look for the secret where no child may find it.
        if all(principal) and chosen in ("", "prod", "environmentcredential"):
            return ClientSecretCredential(*principal, transport=transport, retry_total=2)
        return DefaultAzureCredential(transport=transport, retry_total=2)
    except ValueError as error:  # of AZURE_AUTHORITY_HOST, AZURE_TOKEN_CREDENTIALS, AZURE_TENANT_ID
        raise SourceAuthError(
            "the variables AZURE_... of the environment contradict themselves",
            subject=subject,
            hint=f"tried: {CHAIN}",
        ) from error


def _of_connection(text: str, account: str, url: str, subject: str) -> Access | None:
    """Return what a connection string opens, None where it is of another account."""
    name = "AZURE_STORAGE_CONNECTION_STRING"
    said: Mapping[str, str] = {
        key.strip().lower(): value
        for key, separator, value in (part.partition("=") for part in text.split(";"))
        if separator
    }
    endpoint = said.get("blobendpoint", "").rstrip("/")
    if said.get("accountname", account) != account or ("accountname" not in said and endpoint != url):
        return None
    if not endpoint and (suffix := said.get("endpointsuffix")):
        endpoint = f"{said.get('defaultendpointsprotocol', 'https')}://{account}.blob.{suffix}"
    # models.yaml decides where to go; what is in the environment only where it says nothing.
    is_usual = url == f"https://{account}.blob.core.windows.net"
    there = endpoint if endpoint and is_usual else url
    if key := said.get("accountkey"):
        return Access(account, there, name, key=_key(key, name, subject))
    if sas := said.get("sharedaccesssignature"):
        return Access(account, there, name, sas=_sas(sas, name, subject))
    raise SourceAuthError(
        f"{name} has neither AccountKey nor SharedAccessSignature", subject=subject, hint=f"tried: {CHAIN}"
    )


def _key(text: str, name: str, subject: str) -> Secret:
    try:
        base64.b64decode(text, validate=True)
    except ValueError:
        raise _unusable(name, "an account's key in base64", subject) from None
    return Secret(text)


def _sas(text: str, name: str, subject: str) -> Secret:
    if (found := _QUERY.fullmatch(text)) is None or "sig=" not in text:
        raise _unusable(name, "a shared access signature: sv=...&sig=...", subject)
    return Secret(found[1])


def _unusable(name: str, what: str, subject: str) -> SourceAuthError:
    return SourceAuthError(f"{name} does not hold {what}", subject=subject, hint=f"tried: {CHAIN}")
