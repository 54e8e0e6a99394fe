"""Google Cloud Storage as its documented APIs describe it, as far as sources need, in a thread.

    with GcsServer(folder) as gcs:
        bucket = gcs.bucket()
        generation = gcs.put(bucket, "llama 3/model.safetensors", data)
        environment = gcs.environment_for(gcs.reader)   # GOOGLE_APPLICATION_CREDENTIALS

The emulators to be had from Python's registry know neither an object's old generations nor who asks. Here:
the JSON API (buckets, objects, pages, generations, preconditions, ranges, media, multipart and resumable
uploads, compose), V4 signed addresses (`/BUCKET/OBJECT?X-Goog-Signature=`), and the token service of service
accounts: a key file's assertion is verified and gets a bearer token that ends.
https://docs.cloud.google.com/storage/docs/json_api

Differs from the real service: rights are the account's, for every bucket alike; no conditions, no folders
(`delimiter` is refused), no `userProject`, no transcoding of gzip, no customer's encryption keys; no Security
Token Service (downscoped tokens), no signBlob of IAM; errors have code and message only.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from google.cloud import storage
from google.oauth2 import service_account

from tests.servers.gcs_objects import Generation, Objects, Refused
from tests.servers.running import RunsInThread

READ = frozenset({"get", "list"})
ALL = READ | {"create", "delete"}
PROJECT = "models"
_PADDING = padding.PKCS1v15()


@dataclass
class Account:
    """A service account: its key file, and what it may do in every bucket."""

    email: str
    key_file: Path
    key: rsa.RSAPrivateKey = field(repr=False)
    allow: frozenset[str] = READ


class _Request(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: GcsServer

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing; `seen` has it."""

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self._body = self.rfile.read(length)
        parts = urlsplit(self.path)
        self._query = dict(parse_qsl(parts.query, keep_blank_values=True))
        self.server.seen.append((self.command, self.path))
        xml = not re.match(r"/(upload/|download/)?storage/v1/|/token$", parts.path)
        try:
            if parts.path == "/token":
                self._json(self.server.exchange(self._body))
            elif xml:
                self._signed(parts.path)
            else:
                self._api(parts.path)
        except Refused as refused:
            if xml:
                body = f"<?xml version='1.0'?><Error><Code>{refused.message}</Code></Error>".encode()
                self._reply(refused.status, body, {"Content-Type": "application/xml; charset=UTF-8"})
            else:
                self._json(refused.answer(), refused.status)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - named by http.server

    # --- the JSON API ---------------------------------------------------------------------------

    def _api(self, path: str) -> None:
        account = self.server.bearer(self.headers.get("Authorization", ""))
        found = re.fullmatch(
            r"/(upload/|download/)?storage/v1/b(?:/([^/]+))?(?:/o(?:/([^/]+)(/compose)?)?)?", path
        )
        if found is None:
            raise Refused(404, "Not Found")
        bucket, name = unquote(found[2] or ""), unquote(found[3] or "")
        objects, verb = self.server.objects, self.command
        action = {"GET": "get" if name or not path.endswith("/o") else "list", "DELETE": "delete"}
        self.server.allow(account, action.get(verb, "create"), bucket)
        number = _number(self._query.get("generation"))
        expected = _number(self._query.get("ifGenerationMatch"))
        if found[1] == "upload/":
            self._upload(bucket, expected)
        elif found[4]:
            sources = [part["name"] for part in json.loads(self._body)["sourceObjects"]]
            data = b"".join(objects.get(bucket, part).data for part in sources)
            self._json(self._resource(objects.put(bucket, name, data, len(sources), expected)))
        elif verb == "POST" and not bucket:
            asked = json.loads(self._body)
            if asked["name"] in objects.buckets:
                raise Refused(409, "Your previous request to create the named bucket succeeded.")
            objects.buckets[asked["name"]] = bool(asked.get("versioning", {}).get("enabled"))
            self._json({"kind": "storage#bucket", "name": asked["name"]})
        elif verb == "DELETE":
            objects.delete(bucket, name, number)
            self._reply(204, b"", {})
        elif verb != "GET":
            raise Refused(405, "Method Not Allowed")
        elif name:
            kept = objects.get(bucket, name, number)
            if expected not in (None, kept.number):
                raise Refused(412, "At least one of the pre-conditions you specified did not hold.")
            if self._query.get("alt") == "media":
                self._media(kept)
            else:
                self._json(self._resource(kept))
        elif path.endswith("/o"):
            self._list(bucket)
        else:
            objects.need(bucket)
            versioning = {"enabled": objects.buckets[bucket]}
            self._json({"kind": "storage#bucket", "name": bucket, "versioning": versioning})

    def _list(self, bucket: str) -> None:
        if "delimiter" in self._query:
            raise Refused(501, "delimiter is not implemented here")
        versions = self._query.get("versions", "").lower() == "true"
        found = self.server.objects.listing(bucket, self._query.get("prefix", ""), versions)
        start = int(base64.b64decode(self._query.get("pageToken") or b"MA=="))
        end = start + min(int(self._query.get("maxResults") or 1000), 1000)
        answer: dict[str, Any] = {"kind": "storage#objects"}
        if page := found[start:end]:
            answer["items"] = [self._resource(kept) for kept in page]
        if end < len(found):
            answer["nextPageToken"] = base64.b64encode(str(end).encode()).decode()
        self._json(answer)

    def _upload(self, bucket: str, expected: int | None) -> None:
        kind, uploads = self._query["uploadType"], self.server.uploads
        if kind == "resumable" and self.command == "POST":
            asked = json.loads(self._body or b"{}")
            upload = secrets.token_urlsafe(24)
            uploads[upload] = ({"name": self._query.get("name"), **asked}, expected, bytearray())
            where = f"{self.server.endpoint}{self.path.partition('?')[0]}"
            self._reply(200, b"", {"Location": f"{where}?uploadType=resumable&upload_id={upload}"})
            return
        if kind == "resumable":
            if self._query.get("upload_id") not in uploads:
                raise Refused(404, "No such upload")
            asked, expected, data = uploads[self._query["upload_id"]]
            data += self._body
            total = self.headers.get("Content-Range", "").rpartition("/")[2]
            if total == "*" or (total and int(total) > len(data)):
                self._reply(308, b"", {"Range": f"bytes=0-{len(data) - 1}"} if data else {})
                return
            del uploads[self._query["upload_id"]]
            content = bytes(data)
        elif kind == "multipart":
            asked, content = _related(self.headers["Content-Type"], self._body)
        else:
            asked, content = {}, self._body
        given = Generation(bucket, "", 0, content)
        name = asked.get("name") or self._query["name"]
        if asked.get("crc32c", given.crc32c) != given.crc32c or asked.get("md5Hash", given.md5) != given.md5:
            raise Refused(400, "Provided checksum doesn't match calculated checksum.")
        self._json(self._resource(self.server.objects.put(bucket, name, content, 0, expected)))

    # --- signed addresses -----------------------------------------------------------------------

    def _signed(self, path: str) -> None:
        account = self.server.signer(self.command, path, self._query, self.headers)
        bucket, _, name = unquote(path[1:]).partition("/")
        if "get" not in account.allow:
            raise Refused(403, "AccessDenied")
        if bucket not in self.server.objects.buckets:
            raise Refused(404, "NoSuchBucket")
        try:
            kept = self.server.objects.get(bucket, name, _number(self._query.get("generation")))
        except Refused:
            raise Refused(404, "NoSuchKey") from None
        self._media(kept)

    # --- answers --------------------------------------------------------------------------------

    def _media(self, kept: Generation) -> None:
        size = len(kept.data)
        checks = [f"crc32c={kept.crc32c}", *([] if kept.parts else [f"md5={kept.md5}"])]
        headers = {
            "Content-Type": "application/octet-stream",
            "Accept-Ranges": "bytes",
            "ETag": f'"{kept.number}"',
            "X-Goog-Generation": str(kept.number),
            "X-Goog-Hash": ",".join(checks),
            "X-Goog-Stored-Content-Length": str(size),
        }
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked is None or not any(asked.groups()):
            self._reply(200, kept.data, headers)
            return
        first = int(asked[1]) if asked[1] else max(size - int(asked[2]), 0)
        end = min(int(asked[2]) + 1, size) if asked[1] and asked[2] else size
        if first >= size:
            raise Refused(416, "The requested range cannot be satisfied.")
        headers["Content-Range"] = f"bytes {first}-{end - 1}/{size}"
        self._reply(206, kept.data[first:end], headers)

    def _resource(self, kept: Generation) -> dict[str, Any]:
        return kept.resource(self.server.endpoint)

    def _json(self, answer: Mapping[str, Any], status: int = 200) -> None:
        body = json.dumps(answer).encode()
        self._reply(status, body, {"Content-Type": "application/json; charset=UTF-8"})

    def _reply(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class GcsServer(RunsInThread, http.server.ThreadingHTTPServer):
    """Three service accounts from the beginning; `seen` has every request's method and path."""

    request_queue_size = 64

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        super().__init__((host, 0), _Request)
        self.endpoint = f"http://{host}:{self.server_port}"
        self.folder = folder
        self.objects = Objects()
        self.token_seconds = 3600.0  # how long the next bearer tokens live
        self.seen: list[tuple[str, str]] = []
        self.uploads: dict[str, tuple[dict[str, Any], int | None, bytearray]] = {}
        self._tokens: dict[str, tuple[Account, float]] = {}
        self._accounts: dict[str, Account] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self.owner = self.account("owner", ALL)
        self.reader = self.account("reader", READ)
        self.stranger = self.account("stranger", frozenset())  # known, and may do nothing
        # The reader's address with a key that is not its own: the token service refuses it.
        self.wrong = self._make("reader", READ, self.folder / "wrong.json")

    def server_bind(self) -> None:
        # HTTPServer would ask the name service for the host's name
        super(http.server.HTTPServer, self).server_bind()
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    # --- accounts -------------------------------------------------------------------------------

    def account(self, name: str, allow: frozenset[str]) -> Account:
        """Make a service account that may do this: of "get", "list", "create" and "delete"."""
        made = self._make(name, allow, self.folder / f"{name}.json")
        self._accounts[made.email] = made
        return made

    def _make(self, name: str, allow: frozenset[str], path: Path) -> Account:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        made = Account(f"{name}@{PROJECT}.iam.gserviceaccount.com", path, key, allow)
        info = {
            "type": "service_account",
            "project_id": PROJECT,
            "private_key_id": secrets.token_hex(20),
            "private_key": pem.decode(),
            "client_email": made.email,
            "client_id": "1",
            "token_uri": f"{self.endpoint}/token",
        }
        path.write_text(json.dumps(info))
        return made

    def environment_for(self, account: Account | None) -> dict[str, str]:
        """The variables of a process that finds this account's key file, or no credentials at all."""
        found = {
            "GOOGLE_CLOUD_PROJECT": PROJECT,
            "NO_GCE_CHECK": "true",
            "CLOUDSDK_CONFIG": str(self.folder / "no-gcloud"),
        }
        if account is not None:
            found["GOOGLE_APPLICATION_CREDENTIALS"] = str(account.key_file)
        return found

    def client(self, account: Account | None = None) -> storage.Client:
        """The SDK's client; the owner's unless told."""
        credentials = service_account.Credentials.from_service_account_file(  # type: ignore[no-untyped-call]
            str((account or self.owner).key_file),
            scopes=["https://www.googleapis.com/auth/devstorage.read_write"],
        )
        options = {"api_endpoint": self.endpoint}
        return storage.Client(project=PROJECT, credentials=credentials, client_options=options)

    def end_tokens(self) -> None:
        """Every bearer token given so far is over."""
        self._tokens.clear()

    # --- content --------------------------------------------------------------------------------

    def bucket(self, versioned: bool = True) -> str:
        """Make a bucket and return its name."""
        name = f"models-{secrets.token_hex(6)}"
        self.objects.buckets[name] = versioned
        return name

    def put(self, bucket: str, name: str, data: bytes) -> str:
        """Put an object; return its generation."""
        return str(self.objects.put(bucket, name, data).number)

    def put_composed(self, bucket: str, name: str, parts: Sequence[bytes]) -> str:
        """Put an object composed of parts, which has no MD5; return its generation."""
        return str(self.objects.put(bucket, name, b"".join(parts), len(parts)).number)

    def delete(self, bucket: str, name: str, generation: str | None = None) -> None:
        """Delete an object (a versioned bucket keeps its generations), or one generation for good."""
        self.objects.delete(bucket, name, _number(generation))

    def fill(self, bucket: str, prefix: str, count: int) -> None:
        """Put `count` objects of six bytes, numbered below `prefix`."""
        for number in range(count):
            self.objects.put(bucket, f"{prefix}{number:06}.bin", b"%06d" % number)

    # --- who asks -------------------------------------------------------------------------------

    def exchange(self, body: bytes) -> dict[str, Any]:
        """The token service: a service account's signed assertion for a bearer token."""
        asked = dict(parse_qsl(body.decode()))
        account = self._asserted(asked.get("assertion", ""))
        if asked.get("grant_type") != "urn:ietf:params:oauth:grant-type:jwt-bearer" or account is None:
            raise Refused(400, "Invalid JWT Signature.", "invalid_grant")
        token = "ya29." + secrets.token_urlsafe(60)
        self._tokens[token] = (account, time.time() + self.token_seconds)
        return {"access_token": token, "expires_in": int(self.token_seconds), "token_type": "Bearer"}

    def bearer(self, header: str) -> Account:
        """The account of an Authorization header. Raises Refused: 401."""
        account, end = self._tokens.get(header.removeprefix("Bearer "), (None, 0.0))
        if account is None:  # an assertion may be sent as the token itself
            account, end = self._asserted(header.removeprefix("Bearer ")), time.time() + 1
        if account is None or end <= time.time():
            words = (
                "Invalid Credentials" if header else "Anonymous caller does not have storage.objects access."
            )
            raise Refused(401, words)
        return account

    def allow(self, account: Account, action: str, bucket: str) -> None:
        """Raise Refused, 403, if the account may not do this."""
        if action not in account.allow:
            right = f"storage.objects.{action}"
            raise Refused(
                403,
                f"{account.email} does not have {right} access to the Google Cloud Storage object. "
                f"Permission '{right}' denied on resource (or it may not exist).",
            )

    def signer(self, method: str, path: str, query: Mapping[str, str], headers: Message) -> Account:
        """Who signed an address. https://docs.cloud.google.com/storage/docs/authentication/canonical-requests"""
        if "X-Goog-Signature" not in query:
            raise Refused(403, "AccessDenied")
        email, _, scope = query["X-Goog-Credential"].partition("/")
        signed = query["X-Goog-SignedHeaders"]
        pairs = [
            f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}"
            for name, value in query.items()
            if name != "X-Goog-Signature"
        ]
        lines = [f"{name}:{' '.join((headers.get(name) or '').split())}" for name in signed.split(";")]
        canonical = [method, path, "&".join(sorted(pairs)), *lines, "", signed, "UNSIGNED-PAYLOAD"]
        digest = hashlib.sha256("\n".join(canonical).encode()).hexdigest()
        text = "\n".join(["GOOG4-RSA-SHA256", query["X-Goog-Date"], scope, digest])
        account = self._accounts.get(email)
        signature = bytes.fromhex(query["X-Goog-Signature"])
        if account is None or not _verified(account, signature, text.encode()):
            raise Refused(403, "SignatureDoesNotMatch")
        made = datetime.strptime(query["X-Goog-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        if time.time() > made.timestamp() + int(query["X-Goog-Expires"]):
            raise Refused(400, "ExpiredToken")
        return account

    def _asserted(self, assertion: str) -> Account | None:
        text, _, signature = assertion.rpartition(".")
        if text.count(".") != 1:
            return None
        claims = json.loads(_from_base64url(text.partition(".")[2]))
        account = self._accounts.get(claims["iss"])
        if account is None or claims["exp"] <= time.time():
            return None
        return account if _verified(account, _from_base64url(signature), text.encode()) else None


def _verified(account: Account, signature: bytes, text: bytes) -> bool:
    try:
        account.key.public_key().verify(signature, text, _PADDING, hashes.SHA256())
    except InvalidSignature:
        return False
    return True


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)


def _from_base64url(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _related(content_type: str, body: bytes) -> tuple[dict[str, Any], bytes]:
    """The description and the content of a body of multipart/related."""
    boundary = content_type.partition("boundary=")[2].strip("\"'").encode()
    _, described, content, _ = body.split(b"--" + boundary, 3)
    return json.loads(described.partition(b"\r\n\r\n")[2]), content.partition(b"\r\n\r\n")[2][:-2]
