"""The source `gs://bucket/prefix`: Google Cloud Storage, by Google's own library and credentials.

Every object has a generation, a number that no other content of that name ever gets: the version. Old ones
are kept where the bucket's versioning keeps them; elsewhere an object that was replaced is gone, and a build
says so.

Reading asks the JSON API for one generation, with a bearer token that may read only. A builder elsewhere gets
a URL that is signed for one generation where the credentials have a key of their own, else that token.
https://docs.cloud.google.com/storage/docs/json_api/v1/objects/get
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import timedelta
from typing import IO, TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote

from google.auth.exceptions import GoogleAuthError
from google.cloud.storage.retry import DEFAULT_RETRY
from google.oauth2 import service_account

from modelbake.errors import RevisionNotFound, SourceError
from modelbake.sources.clouds import TIMEOUT, LiveHeaders, pages_of
from modelbake.sources.gcs_access import READ, WRITE, Access, refused, translated
from modelbake.sources.kinds import subject_of
from modelbake.sources.opener import Address
from modelbake.sources.store import AddressedStore, StoredFile, hex_of
from modelbake.weightpath import shown

if TYPE_CHECKING:
    from modelbake.config import SourceSpec
    from modelbake.locked import LockedFile, LockedSource
    from modelbake.sources.patience import Patience

_SIGNED_FOR = timedelta(hours=3)
_FIELDS = "items(name,size,generation,md5Hash,crc32c,contentEncoding),nextPageToken"
_PAGE = 1000  # objects; the most that the service gives
_PIECE = 32 << 20  # bytes of an upload that are sent again if they do not arrive
_RETRY = DEFAULT_RETRY.with_delay(initial=0.5, maximum=8).with_timeout(20)  # seconds
_KEPT = "the store keeps old versions only where the bucket's versioning is on"


def open_store(spec: SourceSpec | LockedSource) -> GcsStore:
    """Return the objects that an address names. Raises SourceAuthError for unusable credentials."""
    bucket, _, prefix = spec.source.removeprefix("gs://").partition("/")
    prefix = prefix.rstrip("/")
    subject = subject_of(spec)
    return GcsStore(bucket, prefix and f"{prefix}/", subject, Access(READ, spec.server, subject))


class GcsStore(AddressedStore):
    """The objects of a bucket whose names begin with `prefix`, which is "" or ends in "/"."""

    noun = "bucket"

    def __init__(self, bucket: str, prefix: str, subject: str, access: Access) -> None:
        super().__init__(subject, access.client.api_endpoint)
        self._bucket, self._prefix, self._access = bucket, prefix, access
        self._compressed: set[str] = set()

    def listing(self) -> Iterator[StoredFile]:
        """Yield the live generation of every object."""
        with translated(self._access, self.subject):
            found = self._access.client.list_blobs(
                self._bucket,
                prefix=self._prefix,
                page_size=_PAGE,
                fields=_FIELDS,
                timeout=TIMEOUT,
                retry=_RETRY,
            )
            for page in pages_of(iter(found.pages), self.subject):
                for blob in page:
                    if not blob.name.endswith("/"):  # what consoles show as an empty folder
                        yield self._stored(blob)

    def address(self, file: LockedFile) -> Address:
        """See Store."""
        credentials = self._access.credentials
        if not isinstance(credentials, service_account.Credentials):
            # A token that was asked for a while ago may be near its end: once for all files of a build.
            with translated(self._access, self.subject):
                self._access.renew()
            return self._at_api(file, self._headers())
        with translated(self._access, self.subject):
            url = (
                self._access.client.bucket(self._bucket)
                .blob(self._prefix + file.path)
                .generate_signed_url(
                    version="v4",
                    expiration=_SIGNED_FOR,
                    generation=self._generation(file),
                    credentials=credentials,
                    api_access_endpoint=self.server,
                )
            )
        return Address(url)

    def locate(self, file: LockedFile, patience: Patience, stop: Any) -> Address:
        """Return where this program reads a file: its own server's word is final, and clear."""
        if file.path in self._compressed:
            raise SourceError(
                f"{shown(file.path)} is stored with a Content-Encoding, which the store undoes at will",
                subject=self.subject,
                hint="upload it without, or leave it out with `exclude`",
            )
        return self._at_api(file, LiveHeaders(self._headers))

    def refuse(self, file: LockedFile, status: int, headers: Mapping[str, str]) -> NoReturn:
        """Raise what an answer means."""
        subject = f"{self.subject}: {shown(file.path)}"
        if status in (401, 403):
            raise refused(self._access, subject)
        if status in (404, 412):
            raise RevisionNotFound(
                f"there is no generation {file.version} of it any more: replaced or deleted ({_KEPT})",
                subject=subject,
                hint=f"restore it, or lock what is there now: build.py lock {subject.partition(':')[0]}",
            )
        super().refuse(file, status, headers)

    def upload(self, path: str, content: IO[bytes], size: int) -> None:
        """Write a new object below the address; one that exists already is refused. Raises SourceError.

        `content` can be sought in, from where it is now: what does not arrive is sent again.
        """
        with (
            closing(Access(WRITE, self._access.server, self.subject)) as writer,
            translated(writer, self.subject, exists=path),
        ):
            blob = writer.client.bucket(self._bucket).blob(self._prefix + path, chunk_size=_PIECE)
            blob.upload_from_file(
                content, size=size, if_generation_match=0, timeout=TIMEOUT, retry=_RETRY, checksum="crc32c"
            )

    def close(self) -> None:
        """Let go of connections."""
        self._access.close()

    def _stored(self, blob: Any) -> StoredFile:
        if not isinstance(blob.generation, int) or not isinstance(blob.size, int):
            raise SourceError(
                "the server lists objects without generation or size: it is no Google Cloud Storage",
                subject=self.subject,
            )
        path = blob.name.removeprefix(self._prefix)
        if blob.content_encoding not in (None, "", "identity"):
            self._compressed.add(path)
        checksum = None
        if md5 := hex_of(blob.md5_hash or ""):  # what was composed of parts has only the other one
            checksum = ("md5", md5)
        elif crc32c := hex_of(blob.crc32c or ""):
            checksum = ("crc32c", crc32c)
        return StoredFile(path, blob.size, str(blob.generation), checksum)

    def _generation(self, file: LockedFile) -> int:
        if not re.fullmatch(r"[0-9]{1,19}", file.version):
            raise RevisionNotFound(
                f"{shown(file.version)} is no generation",
                subject=f"{self.subject}: {shown(file.path)}",
                hint="was models.lock edited? Restore it with git",
            )
        return int(file.version)

    def _headers(self) -> Mapping[str, str]:
        try:
            return self._access.headers()
        except GoogleAuthError:
            with translated(self._access, self.subject):
                raise

    def _at_api(self, file: LockedFile, headers: Mapping[str, str]) -> Address:
        name = quote(self._prefix + file.path, safe="")
        query = f"alt=media&generation={self._generation(file)}"
        return Address(f"{self.server}/storage/v1/b/{self._bucket}/o/{name}?{query}", headers, own=True)
