"""Builds on a real engine: over a session, and through buildx where the engine refuses sessions."""

from __future__ import annotations

import gc
import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from modelbake.buildkit.progress import BuildEvent, Log, VertexDone, VertexStarted
from modelbake.buildkit.solve import build
from modelbake.credentials import Secret
from modelbake.dockerconfig import RegistryCredentials
from modelbake.engine import Engine, connect
from modelbake.errors import (
    BuildFailed,
    EngineError,
    EngineNotFound,
    ModelbakeError,
    RegistryAuthError,
    RegistryUnavailable,
    SecretMissing,
    UsageError,
    WrongBytes,
)
from modelbake.imagetar import read_file
from tests.integration.conftest import TestRegistry, tar
from tests.promises import full
from tests.servers.engine_proxy import BuildKit, EngineProxy
from tests.servers.environment import run_script, shell_exports
from tests.servers.hub_certificate import make_certificate
from tests.servers.token_registry import TokenRegistry

pytestmark = pytest.mark.engine


class Bench:
    """Builds on one engine, removes what it built, and remembers the events of the last build."""

    def __init__(self, engine: Engine, tiny: str) -> None:
        self.engine = engine
        self.tiny = tiny
        self.events: list[BuildEvent] = []
        self.images: list[str] = []

    def __call__(
        self,
        *steps: str,
        files: Mapping[str, bytes | str] | None = None,
        on_event: Callable[[BuildEvent], None] | None = None,
        secrets: Mapping[str, Secret] | None = None,
        **options: Any,
    ) -> str:
        dockerfile = "\n".join(steps if steps[0].startswith("FROM") else [f"FROM {self.tiny}", *steps]) + "\n"
        self.events = events = []

        def heard(event: BuildEvent) -> None:
            events.append(event)
            if on_event is not None:
                on_event(event)

        context = tar({"Dockerfile": dockerfile, **(files or {})})
        built = build(self.engine, context, secrets=secrets or {}, on_event=heard, **options)
        self.images.append(built.id)
        return built.id

    @property
    def lines(self) -> list[str]:
        return [event.line for event in self.events if isinstance(event, Log)]


@pytest.fixture
def bench(engine: Engine, tiny: str) -> Iterator[Bench]:
    made = Bench(engine, tiny)
    yield made
    for image in made.images:
        with suppress(Exception):
            engine.api.remove_image(image, force=True)


@pytest.fixture
def buildx(monkeypatch: pytest.MonkeyPatch) -> str:
    """buildx, from the PATH or where scripts/engine unpacked it."""
    cache = Path(os.environ.get("MODELBAKE_CACHE") or Path.home() / ".cache" / "modelbake")
    folders = sorted(cache.glob("debian/*/root/usr/libexec/docker/cli-plugins"))
    path = os.pathsep.join([os.environ["PATH"], *map(str, folders)])
    monkeypatch.setenv("PATH", path)
    found = shutil.which("docker-buildx", path=path)
    if found is None:
        pytest.skip("docker-buildx is not on this machine")
    return found


@pytest.fixture
def sessionless(engine_host: str, tiny: str, buildx: str) -> Iterator[tuple[Bench, EngineProxy]]:
    """The engine, as if it refused sessions to the SDK."""
    with (
        EngineProxy(engine_host, refuse_sessions=True) as proxy,
        connect(f"tcp://127.0.0.1:{proxy.port}") as engine,
    ):
        made = Bench(engine, tiny)
        yield made, proxy
        for image in made.images:
            with suppress(Exception):
                engine.api.remove_image(image, force=True)


def canary() -> Secret:
    return Secret(f"hf_canary{uuid.uuid4().hex}")


def saved(engine: Engine, image: str) -> Iterator[bytes]:
    """The files of `docker save`; layers of the containerd store uncompressed."""
    with tarfile.open(fileobj=io.BytesIO(b"".join(engine.api.get_image(image)))) as archive:
        for member in archive:
            if file := archive.extractfile(member):
                content = file.read()
                yield gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


