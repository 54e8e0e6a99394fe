"""fetch.py, run as the real program against a real hub, with the faults that networks have."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import signal
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest

from modelbake.sample import SAMPLED_ABOVE, Sampler
from tests.servers.hub import Fault, Hub, Repo
from tests.servers.hub_certificate import Certificate, make_certificate
from tests.servers.running import RunsInThread

FETCH = Path(__file__).parents[3] / "images" / "builder" / "fetch.py"
TOKEN = "hf_canary0123456789abcdefghij"
NAME = "org/model"
MIB = 1 << 20
WEIGHTS = hashlib.shake_128(b"weights").digest(3 * MIB + 17)
FILES = {
    "config.json": b'{"hidden_size": 384}',
    "model.safetensors": WEIGHTS,
    "1_Pooling/config.json": b"{}",
    "a/b/empty file": b"",
    "vocab.txt": b"".join(b"word%d\n" % number for number in range(90_000)),
}
PARALLEL = ("--ranges-from", str(256 * 1024))
IMPATIENT = ("--patience", "2")


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its exit code, the events of both streams, all that it printed."""

    code: int
    events: list[dict[str, Any]]
    text: str

    @property
    def error(self) -> dict[str, Any]:
        return self.events[-1]

    def fetched(self) -> dict[str, dict[str, Any]]:
        return {event["file"]: event for event in self.events if event["event"] == "fetched"}

    def notes(self) -> str:
        return " ".join(event["message"] for event in self.events if event["event"] == "note")


