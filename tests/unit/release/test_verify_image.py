"""`verify_image.py` and its registry: who is shown the password, what is an answer, what is said."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import json
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path

import pytest

from tests.servers.running import RunsInThread
from tests.unit.release.verifier import verify_image

LOGIN = base64.b64encode(b"user:of the registry").decode()
BLOB = b"a small blob"
DIGEST = f"sha256:{hashlib.sha256(BLOB).hexdigest()}"


@dataclass
class Answer:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class Server(RunsInThread, http.server.ThreadingHTTPServer):
    """Answers as it is told, and keeps what it was asked with: path and Authorization."""

    daemon_threads = True

    def __init__(self, answer: Callable[[str, str], Answer]) -> None:
        seen: list[tuple[str, str]] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                given = self.headers.get("Authorization", "")
                seen.append((self.path, given))
                reply = answer(self.path, given)
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)

        super().__init__(("127.0.0.1", 0), Handler)
        self.seen = seen
        self.host = f"127.0.0.1:{self.server_address[1]}"


Start = Callable[[Callable[[str, str], Answer]], Server]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts servers for whose hosts the Docker configuration has a password."""
    auths: dict[str, dict[str, str]] = {}
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with ExitStack() as stack:

        def started(answer: Callable[[str, str], Answer]) -> Server:
            server = stack.enter_context(Server(answer))
            auths[server.host] = {"auth": LOGIN}
            (tmp_path / "config.json").write_text(json.dumps({"auths": auths}))
            return server

        yield started


def registry_at(host: str) -> object:
    return verify_image.Registry(verify_image.parse_reference(f"{host}/ml/tiny:1.0.0"), None)


def blob_at(host: str) -> bytes:
    found: bytes = registry_at(host).blob(DIGEST)  # type: ignore[attr-defined]
    return found


def asks_for_basic(then: Answer) -> Callable[[str, str], Answer]:
    challenge = Answer(401, {"WWW-Authenticate": 'Basic realm="registry"'})
    return lambda path, given: then if given == f"Basic {LOGIN}" else challenge


@pytest.mark.promise("access")
def test_no_other_host_is_shown_the_password(start: Start) -> None:
    storage = start(lambda path, given: Answer(200, body=BLOB))
    there = Answer(307, {"Location": f"http://{storage.host}/bucket"})
    registry = start(asks_for_basic(there))
    assert blob_at(registry.host) == BLOB
    assert registry.seen[-1][1] == f"Basic {LOGIN}"  # control: the registry was
    assert storage.seen == [("/bucket", "")]


def test_tokens_are_of_the_service_that_the_registry_names(start: Start) -> None:
    def tokens(path: str, given: str) -> Answer:
        return Answer(200 if given == f"Basic {LOGIN}" else 401, body=b'{"token": "a-token"}')

    def registry(path: str, given: str) -> Answer:
        if given == "Bearer a-token":
            return Answer(200, body=BLOB)
        return Answer(401, {"WWW-Authenticate": f'Bearer realm="http://{service.host}/token",service="here"'})

    service = start(tokens)
    assert blob_at(start(registry).host) == BLOB
    assert service.seen[0][0] == "/token?service=here&scope=repository%3Aml%2Ftiny%3Apull"


@pytest.mark.promise("access")
def test_no_password_goes_to_a_service_without_tls(start: Start) -> None:
    challenge = 'Bearer realm="http://tokens.example.com/token",service="here"'
    server = start(lambda path, given: Answer(401, {"WWW-Authenticate": challenge}))
    with pytest.raises(verify_image.Problem, match="without TLS") as raised:
        blob_at(server.host)
    assert raised.value.code == 3


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(200, body=b"other bytes"), "does not have the bytes"),
        (Answer(404), "does not have the bytes"),
        (Answer(500), "answers 500"),
        (Answer(401, {"WWW-Authenticate": "Basic realm=x"}), "answers 401"),
        (Answer(200, body=bytes(verify_image.LARGEST + 1)), "more than"),
    ],
    ids=["other bytes", "missing", "broken", "wrong password", "too much"],
)
def test_what_is_no_answer_is_said(start: Start, answer: Answer, said: str) -> None:
    server = start(lambda path, given: answer)
    with pytest.raises(verify_image.Problem, match=said) as raised:
        blob_at(server.host)
    assert raised.value.code == 3


