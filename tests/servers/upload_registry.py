"""A registry in memory that takes uploads as the real one does, and troubles them on purpose.

    with UploadRegistry() as server:
        server.trouble("patch", cut=1000)             # the first PATCH: keep 1000 bytes, then reset
        server.trouble("commit", status=429, retry_after=7, at=2, times=3)
        ...
        assert server.blobs("ml/a") == {...} and not server.sessions and server.count("cancel") == 1

It wants a password. A session's bytes are kept where the connection breaks, and GET tells how many they are.
As with CNCF distribution 3, `Range: 0-0` means none as well as one, a PATCH whose Content-Range is empty or
begins elsewhere is refused (416), a commit compares the digest (400 DIGEST_INVALID), and a manifest is taken
only where its blobs are, an index only where its manifests are. With `referrers=True` it has the referrers
API, two entries a page, which CNCF distribution lacks.
https://github.com/opencontainers/distribution-spec/blob/main/spec.md
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import socket
import struct
import sys
import threading
import traceback
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from tests.servers.running import RunsInThread

Kind = Literal[
    "ping", "open", "patch", "status", "commit", "cancel", "head", "blob", "put-manifest", "manifest", "tags",
    "referrers", "delete-manifest",
]  # fmt: skip
USER, PASSWORD = "publisher", "registry-password"
_ROUTES = (
    ("tags", re.compile(r"/v2/(.+)/tags/list")),
    ("session", re.compile(r"/v2/(.+)/blobs/uploads/([0-9a-f]+)")),
    ("open", re.compile(r"/v2/(.+)/blobs/uploads/")),
    ("blob", re.compile(r"/v2/(.+)/blobs/(sha256:[0-9a-f]{64})")),
    ("manifest", re.compile(r"/v2/(.+)/manifests/([^/]+)")),
    ("referrers", re.compile(r"/v2/(.+)/referrers/(sha256:[0-9a-f]{64})")),
)
_SESSION_KINDS: dict[str, Kind] = {"PATCH": "patch", "GET": "status", "PUT": "commit", "DELETE": "cancel"}
_PIECE = 64 * 1024


@dataclass
class Seen:
    """An authorized request and its answer; `received`: bytes of its body, `status`: 0 for none."""

    kind: Kind
    method: str
    path: str
    query: str
    headers: dict[str, str]
    received: int = 0
    status: int = 0


@dataclass(frozen=True)
class Trouble:
    """What happens to the requests of one kind, from the `at`th on, `times` times.

    `status`: that answer, and nothing else, is given, with `retry_after` and an error `code`. `cut`: the
    connection is reset when so many bytes of the body have arrived, which are kept. `lose`: the request is
    carried out and the connection closed without an answer. `flip`: the lowest bit of this byte of the body
    is turned. `says`: this is the answer's Range.
    """

    kind: Kind
    at: int
    times: int
    status: int = 0
    retry_after: int | str | None = None
    code: str = "UNKNOWN"
    cut: int | None = None
    lose: bool = False
    flip: int | None = None
    says: str | None = None


@dataclass
class Session:
    """An upload that was begun, and neither committed nor cancelled."""

    path: str
    data: bytearray = field(default_factory=bytearray)


@dataclass
class Repository:
    """One repository: `blobs` by digest, `manifests` (media type, bytes) by digest, digests by tag."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class _CutError(Exception):
    """The connection ends here."""