def found_in(engine: Engine, image: str, value: bytes) -> set[str]:
    """Where a value is: the image's history, its configuration, its layers."""
    places = {
        "history": [json.dumps(engine.api.history(image)).encode()],  # type: ignore[no-untyped-call]
        "config": [json.dumps(engine.api.inspect_image(image)).encode()],  # type: ignore[no-untyped-call]
        "layers": list(saved(engine, image)),
    }
    return {place for place, contents in places.items() if any(value in content for content in contents)}


def resources() -> tuple[list[str], int, set[Path]]:
    gc.collect()
    threads = sorted(
        thread.name for thread in threading.enumerate() if "process_request_thread" not in thread.name
    )
    folders = {
        path for root in (tempfile.gettempdir(), "/dev/shm") for path in Path(root).glob("modelbake-[sb]*-*")
    }
    return threads, len(list(Path("/proc/self/fd").iterdir())), folders


def command_lines() -> Iterator[bytes]:
    """The arguments of every process on this machine."""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            yield process.read_bytes()


def running(seconds: str) -> bool:
    """Whether a `sleep` of such a length runs: the engine's steps are processes of this machine."""
    return f"sleep\0{seconds}\0".encode() in command_lines()


def wait_until(reached: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


MOUNTED = "RUN --mount=type=secret,id=hf_token,required=true"
READ = f"{MOUNTED} sha256sum /run/secrets/hf_token; cat /run/secrets/hf_token"
LEAK = f"{MOUNTED} cp /run/secrets/hf_token /leaked"


# Over a session


def test_a_secret_reaches_its_step_and_nothing_else(bench: Bench) -> None:
    secret = canary()
    image = bench(READ, secrets={"hf_token": secret})
    digest = hashlib.sha256(secret.reveal_bytes()).hexdigest()
    assert f"{digest}  /run/secrets/hf_token" in bench.lines
    assert "***" in bench.lines
    assert secret.reveal() not in repr(bench.events)
    assert found_in(bench.engine, image, secret.reveal_bytes()) == set()


def test_the_search_for_a_secret_finds_a_leak(bench: Bench) -> None:
    secret = canary()
    image = bench(LEAK, secrets={"hf_token": secret})
    assert found_in(bench.engine, image, secret.reveal_bytes()) == {"layers"}


def test_a_secret_that_was_not_given(bench: Bench) -> None:
    with pytest.raises(SecretMissing, match="'hf_token'"):
        bench(READ, secrets={"other": canary()}, no_cache=True)


def test_what_is_asked_for_is_built(bench: Bench) -> None:
    tag = f"modelbake-test/options:{uuid.uuid4().hex[:8]}"
    image = bench(
        f"FROM {bench.tiny} AS first",
        "RUN echo first > /stage",
        "FROM first",
        "RUN false",
        target="first",
        tags=[tag],
        labels={"io.modelbake.test": 'a "b" = c'},
        network="none",
    )
    found = bench.engine.image(tag)
    assert found is not None
    assert found.id == image
    assert found.labels["io.modelbake.test"] == 'a "b" = c'


def test_a_failed_step_is_named_with_its_last_lines(bench: Bench) -> None:
    with pytest.raises(BuildFailed) as caught:
        bench("RUN seq 1 100; echo the reason >&2; exit 3")
    assert "RUN seq 1 100" in caught.value.subject
    assert "exit code: 3" in caught.value.message
    assert "the reason" in caught.value.message
    assert "    100\n" in caught.value.message + "\n"
    assert "    50\n" not in caught.value.message


def test_what_the_fetch_program_says_is_understood(bench: Bench) -> None:
    said = json.dumps(
        {"event": "error", "code": 24, "file": "model.safetensors", "message": "sha256 differs"}
    )
    with pytest.raises(WrongBytes, match=r"model\.safetensors: sha256 differs"):
        bench("COPY said /said", "RUN cat /said; exit 24", files={"said": said})


def test_a_session_outlives_long_steps(bench: Bench) -> None:
    secret = canary()
    started = time.monotonic()
    # BuildKit ends a session that does not answer its health checks after about 15 s; then no secret comes.
    bench("RUN sleep 25", READ, secrets={"hf_token": secret}, no_cache=True)
    assert time.monotonic() - started > 25
    assert any(hashlib.sha256(secret.reveal_bytes()).hexdigest() in line for line in bench.lines)


def test_two_builds_at_once(engine: Engine, tiny: str) -> None:
    benches, secrets = [Bench(engine, tiny), Bench(engine, tiny)], [canary(), canary()]

    def one(number: int) -> None:
        step = READ + f"; sleep 3; echo {uuid.uuid4()}"
        benches[number](step, secrets={"hf_token": secrets[number]})

    started = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, range(2)))
    assert time.monotonic() - started < 5.9
    for own, other in ((0, 1), (1, 0)):
        assert any(
            hashlib.sha256(secrets[own].reveal_bytes()).hexdigest() in line for line in benches[own].lines
        )
        assert not any(
            hashlib.sha256(secrets[other].reveal_bytes()).hexdigest() in line for line in benches[own].lines
        )
        engine.api.remove_image(benches[own].images[0], force=True)


