"""The registry client against scripted HTTP servers on this machine."""

from __future__ import annotations

import base64
import inspect
import json
import os
import socket
import ssl
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest

from modelbake import registryhttp
from modelbake.credentials import Secret
from modelbake.dockerconfig import RegistryCredentials
from modelbake.errors import (
    ReadBackMismatch,
    RegistryAuthError,
    RegistryError,
    RegistryUnavailable,
    UsageError,
)
from modelbake.manifest import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Manifest, digest_of
from modelbake.registry import Registry
from modelbake.registryauth import is_loopback
from modelbake.registryreply import parse_challenges

PASSWORD = "correct-horse-battery"
ME = RegistryCredentials("me", Secret(PASSWORD))
TOKEN_HOLDER = RegistryCredentials("", Secret(""), Secret("identity-token-value"))
BODY = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": {"mediaType": "c", "digest": "sha256:" + "c" * 64, "size": 3},
        "layers": [{"mediaType": "l", "digest": "sha256:" + "d" * 64, "size": 4}],
    }
).encode()
BASIC = "Basic " + base64.b64encode(f"me:{PASSWORD}".encode()).decode()
CHALLENGE = {"WWW-Authenticate": 'Basic realm="x"'}


@dataclass
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    shown: object = None  # the client's certificate, of servers that ask for one


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None  # sent as it is, then the connection is closed


Script = Callable[[Asked], Answer]


@dataclass
class Server:
    address: str
    asked: list[Asked] = field(default_factory=list)
    script: Script = lambda asked: Answer()


@contextmanager
def serving(
    script: Script, *, tls: ssl.SSLContext | None = None, bind: str = "127.0.0.1"
) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            shown = self.connection.getpeercert() if isinstance(self.connection, ssl.SSLSocket) else None
            asked = Asked(self.command, self.path, headers, body, shown)
            server.asked.append(asked)
            answer = server.script(asked)
            if answer.raw is not None:
                self.connection.sendall(answer.raw)
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in ({"Content-Length": str(len(answer.body))} | answer.headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)

        do_GET = do_HEAD = do_PUT = do_POST = _handle  # noqa: N815

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a handshake that a client breaks off is what some tests want

    httpd = Quiet((bind, 0), Handler)
    httpd.daemon_threads = True
    if tls is not None:
        httpd.socket = tls.wrap_socket(httpd.socket, server_side=True)
    server = Server(f"{bind}:{httpd.server_address[1]}", script=script)
    threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        httpd.shutdown()
        httpd.server_close()


@contextmanager
def client(
    address: str, credentials: RegistryCredentials | None = None, **options: object
) -> Iterator[tuple[Registry, list[float]]]:
    waits: list[float] = []
    with Registry(address, credentials, sleep=waits.append, **options) as registry:  # type: ignore[arg-type]
        yield registry, waits


def manifest_answer(body: bytes = BODY, media_type: str = DOCKER_MANIFEST, **headers: str) -> Answer:
    return Answer(200, body, {"Content-Type": media_type} | headers)


# --- reading and writing ---------------------------------------------------------------------------------


def test_a_manifests_digest_is_computed_from_its_bytes() -> None:
    with serving(lambda asked: manifest_answer()) as server, client(server.address) as (registry, _):
        manifest = registry.manifest("ml/a", "1.0.0")
    assert manifest == Manifest(DOCKER_MANIFEST, digest_of(BODY), BODY)
    assert server.asked[0].path == "/v2/ml/a/manifests/1.0.0"
    assert set(server.asked[0].headers["accept"].split(", ")) == {
        DOCKER_MANIFEST,
        OCI_MANIFEST,
        OCI_INDEX,
        "application/vnd.docker.distribution.manifest.list.v2+json",
    }


def test_another_digest_than_asked_for_is_refused() -> None:
    wanted = "sha256:" + "0" * 64
    with (
        serving(lambda asked: manifest_answer()) as server,
        client(server.address) as (registry, _),
        pytest.raises(ReadBackMismatch, match=f"asked for {wanted}"),
    ):
        registry.manifest("a", wanted)


