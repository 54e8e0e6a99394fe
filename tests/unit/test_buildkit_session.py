"""The session against an engine that starts to talk before its HTTP response has been read."""

from __future__ import annotations

import gc
import io
import os
import queue
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import docker
import h2.config
import h2.connection
import h2.events
import pytest

from modelbake.buildkit.failure import Unsuitable
from modelbake.buildkit.services import Services
from modelbake.buildkit.session import Session
from modelbake.buildkit.wire import bytes_field, fields
from modelbake.credentials import Secret
from modelbake.dockerconfig import RegistryCredentials
from modelbake.errors import RegistryAuthError
from tests.servers.fake_engine import FakeEngine, Request

GET_SECRET = "/moby.buildkit.secrets.v1.Secrets/GetSecret"
CREDENTIALS = "/moby.filesync.v1.Auth/Credentials"
PULL = "/moby.upload.v1.Upload/Pull"
HEALTH = "/grpc.health.v1.Health/Check"
SWITCH = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
OK, NOT_FOUND, UNKNOWN, INVALID, UNIMPLEMENTED = "0", "5", "2", "3", "12"

Call = tuple[str, bytes]
Reply = tuple[str, dict[int, bytes | int]]


class Registries:
    """Credentials for one registry; `asked` is every host that was looked up."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.asked: list[str] = []
        self.failure = failure

    def for_registry(self, host: str) -> RegistryCredentials | None:
        self.asked.append(host)
        if self.failure:
            raise self.failure
        known = {
            "registry.example.com": RegistryCredentials("ci", Secret("p4ssword")),
            "docker.io": RegistryCredentials("", Secret(""), Secret("identity")),
        }
        return known.get(host)


def messages(body: bytes) -> dict[int, bytes | int]:
    """The fields of all messages of a reply; the bytes of equal fields are joined."""
    joined: dict[int, bytes | int] = {}
    while body:
        end = 5 + int.from_bytes(body[1:5], "big")
        for number, value in fields(body[5:end]):
            before = joined.get(number)
            joined[number] = (
                before + value if isinstance(before, bytes) and isinstance(value, bytes) else value
            )
        body = body[end:]
    return joined


class Engine:
    """The engine's part of a session: all calls come in one packet with the response's header."""

    def __init__(self, calls: Sequence[Call], *, packets: int = 1) -> None:
        self.calls = calls
        self.packets = packets
        self.replies: queue.Queue[Reply] = queue.Queue()
        self.closed = threading.Event()

    def __call__(self, request: Request) -> None:
        request.close_connection = True
        client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        client.initiate_connection()
        for index, (call, message) in enumerate(self.calls):
            method, _, path = call.partition(" ")
            headers = [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", method),
                (":authority", "localhost"),
            ]
            headers += [("content-type", "application/grpc"), ("te", "trailers"), ("urlpath", path)]
            client.send_headers(2 * index + 1, headers)
            data = b"\0" + len(message).to_bytes(4, "big") + message
            client.send_data(2 * index + 1, data, end_stream=True)
        first = SWITCH + client.data_to_send()
        step = -(-len(first) // self.packets)
        for start in range(0, len(first), step):
            request.connection.sendall(first[start : start + step])
        bodies: dict[int, bytes] = {}
        status: dict[int, str] = {}
        with suppress(ConnectionError):  # closed by us while it still sends
            while data := request.connection.recv(65536):
                for event in client.receive_data(data):
                    if isinstance(event, h2.events.DataReceived) and event.data and event.stream_id:
                        bodies[event.stream_id] = bodies.get(event.stream_id, b"") + event.data
                        client.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
                    elif isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                        said = {str(name): str(value) for name, value in event.headers or ()}
                        found = said.get("grpc-status")
                        if isinstance(event, h2.events.ResponseReceived) and "content-type" not in said:
                            found = UNKNOWN  # as BuildKit's client takes it, whatever the status says
                        if found is not None and event.stream_id:
                            status[event.stream_id] = found
                    if isinstance(event, h2.events.StreamEnded) and event.stream_id:
                        self.replies.put(
                            (status[event.stream_id], messages(bodies.get(event.stream_id, b"")))
                        )
                request.connection.sendall(client.data_to_send())
        self.closed.set()

    def next(self) -> Reply:
        return self.replies.get(timeout=5)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:  # pytest's own are too long for a socket's path
        yield Path(name)


def ask(folder: Path, services: Services, *calls: Call, packets: int = 1) -> list[Reply]:
    """Open a session, have the engine make some calls, return its replies."""
    engine = Engine(calls, packets=packets)
    with FakeEngine(folder, {"POST /session": engine}) as server:
        api = docker.APIClient(server.host, version="1.45")
        try:
            with Session(api, services):
                replies = [engine.next() for _ in calls]
            assert engine.closed.wait(5)
        finally:
            api.close()
    return replies


def with_registries(registries: Registries | None) -> Services:
    return Services({}, registries)  # type: ignore[arg-type]


@pytest.mark.parametrize("packets", [1, 2, 7, 400])
def test_bytes_behind_the_responses_header_are_not_lost(folder: Path, packets: int) -> None:
    secret = Secret(b"\x00binary\xff" * 1000)
    services = Services({"hf_token": secret})
    assert ask(folder, services, (GET_SECRET, bytes_field(1, b"hf_token")), packets=packets) == [
        (OK, {1: secret.reveal_bytes()})
    ]
    assert services.asked == ["hf_token"]


def test_a_secret_larger_than_a_window(folder: Path) -> None:
    secret = Secret(os.urandom(450_000))  # BuildKit's limit is 500 kB
    replies = ask(folder, Services({"big": secret}), (GET_SECRET, bytes_field(1, b"big")))
    assert replies == [(OK, {1: secret.reveal_bytes()})]


def test_only_what_was_given_is_answered(folder: Path) -> None:
    services = Services({"hf_token": Secret("x")})
    assert ask(folder, services, (GET_SECRET, bytes_field(1, b"GIT_AUTH_TOKEN"))) == [(NOT_FOUND, {})]
    assert services.asked == ["GIT_AUTH_TOKEN"]


def test_health(folder: Path) -> None:
    assert ask(folder, Services({}), (HEALTH, b"")) == [(OK, {1: 1})]


@pytest.mark.parametrize("size", [1, 256 * 1024, 3_000_000])
@pytest.mark.parametrize("kind", ["bytes", "file"])
def test_the_context_comes_whole_and_as_often_as_asked(folder: Path, size: int, kind: str) -> None:
    content = os.urandom(size)
    context = content if kind == "bytes" else io.BytesIO(b"before" + content)
    if isinstance(context, io.BytesIO):
        context.seek(6)
    services = Services({}, context=context)
    host, _, path = services.context_url.removeprefix("http://").partition("/")
    assert host == "buildkit-session"
    assert (
        ask(folder, services, (f"{PULL} /{path}", b""), (f"{PULL} /{path}", b"")) == [(OK, {1: content})] * 2
    )


def test_an_upload_of_another_name(folder: Path) -> None:
    assert ask(folder, Services({}, context=b"x"), (f"{PULL} /other", b"")) == [(NOT_FOUND, {})]


@pytest.mark.parametrize(
    ("host", "looked_up", "reply"),
    [
        ("registry.example.com", "registry.example.com", {1: b"ci", 2: b"p4ssword"}),
        ("registry-1.docker.io", "docker.io", {2: b"identity"}),
        ("other.example.com", "other.example.com", {}),
    ],
)
def test_credentials_of_that_registry_only(
    folder: Path, host: str, looked_up: str, reply: dict[int, bytes]
) -> None:
    registries = Registries()
    replies = ask(folder, with_registries(registries), (CREDENTIALS, bytes_field(1, host.encode())))
    assert replies == [(OK, reply)]
    assert registries.asked == [looked_up]


def test_no_credentials_at_all(folder: Path) -> None:
    assert ask(folder, with_registries(None), (CREDENTIALS, bytes_field(1, b"x"))) == [(OK, {})]


def test_a_helper_that_fails_is_remembered(folder: Path) -> None:
    failure = RegistryAuthError("the helper said: p4ssword")
    services = with_registries(Registries(failure))
    assert ask(folder, services, (CREDENTIALS, bytes_field(1, b"x"))) == [(UNKNOWN, {})]
    assert services.failure is failure


@pytest.mark.parametrize("method", ["FetchToken", "GetTokenAuthority", "VerifyTokenAuthority"])
def test_token_methods_are_absent(folder: Path, method: str) -> None:
    replies = ask(folder, with_registries(Registries()), (f"/moby.filesync.v1.Auth/{method}", b""))
    assert replies == [(UNIMPLEMENTED, {})]


def test_a_malformed_request_does_not_end_the_session(folder: Path) -> None:
    replies = ask(folder, Services({}), (GET_SECRET, b"\x0a\xff"), (HEALTH, b""))
    assert sorted(replies, key=str) == [(OK, {1: 1}), (INVALID, {})]


def test_the_served_methods_are_announced(folder: Path) -> None:
    lines: list[tuple[str, str]] = []
    engine = Engine([(HEALTH, b"")])

    def answer(request: Request) -> None:
        lines.extend(request.headers.items())
        engine(request)

    with FakeEngine(folder, {"POST /session": answer}) as server:
        api = docker.APIClient(server.host, version="1.45")
        with Session(api, Services({})) as session:
            engine.next()
        api.close()
    announced = [value for name, value in lines if name.lower() == "x-docker-expose-session-grpc-method"]
    assert sorted(announced) == sorted([GET_SECRET, HEALTH, CREDENTIALS, PULL])
    assert dict(lines)["X-Docker-Expose-Session-Uuid"] == session.id
    assert (dict(lines)["Upgrade"], dict(lines)["Connection"]) == ("h2c", "Upgrade")


@pytest.mark.parametrize("status", [400, 404, 405, 426, 501, 200])
def test_an_engine_without_sessions(folder: Path, status: int) -> None:
    def answer(request: Request) -> None:
        request.reply(status, {"message": "page not found"})

    with FakeEngine(folder, {"POST /session": answer}) as server:
        api = docker.APIClient(server.host, version="1.45")
        with pytest.raises(Unsuitable, match=str(status)), Session(api, Services({})):
            pass
        api.close()


def resources() -> tuple[int, int, set[str]]:
    gc.collect()
    folders = {str(path) for path in Path(tempfile.gettempdir()).glob("modelbake-session-*")}
    return threading.active_count(), len(list(Path("/proc/self/fd").iterdir())), folders


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_nothing_is_left(folder: Path, error: type[BaseException] | None) -> None:
    before = resources()
    engine = Engine([(HEALTH, b"")])
    with FakeEngine(folder, {"POST /session": engine}) as server:
        api = docker.APIClient(server.host, version="1.45")
        try:
            with Session(api, Services({})):
                engine.next()
                if error:
                    raise error
        except (ValueError, KeyboardInterrupt):
            pass
        assert engine.closed.wait(5)
        api.close()
    assert resources() == before


def test_an_engine_that_hangs_up(folder: Path) -> None:
    before = resources()

    def answer(request: Request) -> None:
        request.close_connection = True
        request.connection.sendall(SWITCH)

    with FakeEngine(folder, {"POST /session": answer}) as server:
        api = docker.APIClient(server.host, version="1.45")
        with Session(api, Services({})) as session:
            thread = session._thread
            assert thread is not None
            thread.join(5)
            assert not thread.is_alive()
        api.close()
    assert resources() == before


def test_a_long_temporary_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = folder / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert ask(folder, Services({}), (HEALTH, b"")) == [(OK, {1: 1})]
