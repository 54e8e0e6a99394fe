from __future__ import annotations

import http.client
import inspect
import json
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3
from docker import errors as docker_errors

from modelbake.buildkit.failure import FOREIGN, registry_error, translate
from modelbake.buildkit.solve import build
from modelbake.containers import gpu_request, split_streams
from modelbake.credentials import Secret
from modelbake.dockerconfig import RegistryCredentials
from modelbake.engine import LayerProgress, connect
from modelbake.engine_stream import json_objects
from modelbake.errors import (
    BuildFailed,
    DiskFull,
    EngineError,
    EngineNotFound,
    EngineTooOld,
    ImageNotFound,
    ModelbakeError,
    PushFailed,
    RegistryAuthError,
    RegistryUnavailable,
)
from modelbake.gpus import ALL, Gpus
from tests.servers.fake_engine import Answer, FakeEngine, Request
from tests.servers.hub_certificate import make_certificate


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:  # pytest's own are too long for a socket's path
        yield Path(name)


@pytest.fixture(autouse=True)
def no_engine_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("DOCKER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


# Exceptions of others


def example(cls: type[BaseException]) -> BaseException:
    """An instance of an exception class, whatever its parameters."""
    known: dict[str, Any] = {"build_log": [], "exit_status": 3, "response": None}
    parameters = [
        known.get(name, f"said {name}")
        for name, parameter in inspect.signature(cls.__init__).parameters.items()
        if name != "self"
        and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        and parameter.default is parameter.empty
    ]
    return cls(*parameters)


EXPECTED = {
    "ImageNotFound": ImageNotFound,
    "InvalidVersion": EngineTooOld,
    "BuildError": BuildFailed,
    "TLSParameterError": EngineNotFound,
    "InvalidConfigFile": EngineNotFound,
    "MissingContextParameter": EngineNotFound,
    "ContextAlreadyExists": EngineNotFound,
    "ContextException": EngineNotFound,
    "ContextNotFound": EngineNotFound,
}
DOCKER = [
    cls
    for _, cls in inspect.getmembers(docker_errors, inspect.isclass)
    if cls.__module__ == docker_errors.__name__
]


def test_the_sdks_classes_are_found() -> None:
    assert {cls.__name__ for cls in DOCKER} >= {*EXPECTED, "APIError", "StreamParseError", "ContainerError"}


@pytest.mark.parametrize("cls", DOCKER, ids=lambda cls: cls.__name__)
def test_every_exception_of_the_sdk(cls: type[BaseException]) -> None:
    error = example(cls)
    assert isinstance(error, FOREIGN)
    found = translate(error, "subject")
    assert type(found) is EXPECTED.get(cls.__name__, EngineError)
    assert found.subject == "subject"
    assert found.message


HTTP = [
    cls
    for _, cls in inspect.getmembers(requests.exceptions, inspect.isclass)
    if issubclass(cls, requests.RequestException) and cls is not requests.exceptions.JSONDecodeError
]
URLLIB3 = [
    cls
    for _, cls in inspect.getmembers(urllib3.exceptions, inspect.isclass)
    if issubclass(cls, urllib3.exceptions.HTTPError)
]


@pytest.mark.parametrize(
    "cls",
    [
        *HTTP,
        *URLLIB3,
        http.client.IncompleteRead,
        http.client.BadStatusLine,
        OSError,
        TimeoutError,
        ConnectionResetError,
    ],
    ids=lambda cls: f"{cls.__module__}.{cls.__name__}",
)
def test_every_exception_of_the_http_client(cls: type[BaseException]) -> None:
    error = cls.__new__(cls, "said")  # some have signatures of their own; what counts is the class
    error.args = ("said",)
    # What some need to be printed.
    vars(error).update(partial=0 if "urllib3" in cls.__module__ else b"", expected=1, length=b"1")
    assert isinstance(error, FOREIGN)
    assert type(translate(error, "x")) is EngineNotFound


def test_a_full_disk_whatever_the_class() -> None:
    for error in (
        docker_errors.APIError("x", explanation="write: no space left on device"),
        OSError("No space left on device"),
    ):
        assert type(translate(error, "x")) is DiskFull


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("unauthorized: authentication required", RegistryAuthError),
        ("no basic auth credentials", RegistryAuthError),
        ("denied: requested access to the resource is denied", RegistryAuthError),
        ("received unexpected HTTP status: 403 Forbidden", RegistryAuthError),
        ("received unexpected HTTP status: 500 Internal Server Error", RegistryUnavailable),
        ("toomanyrequests: too many requests", RegistryUnavailable),
        ('Get "http://x/v2/": dial tcp 127.0.0.1:1: connect: connection refused', RegistryUnavailable),
        ("Put http://x: EOF", RegistryUnavailable),
        ("http: server gave HTTP response to HTTPS client", RegistryUnavailable),
        ("manifest invalid", None),
    ],
)
def test_what_a_registry_is_blamed_for(said: str, expected: type[ModelbakeError] | None) -> None:
    found = registry_error(said, "x")
    assert (type(found) if found else None) is expected