def test_a_digest_header_that_lies_is_refused() -> None:
    lie = {"Docker-Content-Digest": "sha256:" + "0" * 64}
    with (
        serving(lambda asked: manifest_answer(BODY, DOCKER_MANIFEST, **lie)) as server,
        client(server.address) as (registry, _),
        pytest.raises(ReadBackMismatch, match="the registry says"),
    ):
        registry.manifest("a", "1")


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (manifest_answer(b"<html>"), "is not JSON"),
        (manifest_answer(b"[]"), "is not a JSON object"),
        (manifest_answer(b"{}", "text/html"), "unknown media type 'text/html'"),
        (manifest_answer(BODY, OCI_INDEX), "calls itself"),
        (Answer(204), "would not give the manifest"),
        (Answer(400, b'{"errors":[{"code":"TAG_INVALID","message":"bad\\ntag"}]}'), "TAG_INVALID bad tag"),
    ],
)
def test_nonsense_for_a_manifest_is_refused(answer: Answer, problem: str) -> None:
    with (
        serving(lambda asked: answer) as server,
        client(server.address) as (registry, _),
        pytest.raises(RegistryError, match=problem),
    ):
        registry.manifest("a", "1")


def test_what_is_not_there_is_none() -> None:
    with serving(lambda asked: Answer(404)) as server, client(server.address) as (registry, _):
        assert registry.manifest("a", "1") is None
        assert registry.blob_size("a", digest_of(b"")) is None
        assert registry.tags("a") == []


def test_put_sends_the_very_bytes() -> None:
    manifest = Manifest.of(DOCKER_MANIFEST, BODY)
    with serving(lambda asked: Answer(201)) as server, client(server.address) as (registry, _):
        assert registry.put_manifest("a", "1.0.0", manifest) == digest_of(BODY)
    assert (server.asked[0].method, server.asked[0].body) == ("PUT", BODY)
    assert server.asked[0].headers["content-type"] == DOCKER_MANIFEST


@pytest.mark.parametrize(
    ("answer", "error", "problem"),
    [
        (Answer(201, headers={"Docker-Content-Digest": "sha256:" + "0" * 64}), ReadBackMismatch, "stored"),
        (Answer(200), RegistryError, "would not take"),
        (Answer(400), RegistryError, "would not take the manifest .HTTP 400"),
        (Answer(307, headers={"Location": "/elsewhere"}), RegistryError, "redirects a PUT"),
        (Answer(404), RegistryError, "would not take the manifest .HTTP 404"),
    ],
)
def test_a_put_that_was_not_taken_is_an_error(
    answer: Answer, error: type[RegistryError], problem: str
) -> None:
    with (
        serving(lambda asked: answer) as server,
        client(server.address) as (registry, _),
        pytest.raises(error, match=problem),
    ):
        registry.put_manifest("a", "1", Manifest.of(DOCKER_MANIFEST, BODY))


def test_blob_size_comes_from_a_head() -> None:
    with (
        serving(lambda asked: Answer(200, headers={"Content-Length": "42"})) as server,
        client(server.address) as (registry, _),
    ):
        assert registry.blob_size("a", digest_of(b"")) == 42
    assert server.asked[0].method == "HEAD"


def test_tags_are_read_over_all_pages() -> None:
    def script(asked: Asked) -> Answer:
        if "last=" in asked.path:
            return Answer(200, b'{"tags": ["a"]}')
        return Answer(200, b'{"tags": ["b"]}', {"Link": '</v2/m/tags/list?last=b>; rel="next"'})

    with serving(script) as server, client(server.address) as (registry, _):
        assert registry.tags("m") == ["a", "b"]


@pytest.mark.promise("access")
def test_tags_never_lead_to_another_host() -> None:
    link = {"Link": '<http://127.0.0.2:9/v2/m/tags/list>; rel="next"'}
    with (
        serving(lambda asked: Answer(200, b'{"tags": null}', link)) as server,
        client(server.address, ME) as (registry, _),
        pytest.raises(RegistryError, match="another host"),
    ):
        registry.tags("m")


def test_endless_pages_end() -> None:
    link = {"Link": '</v2/m/tags/list>; rel="next"'}
    with (
        serving(lambda asked: Answer(200, b'{"tags": []}', link)) as server,
        client(server.address) as (registry, _),
        pytest.raises(RegistryError, match="1000 pages"),
    ):
        registry.tags("m")


def test_an_endless_body_ends() -> None:
    huge = Answer(200, b"x" * (9 << 20), {"Content-Type": DOCKER_MANIFEST})
    with (
        serving(lambda asked: huge) as server,
        client(server.address) as (registry, _),
        pytest.raises(RegistryError, match="more than"),
    ):
        registry.manifest("a", "1")


# --- who may see credentials -------------------------------------------------------------------------------