def test_a_second_build_runs_nothing(bench: Bench) -> None:
    steps = ("COPY data /data", f"RUN sleep 4; echo {uuid.uuid4()}", READ)
    secret = canary()
    first = bench(*steps, files={"data": b"x" * 1000}, secrets={"hf_token": secret})
    started = time.monotonic()
    second = bench(*steps, files={"data": b"x" * 1000}, secrets={"hf_token": secret})
    assert time.monotonic() - started < 3
    assert first == second
    done = {event.name: event.cached for event in bench.events if isinstance(event, VertexDone)}
    steps_done = {name: cached for name, cached in done.items() if "] RUN " in name or "] COPY " in name}
    assert len(steps_done) == 3
    assert all(steps_done.values()), done


def test_a_secret_is_no_part_of_the_cache_key(bench: Bench) -> None:
    step = READ + f"; echo {uuid.uuid4()}"
    assert bench(step, secrets={"hf_token": canary()}) == bench(step, secrets={"hf_token": canary()})


def test_silence_longer_than_the_clients_timeout(engine_host: str, tiny: str) -> None:
    with connect(engine_host) as engine:
        engine.api.timeout = 2
        image = Bench(engine, tiny)(f"RUN sleep 5; echo {uuid.uuid4()}")
        engine.api.remove_image(image, force=True)


def test_a_large_context_from_a_file(bench: Bench, tmp_path: Path) -> None:
    data = os.urandom(30 << 20)
    path = tmp_path / "context.tar"
    path.write_bytes(
        tar({"Dockerfile": f"FROM {bench.tiny}\nCOPY data /data\nRUN sha256sum /data\n", "data": data})
    )
    lines: list[str] = []
    with path.open("rb") as context:
        built = build(
            bench.engine,
            context,
            secrets={},
            on_event=lambda event: lines.append(event.line) if isinstance(event, Log) else None,
        )
    bench.images.append(built.id)
    assert lines == [f"{hashlib.sha256(data).hexdigest()}  /data"]


@pytest.mark.parametrize("dockerfile", ["FRO scratch", "FROM scratch\nCOPY missing /"])
def test_a_dockerfile_that_cannot_be_built(bench: Bench, dockerfile: str) -> None:
    with pytest.raises(BuildFailed, match=r"unknown instruction|not found"):
        build(bench.engine, tar({"Dockerfile": dockerfile}), secrets={}, on_event=print)


def test_a_context_that_is_no_archive(bench: Bench) -> None:
    with pytest.raises(EngineError):
        build(bench.engine, b"not a tar", secrets={}, on_event=print)


# Ctrl-C