# Finding an engine


@pytest.mark.parametrize("path", ["missing.sock", "file", "dead.sock"])
def test_no_engine(folder: Path, path: str) -> None:
    (folder / "file").touch()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "dead.sock"))
    with pytest.raises(EngineNotFound, match="no engine answers") as caught:
        connect(f"unix://{folder / path}")
    assert caught.value.subject == f"unix://{folder / path}"
    assert "scripts/engine" in caught.value.hint


def test_no_engine_on_the_network() -> None:
    with pytest.raises(EngineNotFound, match="refused"):
        connect("tcp://127.0.0.1:1")


def test_no_engine_over_ssh() -> None:
    with pytest.raises(EngineNotFound, match=r"no engine answers: .*(connect|paramiko)"):
        connect("ssh://nobody@127.0.0.1:1")


def test_something_else_answers(folder: Path) -> None:
    answers: dict[str, Answer] = {"GET /version": lambda request: request.reply(200, raw=b"<html>")}
    with FakeEngine(folder, answers) as server, pytest.raises(EngineNotFound):
        connect(server.host)


@pytest.mark.parametrize("host", ["carrier://pigeon", "tcp://", "unix://"])
def test_a_host_that_is_none(host: str) -> None:
    with pytest.raises(EngineNotFound):
        connect(host)


def test_an_engine_older_than_the_sdk_speaks(folder: Path) -> None:
    with FakeEngine(folder, version={"ApiVersion": "1.12"}) as server, pytest.raises(EngineTooOld):
        connect(server.host)


def test_docker_host_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeEngine(folder) as server:
        monkeypatch.setenv("DOCKER_HOST", server.host)
        monkeypatch.setenv(
            "DOCKER_CONTEXT", "no-such-context"
        )  # DOCKER_HOST wins, as with the docker program
        with connect() as engine:
            assert engine.host == server.host
            assert engine.info.version == "26.1.5"


@pytest.mark.parametrize("by", ["DOCKER_CONTEXT", "currentContext"])
def test_a_docker_context_is_used(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    import hashlib

    config = tmp_path / "config"
    meta = config / "contexts" / "meta" / hashlib.sha256(b"ours").hexdigest()
    meta.mkdir(parents=True)
    monkeypatch.setenv("DOCKER_CONFIG", str(config))
    if by == "DOCKER_CONTEXT":
        monkeypatch.setenv("DOCKER_CONTEXT", "ours")
    (config / "config.json").write_text(
        json.dumps({"currentContext": "ours"} if by == "currentContext" else {})
    )
    with FakeEngine(folder) as server:
        described = {"Name": "ours", "Metadata": {}, "Endpoints": {"docker": {"Host": server.host}}}
        (meta / "meta.json").write_text(json.dumps(described))
        with connect() as engine:
            assert engine.host == server.host


def test_a_docker_context_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONTEXT", "missing")
    with pytest.raises(EngineNotFound, match="no such docker context") as caught:
        connect()
    assert caught.value.subject == "missing"


def test_tls_settings_without_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:2376")
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path))
    with pytest.raises(EngineNotFound, match=r"lacks ca\.pem and cert\.pem and key\.pem") as caught:
        connect()
    assert "DOCKER_CERT_PATH" in caught.value.hint
    (tmp_path / "ca.pem").touch()
    with pytest.raises(EngineNotFound, match=r"lacks cert\.pem and key\.pem"):
        connect()


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n", b"\x15\x03"],
)
def test_tls_is_spoken_and_nobody_asked_for_it(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_answer, args=(listener, answer))
        thread.start()
        try:
            with pytest.raises(EngineNotFound, match="no engine answers") as caught:
                connect(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        finally:
            thread.join()
    assert "DOCKER_TLS_VERIFY=1" in caught.value.hint
    assert "cert.pem" in caught.value.hint


def test_nothing_speaks_tls_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = make_certificate(tmp_path)
    (tmp_path / "cert.pem").write_bytes(made.cert.read_bytes())
    (tmp_path / "key.pem").write_bytes(made.key.read_bytes())
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_answer, args=(listener, b"HTTP/1.1 400 Bad Request\r\n\r\n"))
        thread.start()
        try:
            monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{listener.getsockname()[1]}")
            with pytest.raises(EngineNotFound, match="it speaks no TLS") as caught:
                connect()
        finally:
            thread.join()
    assert "DOCKER_TLS_VERIFY" in caught.value.hint