@pytest.mark.control("access")
def test_basic_is_sent_only_when_asked_for() -> None:
    def script(asked: Asked) -> Answer:
        return Answer(200) if asked.headers.get("authorization") == BASIC else Answer(401, headers=CHALLENGE)

    with serving(script) as server, client(server.address, ME) as (registry, _):
        registry.ping()
        registry.ping()
    assert [asked.headers.get("authorization") for asked in server.asked] == [None, BASIC, BASIC]


@pytest.mark.parametrize(
    ("credentials", "headers", "problem"),
    [
        (ME, CHALLENGE, "refused the credentials"),
        (None, CHALLENGE, "wants credentials, and there are none"),
        (ME, {}, "neither Basic nor Bearer"),
        (ME, {"WWW-Authenticate": "Negotiate"}, "neither Basic nor Bearer"),
        (ME, {"WWW-Authenticate": '=",,\x7f"""'}, "neither Basic nor Bearer"),
        (TOKEN_HOLDER, CHALLENGE, "only an identity token"),
    ],
)
def test_refused_credentials(
    credentials: RegistryCredentials | None, headers: dict[str, str], problem: str
) -> None:
    with (
        serving(lambda asked: Answer(401, headers=headers)) as server,
        client(server.address, credentials) as (registry, _),
        pytest.raises(RegistryAuthError, match=problem) as caught,
    ):
        registry.ping()
    assert PASSWORD not in str(caught.value)
    assert len(server.asked) <= 2


def test_forbidden_is_an_auth_error_and_not_retried() -> None:
    with (
        serving(lambda asked: Answer(403)) as server,
        client(server.address, ME) as (registry, _),
        pytest.raises(RegistryAuthError, match="HTTP 403"),
    ):
        registry.manifest("a", "1")
    assert len(server.asked) == 1


def bearer_script(server: list[Server], token: bytes = b'{"token": "t1"}', status: int = 200) -> Script:
    def script(asked: Asked) -> Answer:
        if asked.path.startswith("/token"):
            return Answer(status, token)
        if asked.headers.get("authorization") == "Bearer t1":
            return manifest_answer()
        realm = f"http://{server[0].address}/token"
        return Answer(401, headers={"WWW-Authenticate": f'Bearer realm="{realm}",service="s v"'})

    return script


def test_bearer_asks_the_token_service_for_the_scope() -> None:
    box: list[Server] = []
    with serving(bearer_script(box)) as server, client(server.address, ME) as (registry, _):
        box.append(server)
        assert registry.manifest("ml/a", "1") is not None
        assert registry.manifest("ml/a", "2") is not None
    asked = [a for a in server.asked if a.path.startswith("/token")]
    assert len(asked) == 1, "the token is kept"
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(asked[0].path).query)
    assert query == {"scope": ["repository:ml/a:pull"], "service": ["s v"]}
    assert asked[0].headers["authorization"] == BASIC
    assert {a.headers.get("authorization") for a in server.asked if "/v2/" in a.path} == {None, "Bearer t1"}


def test_bearer_without_credentials_is_anonymous() -> None:
    box: list[Server] = []
    script = bearer_script(box, b'{"access_token": "t1"}')
    with serving(script) as server, client(server.address) as (registry, _):
        box.append(server)
        assert registry.manifest("a", "1") is not None
    assert all(a.headers.get("authorization") in (None, "Bearer t1") for a in server.asked)


def test_an_identity_token_is_posted() -> None:
    box: list[Server] = []
    with serving(bearer_script(box)) as server, client(server.address, TOKEN_HOLDER) as (registry, _):
        box.append(server)
        assert registry.manifest("a", "1") is not None
    asked = next(a for a in server.asked if a.path.startswith("/token"))
    assert (asked.method, asked.path) == ("POST", "/token")
    assert urllib.parse.parse_qs(asked.body.decode()) == {
        "grant_type": ["refresh_token"],
        "client_id": ["modelbake"],
        "refresh_token": ["identity-token-value"],
        "service": ["s v"],
        "scope": ["repository:a:pull"],
    }


def test_an_expired_token_is_renewed() -> None:
    box: list[Server] = []
    tokens = iter(["t0", "t1"])
    good = {"Bearer t0"}

    def script(asked: Asked) -> Answer:
        if asked.path.startswith("/token"):
            return Answer(200, json.dumps({"token": next(tokens)}).encode())
        if asked.headers.get("authorization") in good:
            return manifest_answer()
        return Answer(401, headers={"WWW-Authenticate": f'Bearer realm="http://{box[0].address}/token"'})

    with serving(script) as server, client(server.address) as (registry, _):
        box.append(server)
        registry.manifest("a", "1")
        good.clear()
        good.add("Bearer t1")
        assert registry.manifest("a", "1") is not None