@pytest.mark.parametrize("how", ["signal", "event"])
def test_ctrl_c_ends_the_build_on_the_engine(engine_host: str, tiny: str, how: str) -> None:
    before = resources()
    length = f"3{uuid.uuid4().int % 10**6:06}"
    asked: list[float] = []

    def interrupt() -> None:
        asked.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    def on_event(event: BuildEvent) -> None:
        if isinstance(event, Log) and event.line == "sleeping":
            assert wait_until(lambda: running(length))
            if how == "event":
                asked.append(time.monotonic())
                raise KeyboardInterrupt
            threading.Timer(0.5, interrupt).start()  # while we wait for the engine's next word

    with connect(engine_host) as engine:
        with pytest.raises(KeyboardInterrupt):
            Bench(engine, tiny)(
                f"RUN echo sleeping; sleep {length}", secrets={"hf_token": canary()}, on_event=on_event
            )
        assert time.monotonic() - asked[0] < 5
        assert wait_until(lambda: not running(length)), "the step still runs"
        image = Bench(engine, tiny)("RUN echo and the engine builds on")
        engine.api.remove_image(image, force=True)
    assert resources() == before


# Base images


def test_a_base_image_that_does_not_exist(bench: Bench, registry: TestRegistry) -> None:
    with pytest.raises(BuildFailed, match="no such base image") as caught:
        bench(f"FROM {registry.host}/no/such:1", "RUN true", registries=registry)
    assert caught.value.subject == f"{registry.host}/no/such:1"


@pytest.mark.parametrize("host", ["127.0.0.1:1", "registry.invalid"])
def test_a_registry_that_does_not_answer(bench: Bench, host: str) -> None:
    with pytest.raises(RegistryUnavailable) as caught:
        bench(f"FROM {host}/base:1", "RUN true")
    assert caught.value.subject == f"{host}/base:1"


@pytest.fixture
def private_base(engine: Engine, registry: TestRegistry, rootfs: bytes) -> str:
    """A base image that no engine has: in the registry only."""
    name = f"{registry.host}/test/base-{uuid.uuid4().hex[:12]}"
    with tarfile.open(fileobj=io.BytesIO(rootfs)) as reader:
        files = {member.name: file.read() for member in reader if (file := reader.extractfile(member))}
    engine.api.import_image_from_data(tar({**files, "unique": name}), repository=name, tag="1")
    pushed = engine.push(f"{name}:1", registry.for_registry(registry.host), lambda event: None)
    engine.api.remove_image(f"{name}:1", force=True)
    return f"{name}@{pushed.digest}"


class Wrong:
    """A login that the registry does not know."""

    def __init__(self, registry: TestRegistry) -> None:
        self.registry = registry

    def for_registry(self, host: str) -> RegistryCredentials | None:
        return RegistryCredentials(self.registry.user, Secret("not-the-password"))


@pytest.mark.parametrize("fallback", [False, True], ids=["session", "buildx"])
def test_a_private_base_image(
    bench: Bench, registry: TestRegistry, private_base: str, fallback: bool, request: pytest.FixtureRequest
) -> None:
    made = request.getfixturevalue("sessionless")[0] if fallback else bench
    for registries in (None, Wrong(registry)):
        with pytest.raises(RegistryAuthError) as caught:
            made(f"FROM {private_base}", "RUN true", registries=registries)
        assert caught.value.subject == private_base
        assert "not-the-password" not in str(caught.value)
    made(f"FROM {private_base}", "RUN cat /unique", registries=registry)
    assert made.lines == [private_base.partition("@")[0]]


class Login:
    """One user and password for one registry; remembers which registries were asked for."""

    def __init__(self, host: str, user: str, password: str) -> None:
        self.host, self.user, self.password = host, user, password
        self.asked: list[str] = []

    def for_registry(self, host: str) -> RegistryCredentials | None:
        self.asked.append(host)
        return RegistryCredentials(self.user, Secret(self.password)) if host == self.host else None


