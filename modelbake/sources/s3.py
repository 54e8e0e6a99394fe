"""The source `s3://bucket/prefix`: Amazon S3, and what speaks its API, at `endpoint`.

An object's version is its version id. Where the bucket keeps none, or the right to list them is missing, it
is the ETag in its quotes: a reader demands it by If-Match, so that a replaced object is an error, but the old
one cannot be had any more. Bytes are read at signed addresses, which are good for one version and a while.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError

from modelbake.errors import SourceError, SourceNotFound, SourceUnavailable
from modelbake.sources.aws import client
from modelbake.sources.aws_errors import code_of, translated
from modelbake.sources.kinds import subject_of
from modelbake.sources.opener import Address
from modelbake.sources.patience import Patience
from modelbake.sources.store import AddressedStore, StoredFile, hex_of
from modelbake.weightpath import shown

if TYPE_CHECKING:
    from modelbake.config import SourceSpec
    from modelbake.locked import LockedFile, LockedSource

RIGHTS = "s3:ListBucket, s3:ListBucketVersions, s3:GetObject and s3:GetObjectVersion"
_UPLOAD_RIGHTS = "s3:PutObject and s3:AbortMultipartUpload"
_GOOD_FOR = 3 * 60 * 60  # seconds that an address lasts, if the credentials it is signed with do
_AMAZON = (".amazonaws.com", ".amazonaws.com.cn", ".amazonaws.eu", ".api.aws")
_MD5 = re.compile(r'"[0-9a-f]{32}"')
_LISTED = frozenset({"Key", "Size", "ETag"})  # what S3 says of every object
_SMALLEST_PART, _MOST_PARTS = 16 << 20, 9_000  # S3 takes 10,000 parts


def open_store(spec: SourceSpec | LockedSource) -> S3Store:
    """Return the bucket and prefix that an address names. Raises SourceError."""
    bucket, _, prefix = spec.source.removeprefix("s3://").partition("/")
    return S3Store(subject_of(spec), bucket, prefix.rstrip("/"), endpoint=spec.server)


class S3Store(AddressedStore):
    """Objects below a prefix. `prefix`: without the last slash, "" for all of the bucket."""

    noun = "bucket"

    def __init__(
        self, subject: str, bucket: str, prefix: str, *, endpoint: str = "", region: str = ""
    ) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._client = client("s3", subject, endpoint=endpoint, region=region)
        host = urlsplit(self._client.meta.endpoint_url).hostname or ""
        if host.endswith(_AMAZON):
            with translated(subject, rights=RIGHTS):
                there = region_of(self._client, bucket)
            if there not in ("", self._client.meta.region_name):
                self._client = client("s3", subject, endpoint=endpoint, region=there)
        elif not endpoint:  # one that AWS_ENDPOINT_URL_S3 or a profile names
            self._client = client("s3", subject, endpoint=self._client.meta.endpoint_url, region=region)
        with translated(subject, rights=RIGHTS):
            server = self._client.generate_presigned_url("head_bucket", Params={"Bucket": bucket})
        super().__init__(subject, server.partition("?")[0])

    def listing(self) -> Iterator[StoredFile]:
        """Yield the latest version of every object below the prefix; none of what was deleted."""
        count = 0
        for entry in self._entries():
            path = entry["Key"].removeprefix(self._prefix)
            if path and not (path.endswith("/") and not entry["Size"]):  # what consoles make of a folder
                count += 1
                yield self._stored(path, entry)
        if not count and self._prefix:
            self._require_folder()

    def find(self, path: str, version: str = "") -> tuple[StoredFile, str]:
        """Return one object, the latest version of it unless told, and its ETag in quotes."""
        where = (
            self._where(path, version) if version else {"Bucket": self._bucket, "Key": self._prefix + path}
        )
        with translated(f"{self.subject}: {shown(path)}", rights=RIGHTS):
            head = self._client.head_object(**where)
            found = self._stored(path, {**head, "Size": head["ContentLength"]})
            return (replace(found, version=version) if version else found), _quoted(head["ETag"])

    def address(self, file: LockedFile) -> Address:
        """Return a signed address of one version. See Store."""
        with translated(f"{self.subject}: {shown(file.path)}", rights=RIGHTS):
            url = self._client.generate_presigned_url(
                "get_object", Params=self._where(file.path, file.version), ExpiresIn=_GOOD_FOR
            )
        headers = {"If-Match": file.version} if _is_etag(file.version) else {}
        return Address(url, headers, own=True, expires=True)

    def refuse(self, file: LockedFile, status: int, headers: Mapping[str, str]) -> NoReturn:
        """Raise what a refusal means: the SDK is refused too, and told why."""
        subject = f"{self.subject}: {shown(file.path)}"
        with translated(subject, rights=RIGHTS):
            where = self._where(file.path, file.version)
            self._client.get_object(**where, Range="bytes=0-0")["Body"].close()
        raise SourceUnavailable(f"the store answers {status} for a file", subject=subject, hint="try again")

    def upload(self, path: str, content: IO[bytes], size: int) -> None:
        """Put a new object of `size` bytes, in parts where it is large. Raises SourceError; replaces none."""
        for operation in ("PutObject", "CompleteMultipartUpload"):
            # boto3's transfers have no argument for it. Signing comes after this.
            event = f"before-call.s3.{operation}"
            self._client.meta.events.register(event, _only_if_new, unique_id=f"modelbake-{operation}")
        parts = TransferConfig(multipart_chunksize=max(_SMALLEST_PART, size // _MOST_PARTS + 1))
        with translated(f"{self.subject}: {shown(path)}", rights=_UPLOAD_RIGHTS):
            try:
                self._client.upload_fileobj(content, self._bucket, self._prefix + path, Config=parts)
            except (S3UploadFailedError, ClientError) as error:
                if "PreconditionFailed" in str(error):
                    raise SourceError(
                        f"{shown(path)} is there by now; it was not replaced",
                        subject=self.subject,
                        hint="somebody else puts files there: choose another prefix",
                    ) from error
                if isinstance(error, ClientError):
                    raise  # what else it means is said for all of them
                raise SourceUnavailable("the upload failed", subject=self.subject) from error

    def _entries(self) -> Iterator[Mapping[str, Any]]:
        """Yield what S3 lists of each object; without a version id where it cannot be had."""
        where = {"Bucket": self._bucket, "Prefix": self._prefix}
        deadline = time.monotonic() + Patience().listing
        with translated(self.subject, rights=RIGHTS):
            pages = iter(self._client.get_paginator("list_object_versions").paginate(**where))
            page: Mapping[str, Any]
            try:
                page, listed = next(pages, {}), "Versions"
            except ClientError as error:
                # Who may not list versions may still list; some servers do not know the question.
                if code_of(error) not in ("AccessDenied", "NotImplemented", "MethodNotAllowed"):
                    raise
                pages = iter(self._client.get_paginator("list_objects_v2").paginate(**where))
                page, listed = next(pages, {}), "Contents"
            while page:
                for entry in page.get(listed, ()):
                    if missing := _LISTED - entry.keys():
                        raise KeyError(*missing)
                    if entry.get("IsLatest", True):
                        yield entry
                if time.monotonic() > deadline:
                    raise SourceUnavailable("the listing takes too long", subject=self.subject)
                page = next(pages, {})

    def _stored(self, path: str, entry: Mapping[str, Any]) -> StoredFile:
        version, etag = entry.get("VersionId", "null"), _quoted(entry["ETag"])
        if version == "null":  # of a bucket without versions: whatever comes next has the same name
            version = etag
        return StoredFile(path, entry["Size"], version, lambda: self._checksum(path, version, etag))

    def _checksum(self, path: str, version: str, etag: str) -> tuple[str, str] | None:
        """Return what S3 says of a whole object: a SHA-256, or an ETag that is an MD5."""
        with translated(f"{self.subject}: {shown(path)}", rights=RIGHTS):
            head = self._client.head_object(**self._where(path, version), ChecksumMode="ENABLED")
        said = hex_of(head.get("ChecksumSHA256", ""))
        if len(said) == 64 and head.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT":
            return "sha256", said
        # https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html: with a key of KMS or of the
        # customer's, and in directory buckets, an ETag may look like an MD5 and be none.
        plain = head.get("ServerSideEncryption", "AES256") == "AES256" and "SSECustomerAlgorithm" not in head
        if plain and _MD5.fullmatch(etag) and not self._bucket.endswith("--x-s3"):
            return "md5", etag.strip('"')
        return None

    def _where(self, path: str, version: str) -> dict[str, str]:
        this = {"IfMatch": version} if _is_etag(version) else {"VersionId": version}
        return {"Bucket": self._bucket, "Key": self._prefix + path, **this}

    def _require_folder(self) -> None:
        """Raise SourceNotFound where the address names an object."""
        with translated(self.subject, rights=RIGHTS):
            key = self._prefix.removesuffix("/")
            listed = self._client.list_objects_v2(Bucket=self._bucket, Prefix=key, MaxKeys=1)
        if [entry["Key"] for entry in listed.get("Contents", ())] == [key]:
            raise SourceNotFound(
                "is an object; name the prefix it is below, and the object in `include`", subject=self.subject
            )


def region_of(s3: Any, bucket: str) -> str:
    """Return the region of a bucket, "" if S3 does not say; it does so in refusals, too.

    An address that is signed for another region is worth nothing.
    """
    try:
        answer = s3.head_bucket(Bucket=bucket)
    except ClientError as error:
        answer = error.response  # what it refuses is asked for again, with an answer that says why
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return str(headers.get("x-amz-bucket-region", ""))


def _only_if_new(params: dict[str, Any], **_: Any) -> None:
    params["headers"]["If-None-Match"] = "*"


def _quoted(etag: str) -> str:
    return '"' + etag.strip('"') + '"'


def _is_etag(version: str) -> bool:
    return version.startswith('"')