@pytest.mark.parametrize(
    "headers",
    [
        {"WWW-Authenticate": 'Bearer realm="https://[",service="x"'},
        {"WWW-Authenticate": 'Bearer realm="http://[1]/",service="x"'},
        {"WWW-Authenticate": f'Bearer realm="https://{"a" * 70}.example.com/",service="x"'},
        {"Location": "http://[/"},
    ],
)
def test_an_address_that_is_none_is_no_traceback(start: Start, headers: dict[str, str]) -> None:
    """Python's own exit code would be 1, which says that the image is not signed."""
    server = start(lambda path, given: Answer(307 if "Location" in headers else 401, headers))
    with pytest.raises(verify_image.Problem) as raised:
        blob_at(server.host)
    assert raised.value.code == 3


def test_the_answer_of_a_redirect_that_leads_nowhere_is_closed() -> None:
    request, answer, headers = urllib.request.Request("http://127.0.0.1/"), io.BytesIO(), Message()
    headers["Location"] = "http://[/"
    with pytest.raises(ValueError, match="IPv6"):
        verify_image.Redirects().http_error_307(request, answer, 307, "", headers)
    assert answer.closed


@pytest.mark.promise("access")
def test_a_token_that_is_no_header_is_not_repeated(start: Start) -> None:
    service = start(lambda path, given: Answer(200, body=b'{"token": "secret\\n-token"}'))
    challenge = f'Bearer realm="http://{service.host}/token",service="here"'
    server = start(lambda path, given: Answer(401, {"WWW-Authenticate": challenge}))
    with pytest.raises(verify_image.Problem, match="gives no token") as raised:
        blob_at(server.host)
    assert raised.value.code == 3 and raised.value.__cause__ is None


@pytest.mark.parametrize("host", ["[1]:5000", "a..b", f"{'a' * 70}.com"])
def test_a_host_that_is_none(host: str) -> None:
    with pytest.raises(verify_image.Problem, match="cannot be asked"):
        blob_at(host)


def test_nobody_answers() -> None:
    with pytest.raises(verify_image.Problem, match="cannot be read from"):
        blob_at("127.0.0.1:1")


def test_names_are_split_as_docker_splits_them() -> None:
    split = verify_image.parse_reference
    assert split("python") == ("docker.io", "library/python", "latest")
    assert split("acme/tiny:1") == ("docker.io", "acme/tiny", "1")
    assert split("localhost/tiny") == ("localhost", "tiny", "latest")
    assert split(f"r.example.com:5000/a/b:1@{DIGEST}") == ("r.example.com:5000", "a/b", DIGEST)
    for wrong in (
        "",
        "UPPER",
        "a:",
        "a@sha256:1",
        "http://r.example.com/a",
        "r.example.com/../a",
        "a b",
        "a\n",
    ):
        with pytest.raises(verify_image.Problem) as raised:
            split(wrong)
        assert raised.value.code == 2
    assert [verify_image.is_loopback(each) for each in ("127.0.0.1:5000", "[::1]", "r.example.com")] == [
        True,
        True,
        False,
    ]


def test_arguments_and_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "cosign.pub"
    assert verify_image.main(["--key", str(key), "localhost:1/tiny"]) == 2
    key.write_text("no key")
    assert verify_image.main(["--key", str(key), "localhost:1/tiny"]) == 2
    from tests.servers.signed_images import MemoryKey

    key.write_bytes(MemoryKey.generate().public)
    assert verify_image.main(["--key", str(key), "localhost:1/tiny"]) == 3
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (tmp_path / "config.json").write_text("{not json")
    assert verify_image.main(["--key", str(key), "localhost:1/tiny"]) == 2
    (tmp_path / "config.json").write_text('{"auths": {"localhost:1": {"auth": "a\\nb"}}}')
    assert verify_image.main(["--key", str(key), "localhost:1/tiny"]) == 2
    assert verify_image.main(["--key", str(key), "--ca-file", str(key), "r.example.com/tiny"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 6