@pytest.mark.parametrize("fallback", [False, True], ids=["session", "buildx"])
def test_a_base_image_for_a_token(
    bench: Bench, rootfs: bytes, fallback: bool, request: pytest.FixtureRequest
) -> None:
    made = request.getfixturevalue("sessionless")[0] if fallback else bench
    with TokenRegistry(rootfs, "ci", "p4ssword") as server:
        wrong, right = Login(server.host, "ci", "not-the-password"), Login(server.host, "ci", "p4ssword")
        for registries in (None, wrong):
            with pytest.raises(RegistryAuthError):
                made(f"FROM {server.host}/base:1", "RUN true", registries=registries)
        made(f"FROM {server.host}/base:1", "RUN true", registries=right)
        assert set(right.asked) == {server.host}
        assert any(given == "Bearer t0ken" for _, given in server.seen)


# Through buildx


def test_an_engine_without_sessions_builds_through_buildx(sessionless: tuple[Bench, EngineProxy]) -> None:
    bench, proxy = sessionless
    secret, binary = canary(), Secret(b"\x00\xff" * 100)
    step = READ.replace("RUN ", "RUN --mount=type=secret,id=binary ").replace("/hf_token;", "/*;")
    folders = resources()[2]
    image = bench(
        step,
        secrets={"hf_token": secret, "binary": binary},
        labels={"a": "b c"},
        tags=["modelbake-test/buildx:1"],
    )
    assert resources()[2] == folders
    assert proxy.refused == 1
    assert {
        f"{hashlib.sha256(each.reveal_bytes()).hexdigest()}  /run/secrets/{name}"
        for name, each in (("hf_token", secret), ("binary", binary))
    } <= set(bench.lines)
    assert secret.reveal() not in repr(bench.events)
    assert any(isinstance(event, VertexStarted) and "sha256sum" in event.name for event in bench.events)
    assert any(isinstance(event, VertexDone) for event in bench.events)
    assert found_in(bench.engine, image, secret.reveal_bytes()) == set()
    found = bench.engine.image("modelbake-test/buildx:1")
    assert found is not None
    assert (found.id, found.labels["a"]) == (image, "b c")


def test_buildx_and_a_session_build_the_same_layers(
    sessionless: tuple[Bench, EngineProxy], bench: Bench
) -> None:
    step = f"RUN echo {uuid.uuid4()} > /x"
    fallback = sessionless[0]
    layers = [each.engine.api.inspect_image(each(step))["RootFS"] for each in (bench, fallback)]  # type: ignore[no-untyped-call]
    assert layers[0] == layers[1]