def _answer(listener: socket.socket, answer: bytes) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(answer)


@pytest.mark.parametrize("host", ["tcp://no-such-host.invalid:2376", "ssh://ci@no-such-host.invalid"])
def test_a_host_that_nobody_knows(host: str) -> None:
    with pytest.raises(EngineNotFound, match="the host is not known") as caught:
        connect(host)
    assert "DOCKER_HOST" in caught.value.hint


# What an engine is


@pytest.mark.parametrize(
    ("info", "gpu", "store"),
    [
        ({"Runtimes": {"runc": {}}}, False, "classic"),
        ({"Runtimes": {"runc": {}, "nvidia": {}}}, True, "classic"),
        ({"DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=0"}]}, True, "classic"),
        ({"DiscoveredDevices": [{"Source": "cdi", "ID": "intel.com/gpu=0"}]}, False, "classic"),
        ({"CDISpecDirs": ["/nowhere"]}, False, "classic"),
        ({"DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]}, False, "containerd"),
        ({"DriverStatus": [["Backing Filesystem", "extfs"]]}, False, "classic"),
    ],
)
def test_what_an_engine_says_of_itself(folder: Path, info: dict[str, Any], gpu: bool, store: str) -> None:
    with FakeEngine(folder, info=info) as server, connect(server.host) as engine:
        assert (engine.info.gpu, engine.info.store) == (gpu, store)
        assert (engine.info.os, engine.info.arch, engine.info.api_version) == ("linux", "amd64", "1.45")


def test_gpus_that_only_a_cdi_file_names(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "nvidia.yaml").write_text("kind: nvidia.com/gpu\n")
    with FakeEngine(folder, info={"CDISpecDirs": [str(tmp_path)]}) as server, connect(server.host) as engine:
        assert engine.info.gpu


def test_gpu_requests() -> None:
    two, devices, named = Gpus(count=2), Gpus(devices=("1", "GPU-5e1f")), Gpus(cdi=("nvidia.com/gpu=3",))
    assert gpu_request(ALL, cdi=False)["Count"] == -1
    assert gpu_request(two, cdi=False)["Count"] == 2
    assert gpu_request(two, cdi=False)["Capabilities"] == [["gpu"]]
    assert gpu_request(devices, cdi=False)["DeviceIDs"] == ["1", "GPU-5e1f"]
    assert gpu_request(devices, cdi=False)["Count"] == 0, "an engine refuses a number beside names"
    assert gpu_request(devices, cdi=False)["Capabilities"] == [["gpu"]]
    assert gpu_request(ALL, cdi=True)["DeviceIDs"] == ["nvidia.com/gpu=all"]
    assert gpu_request(two, cdi=True)["DeviceIDs"] == ["nvidia.com/gpu=0", "nvidia.com/gpu=1"]
    assert gpu_request(devices, cdi=True)["DeviceIDs"] == ["nvidia.com/gpu=1", "nvidia.com/gpu=GPU-5e1f"]
    for cdi in (False, True):
        assert gpu_request(named, cdi=cdi)["DeviceIDs"] == ["nvidia.com/gpu=3"]
        assert gpu_request(named, cdi=cdi)["Driver"] == "cdi"