def describe(path: str, data: bytes) -> dict[str, object]:
    return {"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


class Bench:
    """A manifest, a folder of secrets and a destination."""

    def __init__(self, folder: Path, endpoint: str, commit: str = "0" * 40) -> None:
        self.program = FETCH
        self.manifest = folder / "manifest.json"
        self.secrets = folder / "secrets"
        self.destination = folder / "models"
        self.secrets.mkdir()
        self._started: list[subprocess.Popen[str]] = []
        self.sources = {"schema": 1, "kind": "hf", "endpoint": endpoint, "repo": NAME, "revision": commit}
        self.token(TOKEN)
        self.locate()
        self.want(FILES)

    def want(self, files: Mapping[str, bytes]) -> None:
        entries = [describe(path, data) for path, data in files.items()]
        self.manifest.write_text(json.dumps({"schema": 1, "files": entries}))

    def token(self, token: str | None) -> None:
        path = self.secrets / "hf_token"
        path.unlink(missing_ok=True)
        if token is not None:
            path.write_text(token + "\n")

    def locate(self, **changes: object) -> None:
        self.sources.update(changes)
        (self.secrets / "sources").write_text(json.dumps(self.sources))

    def command(self, *options: str) -> list[str]:
        arguments = [str(self.manifest), str(self.destination), "--secrets", str(self.secrets), *options]
        return [sys.executable, str(self.program), *arguments]

    def start(self, *options: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            self.command(*options),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # The environment's token is somebody else's; the program must not look at it.
            env={**os.environ, "HF_TOKEN": "hf_of_the_environment", "HF_HUB_OFFLINE": "1", "HF_DEBUG": "1"},
        )
        self._started.append(process)
        return process

    def close(self) -> None:
        """End what a failed test has left."""
        for process in self._started:
            process.kill()
            process.communicate()

    def run(self, *options: str) -> Outcome:
        """Run the program, and check what must hold for every run."""
        return self.finish(self.start(*options))

    def finish(self, process: subprocess.Popen[str]) -> Outcome:
        out, err = process.communicate(timeout=120)
        text = out + err
        events = [json.loads(line) for line in text.splitlines()]
        for canary in (TOKEN, "hf_of_the_environment", "Signature=", "Traceback"):
            assert canary not in text
        assert all(
            event["event"] in {"progress", "fetched", "note"} for event in map(json.loads, out.splitlines())
        )
        if process.returncode:
            (line,) = err.splitlines()
            error = json.loads(line)
            assert (error["event"], error["code"]) == ("error", process.returncode)
            assert error["message"]
        else:
            assert err == ""
        return Outcome(process.returncode, events, text)

    def tree(self) -> dict[str, bytes]:
        """Return what is in the destination: path -> bytes; a folder's path ends with a slash."""
        if not self.destination.exists():
            return {}
        found: dict[str, bytes] = {}
        for path in self.destination.rglob("*"):
            name = path.relative_to(self.destination).as_posix()
            try:
                found |= {f"{name}/": b""} if path.is_dir() else {name: path.read_bytes()}
            except FileNotFoundError:  # a program that is still running has renamed it meanwhile
                continue
        return found

    def files(self) -> dict[str, bytes]:
        return {path: data for path, data in self.tree().items() if not path.endswith("/")}


@dataclass
class World:
    """A bench at a hub with a private repository."""

    hub: Hub
    repo: Repo
    bench: Bench


@contextmanager
def world_in(folder: Path, **options: Any) -> Iterator[World]:
    root = folder / "hub"
    Repo.create(root, NAME, FILES)
    repo = Repo(root, NAME)
    repo.set_private(True)
    with Hub(root, tokens={TOKEN: [NAME], "hf_without_access": []}, **options) as hub:
        bench = Bench(folder, hub.url, repo.branches["main"])
        try:
            yield World(hub, repo, bench)
        finally:
            bench.close()
        assert not hub.token_leaks()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_in(tmp_path) as world:
        yield world


# -- what goes well ------------------------------------------------------------------------------------------


def test_fetches_every_file_and_seals_the_folder(world: World) -> None:
    outcome = world.bench.run(*PARALLEL)
    assert outcome.code == 0, outcome.text
    assert world.bench.files() == FILES
    for path in [world.bench.destination, *world.bench.destination.rglob("*")]:
        state = path.lstat()
        assert stat.S_IMODE(state.st_mode) == (0o555 if path.is_dir() else 0o444)
        assert (state.st_mtime_ns, state.st_uid, state.st_gid) == (0, os.geteuid(), os.getegid())
    audit = outcome.fetched()
    assert audit.keys() == FILES.keys()
    line = audit["model.safetensors"]
    assert line["source"] == f"hf://{NAME}@{world.repo.branches['main']}"
    assert line["sha256"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert (line["bytes"], line["attempts"], line["method"]) == (len(WEIGHTS), 1, "hf_transfer")
    assert line["host"] == world.hub.cdn_url.removeprefix("http://")
    assert line["seconds"] >= 0
    # What the hub itself serves needs the token, which hf_transfer could carry elsewhere.
    assert audit["vocab.txt"]["method"] == "ranges"
    assert audit["config.json"]["method"] == "stream"
    assert world.hub.requests_for("model.safetensors", host="cdn")
    assert all(record.authorization_valid for record in world.hub.requests(host="hub"))


@pytest.mark.parametrize("killed_before", [False, True])
def test_large_files_get_a_sample(world: World, tmp_path: Path, killed_before: bool) -> None:
    large = hashlib.shake_128(b"large").digest(SAMPLED_ABOVE + 1)
    world.repo.commit({"large.safetensors": large})
    world.bench.locate(revision=world.repo.branches["main"])
    world.bench.want({**FILES, "large.safetensors": large})
    folder = tmp_path / "etc" / "samples"
    if killed_before:  # the files are there, their samples are not
        assert world.bench.run(*PARALLEL).code == 0
        assert not folder.parent.exists(), "control: nobody asked for samples"
    assert world.bench.run(*PARALLEL, "--samples", str(folder)).code == 0
    sampler = Sampler(len(large))
    sampler.update(memoryview(large))
    (path,) = folder.iterdir()
    assert (path.name, path.read_text()) == (hashlib.sha256(large).hexdigest(), f"{sampler.hexdigest()}\n")


def test_without_ranges_one_stream_does_it(tmp_path: Path) -> None:
    with world_in(tmp_path, ranges=False) as world:
        outcome = world.bench.run(*PARALLEL)
        assert outcome.code == 0, outcome.text
        assert world.bench.files() == FILES
        assert {line["method"] for line in outcome.fetched().values()} == {"stream"}


def test_a_public_repository_needs_no_token(world: World) -> None:
    world.repo.set_private(False)
    world.bench.token(None)
    outcome = world.bench.run(*PARALLEL)
    assert outcome.code == 0, outcome.text
    assert world.bench.files() == FILES
    assert outcome.fetched()["vocab.txt"]["method"] == "hf_transfer"
    assert not any(record.had_authorization for record in world.hub.requests())


def test_several_of_our_own_ranges(world: World, tmp_path: Path) -> None:
    """70 MB of one file from the hub's own address, where the token is needed: three segments at once."""
    data = hashlib.shake_128(b"large").digest(70 * MIB)
    with Rogue(lambda ask: ask.serve(data)) as rogue:
        world.bench.locate(endpoint=rogue.url)
        world.bench.want({"large.txt": data})
        outcome = world.bench.run()
        assert outcome.code == 0, outcome.text
        assert world.bench.files() == {"large.txt": data}
        assert outcome.fetched()["large.txt"]["method"] == "ranges"
        assert sorted(ask.headers["Range"] for ask in rogue.asked if ask.command == "GET") == [
            "bytes=0-0",
            "bytes=0-33554431",
            "bytes=33554432-67108863",
            "bytes=67108864-73400319",
        ]


def test_a_second_run_fetches_nothing(world: World) -> None:
    assert world.bench.run().code == 0
    world.hub.reset_log()
    outcome = world.bench.run()
    assert outcome.code == 0, outcome.text
    assert world.bench.files() == FILES
    assert not world.hub.requests()


def test_a_private_authority_is_trusted_by_all_ways(tmp_path: Path, certificate: Certificate) -> None:
    with world_in(tmp_path, cert=certificate.cert, key=certificate.key) as world:
        shutil.copy(certificate.authority, world.bench.secrets / "ca_bundle")
        outcome = world.bench.run(*PARALLEL)
        assert outcome.code == 0, outcome.text
        assert world.bench.files() == FILES
        assert {line["method"] for line in outcome.fetched().values()} == {"hf_transfer", "ranges", "stream"}


def test_an_unknown_authority_is_refused_at_once(tmp_path: Path, certificate: Certificate) -> None:
    with world_in(tmp_path, cert=certificate.cert, key=certificate.key) as world:
        started = time.monotonic()
        outcome = world.bench.run()
        assert outcome.code == 23
        assert "ca_bundle" in outcome.error["message"]
        assert time.monotonic() - started < 10
        assert not world.bench.tree()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


# -- who may -------------------------------------------------------------------------------------------------


def failed(world: World, code: int, *words: str, options: tuple[str, ...] = IMPATIENT) -> Outcome:
    """Run; check the exit code, the words of the message, and that nothing is left."""
    outcome = world.bench.run(*options)
    assert outcome.code == code, outcome.text
    for word in words:
        assert word in outcome.error["message"]
    assert world.bench.tree() == {}
    return outcome


def test_a_wrong_token(world: World) -> None:
    world.bench.token("hf_wrong_wrong_wrong")
    host = world.hub.url.removeprefix("http://")
    failed(world, 20, "token", host, f"hf://{NAME}@{world.repo.branches['main']}")


def test_a_token_without_access(world: World) -> None:
    world.bench.token("hf_without_access")
    failed(world, 22, "the token may not see it")


@pytest.mark.parametrize("token", ["two words", "line\nline", "tökén"])
def test_a_token_that_is_none(world: World, token: str) -> None:
    world.bench.token(token)
    outcome = failed(world, 20, "hf_token")
    assert token not in outcome.text


@pytest.mark.parametrize("token", [None, " "])
def test_no_token(world: World, token: str | None) -> None:
    world.bench.token(token)
    failed(world, 25, "needs a token; none was given")


def test_gated(world: World) -> None:
    world.repo.set_private(False)
    world.repo.set_gated("manual")
    world.bench.token("hf_without_access")
    failed(world, 21, "accept its terms")


def test_gated_without_token(world: World) -> None:
    world.repo.set_private(False)
    world.repo.set_gated("manual")
    world.bench.token(None)
    failed(world, 25)


def test_no_such_file(world: World) -> None:
    world.bench.want({**FILES, "missing.bin": b"x"})
    outcome = failed(world, 22, "missing.bin")
    assert outcome.error["file"] == "missing.bin"


def test_no_such_commit(world: World) -> None:
    world.bench.locate(revision="f" * 40)
    failed(world, 22, "no such commit")


# -- wrong bytes ---------------------------------------------------------------------------------------------


@pytest.mark.promise("wrong-bytes")
@pytest.mark.parametrize("options", [(), PARALLEL])
@pytest.mark.parametrize("offset", [0, 1_500_000, -1])
def test_a_flipped_bit_names_the_file(world: World, options: tuple[str, ...], offset: int) -> None:
    world.hub.faults.add(Fault("corrupt", "*.safetensors", offset=offset))
    outcome = failed(world, 24, "model.safetensors", "sha256", options=options)
    assert outcome.error["file"] == "model.safetensors"
    assert outcome.error["expected"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert outcome.error["actual"] not in {"", outcome.error["expected"]}
    assert "once more" in outcome.notes()


@pytest.mark.promise("wrong-bytes")
@pytest.mark.parametrize("options", [(), PARALLEL])
def test_a_bit_flipped_once_is_fetched_once_more(world: World, options: tuple[str, ...]) -> None:
    world.hub.faults.add(Fault("corrupt", "*.safetensors", offset=1_000_000, count=1))
    outcome = world.bench.run(*options)
    assert outcome.code == 0, outcome.text
    assert world.bench.files() == FILES
    assert outcome.fetched()["model.safetensors"]["attempts"] == 2
    assert outcome.fetched()["model.safetensors"]["method"] == "stream"


@pytest.mark.promise("wrong-bytes")
@pytest.mark.parametrize(
    ("kind", "options"),
    [("short", ()), ("short", PARALLEL), ("html", ()), ("html", PARALLEL), ("extra", ())],
)
def test_another_size(world: World, kind: Any, options: tuple[str, ...]) -> None:
    world.hub.faults.add(Fault(kind, "*.safetensors", host="cdn"))
    outcome = failed(world, 24, "model.safetensors", options=(*options, *IMPATIENT))
    if kind == "html":
        assert "HTML" in outcome.error["message"]
        assert outcome.error["expected"] == f"{len(WEIGHTS)} bytes"


@pytest.mark.promise("wrong-bytes")
def test_bytes_beyond_a_range_are_ignored(world: World) -> None:
    world.hub.faults.add(Fault("extra", "*.safetensors", host="cdn", size=100))
    outcome = world.bench.run(*PARALLEL)
    assert outcome.code == 0, outcome.text
    assert world.bench.files() == FILES


@pytest.mark.promise("wrong-bytes", "lock")
def test_a_lock_of_other_bytes(world: World) -> None:
    """The hub's file is whole, but it is not the one in the manifest."""
    world.bench.want({**FILES, "config.json": b'{"hidden_size": 768}'})
    outcome = failed(world, 24, "config.json")
    assert outcome.error["actual"] == hashlib.sha256(FILES["config.json"]).hexdigest()


# -- cuts and refusals that pass -----------------------------------------------------------------------------


@pytest.mark.promise("resume")
@pytest.mark.parametrize("offset", [0, 1, 65_536, 2_000_000, len(WEIGHTS) - 1])
def test_a_cut_connection_is_resumed(world: World, offset: int) -> None:
    world.hub.faults.add(Fault("drop", "*.safetensors", offset=offset, count=1))
    outcome = world.bench.run()
    assert outcome.code == 0, outcome.text
    assert world.bench.files() == FILES
    assert outcome.fetched()["model.safetensors"]["attempts"] == 2
    if offset > 65_536:
        again = world.hub.requests_for("*.safetensors", host="cdn")[-1]
        assert again.range is not None
        assert int(again.range.removeprefix("bytes=").rstrip("-")) > 65_536


@pytest.mark.promise("resume", "wrong-bytes")
@pytest.mark.parametrize("options", [(), PARALLEL])
def test_many_cuts(world: World, options: tuple[str, ...]) -> None:
    world.hub.faults.add(Fault("drop", "*.safetensors", offset=700_000, count=4))
    world.hub.faults.add(Fault("drop", "vocab.txt", offset=300_000, count=2))
    outcome = world.bench.run(*options)
    assert outcome.code == 0, outcome.text
    assert world.bench.files() == FILES
    progress = [event for event in outcome.events if event["event"] == "progress"]
    assert {event["file"]: event["total"] for event in progress}["model.safetensors"] == len(WEIGHTS)
    assert all(0 <= event["bytes"] <= event["total"] for event in progress)


@pytest.mark.promise("resume")
def test_a_body_that_ends_early_is_resumed(world: World) -> None:
    world.hub.faults.add(Fault("truncate", "*.safetensors", size=1_000_000, count=1))
    outcome = world.bench.run()
    assert outcome.code == 0, outcome.text
    assert world.bench.files() == FILES
    sent = world.hub.bytes_sent("*.safetensors", host="cdn")
    assert len(WEIGHTS) <= sent < len(WEIGHTS) + 200_000


@pytest.mark.promise("wrong-bytes")
def test_a_wrong_content_range_means_no_ranges(world: World) -> None:
    world.hub.faults.add(Fault("content_range", "*.safetensors"))
    outcome = world.bench.run(*PARALLEL)
    assert outcome.code == 0, outcome.text
    assert world.bench.files() == FILES
    assert outcome.fetched()["model.safetensors"]["method"] == "stream"


@pytest.mark.promise("wrong-bytes")
def test_a_wrong_content_range_after_a_cut_starts_anew(world: World) -> None:
    world.hub.faults.add(Fault("drop", "*.safetensors", offset=1_000_000, count=1))
    world.hub.faults.add(Fault("content_range", "*.safetensors"))
    outcome = world.bench.run()
    assert outcome.code == 0, outcome.text
    assert world.bench.files() == FILES


def test_an_expired_url_is_asked_for_anew(tmp_path: Path) -> None:
    with world_in(tmp_path, url_seconds=1.5) as world:
        world.hub.faults.add(Fault("drop", "*.safetensors", offset=100_000, count=1))
        world.hub.faults.add(Fault("status", "*.safetensors", host="cdn", status=503, retry_after=2, count=1))
        outcome = world.bench.run()
        assert outcome.code == 0, outcome.text
        assert world.bench.files() == FILES
        assert 403 in {record.status for record in world.hub.requests(host="cdn")}


def test_a_refusal_of_the_second_host_that_lasts(world: World) -> None:
    world.hub.faults.add(Fault("status", "*.safetensors", host="cdn", status=403))
    failed(world, 23, "403", world.hub.cdn_url.removeprefix("http://"), options=())


def test_waits_as_long_as_asked(world: World) -> None:
    world.hub.faults.add(Fault("status", "config.json", status=429, retry_after=2, count=1))
    started = time.monotonic()
    outcome = world.bench.run()
    assert outcome.code == 0, outcome.text
    assert time.monotonic() - started >= 2
    assert outcome.fetched()["config.json"]["attempts"] == 2


@pytest.mark.promise("hub-hang")
def test_does_not_wait_for_an_hour(world: World) -> None:
    world.hub.faults.add(Fault("status", "config.json", status=429, retry_after=3600))
    started = time.monotonic()
    failed(world, 23, "3600 s", options=())
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("status", [500, 502, 503])
def test_server_errors_pass(world: World, status: int) -> None:
    world.hub.faults.add(Fault("status", "*", status=status, count=3))
    outcome = world.bench.run()
    assert outcome.code == 0, outcome.text
    assert world.bench.files() == FILES


@pytest.mark.promise("hub-hang")
def test_server_errors_that_last(world: World) -> None:
    world.hub.faults.add(Fault("status", "*.safetensors", host="cdn", status=503))
    failed(world, 23, "503", "model.safetensors")


def test_a_silent_server_is_asked_again(world: World) -> None:
    world.hub.faults.add(Fault("delay", "*.safetensors", host="cdn", seconds=4, count=1))
    outcome = world.bench.run("--read-timeout", "1")
    assert outcome.code == 0, outcome.text
    assert outcome.fetched()["model.safetensors"]["attempts"] == 2


@pytest.mark.promise("hub-hang")
def test_hf_transfer_that_hangs_is_given_up(world: World) -> None:
    """The probe is answered; then nothing comes for longer than the limit, four times."""
    world.bench.want({"model.safetensors": WEIGHTS})
    real = world.hub.requests

    def hang() -> None:
        while not real(host="cdn"):
            time.sleep(0.005)
        world.hub.faults.add(Fault("delay", "*.safetensors", host="cdn", seconds=6, count=1))

    helper = threading.Thread(target=hang)
    helper.start()
    outcome = world.bench.run(*PARALLEL, "--read-timeout", "2")
    helper.join()
    assert outcome.code == 0, outcome.text
    assert world.bench.files() == {"model.safetensors": WEIGHTS}
    assert outcome.fetched()["model.safetensors"]["method"] == "ranges"
    assert "hf_transfer got nothing" in outcome.notes()


@pytest.mark.parametrize("gone", [True, False])
def test_the_hub_is_down(world: World, gone: bool) -> None:
    if gone:
        world.bench.locate(endpoint="http://127.0.0.1:9")
    else:
        world.hub.faults.add(Fault("down"))
    failed(world, 23, "127.0.0.1")


def test_a_host_without_a_name(world: World) -> None:
    world.bench.locate(endpoint="https://hub.invalid")
    failed(world, 23, "hub.invalid")


# -- redirects -----------------------------------------------------------------------------------------------


class Rogue(RunsInThread, ThreadingHTTPServer):
    """A server that does whatever a test wants, for what the well-behaved hub cannot do."""

    daemon_threads = True

    def __init__(self, answer: Callable[[Asked], None], certificate: Certificate | None = None) -> None:
        self.asked: list[Asked] = []
        self.answer = answer
        super().__init__(("127.0.0.1", 0), Asked)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate.cert, certificate.key)
            self.socket = context.wrap_socket(self.socket, server_side=True)
            self.url = self.url.replace("http:", "https:")

    def handle_error(self, request: Any, client_address: Any) -> None:
        # One that forwards may be asked by a client that is late when what it forwards to has ended.
        assert isinstance(sys.exception(), OSError | httpx2.TransportError), sys.exception()


class Asked(BaseHTTPRequestHandler):
    """One request to a Rogue."""

    server: Rogue
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _note(self) -> None:
        copy = Asked.__new__(Asked)
        copy.command, copy.path, copy.headers = self.command, self.path, self.headers
        self.server.asked.append(copy)
        self.server.answer(self)

    do_GET = do_HEAD = _note  # noqa: N815

    def redirect(self, location: str) -> None:
        self.reply(302, {"Location": location})

    def reply(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def serve(self, data: bytes) -> None:
        """Answer with a file, or the range of it that was asked for."""
        asked = self.headers["Range"]
        if asked is None:
            self.reply(200, {"ETag": '"x"'}, data)
            return
        first, _, last = asked.removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1] if last else data[int(first) :]
        span = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
        self.reply(206, {"ETag": '"x"', "Content-Range": span}, part)


@pytest.mark.promise("hub-hang")
def test_a_redirect_loop(world: World) -> None:
    world.hub.faults.add(Fault("loop", "config.json"))
    failed(world, 23, "redirects")
    assert len(world.hub.requests_for("config.json")) <= 7


@pytest.mark.promise("hub-hang")
def test_a_redirect_loop_elsewhere(world: World) -> None:
    with Rogue(lambda ask: ask.redirect(ask.path)) as rogue:
        world.bench.locate(endpoint=rogue.url)
        world.bench.want({"x": b"x"})
        failed(world, 23, "more than 5 redirects")
        assert len(rogue.asked) <= 7


@pytest.mark.promise("hub-token")
def test_the_token_stays_behind(tmp_path: Path) -> None:
    """Endpoint -> another port -> back to the endpoint: only the first request carries the token."""
    data = b"y" * 1000
    with Rogue(lambda ask: ask.redirect(f"{hub.url}/back")) as other:

        def answer(ask: Asked) -> None:
            ask.serve(data) if ask.path == "/back" else ask.redirect(f"{other.url}/signed?secret=1")

        with Rogue(answer) as hub:
            bench = Bench(tmp_path, hub.url)
            bench.want({"y": data})
            outcome = bench.run()
            assert outcome.code == 0, outcome.text
            assert bench.files() == {"y": data}
            carried = {(ask.path.split("?")[0], "Authorization" in ask.headers) for ask in hub.asked}
            assert carried == {(f"/{NAME}/resolve/{'0' * 40}/y", True), ("/back", False)}
            assert other.asked
            assert not any("Authorization" in ask.headers for ask in other.asked)


@pytest.mark.parametrize(("guarded", "carried"), [(True, False), (False, True)])
def test_no_token_to_what_the_library_takes_for_a_hub(tmp_path: Path, guarded: bool, carried: bool) -> None:
    """huggingface_hub forwards the token to hosts that it knows; `guarded` False shows that it does."""
    with Rogue(lambda ask: ask.reply(200, {})) as other, Rogue(lambda ask: ask.redirect(other.url)) as hub:
        script = f"""
import sys
sys.path.insert(0, {str(FETCH.parent)!r})
from huggingface_hub import get_hf_file_metadata
from huggingface_hub.utils import _http
_http._HUB_ORIGINS |= {{_http._url_origin({other.url!r})}}
from hub import Hub
from manifest import HubSource
if {guarded}:
    Hub(HubSource({hub.url!r}, "org/model", "0" * 40), {TOKEN!r}, ca=None, connect=5, read=5).locate("y")
else:
    get_hf_file_metadata({hub.url!r} + "/org/model/resolve/main/y", token={TOKEN!r})
"""
        subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
        assert [("Authorization" in ask.headers) for ask in hub.asked] == [True]
        assert [("Authorization" in ask.headers) for ask in other.asked] == [carried]


@pytest.mark.promise("hub-token")
def test_no_way_from_https_to_http(tmp_path: Path, certificate: Certificate) -> None:
    with (
        Rogue(lambda ask: ask.serve(b"y")) as plain,
        Rogue(lambda ask: ask.redirect(f"{plain.url}/y?secret=1"), certificate) as hub,
    ):
        bench = Bench(tmp_path, hub.url)
        shutil.copy(certificate.authority, bench.secrets / "ca_bundle")
        bench.want({"y": b"y"})
        outcome = bench.run()
        assert outcome.code == 23
        assert "from https to http" in outcome.error["message"]
        assert not plain.asked


@pytest.mark.parametrize(
    "target", ["ftp://127.0.0.1/y", "file:///etc/passwd", "http://u:p@127.0.0.1/y", "http://["]
)
def test_redirects_to_nowhere(tmp_path: Path, target: str) -> None:
    with Rogue(lambda ask: ask.redirect(target)) as hub:
        bench = Bench(tmp_path, hub.url)
        bench.want({"y": b"y"})
        outcome = bench.run(*IMPATIENT)
        assert outcome.code == 23
        assert "u:p" not in outcome.text
        assert bench.tree() == {}


# -- bodies that lie -----------------------------------------------------------------------------------------


def _endless(ask: Asked) -> None:
    ask.send_response(200)
    ask.send_header("Transfer-Encoding", "chunked")
    ask.end_headers()
    if ask.command == "HEAD":
        return
    block = b"%x\r\n" % 65536 + b"z" * 65536 + b"\r\n"
    while True:
        ask.wfile.write(block)


@pytest.mark.promise("hub-hang", "wrong-bytes")
def test_an_endless_body_is_cut_off(tmp_path: Path) -> None:
    with Rogue(_endless) as hub:
        bench = Bench(tmp_path, hub.url)
        bench.want({"z": b"z" * 100_000})
        outcome = bench.run()
        assert outcome.code == 24
        assert "more than 100000 bytes" in outcome.error["message"]
        assert bench.tree() == {}


@pytest.mark.promise("hub-hang", "wrong-bytes")
def test_endless_ranges_fill_neither_memory_nor_disk(tmp_path: Path) -> None:
    """Whoever answers hf_transfer with more than was asked for meets the child's limits."""
    size = 20 * MIB
    data = hashlib.shake_128(b"right").digest(size)

    def answer(ask: Asked) -> None:
        if ask.path != "/elsewhere":
            ask.redirect(f"{other.url}/elsewhere")

    def lie(ask: Asked) -> None:
        if ask.headers["User-Agent"] or ask.headers["Range"] == "bytes=0-0":
            ask.serve(data)
            return
        ask.send_response(206)
        ask.send_header("Transfer-Encoding", "chunked")
        ask.send_header("Content-Range", f"bytes 0-0/{size}")
        ask.end_headers()
        block = b"%x\r\n" % MIB + b"z" * MIB + b"\r\n"
        while True:
            ask.wfile.write(block)

    with Rogue(lie) as other, Rogue(answer) as hub:
        bench = Bench(tmp_path, hub.url)
        bench.want({"z": data})
        outcome = bench.run("--read-timeout", "5")
        assert outcome.code == 0, outcome.text
        assert bench.files() == {"z": data}
        assert outcome.fetched()["z"]["method"] == "ranges"


@pytest.mark.promise("wrong-bytes")
def test_a_compressed_body(tmp_path: Path) -> None:
    data = b"y" * 1000
    packed = gzip.compress(data)
    with Rogue(lambda ask: ask.reply(200, {"Content-Encoding": "gzip"}, packed)) as hub:
        bench = Bench(tmp_path, hub.url)
        bench.want({"y": data})
        outcome = bench.run()
        assert outcome.code == 24
        assert "compressed" in outcome.error["message"]


@pytest.mark.promise("hub-token")
def test_a_server_that_echoes_the_token(tmp_path: Path) -> None:
    headers = {"X-Error-Message": f"Bearer {TOKEN} is not welcome"}
    with Rogue(lambda ask: ask.reply(403, headers)) as hub:
        bench = Bench(tmp_path, hub.url)
        outcome = bench.run()  # which looks for the token in all that is printed
        assert outcome.code == 20
        assert "Bearer *** is not welcome" in outcome.error["message"]


# -- the folder ----------------------------------------------------------------------------------------------


def test_a_file_too_many(world: World) -> None:
    world.bench.destination.mkdir()
    (world.bench.destination / "surprise.bin").write_bytes(b"!")
    outcome = world.bench.run()
    assert outcome.code == 24
    assert "surprise.bin" in outcome.error["message"]
    assert world.bench.files() == {"surprise.bin": b"!"}
    assert not world.hub.requests()


def test_a_wrong_file_is_replaced(world: World) -> None:
    world.bench.destination.mkdir()
    (world.bench.destination / "config.json").write_bytes(b"wrong")
    assert world.bench.run().code == 0
    assert world.bench.files() == FILES


@pytest.mark.promise("hub-names")
@pytest.mark.parametrize("name", ["1_Pooling", "config.json"])
def test_symbolic_links_lead_nowhere(world: World, tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    world.bench.destination.mkdir()
    (world.bench.destination / name).symlink_to(elsewhere)
    outcome = world.bench.run()
    assert outcome.code == 24
    assert name in outcome.error["message"]
    assert not list(elsewhere.iterdir())


@pytest.mark.promise("hub-names")
def test_the_destination_is_no_symbolic_link(world: World, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    world.bench.destination.symlink_to(tmp_path / "elsewhere")
    assert world.bench.run().code == 1
    assert not list((tmp_path / "elsewhere").iterdir())


def test_the_destination_is_a_file(world: World) -> None:
    world.bench.destination.write_text("")
    outcome = world.bench.run()
    assert outcome.code == 1
    assert "destination" in outcome.error["message"]


def test_two_at_once(world: World) -> None:
    world.hub.faults.add(Fault("delay", "*", seconds=2, count=1))
    first = world.bench.start()
    _wait_for(lambda: any(world.bench.destination.glob(".modelbake-partial-*")))
    second = world.bench.run()
    assert second.code == 1
    assert "another fetch" in second.error["message"]
    assert world.bench.finish(first).code == 0
    assert world.bench.files() == FILES


@contextmanager
def small_disk(path: Path, size: str, *options: str) -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    path.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"cannot mount here: {made.stderr}")
    try:
        yield
    finally:
        # Lazily: a program that was ended a moment ago may still hold it.
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.mark.promise("disk-full")
def test_a_disk_too_small_is_noticed_at_once(world: World, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m"):
        world.bench.destination = tmp_path / "disk" / "models"
        needed = str(sum(map(len, FILES.values())))
        failed(world, 26, needed, "bytes are needed")
        assert not world.hub.requests()


@pytest.mark.promise("disk-full")
@pytest.mark.parametrize("options", [(), PARALLEL])
def test_a_disk_that_fills_up(world: World, tmp_path: Path, options: tuple[str, ...]) -> None:
    with small_disk(tmp_path / "disk", "8m"):
        world.bench.destination = tmp_path / "disk" / "models"
        world.hub.faults.add(Fault("delay", "*.safetensors", method="HEAD", seconds=1.5, count=1))
        run = world.bench.start(*options)
        _wait_for(lambda: bool(world.hub.requests()))
        with pytest.raises(OSError, match="No space"):
            (tmp_path / "disk" / "other").write_bytes(bytes(9 * MIB))
        outcome = world.bench.finish(run)
        assert outcome.code == 26, outcome.text
        assert "bytes are needed" in outcome.error["message"]
        assert world.bench.tree() == {}


def test_a_read_only_disk(world: World, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "8m", "ro"):
        world.bench.destination = tmp_path / "disk" / "models"
        outcome = world.bench.run()
        assert outcome.code == 1
        assert "Read-only file system" in outcome.error["message"]


# -- ends ----------------------------------------------------------------------------------------------------


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _wait_for_the_last(world: World) -> None:
    """Wait until all files are there but the weights, which the second server has been asked for."""
    _wait_for(lambda: world.bench.files().keys() >= FILES.keys() - {"model.safetensors"})
    _wait_for(lambda: bool(world.hub.requests_for("*.safetensors", host="hub")))
    time.sleep(0.5)


def _children_of(command: Path) -> list[str]:
    running = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            running.append(path.read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return [line for line in running if str(command) in line]


@pytest.mark.promise("resume", "crash")
@pytest.mark.parametrize("options", [(), PARALLEL])
def test_killed_and_run_again(world: World, options: tuple[str, ...]) -> None:
    world.hub.faults.add(Fault("delay", "*.safetensors", host="cdn", method="GET", seconds=20))
    run = world.bench.start(*options)
    _wait_for_the_last(world)
    run.kill()
    run.communicate()
    if not options:  # the probe for ranges comes before the file is begun
        assert any(path.startswith(".modelbake-partial") for path in world.bench.files())
    world.hub.faults.clear()
    world.hub.reset_log()
    outcome = world.bench.run(*options)
    assert outcome.code == 0, outcome.text
    assert world.bench.files() == FILES
    assert not world.hub.requests_for("vocab.txt")


def test_hf_transfer_dies_with_its_parent(world: World, tmp_path: Path) -> None:
    copy = tmp_path / "builder"
    shutil.copytree(FETCH.parent, copy)
    shutil.copy(FETCH.parent.parent / "start/weight_sample.py", copy)
    hung = threading.Event()

    def answer(ask: Asked) -> None:
        if ask.path != "/elsewhere":
            ask.redirect(f"{other.url}/elsewhere")

    def hang(ask: Asked) -> None:
        if ask.headers["Range"] == "bytes=0-0" and ask.headers["User-Agent"]:
            ask.serve(WEIGHTS)
            return
        hung.set()
        time.sleep(20)

    with Rogue(hang) as other, Rogue(answer) as hub:
        world.bench.locate(endpoint=hub.url)
        world.bench.want({"model.safetensors": WEIGHTS})
        command = world.bench.command(*PARALLEL)
        command[1] = str(copy / "fetch.py")
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as run:
            assert hung.wait(30)
            assert _children_of(copy / "accelerate.py")
            assert not any(TOKEN in line for line in _children_of(copy))
            run.kill()
        _wait_for(lambda: not _children_of(copy / "accelerate.py"))


@pytest.mark.promise("interrupt")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_nothing(world: World, number: signal.Signals) -> None:
    world.hub.faults.add(Fault("delay", "*.safetensors", host="cdn", seconds=20))
    run = world.bench.start()
    _wait_for_the_last(world)
    started = time.monotonic()
    run.send_signal(number)
    outcome = world.bench.finish(run)
    assert outcome.code == 130
    assert time.monotonic() - started < 10
    assert world.bench.tree() == {}


# -- what is asked for ---------------------------------------------------------------------------------------

GOOD = describe("config.json", b"{}")


@pytest.mark.promise("hub-names")
@pytest.mark.parametrize(
    ("files", "word"),
    [
        ([], "at least one file"),
        ([{**GOOD, "path": "/etc/passwd"}], "absolute"),
        ([{**GOOD, "path": "a/../../b"}], "`..`"),
        ([{**GOOD, "path": "./a"}], "`.`"),
        ([{**GOOD, "path": ""}], "empty part"),
        ([{**GOOD, "path": "a//b"}], "empty part"),
        ([{**GOOD, "path": "a\\b"}], "backslash"),
        ([{**GOOD, "path": "a\nb"}], "control character"),
        ([{**GOOD, "path": "\ud800"}], "not Unicode"),
        ([{**GOOD, "path": "x/.git/hooks/post-checkout"}], ".git"),
        ([{**GOOD, "path": "a/" * 512 + "b"}], "longer than 1024"),
        ([{**GOOD, "path": ".modelbake-partial-1"}], "starts with"),
        ([{**GOOD, "path": 7}], "no string"),
        ([{**GOOD, "size": -1}], "size"),
        ([{**GOOD, "size": True}], "size"),
        ([{**GOOD, "sha256": "A" * 64}], "sha256"),
        ([{**GOOD, "mode": 7}], "exactly the keys"),
        ([GOOD, GOOD], "the same name"),
        ([GOOD, {**GOOD, "path": "CONFIG.json"}], "the same name"),
        ([{**GOOD, "path": "caf\u00e9"}, {**GOOD, "path": "cafe\u0301"}], "the same name"),
        ([GOOD, {**GOOD, "path": "config.json/x"}], "also the folder"),
    ],
)
def test_bad_manifests(tmp_path: Path, files: list[dict[str, object]], word: str) -> None:
    bench = Bench(tmp_path, "http://127.0.0.1:9")
    bench.manifest.write_text(json.dumps({"schema": 1, "files": files}))
    outcome = bench.run()
    assert outcome.code == 27, outcome.text
    assert word in outcome.error["message"]
    assert not bench.destination.exists()


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"schema": 2, "files": []}', "[" * 100_000, '{"schema": true}']
)
def test_manifests_that_are_none(tmp_path: Path, text: str) -> None:
    bench = Bench(tmp_path, "http://127.0.0.1:9")
    bench.manifest.write_text(text)
    assert bench.run().code == 27


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "s3"},
        {"endpoint": "ftp://host"},
        {"endpoint": "https://user:password@host"},
        {"endpoint": "https://host?x=1"},
        {"endpoint": "https://host:port"},
        {"repo": "../etc"},
        {"repo": "a/b/c"},
        {"revision": "main"},
        {"revision": None},
        {"schema": 2},
    ],
)
def test_bad_sources(tmp_path: Path, changes: dict[str, object]) -> None:
    bench = Bench(tmp_path, "http://127.0.0.1:9")
    bench.locate(**changes)
    outcome = bench.run()
    assert outcome.code == 27, outcome.text
    assert "password" not in outcome.text


def test_no_sources_and_no_manifest(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "http://127.0.0.1:9")
    bench.manifest.unlink()
    assert bench.run().code == 27
    (bench.secrets / "sources").unlink()
    outcome = bench.run()
    assert outcome.code == 27
    assert "sources" in outcome.error["message"]


def test_a_bundle_that_is_none(world: World) -> None:
    (world.bench.secrets / "ca_bundle").write_text("no certificate")
    outcome = world.bench.run()
    assert outcome.code == 27
    assert "ca_bundle" in outcome.error["message"]