class _Request(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: UploadRegistry

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != self.server.authorization:
            self.seen = Seen("ping", "", "", "", {})  # not kept: what counts is what is authorized
            self._drain()
            self._reply(401, b"{}", {"WWW-Authenticate": 'Basic realm="test"'})
            return
        url = urlsplit(self.path)
        route, match = next(
            ((name, found) for name, pattern in _ROUTES if (found := pattern.fullmatch(url.path))), ("", None)
        )
        kind = self._kind(route)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.seen = Seen(kind, self.command, url.path, url.query, headers)
        with self.server.lock:
            self.server.seen.append(self.seen)
            trouble = self.server.next_trouble(kind)
        try:
            if trouble and trouble.status:
                self._refuse(trouble.status, trouble.code, trouble.retry_after)
                self._drain()  # afterwards, as servers do that linger: the client may still be sending
                return
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            self._answer(route, match.groups() if match else (), query, trouble)
        except _CutError:
            self._reset()

    do_HEAD = do_POST = do_PATCH = do_PUT = do_DELETE = do_GET  # noqa: N815 - named by http.server

    def _kind(self, route: str) -> Kind:
        match route:
            case "session":
                return _SESSION_KINDS[self.command]
            case "manifest":
                named: dict[str, Kind] = {"PUT": "put-manifest", "DELETE": "delete-manifest"}
                return named.get(self.command, "manifest")
            case "blob":
                return "head" if self.command == "HEAD" else "blob"
            case "open":
                return "open"
            case "tags":
                return "tags"
            case "referrers":
                return "referrers"
        return "ping"

    def _answer(
        self, route: str, names: tuple[str, ...], query: dict[str, str], trouble: Trouble | None
    ) -> None:
        repository = self.server.repository(names[0]) if names else Repository()
        match route:
            case "open":
                self._open(names[0], repository, query)
            case "session":
                self._session(names[0], names[1], query, trouble)
            case "blob":
                data = repository.blobs.get(names[1])
                part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                if data is not None and part:
                    self._reply(206, data[int(part[1]) : int(part[2]) + 1])
                else:
                    self._reply(404 if data is None else 200, data or b"")
            case "manifest" if self.command == "PUT":
                self._put_manifest(repository, names[1], trouble)
            case "manifest" if self.command == "DELETE":
                self._delete_manifest(repository, names[1])
            case "manifest":
                found = repository.manifests.get(repository.tags.get(names[1], names[1]))
                media_type, body = found or ("application/json", b"{}")
                self._reply(200 if found else 404, body, {"Content-Type": media_type})
            case "tags":
                self._reply(200, json.dumps({"tags": sorted(repository.tags)}).encode())
            case "referrers" if self.server.referrers:
                self._referrers(repository, names[1], int(query.get("page", 0)))
            case _:
                self._reply(200 if self.path == "/v2/" else 404, b"{}")

    def _open(self, path: str, repository: Repository, query: dict[str, str]) -> None:
        self._drain()
        mount = query.get("mount", "")
        held = self.server.repository(query.get("from", "")).blobs.get(mount)
        if held is not None and self.server.mounts:
            repository.blobs[mount] = held
            self._reply(201, b"", {"Location": f"/v2/{path}/blobs/{mount}"})
            return
        number = uuid.uuid4().hex
        with self.server.lock:
            self.server.sessions[number] = Session(path)
        self._reply(202, b"", {"Location": self._location(path, number)})

    def _session(self, path: str, number: str, query: dict[str, str], trouble: Trouble | None) -> None:
        session = self.server.sessions.get(number)
        if session is None or session.path != path:
            self._refuse(404, "BLOB_UPLOAD_UNKNOWN")
            self._drain()
            return
        if self.command == "DELETE":
            del self.server.sessions[number]
            self._reply(204)
            return
        if query.get("_state") != number[::-1]:
            self._refuse(400, "BLOB_UPLOAD_INVALID")  # whoever builds the address anew is to be found out
            self._drain()
            return
        if self.command == "PATCH" and not self._fits(session):
            self._refuse(416, "RANGE_INVALID")
            self._drain()
            return
        flip = trouble.flip if trouble else None
        for piece in self._body(trouble.cut if trouble else None):
            begin = self.seen.received - len(piece)
            if flip is not None and begin <= flip < begin + len(piece):
                changed = bytearray(piece)
                changed[flip - begin] ^= 1
                piece = bytes(changed)
            session.data += piece
        if self.command == "PUT" and not self._commit(path, number, session, query["digest"]):
            return
        if trouble and trouble.lose:
            raise _CutError
        headers = {"Location": self._location(path, number)}
        if self.command != "PUT":
            headers["Range"] = f"0-{max(0, len(session.data) - 1)}"
            if trouble and trouble.says is not None:
                headers["Range"] = trouble.says
        self._reply({"PATCH": 202, "GET": 204, "PUT": 201}[self.command], b"", headers)

    def _fits(self, session: Session) -> bool:
        asked = self.headers.get("Content-Range")
        if asked is None:
            return True
        match = re.fullmatch(r"(\d+)-(\d+)", asked)
        if match is None:
            return False
        start, end = int(match[1]), int(match[2])
        length = int(self.headers.get("Content-Length", -1))
        return start <= end and start == len(session.data) and length == end - start + 1

    def _commit(self, path: str, number: str, session: Session, digest: str) -> bool:
        data = bytes(session.data)
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
            self._refuse(400, "DIGEST_INVALID")
            return False
        with self.server.lock:
            self.server.repository(path).blobs[digest] = data
            del self.server.sessions[number]
        return True

    def _put_manifest(self, repository: Repository, tag: str, trouble: Trouble | None) -> None:
        body = b"".join(self._body(trouble.cut if trouble else None))
        document = json.loads(body)
        wanted = [each["digest"] for each in (document.get("config"), *document.get("layers", ())) if each]
        listed = [each["digest"] for each in document.get("manifests", ())]
        if any(digest not in repository.blobs for digest in wanted) or any(
            digest not in repository.manifests for digest in listed
        ):
            self._refuse(404, "MANIFEST_BLOB_UNKNOWN")
            return
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        with self.server.lock:
            repository.manifests[digest] = (self.headers["Content-Type"], body)
            if ":" not in tag:
                repository.tags[tag] = digest
        if trouble and trouble.lose:
            raise _CutError
        headers = {"Docker-Content-Digest": digest}
        if self.server.referrers and "subject" in document:
            headers["OCI-Subject"] = document["subject"]["digest"]
        self._reply(201, b"", headers)

    def _delete_manifest(self, repository: Repository, digest: str) -> None:
        """By digest alone, with all of its tags, as CNCF distribution 2 does."""
        if not self.server.deletes or ":" not in digest:
            self._refuse(405, "UNSUPPORTED")
            return
        with self.server.lock:
            known = repository.manifests.pop(digest, None)
            repository.tags = {tag: named for tag, named in repository.tags.items() if named != digest}
        self._reply(202 if known else 404, b"{}")

    def _referrers(self, repository: Repository, subject: str, page: int) -> None:
        entries = []
        for digest, (media_type, body) in repository.manifests.items():
            document = json.loads(body)
            if document.get("subject", {}).get("digest") == subject:
                facts = {key: document[key] for key in ("artifactType", "annotations") if key in document}
                entries.append({"mediaType": media_type, "digest": digest, "size": len(body), **facts})
        shown = entries[2 * page : 2 * page + 2]
        headers = {"Content-Type": "application/vnd.oci.image.index.v1+json"}
        if len(entries) > 2 * page + 2:
            headers["Link"] = f'<{urlsplit(self.path).path}?page={page + 1}>; rel="next"'
        self._reply(200, json.dumps({"schemaVersion": 2, "manifests": shown}).encode(), headers)

    def _location(self, path: str, number: str) -> str:
        root = f"http://{self.server.host}" if self.server.absolute else ""
        return f"{root}/v2/{path}/blobs/uploads/{number}?_state={number[::-1]}"

    def _body(self, cut: int | None = None) -> Iterator[bytes]:
        """Yield the body as it arrives, at most `cut` bytes of it: then the connection ends."""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            pieces = self._chunks()
        else:
            pieces = self._read(int(self.headers.get("Content-Length", 0)))
        for piece in pieces:
            if cut is not None and self.seen.received + len(piece) >= cut:
                piece = piece[: cut - self.seen.received]
                self.seen.received += len(piece)
                yield piece
                raise _CutError
            self.seen.received += len(piece)
            yield piece

    def _read(self, count: int) -> Iterator[bytes]:
        while count:
            # What has arrived of a body counts even where the rest never comes.
            piece = self.rfile.read1(min(count, _PIECE))
            if not piece:
                raise _CutError
            count -= len(piece)
            yield piece

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline() or b"0", 16):
            yield from self._read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _drain(self) -> None:
        if self.command in ("POST", "PATCH", "PUT"):
            chunked = "Transfer-Encoding" in self.headers
            try:
                for _ in (
                    self._chunks() if chunked else self._read(int(self.headers.get("Content-Length", 0)))
                ):
                    pass
            except (_CutError, ValueError):
                self.close_connection = True

    def _refuse(self, status: int, code: str, retry_after: int | str | None = None) -> None:
        body = json.dumps({"errors": [{"code": code, "message": "as the test wants"}]}).encode()
        retry = {} if retry_after is None else {"Retry-After": str(retry_after)}
        if status == 401:
            retry["WWW-Authenticate"] = 'Basic realm="test"'
        self._reply(status, body, {"Content-Type": "application/json", **retry})

    def _reply(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.seen.status = status
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            if status != 204 or name != "Content-Length":
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class UploadRegistry(RunsInThread, http.server.ThreadingHTTPServer):
    """The server, for the length of a `with` block. `host` is its host:port.

    `mounts`: whether blobs of other repositories are mounted; `absolute`: whether Location has a host;
    `referrers`: whether it has the referrers API; `deletes`: whether manifests are deleted where asked.
    `sessions`: uploads that were begun, and neither committed nor cancelled. `seen`: authorized requests.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *, mounts: bool = True, absolute: bool = False, referrers: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.host = f"127.0.0.1:{self.server_address[1]}"
        self.authorization = f"Basic {base64.b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}"
        self.lock = threading.RLock()
        self.failures: list[str] = []
        self.reset(mounts=mounts, absolute=absolute, referrers=referrers)

    def reset(self, *, mounts: bool = True, absolute: bool = False, referrers: bool = False) -> None:
        """Forget everything, as if it had just been started."""
        self.mounts = mounts
        self.absolute = absolute
        self.referrers = referrers
        self.deletes = True
        self.repositories: dict[str, Repository] = {}
        self.sessions: dict[str, Session] = {}
        self.seen: list[Seen] = []
        self._troubles: list[Trouble] = []
        self._counts: dict[Kind, int] = {}

    def __exit__(self, *exc_info: object) -> None:
        super().__exit__(*exc_info)
        assert not self.failures, "the registry of the test failed:\n" + "\n".join(self.failures)

    def trouble(self, kind: Kind, *, at: int = 1, times: int = 1, **what: Any) -> None:
        """Trouble the `at`th request of a kind from now on, and those after it, `times` in all."""
        with self.lock:
            self._troubles.append(Trouble(kind, self._counts.get(kind, 0) + at, times, **what))

    def next_trouble(self, kind: Kind) -> Trouble | None:
        """Count a request, and return what happens to it."""
        count = self._counts[kind] = self._counts.get(kind, 0) + 1
        fits = (each for each in self._troubles if each.kind == kind)
        return next((each for each in fits if each.at <= count < each.at + each.times), None)

    def repository(self, path: str) -> Repository:
        """Return a repository, an empty one where there was none."""
        with self.lock:
            return self.repositories.setdefault(path, Repository())

    def blobs(self, path: str) -> dict[str, bytes]:
        """Return the blobs that were committed."""
        return self.repository(path).blobs

    def count(self, kind: Kind) -> int:
        """Return how many authorized requests of a kind there were."""
        return sum(each.kind == kind for each in self.seen)

    def received(self, kind: Kind = "patch") -> int:
        """Return the bytes of their bodies that have arrived."""
        return sum(each.received for each in self.seen if each.kind == kind)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep the traceback, unless it is just the client that hung up."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            self.failures.append(traceback.format_exc())