@pytest.mark.parametrize(
    ("token", "status", "error", "problem"),
    [
        (b"", 401, RegistryAuthError, "refused the credentials"),
        (b"", 403, RegistryAuthError, "refused the credentials"),
        (b"<html>", 200, RegistryError, "gave no token"),
        (b'{"token": ""}', 200, RegistryError, "gave no token"),
        (b'{"token": "a\\nb"}', 200, RegistryError, "gave no token"),
        (b'{"token": 7}', 200, RegistryError, "gave no token"),
        (b"", 302, RegistryError, "gave no token"),
        (b"", 503, RegistryUnavailable, "HTTP 503"),
        (b'{"token": "other"}', 200, RegistryAuthError, "refused the credentials"),
    ],
)
def test_a_token_service_that_gives_no_token(
    token: bytes, status: int, error: type[RegistryError], problem: str
) -> None:
    box: list[Server] = []
    with (
        serving(bearer_script(box, token, status)) as server,
        client(server.address, ME) as (registry, _),
        pytest.raises(error, match=problem) as caught,
    ):
        box.append(server)
        registry.manifest("a", "1")
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize(
    "realm",
    [
        "http://auth.example/token",
        "http://u:p@127.0.0.1/token",
        "ftp://127.0.0.1/",
        "/token",
        "",
        "http://[::1",
        "https://",
    ],
)
@pytest.mark.promise("access")
def test_credentials_go_to_no_token_service_in_clear(realm: str) -> None:
    with (
        serving(lambda a: Answer(401, headers={"WWW-Authenticate": f'Bearer realm="{realm}"'})) as server,
        client(server.address, ME) as (registry, _),
        pytest.raises(RegistryAuthError, match="no credentials are sent to"),
    ):
        registry.ping()
    assert len(server.asked) == 1


@pytest.mark.promise("access")
def test_a_redirect_target_never_sees_credentials() -> None:
    def registry_script(asked: Asked) -> Answer:
        if asked.headers.get("authorization") != BASIC:
            return Answer(401, headers=CHALLENGE)
        return Answer(307, headers={"Location": f"http://{storage.address}/bucket/blob?sig=secret"})

    with (
        serving(lambda asked: Answer(200, headers={"Content-Length": "7"})) as storage,
        serving(registry_script) as server,
        client(server.address, ME) as (registry, _),
    ):
        assert registry.blob_size("a", digest_of(b"")) == 7
        assert [a.path for a in storage.asked] == ["/bucket/blob?sig=secret"]
        assert "authorization" not in storage.asked[0].headers
        assert server.asked[-1].headers["authorization"] == BASIC


@pytest.mark.control("access")
def test_a_redirect_on_the_same_host_keeps_credentials() -> None:
    def script(asked: Asked) -> Answer:
        if asked.headers.get("authorization") != BASIC:
            return Answer(401, headers=CHALLENGE)
        if asked.path.startswith("/v2/"):
            return Answer(302, headers={"Location": "/mirror"})
        return Answer(200, headers={"Content-Length": "7"})

    with serving(script) as server, client(server.address, ME) as (registry, _):
        assert registry.blob_size("a", digest_of(b"")) == 7


@pytest.mark.parametrize(
    ("location", "problem"),
    [("/loop", "without end"), ("ftp://x/y", "redirects from"), ("http://[::1", "no URL")],
)
def test_bad_redirects(location: str, problem: str) -> None:
    with (
        serving(lambda asked: Answer(302, headers={"Location": location})) as server,
        client(server.address) as (registry, _),
        pytest.raises(RegistryError, match=problem),
    ):
        registry.manifest("a", "1")


# --- retries and failures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_passing_failures_are_retried(status: int) -> None:
    answers = iter([Answer(status), Answer(status), manifest_answer()])
    with serving(lambda asked: next(answers)) as server, client(server.address) as (registry, waits):
        assert registry.manifest("a", "1") is not None
    assert waits == [0.5, 1.0]