@pytest.mark.parametrize(
    ("version", "info", "refused"),
    [
        ({}, {}, None),
        ({"Version": "23.0.0"}, {}, None),
        ({"Version": "20.10.24+dfsg1"}, {}, "20.10.24"),
        ({"Version": "dev"}, {}, None),
        ({"Version": "5.2.0", "Components": [{"Name": "Podman Engine"}]}, {}, "Podman"),
        ({}, {"OSType": "windows"}, "windows"),
    ],
)
def test_engines_that_cannot_build(
    folder: Path, version: dict[str, Any], info: dict[str, Any], refused: str | None
) -> None:
    with FakeEngine(folder, version=version, info=info) as server, connect(server.host) as engine:
        if refused is None:
            engine.require_buildkit()
            return
        with pytest.raises(EngineTooOld, match=refused):
            engine.require_buildkit()
        with pytest.raises(EngineTooOld):
            build(engine, b"", secrets={}, on_event=print)


def test_free_disk(folder: Path, tmp_path: Path) -> None:
    here = {"Name": socket.gethostname(), "DockerRootDir": str(tmp_path)}
    with FakeEngine(folder, info=here) as server, connect(server.host) as engine:
        free = engine.disk_free()
        assert free is not None
        assert free > 0
    (folder / "engine.sock").unlink()
    with FakeEngine(folder, info={**here, "Name": "elsewhere"}) as server, connect(server.host) as engine:
        assert engine.disk_free() is None
    (folder / "engine.sock").unlink()
    with (
        FakeEngine(folder, info={**here, "DockerRootDir": "/no/such"}) as server,
        connect(server.host) as engine,
    ):
        assert engine.disk_free() is None


def test_an_engine_without_any_way_to_build(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("modelbake.buildkit.buildx._PLUGIN_FOLDERS", ())
    with FakeEngine(folder) as server, connect(server.host) as engine:
        with pytest.raises(EngineError, match=r"no sessions.*404.*buildx plugin is not installed") as caught:
            build(engine, b"", secrets={"hf_token": Secret("hf_canary")}, on_event=print)
        assert "install" in caught.value.hint
        assert not any("/build" in path for _, path, _, _ in server.seen)


@pytest.mark.parametrize(
    "program",
    [
        "#!/bin/sh\necho github.com/docker/buildx v0.12.1 abc\n",
        "#!/bin/sh\nexit 1\n",
        "#!/bin/sh\necho what\n",
    ],
)
def test_a_buildx_that_will_not_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str
) -> None:
    found = tmp_path / "docker-buildx"
    found.write_text(program)
    found.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with FakeEngine(folder) as server, connect(server.host) as engine, pytest.raises(EngineError) as caught:
        build(engine, b"", secrets={}, on_event=print)
    assert str(found) in caught.value.message


# Pushes


def stream(*messages: dict[str, Any]) -> Any:
    data = "".join(json.dumps(message) + "\r\n" for message in messages).encode()
    return lambda request: request.reply(200, raw=data)


PUSHED = {"progressDetail": {}, "aux": {"Tag": "1", "Digest": "sha256:" + "a" * 64, "Size": 528}}
PREPARING = {
    "status": "Pushing",
    "progressDetail": {"current": 512, "total": 1024},
    "progress": "[=>]",
    "id": "5f70bf18a086",
}


def problem(said: str) -> dict[str, Any]:
    return {"errorDetail": {"message": said}, "error": said}


def test_a_push(folder: Path) -> None:
    events: list[LayerProgress] = []
    answers = {
        "POST /images/registry.example.com/a/push": stream(
            {"status": "The push refers to"}, PREPARING, PUSHED
        )
    }
    with FakeEngine(folder, answers) as server, connect(server.host) as engine:
        credentials = RegistryCredentials("ci", Secret("p4ss"))
        pushed = engine.push("registry.example.com/a:1", credentials, events.append)
    assert (pushed.ref, pushed.digest, pushed.size) == ("registry.example.com/a:1", "sha256:" + "a" * 64, 528)
    assert events == [LayerProgress("5f70bf18a086", "Pushing", 512, 1024)]
    assert "p4ss" not in repr(pushed)


