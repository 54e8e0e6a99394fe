"""The source `az://account/container/prefix`: Azure Blob Storage, by Microsoft's own library and credentials.

Where the account keeps versions every blob has a version id; else its ETag, which no other content gets, is
the version, and is demanded with If-Match: what was replaced is gone, and a build says so.

This program reads with its own right. A builder elsewhere gets a shared access signature of one blob (and
version), for reading, for a while: signed by the account's key, or by a key that Entra ID's token is given
(user delegation). A signature that the environment already has is passed on as it is.
https://learn.microsoft.com/rest/api/storageservices/get-blob
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import IO, TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote

import requests
from azure.core.pipeline.transport import RequestsTransport
from azure.storage.blob import (
    BlobSasPermissions,
    BlobServiceClient,
    BlobType,
    UserDelegationKey,
    generate_blob_sas,
)

from modelbake.errors import SourceError
from modelbake.sources.azure_access import find_access
from modelbake.sources.azure_errors import DELEGATE, refusal, translated
from modelbake.sources.clouds import LiveHeaders, equip, pages_of
from modelbake.sources.kinds import subject_of
from modelbake.sources.opener import Address
from modelbake.sources.store import AddressedStore, StoredFile
from modelbake.weightpath import shown

if TYPE_CHECKING:
    from modelbake.config import SourceSpec
    from modelbake.locked import LockedFile, LockedSource
    from modelbake.sources.patience import Patience

_GOOD_FOR = timedelta(hours=3)
_SKEW = timedelta(minutes=15)  # that clocks may differ
_API = "2021-12-02"  # the version of the REST API that reading speaks
_PAGE = 5000  # blobs; the most that the service gives
_BLOCK = 16 << 20  # bytes of an upload that are sent again if they do not arrive; 50,000 make a blob
_RETRIES: dict[str, Any] = {"retry_total": 3, "initial_backoff": 1, "increment_base": 2}  # times, seconds


def open_store(spec: SourceSpec | LockedSource) -> AzureStore:
    """Return the blobs that an address names. Raises SourceAuthError for unusable credentials."""
    account, container, *rest = spec.source.removeprefix("az://").split("/", 2)
    prefix = (rest[0] if rest else "").rstrip("/")
    return AzureStore(account, spec.server, container, prefix and f"{prefix}/", subject_of(spec))


class AzureStore(AddressedStore):
    """The blobs of a container whose names begin with `prefix`, which is "" or ends in "/"."""

    noun = "container"

    def __init__(self, account: str, server: str, container: str, prefix: str, subject: str) -> None:
        self._session = requests.Session()
        equip(self._session, subject=subject)
        transport = RequestsTransport(session=self._session, session_owner=False)
        self._access = find_access(account, server, transport, subject)
        super().__init__(subject, self._access.url)
        self._container, self._prefix = container, prefix
        self._service = BlobServiceClient(
            self._access.url,
            self._access.credential(),
            transport=transport,
            max_single_put_size=_BLOCK,
            max_block_size=_BLOCK,
            **_RETRIES,
        )
        self._unreadable: dict[str, str] = {}
        self._delegation: UserDelegationKey | None = None
        self._delegating = threading.Lock()

    def listing(self) -> Iterator[StoredFile]:
        """Yield the current version of every blob."""
        with (
            translated(self._access, self.subject),
            self._service.get_container_client(self._container) as blobs,
        ):
            # Folders of a hierarchical namespace are empty blobs that only their metadata gives away.
            found = blobs.list_blobs(self._prefix or None, include=["metadata"], results_per_page=_PAGE)
            for page in pages_of(found.by_page(), self.subject):
                for blob in page:
                    if (blob.metadata or {}).get("hdi_isfolder") != "true" and not blob.name.endswith("/"):
                        yield self._stored(blob)

    def address(self, file: LockedFile) -> Address:
        """See Store."""
        if self._access.sas is not None:
            return self._at(file, self._access.sas.reveal(), self._demand(file))
        return replace(self._at(file, self._signed(file), self._demand(file)), expires=True)

    def locate(self, file: LockedFile, patience: Patience, stop: Any) -> Address:
        """Return where this program reads a file: its own server's word is final, and clear."""
        if problem := self._unreadable.get(file.path):
            raise SourceError(
                f"{shown(file.path)} {problem}", subject=self.subject, hint="or leave it out with `exclude`"
            )
        if self._access.token is not None:
            return self._at(file, "", LiveHeaders(lambda: self._bearer(file)))
        return self.address(file)

    def refuse(self, file: LockedFile, status: int, headers: Mapping[str, str]) -> NoReturn:
        """Raise what an answer means."""
        code = next((value for name, value in headers.items() if name.lower() == "x-ms-error-code"), "")
        if error := refusal(status, code, self._access, f"{self.subject}: {shown(file.path)}"):
            raise error
        super().refuse(file, status, headers)

    def upload(self, path: str, content: IO[bytes], size: int) -> None:
        """Write a new blob below the address; one that exists already is refused. Raises SourceError."""
        with (
            translated(self._access, self.subject, exists=path),
            self._service.get_blob_client(self._container, self._prefix + path) as blob,
        ):
            blob.upload_blob(content, length=size, overwrite=False, max_concurrency=2)

    def close(self) -> None:
        """Let go of connections."""
        self._service.close()
        self._session.close()

    def _stored(self, blob: Any) -> StoredFile:
        if not isinstance(blob.size, int) or not blob.etag:
            raise SourceError(
                "the server lists blobs without size or ETag: it is no Azure Blob Storage",
                subject=self.subject,
            )
        path = blob.name.removeprefix(self._prefix)
        if blob.content_settings.content_encoding not in (None, "", "identity"):
            self._unreadable[path] = "has a Content-Encoding, which clients undo at will: upload it without"
        if blob.blob_tier == "Archive":
            self._unreadable[path] = "is in the archive tier: move it to another one (this takes hours)"
        checksum = None
        # That of pages and of what was appended to is of some earlier time.
        if blob.blob_type == BlobType.BLOCKBLOB and (md5 := blob.content_settings.content_md5):
            checksum = ("md5", bytes(md5).hex())
        return StoredFile(path, blob.size, blob.version_id or f'"{blob.etag.strip(chr(34))}"', checksum)

    def _at(self, file: LockedFile, query: str, headers: Mapping[str, str]) -> Address:
        version = "" if _is_etag(file.version) else f"versionid={quote(file.version, safe='')}"
        name = quote(self._prefix + file.path, safe="/~")
        asked = "&".join(filter(None, (version, query)))
        return Address(
            f"{self.server}/{self._container}/{name}" + (f"?{asked}" if asked else ""), headers, own=True
        )

    def _demand(self, file: LockedFile) -> Mapping[str, str]:
        return {"if-match": file.version} if _is_etag(file.version) else {}

    def _bearer(self, file: LockedFile) -> Mapping[str, str]:
        assert self._access.token is not None
        with translated(self._access, self.subject):
            token = self._access.token.header()
        return {"authorization": token, "x-ms-version": _API, **self._demand(file)}

    def _signed(self, file: LockedFile) -> str:
        """Return a signature for reading one blob, and one version of it where there are versions."""
        ends = datetime.now(UTC) + _GOOD_FOR
        right: dict[str, Any] = {}
        if self._access.key is not None:
            right["account_key"] = self._access.key.reveal()
        else:
            right["user_delegation_key"] = self._delegated(ends)
        if not _is_etag(file.version):
            right["version_id"] = file.version
        with translated(self._access, self.subject):
            return str(
                generate_blob_sas(
                    self._access.account,
                    self._container,
                    self._prefix + file.path,
                    permission=BlobSasPermissions(read=True),
                    expiry=ends,
                    protocol="https" if self.server.startswith("https:") else "https,http",
                    **right,
                )
            )

    def _delegated(self, ends: datetime) -> UserDelegationKey:
        with self._delegating, translated(self._access, self.subject, needed=DELEGATE):
            if self._delegation is None:
                start = datetime.now(UTC) - _SKEW
                self._delegation = self._service.get_user_delegation_key(start, ends + _GOOD_FOR)
            return self._delegation


def _is_etag(version: str) -> bool:
    return version.startswith('"')