@pytest.mark.promise("token-leak")
def test_secrets_reach_buildx_in_memory_only(
    sessionless: tuple[Bench, EngineProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, _ = sessionless
    secret = canary()
    monkeypatch.setenv("HF_TOKEN", secret.reveal())
    seen: list[bytes] = []

    def on_event(event: BuildEvent) -> None:
        if isinstance(event, VertexStarted) and not seen:
            for process in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    arguments = (process / "cmdline").read_bytes()
                    if b"docker-buildx\0build" in arguments:
                        seen.extend((arguments, (process / "environ").read_bytes()))
            for folder in Path("/dev/shm").glob("modelbake-buildx-*"):
                assert folder.stat().st_mode & 0o777 == 0o700
                seen.extend(path.read_bytes() for path in folder.rglob("*") if path.is_file())

    bench(READ, secrets={"hf_token": secret}, on_event=on_event, no_cache=True)
    assert len(seen) >= 3
    assert not any(secret.reveal_bytes() in each for each in seen)


@pytest.mark.parametrize(
    ("steps", "expected", "said"),
    [
        (["RUN echo the reason >&2; exit 3"], BuildFailed, "the reason"),
        (["RUN --mount=type=secret,id=other,required=true cat /run/secrets/other"], SecretMissing, "'other'"),
        (["FROM 127.0.0.1:1/base:1"], RegistryUnavailable, "refused"),
        (["FROM scratch", "FRO x"], BuildFailed, "unknown instruction"),
        (
            ['RUN echo \'{"event":"error","code":24,"message":"sha256 differs"}\'; exit 24'],
            WrongBytes,
            "differs",
        ),
    ],
)
def test_failures_through_buildx_read_the_same(
    sessionless: tuple[Bench, EngineProxy], steps: list[str], expected: type[ModelbakeError], said: str
) -> None:
    with pytest.raises(expected, match=said):
        sessionless[0](*steps)


def test_ctrl_c_ends_buildx(sessionless: tuple[Bench, EngineProxy]) -> None:
    bench, _ = sessionless
    length = f"4{uuid.uuid4().int % 10**6:06}"
    _, _, folders = resources()

    def on_event(event: BuildEvent) -> None:
        if isinstance(event, Log) and event.line == "sleeping":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench(f"RUN echo sleeping; sleep {length}", on_event=on_event)
    assert wait_until(lambda: not running(length)), "the step still runs"
    assert not any(b"docker-buildx\0build" in each for each in command_lines())
    assert resources()[2] == folders
    assert "modelbake-context" not in {thread.name for thread in threading.enumerate()}


# Over the network


def test_an_engine_behind_tls(
    engine_host: str, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buildx: str
) -> None:
    certificate = make_certificate(tmp_path / "made")
    for name, path in (
        ("ca.pem", certificate.authority),
        ("cert.pem", certificate.cert),
        ("key.pem", certificate.key),
    ):
        shutil.copy(path, tmp_path / name)
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path))
    for refuse in (False, True):  # a session, then buildx
        with EngineProxy(
            engine_host, refuse_sessions=refuse, certificate=(certificate.cert, certificate.key)
        ) as proxy:
            monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{proxy.port}")
            with connect() as engine:
                bench, secret = Bench(engine, tiny), canary()
                image = bench(READ + f"; sleep 7; echo {uuid.uuid4()}", secrets={"hf_token": secret})
                assert any(hashlib.sha256(secret.reveal_bytes()).hexdigest() in line for line in bench.lines)
                engine.api.remove_image(image, force=True)
            assert proxy.refused == int(refuse)