@pytest.mark.parametrize("status", [429, 500])
def test_lasting_failures_end(status: int) -> None:
    with (
        serving(lambda asked: Answer(status)) as server,
        client(server.address) as (registry, waits),
        pytest.raises(RegistryUnavailable, match=f"HTTP {status}"),
    ):
        registry.manifest("a", "1")
    assert len(server.asked) == 4
    assert waits == [0.5, 1.0, 2.0]


def test_retry_after_is_waited_for_in_either_form() -> None:
    in_20_seconds = formatdate(time.time() + 20, usegmt=True)
    answers = iter(
        [
            Answer(429, headers={"Retry-After": "7"}),
            Answer(429, headers={"Retry-After": in_20_seconds}),
            Answer(429, headers={"Retry-After": "soon"}),
            Answer(200),
        ]
    )
    with serving(lambda asked: next(answers)) as server, client(server.address) as (registry, waits):
        registry.ping()
    assert waits[0] == 7.0
    assert 15 < waits[1] <= 20
    assert waits[2] == 2.0


def test_a_long_retry_after_is_not_waited_out() -> None:
    with (
        serving(lambda asked: Answer(429, headers={"Retry-After": "3600"})) as server,
        client(server.address) as (registry, waits),
        pytest.raises(RegistryUnavailable),
    ):
        registry.ping()
    assert waits == []


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00\xff nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_broken_connections_are_retried_and_then_unavailable(raw: bytes) -> None:
    with (
        serving(lambda asked: Answer(raw=raw)) as server,
        client(server.address) as (registry, _),
        pytest.raises(RegistryUnavailable, match="cannot be reached") as caught,
    ):
        registry.manifest("a", "1")
    assert len(server.asked) == 4
    assert isinstance(caught.value.__cause__, httpx2.TransportError)


def test_undecodable_content_is_an_error() -> None:
    answer = Answer(200, b"not gzip", {"Content-Encoding": "gzip", "Content-Type": DOCKER_MANIFEST})
    with (
        serving(lambda asked: answer) as server,
        client(server.address) as (registry, _),
        pytest.raises(RegistryUnavailable, match="decoding error"),
    ):
        registry.manifest("a", "1")


def test_nobody_listens() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        with client(address) as (registry, _), pytest.raises(RegistryUnavailable, match="connect error"):
            registry.ping()


def test_an_answer_that_does_not_come_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with (
            client(address, timeout=0.2, attempts=2) as (registry, waits),
            pytest.raises(RegistryUnavailable, match="timeout"),
        ):
            registry.ping()
    assert waits == [0.5]


def foreign_classes() -> list[type[Exception]]:
    """Every exception class of the HTTP library, its extras for event streams aside."""
    return [
        cls
        for name, cls in inspect.getmembers(httpx2, inspect.isclass)
        if issubclass(cls, Exception) and cls.__module__.startswith("httpx2") and not name.startswith("SSE")
    ]


def test_the_list_of_foreign_exceptions_is_not_empty() -> None:
    assert {httpx2.HTTPError, httpx2.ConnectTimeout, httpx2.StreamClosed} <= set(foreign_classes())


@pytest.mark.parametrize("kind", foreign_classes(), ids=lambda kind: kind.__name__)
def test_no_exception_of_the_http_library_leaks(kind: type[Exception]) -> None:
    """Whatever class is raised inside the transport, a RegistryError comes out of every method."""

    class Raising(httpx2.BaseTransport):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            if issubclass(kind, httpx2.HTTPStatusError):
                raise kind("made to fail", request=request, response=httpx2.Response(500))
            if issubclass(kind, httpx2.StreamError) and kind is not httpx2.StreamError:
                raise kind()  # type: ignore[call-arg]
            raise kind("made to fail")

    registry = Registry("127.0.0.1:1", sleep=lambda seconds: None)
    registry.close()
    registry._clients = {None: httpx2.Client(transport=Raising())}
    calls: list[Callable[[], object]] = [
        registry.ping,
        lambda: registry.manifest("a", "1"),
        lambda: registry.put_manifest("a", "1", Manifest.of(DOCKER_MANIFEST, BODY)),
        lambda: registry.blob_size("a", digest_of(b"")),
        lambda: registry.tags("a"),
    ]
    with registry:
        for call in calls:
            with pytest.raises(RegistryError):
                call()


def test_the_exception_roots_cover_the_library() -> None:
    assert all(issubclass(kind, registryhttp.FOREIGN) for kind in foreign_classes())