@pytest.mark.parametrize(
    ("messages", "expected", "said"),
    [
        ([PREPARING, problem("unauthorized: authentication required")], RegistryAuthError, "unauthorized"),
        (
            [problem("received unexpected HTTP status: 500 Internal Server Error"), PUSHED],
            RegistryUnavailable,
            "500",
        ),
        (
            [problem("manifest invalid"), problem("blob unknown"), PUSHED],
            PushFailed,
            "manifest invalid; blob unknown",
        ),
        ([{"error": "only the old form"}], PushFailed, "only the old form"),
        ([problem("write /x: no space left on device")], DiskFull, "no space"),
        (
            [problem("An image does not exist locally with the tag: registry.example.com/a")],
            ImageNotFound,
            "locally",
        ),
        ([PREPARING], PushFailed, "without a digest"),
        ([], PushFailed, "without a digest"),
    ],
)
def test_every_failure_inside_a_push(
    folder: Path, messages: list[dict[str, Any]], expected: type[ModelbakeError], said: str
) -> None:
    answers = {"POST /images/registry.example.com/a/push": stream(*messages)}
    server = FakeEngine(folder, answers)
    with server, connect(server.host) as engine, pytest.raises(expected, match=said) as caught:
        engine.push("registry.example.com/a:1", None, lambda event: None)
    assert type(caught.value) is expected
    assert caught.value.subject == "registry.example.com/a:1"


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (404, b'{"message":"No such image: x"}', ImageNotFound),
        (500, b"broken", PushFailed),
        (401, b'{"message":"unauthorized"}', RegistryAuthError),
    ],
)
def test_a_push_that_does_not_begin(
    folder: Path, status: int, body: bytes, expected: type[ModelbakeError]
) -> None:
    answers = {"POST /images/.*/push": lambda request: request.reply(status, raw=body)}
    with FakeEngine(folder, answers) as server, connect(server.host) as engine, pytest.raises(expected):
        engine.push("registry.example.com/a:1", None, lambda event: None)


def test_a_push_that_is_cut_off(folder: Path) -> None:
    def answer(request: Request) -> None:
        request.close_connection = True
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.end_headers()
        request.wfile.write(json.dumps(PREPARING).encode())

    server = FakeEngine(folder, {"POST /images/.*/push": answer})
    with server, connect(server.host) as engine, pytest.raises(EngineNotFound):
        engine.push("registry.example.com/a:1", None, lambda event: None)


@pytest.mark.parametrize(
    ("ref", "credentials", "header"),
    [
        (
            "registry.example.com/a:1",
            RegistryCredentials("ci", Secret("p")),
            {"serveraddress": "registry.example.com", "username": "ci", "password": "p"},
        ),
        (
            "library/a:1",
            RegistryCredentials("", Secret(""), Secret("t")),
            {"serveraddress": "https://index.docker.io/v1/", "identitytoken": "t"},
        ),
        ("registry.example.com/a:1", None, {}),
    ],
)
def test_what_a_push_sends_of_the_credentials(
    folder: Path, ref: str, credentials: RegistryCredentials | None, header: dict[str, str]
) -> None:
    import base64

    with (
        FakeEngine(folder, {"POST /images/.*/push": stream(PUSHED)}) as server,
        connect(server.host) as engine,
    ):
        engine.push(ref, credentials, lambda event: None)
        _, path, headers, _ = server.seen[-1]
    assert json.loads(base64.urlsafe_b64decode(headers["X-Registry-Auth"])) == header
    assert path.endswith("/push?tag=1")


# What comes in pieces


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_json_lines_however_they_are_cut(size: int) -> None:
    data = b'{"a":1}\r\n\r\n{"b":"\xc3\xa9"}\n{"c":[]}'
    chunks = (data[index : index + size] for index in range(0, len(data), size))
    assert list(json_objects(chunks)) == [{"a": 1}, {"b": "é"}, {"c": []}]


@pytest.mark.parametrize("data", [b'{"a":', b"[]\n", b"nonsense\n", b"\xff\n"])
def test_lines_that_are_no_json_objects(data: bytes) -> None:
    with pytest.raises(EngineError):
        list(json_objects(iter([data])))


def frame(stream: int, data: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


def test_streams_of_a_command() -> None:
    output = frame(1, b"out") + frame(2, b"err") + frame(1, b"") + frame(1, b"more")
    assert split_streams(output) == {"stdout": b"outmore", "stderr": b"err"}
    for cut in (output[:-1], output[:3], b"\x07" + output[1:]):
        with pytest.raises(EngineError):
            split_streams(cut)
