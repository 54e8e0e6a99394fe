"""Smoke runs on a real engine: an image with the real start program and probe, and a small server."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from modelbake.buildkit.solve import build
from modelbake.config import CheckSpec, ModelSpec, SmokeSpec
from modelbake.containers import LABEL
from modelbake.engine import Engine, LocalImage
from modelbake.errors import GoldenError, GpuUnavailable, NotReady, SmokeFailed
from modelbake.expected import Golden
from modelbake.output import Output
from modelbake.report import Report, read_report, write_report
from modelbake.smoke import smoke
from modelbake.smokeentry import Limits
from tests.integration.conftest import tar
from tests.servers.environment import ROOT, run_script
from tests.unit.reporting import report

pytestmark = pytest.mark.engine

LOCK = "sha256:" + "2" * 64
WEIGHTS = b"some weights"

SERVER = """
import json, os, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
mode, began = os.environ["MODE"], time.monotonic()
if mode == "crash":
    sys.exit("the model does not fit")
class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args): pass
    def reply(self, status, body):
        self.send_response(status); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        if self.path == "/metrics":
            return self.reply(200, b"modelbake_load_seconds 0.5\\n")
        self.reply(200 if mode != "slow" and time.monotonic() - began > 0.5 else 503, b"")
    def do_POST(self):
        if mode == "memory":
            print("dying", flush=True); os._exit(9)
        order = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.reply(200, json.dumps({"echo": order["input"]}).encode())
HTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"""
PROGRAMS = ("start.py", "weight_files.py", "weight_headers.py", "weight_sample.py", "probe.py")
DOCKERFILE = """\
FROM {base}
RUN mkdir -p /opt/venv/bin && ln -s /usr/bin/python3 /opt/venv/bin/python
COPY start.py weight_files.py weight_headers.py weight_sample.py probe.py manifest.json /modelbake/
COPY server.py /app/
COPY weights.bin /models/
ENV MODE={mode}
USER 65532:65532
ENTRYPOINT ["/opt/venv/bin/python", "/modelbake/start.py"]
CMD ["/opt/venv/bin/python", "/app/server.py"]
"""


class Images:
    """Builds an image for each mode of the server once."""

    def __init__(self, engine: Engine, base: str) -> None:
        self.engine = engine
        self.base = base
        self.made: dict[str, LocalImage] = {}

    def __call__(self, mode: str) -> LocalImage:
        if mode not in self.made:
            manifest = {
                "schema": 1,
                "model": "tiny",
                "version": "1.0.0",
                "files": [
                    {
                        "path": "weights.bin",
                        "size": len(WEIGHTS),
                        "sha256": hashlib.sha256(WEIGHTS).hexdigest(),
                    }
                ],
            }
            programs = ROOT / "images" / "start"
            context = tar(
                {
                    "Dockerfile": DOCKERFILE.format(base=self.base, mode=mode),
                    **{name: (programs / name).read_bytes() for name in PROGRAMS},
                    "manifest.json": json.dumps(manifest),
                    "server.py": SERVER,
                    "weights.bin": WEIGHTS if mode != "corrupt" else b"other weight",
                }
            )
            tag = f"modelbake-test/smoke:{uuid.uuid4().hex[:12]}"
            build(self.engine, context, secrets={}, tags=[tag], on_event=lambda event: None)
            image = self.engine.image(tag)
            assert image is not None
            self.made[mode] = image
        return self.made[mode]


@pytest.fixture(scope="module")
def images(engine: Engine, engine_host: str) -> Iterator[Images]:
    made = Images(engine, run_script("base-image", environment={"DOCKER_HOST": engine_host}))
    yield made
    for image in made.made.values():
        engine.api.remove_image(image.tags[0], force=True)


class Runs:
    """Smoke runs of a model called as the test's own name, so that its containers are told from others'."""

    def __init__(self, engine: Engine, reports: Path) -> None:
        self.engine = engine
        self.reports = reports
        self.goldens = reports.with_name("goldens")
        self.model = f"t{uuid.uuid4().hex[:12]}"
        self.log = io.StringIO()

    def __call__(
        self,
        image: LocalImage,
        *checks: CheckSpec,
        device: str = "any",
        startup: float = 60.0,
        limits: Mapping[str, Any] | None = None,
        lock: str = LOCK,
        **asked: Any,
    ) -> Report:
        settings: dict[str, Any] = {
            "name": self.model,
            "version": "1.0.0",
            "source": "hf://a/b",
            "runtime": "r",
            "device": device,
            "smoke": SmokeSpec(
                checks=checks or (echo(),),
                requests=5,
                startup_seconds=startup,
                limits=Limits(**limits or {}),
            ),
        }
        return smoke(
            self.engine,
            ModelSpec(**settings),
            image,
            runtime_port=8000,
            health="/health",
            lock=lock,
            reports=self.reports,
            goldens=self.goldens,
            output=Output(stderr=self.log),
            **asked,
        )

    def read(self) -> Report:
        return read_report(self.reports, self.model, "1.0.0")

    def passed_before(self, image: LocalImage) -> None:
        write_report(self.reports, report(model=self.model, image_id=image.id))

    def left(self) -> list[str]:
        """Return the containers of this test that are still there, running or not."""
        filters = {"label": LABEL, "name": self.model}
        return [each["Id"] for each in self.engine.api.containers(all=True, filters=filters)]


@pytest.fixture
def runs(engine: Engine, tmp_path: Path) -> Iterator[Runs]:
    made = Runs(engine, tmp_path / "reports")
    yield made
    assert made.left() == []


def echo(expected: str = "hello") -> CheckSpec:
    return CheckSpec(
        name="echo", method="POST", path="/echo", body={"input": "hello"}, expect={"echo": expected}
    )


def test_an_image_that_works(runs: Runs, images: Images) -> None:
    image = images("good")
    made = runs(image)
    assert made == runs.read()
    assert (made.passed, made.image_id, made.lock) == (True, image.id, LOCK)
    assert made.image_bytes == image.size > 1_000_000
    assert [check.name for check in made.checks] == ["ready", "echo", "repeat"]
    assert made.load_seconds == 0.5
    assert made.latency_seconds is not None
    if not runs.engine.info.gpu:
        assert (made.device, made.gpu, made.gpu_memory) == ("cpu", False, None)
        assert "no GPU" in runs.log.getvalue()


def test_the_container_runs_while_it_is_asked(runs: Runs, images: Images) -> None:
    """The positive control of what every test here ends with: a container that is there is found."""
    seen: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.2):
            seen.append(len(runs.left()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        runs(images("good"))
    finally:
        stop.set()
        watcher.join()
    assert max(seen) == 1


def test_a_wrong_answer_replaces_an_older_pass(runs: Runs, images: Images) -> None:
    image = images("good")
    runs.passed_before(image)
    with pytest.raises(SmokeFailed, match='echo: echo: expected "bye", got "hello"') as caught:
        runs(image, echo("bye"), echo().model_copy(update={"name": "fine"}))
    assert "1 of 4 checks failed" in caught.value.message
    assert '"event": "verified"' in caught.value.message, "the container's log is shown"
    assert [check.name for check in runs.read().checks if not check.passed] == ["echo"]


def test_wrong_weights_are_named(runs: Runs, images: Images) -> None:
    image = images("corrupt")
    runs.passed_before(image)
    with pytest.raises(
        NotReady, match=r"exit code 65.*\n  weights\.bin: mismatch: expected sha256:"
    ) as caught:
        runs(image)
    assert caught.value.exit_code == 52
    assert runs.read().passed is False


def test_a_server_that_ends_is_not_waited_for(runs: Runs, images: Images) -> None:
    began = time.monotonic()
    with pytest.raises(NotReady, match=r"(?s)exit code 1.*the model does not fit"):
        runs(images("crash"), startup=300.0)
    assert time.monotonic() - began < 30
    assert runs.read().passed is False


def test_a_server_that_never_gets_ready(runs: Runs, images: Images) -> None:
    with pytest.raises(NotReady, match="not ready within 3 s; GET /health last answered HTTP 503"):
        runs(images("slow"), startup=3.0)
    assert runs.read().ready_seconds is None


def test_a_server_that_ends_under_a_check(runs: Runs, images: Images) -> None:
    with pytest.raises(NotReady, match=r"(?s)while answering echo: .*exit code 9.*dying"):
        runs(images("memory"))
    assert runs.read().passed is False


def test_a_model_for_gpus_is_refused_without(runs: Runs, images: Images) -> None:
    if runs.engine.info.gpu:
        pytest.skip("this engine has a GPU")
    image = images("good")
    runs.passed_before(image)
    with pytest.raises(GpuUnavailable) as caught:
        runs(image, device="cuda")
    assert caught.value.exit_code == 53
    assert runs.read().passed is True, "nothing was tried, so nothing was found wrong"


def test_golden_answers(runs: Runs, images: Images) -> None:
    image = images("good")
    check = echo().model_copy(update={"expect": {"echo": Golden(golden="greeting")}})
    with pytest.raises(GoldenError, match=r"golden greeting is missing.*\(check echo: echo\)") as caught:
        runs(image, check)
    assert f"smoke {runs.model} --update-goldens" in caught.value.hint

    first = runs(image, check, update_goldens=True)
    file = runs.goldens / f"{runs.model}.json"
    assert 'greeting: new, "hello"' in runs.log.getvalue()
    assert (first.passed, first.asked) == (True, runs(image, check).asked)

    # Other weights that answer the same pass, and it is said that they are others.
    assert runs(image, check, lock="sha256:" + "9" * 64).passed
    assert "the goldens were made of other weights" in runs.log.getvalue()

    file.write_text(file.read_text().replace('"hello"', '"help"'))
    with pytest.raises(
        SmokeFailed, match='echo: echo: expected golden "greeting", got "hello"; from'
    ) as failed:
        runs(image, check)
    assert '"event": "verified"' in failed.value.message, "the container's log is shown"
    assert "if the new answers are right" in failed.value.hint
    assert runs.read().asked != first.asked, "a report is about these very goldens"


def test_limits(runs: Runs, images: Images) -> None:
    image = images("good")
    made = runs(image, limits={"max_load_seconds": 0.5, "min_throughput": 0.01, "max_latency": 30})
    assert [check.name for check in made.checks[3:]] == [
        "limit: max_load_seconds",
        "limit: min_throughput",
        "limit: max_latency",
    ]
    with pytest.raises(SmokeFailed) as caught:
        runs(image, limits={"max_load_seconds": 0.4, "max_latency": 30})
    assert "limit: max_load_seconds: expected at most 0.4 s, got 0.5 s" in caught.value.message
    assert "the end of the container's log" in caught.value.message
    assert [check.name for check in runs.read().checks if not check.passed] == ["limit: max_load_seconds"]


@pytest.mark.gpu
def test_on_a_gpu(runs: Runs, images: Images) -> None:
    if not runs.engine.info.gpu:
        pytest.skip("this engine has no GPU")
    made = runs(images("good"), device="cuda")
    assert made.gpu is True
    assert made.device.startswith("cuda:")