# --- which scheme, which authorities -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("127.0.0.1:5000", True),
        ("127.9.9.9", True),
        ("[::1]:5000", True),
        ("registry.example:5000", False),
        ("localhost.example", False),
        ("127.0.0.1.example", False),
        ("10.0.0.1:5000", False),
        ("[2001:db8::1]", False),
    ],
)
def test_plain_http_is_for_this_machine(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
    with Registry(host) as registry:
        assert registry._root.scheme == ("http" if loopback else "https")


def test_docker_hubs_api_has_another_name() -> None:
    with Registry("docker.io") as registry:
        assert str(registry._root) == "https://registry-1.docker.io"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for registry.test and its key."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=registry.test -addext"
        f" subjectAltName=DNS:registry.test -keyout {folder}/key.pem -out {folder}/ca.pem".split(),
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture
def registry_test(authority: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """An HTTPS registry that is called registry.test, which leads to this machine."""
    resolve = socket.getaddrinfo

    def to_here(host: str | bytes | None, *args: object, **options: object) -> object:
        return resolve("127.0.0.1" if host in ("registry.test", b"registry.test") else host, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", to_here)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "ca.pem", authority / "key.pem")
    with serving(lambda asked: Answer(200), tls=context) as server:
        server.address = server.address.replace("127.0.0.1", "registry.test")
        yield server


@pytest.mark.promise("access")
def test_an_unknown_authority_is_refused_at_once(registry_test: Server) -> None:
    with (
        client(registry_test.address, ME) as (registry, waits),
        pytest.raises(RegistryUnavailable, match="MODELBAKE_CA_BUNDLE"),
    ):
        registry.ping()
    assert waits == []
    assert registry_test.asked == []


@pytest.mark.control("access")
def test_a_ca_bundle_adds_an_authority(
    registry_test: Server, authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with client(registry_test.address, None, ca_bundle=authority / "ca.pem") as (registry, _):
        registry.ping()
    monkeypatch.setenv("MODELBAKE_CA_BUNDLE", str(authority / "ca.pem"))
    with client(registry_test.address) as (registry, _):
        registry.ping()
    assert len(registry_test.asked) == 2


@pytest.mark.parametrize("content", [None, b"", b"not pem"])
def test_a_ca_bundle_that_is_none_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match="cannot be read as certificates") as caught:
        Registry("registry.test", ca_bundle=path)
    assert str(path) in str(caught.value)


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with serving(lambda asked: Answer(200)) as server, client(server.address) as (registry, _):
        registry.ping()
    assert server.asked


# --- parsing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('Basic realm="a, b"', {"basic": {"realm": "a, b"}}),
        (
            'Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push"',
            {"bearer": {"realm": "https://a/t", "service": "s", "scope": "repository:a/b:pull,push"}},
        ),
        ('Negotiate, Basic realm="x"', {"negotiate": {}, "basic": {"realm": "x"}}),
        (
            'BEARER Realm="a\\"b" , error=invalid_token',
            {"bearer": {"realm": 'a"b', "error": "invalid_token"}},
        ),
        ("", {}),
        ('realm="x"', {}),
        ('Bearer realm="unclosed', {"bearer": {}}),
    ],
)
def test_challenges(header: str, expected: dict[str, dict[str, str]]) -> None:
    assert parse_challenges(header) == expected


@pytest.mark.parametrize(
    ("document", "part"),
    [
        ({}, "config"),
        ({"config": []}, "config"),
        ({"config": {"digest": "sha256:x", "size": 1}}, "config"),
        ({"config": {"digest": "sha256:" + "a" * 64, "size": -1}}, "config"),
        ({"config": {"digest": "sha256:" + "a" * 64, "size": True}}, "config"),
        ({"layers": {}}, "layers"),
        ({"layers": [1]}, "layers"),
        ({"manifests": 3}, "manifests"),
    ],
)
def test_a_manifest_without_its_parts_is_refused(document: object, part: str) -> None:
    manifest = Manifest.of(OCI_MANIFEST, json.dumps(document).encode())
    with pytest.raises(RegistryError, match=part):
        getattr(manifest, part)


def test_an_index_names_its_platforms() -> None:
    entry = {
        "digest": "sha256:" + "a" * 64,
        "size": 5,
        "mediaType": OCI_MANIFEST,
        "platform": {"os": "linux", "architecture": "amd64"},
    }
    index = Manifest.of(OCI_INDEX, json.dumps({"manifests": [entry]}).encode())
    assert index.is_index
    assert [item.platform for item in index.manifests] == ["linux/amd64"]