def test_an_engine_behind_ssh(
    engine_host: str, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("paramiko", reason="the Docker SDK needs paramiko for ssh:// hosts")
    from tests.servers.ssh_engine import SSHEngine

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with SSHEngine(engine_host, tmp_path) as server, connect(server.host) as engine:
        bench, secret = Bench(engine, tiny), canary()
        image = bench(
            READ + f"; sleep 7; echo {uuid.uuid4()}", READ, secrets={"hf_token": secret}, no_cache=True
        )
        digest = hashlib.sha256(secret.reveal_bytes()).hexdigest()
        assert sum(digest in line for line in bench.lines) == 2
        engine.api.remove_image(image, force=True)
        (tmp_path / ".ssh" / "known_hosts").write_text("")
        with pytest.raises(EngineNotFound, match="not found in known_hosts"):
            connect(server.host)


# The other image store


@pytest.fixture(scope="module")
def containerd_host() -> Iterator[str]:
    """An engine of our own with the containerd image store: there an image's id is its manifest's digest."""
    name = "bkctrd"
    yield shell_exports("engine", "up", "--name", name, "--containerd-snapshotter")["DOCKER_HOST"]
    run_script("engine", "down", "--name", name, "--purge")


@pytest.mark.parametrize("fallback", [False, True], ids=["session", "buildx"])
def test_with_the_containerd_store(containerd_host: str, rootfs: bytes, buildx: str, fallback: bool) -> None:
    with ExitStack() as stack:
        host = containerd_host
        if fallback:
            proxy = stack.enter_context(EngineProxy(containerd_host, refuse_sessions=True))
            host = f"tcp://127.0.0.1:{proxy.port}"
        engine = stack.enter_context(connect(host))
        assert engine.info.store == "containerd"
        engine.api.import_image_from_data(rootfs, repository="modelbake-test/other-store", tag="1")
        bench, secret = Bench(engine, "modelbake-test/other-store:1"), canary()
        kept = bench(
            READ, "COPY data /data", files={"data": "x"}, secrets={"hf_token": secret}, no_cache=True
        )
        assert any(hashlib.sha256(secret.reveal_bytes()).hexdigest() in line for line in bench.lines)
        leaked = bench(LEAK, secrets={"hf_token": secret}, no_cache=True)
        assert found_in(engine, kept, secret.reveal_bytes()) == set()
        assert found_in(engine, leaked, secret.reveal_bytes()) == {"layers"}
        found = engine.image(kept)
        assert found is not None
        assert found.id == kept
        name = f"modelbake-test/list:{uuid.uuid4().hex[:8]}"
        bench("FROM scratch", "COPY list.json /list.json", files={"list.json": "[1]"}, tags=[name])
        assert read_file(engine.export(name), "list.json", 3) == b"[1]"
        engine.remove(name)
        assert engine.image(name) is None


# A builder of buildx


def test_a_builder_by_name(
    containerd_host: str,
    bench: Bench,
    rootfs: bytes,
    buildx: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It builds elsewhere: in another engine's BuildKit, a buildkitd to buildx's driver `remote`."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    base, tag = "modelbake-test/other-store:1", f"modelbake-test/by-name:{uuid.uuid4().hex[:8]}"
    with connect(containerd_host) as elsewhere:
        elsewhere.api.import_image_from_data(rootfs, repository=base[:-2], tag="1")
    secret = canary()
    seen: list[bytes] = []

    def on_event(event: BuildEvent) -> None:
        if isinstance(event, VertexStarted):
            seen.extend(each for each in command_lines() if b"docker-buildx\0build" in each)

    with BuildKit(containerd_host) as kit:
        create = [buildx, "create", "--name", "ours", "--driver", "remote", kit.address]
        subprocess.run(create, check=True, capture_output=True)
        image = bench(
            f"FROM {base}", READ, "COPY data /data",
            files={"data": uuid.uuid4().hex}, secrets={"hf_token": secret}, tags=[tag], labels={"a": "b"},
            builder="ours", no_cache=True, on_event=on_event,
        )  # fmt: skip
        assert kit.connections > 0, "it was that builder that built"
        untagged = bench(f"FROM {base}", "COPY data /data", files={"data": "x"}, builder="ours")
        assert bench.engine.image(untagged) is not None
    found = bench.engine.image(tag)
    assert found is not None
    assert (found.id, found.labels["a"]) == (image, "b")
    bench.images.append(tag)
    assert found_in(bench.engine, image, secret.reveal_bytes()) == set()
    assert seen and not any(secret.reveal_bytes() in each for each in seen)
    assert b"--builder=ours" in seen[0]
    with pytest.raises(UsageError, match="no such builder") as caught:
        bench("RUN true", builder="none-such")
    assert "docker buildx ls" in caught.value.hint


@pytest.mark.skipif(not full(), reason="buildx waits for 20 s; `make nightly` does")
def test_a_builder_that_does_not_answer(
    bench: Bench, buildx: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    create = [buildx, "create", "--name", "gone", "--driver", "remote", "tcp://127.0.0.1:1"]
    subprocess.run(create, check=True, capture_output=True)
    with pytest.raises(EngineNotFound, match="the builder does not answer") as caught:
        bench("RUN true", builder="gone")
    assert "buildx inspect --bootstrap gone" in caught.value.hint


def test_the_engines_own_builder(
    bench: Bench, buildx: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the driver `docker`: `default` is the engine of this run; contexts of the user's are no builders."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    meta = tmp_path / "contexts/meta" / hashlib.sha256(b"theirs").hexdigest()
    meta.mkdir(parents=True)
    described = {"Name": "theirs", "Metadata": {}, "Endpoints": {"docker": {"Host": bench.engine.host}}}
    (meta / "meta.json").write_text(json.dumps(described))
    image = bench("RUN true", builder="default")
    assert bench.engine.image(image) is not None
    with pytest.raises(UsageError, match="a docker context") as caught:
        bench("RUN true", builder="theirs")
    assert "DOCKER_CONTEXT=theirs" in caught.value.hint
