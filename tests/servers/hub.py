"""A hub: a server that speaks the Hugging Face HTTP API over repositories on disk and insists on the token.

The unmodified huggingface_hub works against it with `endpoint=hub.url`. It has two listening sockets, as the
real hub has two kinds of hosts:

    hub    the API and `/{org}/{name}/resolve/{revision}/{path}`. A small file is one more redirect (307,
           relative, same host) away; a Git LFS file is a redirect (302) to a signed, expiring URL of
    cdn    which answers 400 to whoever sends it an Authorization header: the token must never follow a
           redirect to another host. Its ETag is not the file's sha256, as little as the real one's is.

    with Hub(tmp_path, tokens={token: ["org/name"]}) as hub:
        Repo.create(tmp_path, "org/name", {"config.json": b"{}"})
        hub.faults.add(Fault("corrupt", "*.safetensors", count=1))
        ...
        assert hub.requests_for("config.json") and not hub.token_leaks()

Standard library only. From a shell (the token stands in a file, never in the arguments; each line of the file
is `TOKEN` or `TOKEN org/name org/name ...`):

    python -m tests.servers.hub --root DIR --token-file F [--repo org/name=FOLDER] [--host H] [--port P] ...

prints one line of JSON when it is ready: {"url", "cdn", "control", "pid"}. At `control`, and at the other two
URLs as well, another process can GET /__log__, DELETE /__log__, GET /__faults__, POST /__faults__ (a fault or
a list of them, in the fields of `hub_faults.Fault`) and DELETE /__faults__.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import ssl
import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Self
from urllib.parse import quote, urlencode

from tests.servers.hub_api import Api, RefusedError, file_headers
from tests.servers.hub_faults import Fault, Faults
from tests.servers.hub_http import Listener, Rate, Site
from tests.servers.hub_log import Record, RequestLog, Role, Tokens
from tests.servers.hub_messages import Answer, Call, file_answer, json_answer, redirect
from tests.servers.hub_repos import Repo
from tests.servers.hub_uploads import Uploads

__all__ = ["Fault", "Hub", "Record", "Repo"]


class Hub:
    """The server; it runs from construction until `close`.

    Args:
        root: where the repositories are; read anew for every request.
        tokens: token -> the repositories it may read (None: all).
        host, port: where to listen; port 0 takes a free one.
        cdn_host, cdn_port: where the second server listens (default: the same host).
        name, cdn_name: the host names in URLs, where these are not the addresses to listen on (0.0.0.0).
        cert, key: PEM files; with them, both servers speak TLS.
        page_size: entries of a page of the tree API.
        ranges: whether Range headers are heeded.
        url_seconds: how long a signed URL is good for.
    """

    def __init__(
        self,
        root: Path,
        tokens: Mapping[str, Collection[str] | None],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        name: str | None = None,
        cdn_host: str | None = None,
        cdn_port: int = 0,
        cdn_name: str | None = None,
        cert: Path | None = None,
        key: Path | None = None,
        page_size: int = 1000,
        ranges: bool = True,
        url_seconds: float = 3600,
    ) -> None:
        self.root = root
        self.faults = Faults()
        self._rate = Rate()
        self.url_seconds = url_seconds
        self._tokens = Tokens(tokens)
        self._log = RequestLog()
        self._api = Api(root, self._tokens, page_size=page_size)
        self._uploads = Uploads(root, self._api, self._signed_upload)
        self._signing_key = secrets.token_bytes(32)
        tls = None
        if cert is not None:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(cert, key)
        scheme = "http" if tls is None else "https"
        self._sites = [
            self._site("hub", self._answer_hub, ranges),
            self._site("cdn", self._answer_cdn, ranges),
        ]
        other_host, cdn_host = cdn_host, cdn_host or host
        self._listeners = [Listener(self._sites[0], (host, port), tls)]
        try:
            self._listeners.append(Listener(self._sites[1], (cdn_host, cdn_port), tls))
        except OSError:
            self._listeners[0].close()
            raise
        self.url = f"{scheme}://{name or host}:{self._listeners[0].port}"
        self.cdn_url = f"{scheme}://{cdn_name or other_host or name or host}:{self._listeners[1].port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop both servers. Raises AssertionError if one of them failed in a way no fault asked for."""
        for listener in self._listeners:
            listener.close()
        failures = [failure for site in self._sites for failure in site.failures]
        if failures:
            raise AssertionError("the hub server failed:\n" + "\n".join(failures))

    def limit(self, bytes_per_second: float | None) -> None:
        """Send files no faster than this from now on, over all connections together; None: without limit."""
        self._rate.per_second = bytes_per_second

    @property
    def passed(self) -> int:
        """Bytes of bodies that were sent since the start, also by what is still being answered."""
        return self._rate.passed

    def start_control(self) -> str:
        """Open one more socket, which no fault touches, for /__log__ and /__faults__; return its URL."""
        site = Site(
            "hub",
            lambda _: Answer(404),
            lambda _: ("", ""),
            self._answer_control,
            log=RequestLog(),
            faults=Faults(),
            tokens=self._tokens,
        )
        listener = Listener(site, ("127.0.0.1", 0), None)
        self._listeners.append(listener)
        return f"http://127.0.0.1:{listener.port}"

    def requests(self, *, host: Role | None = None, method: str | None = None) -> list[Record]:
        """Return all requests, or those at one of the servers, or of one method."""
        return [
            record
            for record in self._log.records()
            if record.host == (host or record.host) and record.method == (method or record.method)
        ]

    def requests_for(
        self, pattern: str, *, host: Role | None = None, method: str | None = None
    ) -> list[Record]:
        """Return the requests about a file: `*.json`, `org/name/config.json` or a URL's path."""
        return [record for record in self.requests(host=host, method=method) if record.matches(pattern)]

    def bytes_sent(self, pattern: str = "*", *, host: Role | None = None) -> int:
        """Return how many bytes of bodies were sent."""
        return sum(record.bytes_sent for record in self.requests_for(pattern, host=host))

    def token_leaks(self) -> list[Record]:
        """Return the requests with a token where none belongs: at the second server, in a URL or a cookie."""
        return [
            record
            for record in self.requests()
            if record.token_elsewhere or (record.host == "cdn" and record.had_authorization)
        ]

    def reset_log(self) -> None:
        """Forget all requests."""
        self._log.reset()

    def _site(self, host: Role, answer: Callable[[Call], Answer], ranges: bool) -> Site:
        return Site(
            host,
            answer,
            _subject,
            self._answer_control,
            log=self._log,
            faults=self.faults,
            tokens=self._tokens,
            ranges=ranges,
            rate=self._rate,
        )

    def _answer_hub(self, call: Call) -> Answer:
        """Answer as the hub itself."""
        try:
            if _subject(call)[1]:
                return self._resolve(call)
            return self._uploads.answer(call, self.url) or self._api.answer(call, self.url)
        except RefusedError as refusal:
            answer = refusal.answer
            if call.path.startswith("/api/"):
                return answer
            # What is not the API words its refusals in plain text.
            message = answer.headers["X-Error-Message"].encode()
            return Answer(
                answer.status, {**answer.headers, "Content-Type": "text/plain; charset=utf-8"}, message
            )

    def _resolve(self, call: Call) -> Answer:
        """Answer for a file: its bytes, or a redirect towards them."""
        name, path = _subject(call)
        cached = call.parts[1] == "resolve-cache"
        repo = self._api.open(call, name, content=True)
        commit = self._api.revision(repo, call.parts[5 if cached else 3])
        file = self._api.file(commit, path)
        if cached:
            headers = {"X-Repo-Commit": commit.id, "ETag": f'"{file.etag}"'}
            return file_answer(repo.object_path(file), file.size, headers)
        headers = file_headers(commit, file)
        if self._sites[0].ranges:
            headers["Accept-Ranges"] = "bytes"
        if file.lfs:
            return redirect(302, self._signed_url(f"/lfs/{name}/{file.sha256}", path), headers)
        location = f"/api/resolve-cache/models/{name}/{commit.id}/{quote(path)}"
        return redirect(307, f"{location}?{urlencode({'etag': file.etag})}", headers)

    def _signed_url(self, path: str, filename: str) -> str:
        """Return a URL of the second server that is good for a while without any token."""
        query = urlencode({"filename": filename, "Expires": int(time.time() + self.url_seconds)})
        return f"{self.cdn_url}{path}?{query}&Signature={self._sign(path, query)}"

    def _signed_upload(self, name: str, sha256: str) -> str:
        """Return a URL of the second server to which one file may be put."""
        return self._signed_url(f"/lfs/{name}/{sha256}", "upload")

    def _sign(self, path: str, query: str) -> str:
        return hmac.new(self._signing_key, f"{path}?{query}".encode(), "sha256").hexdigest()

    def _answer_cdn(self, call: Call) -> Answer:
        """Answer as the second server, which knows files by their sha256 only."""
        if "authorization" in call.headers:
            return _xml(400, "InvalidArgument", "Only one auth mechanism allowed")
        query, _, signature = call.raw_query.partition("&Signature=")
        if not hmac.compare_digest(signature.encode(), self._sign(call.path, query).encode()):
            return _xml(403, "SignatureDoesNotMatch", "The request signature does not match")
        if int(call.query["Expires"][0]) < time.time():
            return _xml(403, "AccessDenied", "Request has expired")
        oid, filename = call.parts[-1], call.query["filename"][0]
        if call.method == "PUT":
            return self._uploads.store(call, oid)
        file = self.root / "objects" / oid[:2] / oid
        # Another hash on purpose: whoever takes this ETag for the sha256 is to be found out.
        etag = hashlib.sha256(f"chunks of {oid}".encode()).hexdigest()
        disposition = f'attachment; filename="{quote(filename.split("/")[-1])}";'
        return file_answer(
            file, file.stat().st_size, {"ETag": f'"{etag}"', "Content-Disposition": disposition}
        )

    def _answer_control(self, call: Call) -> Answer:
        """Answer another process that reads the log or sets faults."""
        match call.method, call.path:
            case "GET", "/__log__":
                return json_answer(self._log.as_json())
            case "DELETE", "/__log__":
                self.reset_log()
            case "GET", "/__faults__":
                return json_answer(self.faults.as_json())
            case "DELETE", "/__faults__":
                self.faults.clear()
            case "POST", "/__faults__":
                try:
                    raw = json.loads(call.body)
                    given = [Fault.from_json(fault) for fault in (raw if isinstance(raw, list) else [raw])]
                except (ValueError, AttributeError) as error:
                    return json_answer({"error": str(error)}, 400)
                self.faults.add(*given)
            case _:
                return json_answer({"error": "GET or DELETE /__log__; GET, POST or DELETE /__faults__"}, 404)
        return json_answer({})


def _subject(call: Call) -> tuple[str, str]:
    """Return the repository and the file that a call is about, '' where it names none."""
    parts = call.parts
    match parts:
        case ["lfs", org, name, _] if call.host == "cdn":
            return f"{org}/{name}", call.query.get("filename", [""])[0]
        case ["api", "resolve-cache", "models", org, name, _, *path]:
            return f"{org}/{name}", "/".join(path)
        case ["api", "models", org, name, *_]:
            return f"{org}/{name}", ""
        case [org, name, "resolve", _, *path]:
            return f"{org}/{name}", "/".join(path)
    return "", ""


def _xml(status: int, code: str, message: str) -> Answer:
    """Make an error as object stores word them."""
    text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    head = '<?xml version="1.0" encoding="UTF-8"?>'
    return Answer(status, {"Content-Type": "application/xml"}, (head + text).encode())


if __name__ == "__main__":
    from tests.servers.hub_cli import main

    sys.exit(main())
