"""The smoke run's parts, and the whole of it but the engine: the server is a process of this machine.

What stands in for the container starts a real server, and runs the image's real probe against it.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from modelbake.config import CheckSpec, ModelSpec, SmokeSpec
from modelbake.containers import ContainerState, ExecResult
from modelbake.engine import EngineInfo, LocalImage
from modelbake.errors import GpuUnavailable, NotReady, SmokeError, UsageError
from modelbake.exercise import exercise
from modelbake.expectations import Answer
from modelbake.expected import Cosine, Golden
from modelbake.golden_update import taken
from modelbake.gpus import ALL, Gpus
from modelbake.measurements import Sample, label_of, parse_metrics, percentile, summarize, total
from modelbake.output import Output
from modelbake.probing import PROBE, Driver, Probed, Repeat, Response, ask, shown_log, why_ended
from modelbake.smoke import wants_gpu
from modelbake.smokeentry import Limits
from modelbake.verdict import (
    Run,
    counted,
    failure_message,
    judge_check,
    judge_device,
    judge_repeats,
    judged,
    make_report,
)
from tests.servers.running import free_port
from tests.unit.reporting import ASKED, IMAGE_ID

NO_GOLDENS: Mapping[str, Any] = {}
PROGRAM = Path(__file__).parents[2] / "images" / "start" / "probe.py"
INFO = EngineInfo("26.1.5", "1.45", "linux", "amd64", "classic", False, "/var/lib/docker", "here")
IMAGE = LocalImage(IMAGE_ID, 12345, {}, (), "2025-01-31T12:00:00Z")
METRICS = """\
# HELP modelbake_load_seconds How long it took.
# TYPE modelbake_load_seconds gauge
modelbake_load_seconds 1.25
modelbake_info{device="cpu",model="a\\"b, c}d",version="1"} 1.0
modelbake_requests_total{route="/x",status="200"} 3 1700000000000
modelbake_gpu_memory_peak_bytes{gpu="0"} 1e9
modelbake_gpu_memory_peak_bytes{gpu="1"} 2e9
bad{
nan_metric NaN
words here and there
"""

# Answers after MODE's whim. The first argument is the port, the second the mode.
SERVER = """
import json, os, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
port, mode = int(sys.argv[1]), sys.argv[2]
began = time.monotonic()
if mode == "weights":
    print(json.dumps({"time": "t", "level": "error", "event": "mismatch", "file": "model.safetensors",
                      "expected": "sha256:aa", "actual": "sha256:bb"}), flush=True)
    sys.exit(65)
count = 0
class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args): pass
    def reply(self, status, body):
        self.send_response(status); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        if self.path == "/metrics":
            return self.reply(200, b"modelbake_load_seconds 0.75\\n")
        ready = mode != "never" and time.monotonic() - began > 0.3
        self.reply(200 if ready else 503, b"loading")
    def do_POST(self):
        global count
        count += 1
        order = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if mode == "dies":
            print("about to die", flush=True); os._exit(9)
        if mode == "hangs" and count > 1 or mode == "silent":
            time.sleep(600)
        if mode == "slow":
            time.sleep(0.3)
        if mode == "flaky" and count % 2 == 0:
            return self.reply(500, b"{}")
        self.reply(200, json.dumps({"echo": order["input"], "n": 3}).encode())
print("serving", flush=True)
ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


class Process:
    """A server process in place of a container."""

    def __init__(self, folder: Path, mode: str) -> None:
        self.port = free_port()
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVER, str(self.port), mode], stdout=log, stderr=log
            )

    def state(self) -> ContainerState:
        code = self.process.poll()
        return ContainerState(running=code is None, exit_code=code, oom_killed=False)

    def logs(self, tail: int = 200) -> str:
        return self.log.read_text()

    def exec(self, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> ExecResult:
        assert tuple(argv[:2]) == PROBE
        done = subprocess.run([sys.executable, PROGRAM, *argv[2:]], capture_output=True, check=False)
        return ExecResult(done.returncode, done.stdout, done.stderr)


@contextmanager
def serving(folder: Path, mode: str) -> Iterator[Process]:
    process = Process(folder, mode)
    try:
        yield process
    finally:
        process.process.kill()
        process.process.wait()


class Scripted:
    """A container in which every command ends the same way."""

    def __init__(self, result: ExecResult) -> None:
        self.result = result

    def state(self) -> ContainerState:
        return ContainerState(running=True, exit_code=None, oom_killed=False)

    def logs(self, tail: int = 200) -> str:
        return ""

    def exec(self, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> ExecResult:
        return self.result


def echo(text: str = "hello", expect: Mapping[str, Any] | None = None, **changes: Any) -> CheckSpec:
    check = {"name": "echo", "method": "POST", "path": "/echo", "body": {"input": text}}
    return CheckSpec(**check | {"expect": {"echo": text} if expect is None else expect} | changes)


def spec(*checks: CheckSpec, **changes: Any) -> SmokeSpec:
    settings: dict[str, Any] = {"checks": checks, "requests": 5, "startup_seconds": 20.0}
    return SmokeSpec(**settings | changes)


def model(device: str) -> ModelSpec:
    return ModelSpec(name="m", version="1.0.0", source="hf://a/b", runtime="r", device=device)  # type: ignore[arg-type]


def carry_out(
    container: Process,
    smoke: SmokeSpec,
    run: Run,
    goldens: Mapping[str, Any] | None = NO_GOLDENS,
    *,
    gpu: bool = False,
) -> str:
    log = io.StringIO()
    output = Output(stderr=log)
    exercise(container, smoke, container.port, "/health", run, gpu=gpu, output=output, goldens=goldens)
    return log.getvalue()


def report_of(run: Run, *, gpu: bool = False) -> Any:
    made = make_report(
        run,
        IMAGE,
        INFO,
        model="minilm",
        version="1.0.0",
        lock=IMAGE_ID,
        asked=ASKED,
        started_at="2025-01-31T12:00:00Z",
        gpu=gpu,
    )
    return made.model_dump(mode="json", by_alias=True)


# --- a whole run -------------------------------------------------------------------------------------------


def test_a_run_that_passes(tmp_path: Path) -> None:
    run = Run()
    with serving(tmp_path, "good") as container:
        log = carry_out(container, spec(echo(), echo("again", name="second")), run)
    report = report_of(run)
    assert report["passed"] is True
    assert [check["name"] for check in report["checks"]] == ["ready", "echo", "second", "repeat"]
    assert report["load_seconds"] == 0.75
    assert 0.2 < report["ready_seconds"] < 20
    latency = report["latency_seconds"]
    assert 0 < latency["p50"] <= latency["p95"] <= latency["max"]
    assert report["throughput_per_second"] > 0
    assert report["checks"][3]["actual"] == {"answered": 5}
    assert (report["device"], report["gpu"], report["gpu_memory"]) == ("cpu", False, None)
    assert "echo: as expected" in log


def test_wrong_answers_are_all_listed(tmp_path: Path) -> None:
    run = Run()
    checks = [
        echo(expect={"echo": "bye", "n": 4}),
        echo(name="fine"),
        CheckSpec(name="lost", method="GET", path="/health", status=404),
    ]
    with serving(tmp_path, "good") as container:
        carry_out(container, spec(*checks), run)
    assert report_of(run)["passed"] is False
    assert [check.report.name for check in run.failed] == ["echo", "lost"]
    message = failure_message(run)
    assert message.splitlines() == [
        "2 of 5 checks failed",
        '  echo: echo: expected "bye", got "hello"',
        "  echo: n: expected 4, got 3",
        '  lost: status: expected HTTP 404, got HTTP 200 with "loading"',
    ]


def test_an_answer_is_compared_with_its_golden(tmp_path: Path) -> None:
    golden = echo("hi", expect={"echo": Golden(golden="greeting")})
    near = echo("hi", expect={"[n, n]": Cosine(cosine="direction")}, name="near")
    run = Run()
    with serving(tmp_path, "good") as container:
        carry_out(container, spec(golden, near), run, {"greeting": "hi", "direction": [1, 1.01]})
        assert not run.failed and run.taken == {}
        run = Run()
        carry_out(container, spec(golden, near), run, {"greeting": "ho", "direction": [1, -1]})
    assert [check.problems for check in run.failed] == [
        ('echo: expected golden "greeting", got "hi"; from character 2 on it is "i", and the golden "o"',),
        ('[n, n]: expected a cosine of at least 0.999 to golden "direction", got 0.000000000',),
    ]


def test_answers_are_taken_for_goldens(tmp_path: Path) -> None:
    expect = {"echo": Golden(golden="greeting"), "[n, n]": Cosine(cosine="direction")}
    run = Run()
    with serving(tmp_path, "good") as container:
        carry_out(container, spec(echo("hi", expect=expect)), run, None)
        assert not run.failed
        assert run.taken == {"greeting": "hi", "direction": [3.0, 3.0]}
        run = Run()
        wrong = echo("hi", expect={"absent": Golden(golden="greeting"), "echo": Cosine(cosine="direction")})
        carry_out(container, spec(wrong), run, None)
    assert run.taken == {}
    assert [problem.split(", got ")[1] for problem in run.failed[0].problems] == [
        "null (nothing is there); there is no such golden",
        '"hi"; there is no such golden',
    ]


def test_an_answer_that_no_file_keeps_fails_its_check(tmp_path: Path) -> None:
    """1e999 is JSON for some, and no file of goldens could be read with it."""
    expect = {"big": Golden(golden="big")}
    made = judge_check(
        echo("hi", expect=expect),
        Response(status=200, body='{"big": [1e999]}', seconds=0.1),
        taken(echo("hi", expect=expect), Answer(200, '{"big": [1e999]}', 0.1)),
    )
    assert not made.report.passed
    assert made.problems[0].startswith('big: expected golden "big", got [Infinity]; no file of goldens can')
    body = '{"big": [1e99]}'
    kept = taken(echo("hi", expect=expect), Answer(200, body, 0.1))
    assert judge_check(  # control
        echo("hi", expect=expect), Response(status=200, body=body, seconds=0.1), kept
    ).report.passed


def test_limits_are_judged_by_what_was_measured(tmp_path: Path) -> None:
    limits: dict[str, Any] = {
        "max_load_seconds": 0.5,
        "max_latency": 60,
        "min_throughput": 0.001,
        "max_gpu_memory": "1 GB",
    }
    run = Run()
    with serving(tmp_path, "good") as container:
        log = carry_out(container, spec(echo(), limits=Limits(**limits)), run)
    assert [check.report.name for check in run.checks[3:]] == [
        "limit: max_load_seconds",
        "limit: min_throughput",
        "limit: max_latency",
    ]
    assert failure_message(run).splitlines()[1:] == [
        "  limit: max_load_seconds: expected at most 0.5 s, got 0.75 s"
    ]
    assert "warning: limit: max_gpu_memory: not measured, because the run was on a CPU" in log
    assert "max_gpu_memory: as expected" not in log and "min_throughput: as expected" in log


def test_repeats_that_fail_fail_the_run(tmp_path: Path) -> None:
    run = Run()
    with serving(tmp_path, "flaky") as container:
        carry_out(container, spec(echo(), requests=4), run)
    assert [check.report.name for check in run.failed] == ["repeat"]
    assert run.failed[0].report.actual == {"answered": 2}


def test_without_checks_there_is_nothing_to_measure(tmp_path: Path) -> None:
    run = Run()
    with serving(tmp_path, "good") as container:
        carry_out(container, spec(), run)
    report = report_of(run)
    assert report["passed"] is True
    assert report["latency_seconds"] is None
    assert report["load_seconds"] == 0.75


def test_without_checks_it_is_said_that_nothing_was_asked(tmp_path: Path) -> None:
    with serving(tmp_path, "good") as container:
        log = carry_out(container, spec(), Run())
        assert "warning: models.yaml declares no checks" in log and "/health is all that was asked" in log
        assert "declares no checks" not in carry_out(container, spec(echo()), Run()), "control"


def test_a_server_that_hangs_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelbake.exercise._ANSWER_SECONDS", 1.0)
    run = Run()
    began = time.monotonic()
    with serving(tmp_path, "hangs") as container:
        log = carry_out(container, spec(echo(), requests=100), run)
    assert time.monotonic() - began < 15
    assert [check.report.name for check in run.failed] == ["repeat"]
    assert run.failed[0].problems == ("good answers: expected 100, got 0",)
    assert log.index("echo: is asked 100 times more, for 600 s at most") < log.index("repeat: good answers")


def test_a_server_that_answers_nothing_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelbake.exercise._ANSWER_SECONDS", 1.0)
    run = Run()
    with serving(tmp_path, "silent") as container:
        log = carry_out(container, spec(echo(), requests=100), run)
    assert [check.report.name for check in run.checks] == ["ready", "echo"]
    assert run.failed and "times more" not in log
    assert report_of(run)["load_seconds"] == 0.75, "what it says of itself is recorded all the same"


def test_measuring_a_slow_server_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelbake.exercise._MEASURING_SECONDS", 1.0)
    run = Run()
    with serving(tmp_path, "slow") as container:
        log = carry_out(container, spec(echo(), requests=100), run)
    report = report_of(run)
    assert report["passed"] is True, "slow is not wrong"
    answered = report["checks"][-1]["actual"]["answered"]
    assert 1 <= answered <= 4 and report["latency_seconds"]["p50"] >= 0.3
    assert f"warning: repeat: {answered} of 100 requests took" in log


def test_only_what_is_meant_to_succeed_is_repeated(tmp_path: Path) -> None:
    run = Run()
    lost = CheckSpec(name="lost", method="GET", path="/health", status=503)
    with serving(tmp_path, "good") as container:
        carry_out(container, spec(lost), run)
    assert [check.report.name for check in run.checks] == ["ready", "lost"]


def test_never_ready(tmp_path: Path) -> None:
    run = Run()
    with (
        serving(tmp_path, "never") as container,
        pytest.raises(
            NotReady, match=r"(?s)not ready within 1 s; GET /health last answered HTTP 503.*serving"
        ),
    ):
        carry_out(container, spec(echo(), startup_seconds=1.0), run)
    report = report_of(run)
    assert (report["passed"], report["ready_seconds"], report["load_seconds"]) == (False, None, None)


def test_wrong_weights_are_explained_at_once(tmp_path: Path) -> None:
    run = Run()
    began = time.monotonic()
    with serving(tmp_path, "weights") as container, pytest.raises(NotReady) as caught:
        carry_out(container, spec(echo(), startup_seconds=60.0), run)
    assert time.monotonic() - began < 15
    assert "exit code 65" in caught.value.message
    assert "model.safetensors: mismatch: expected sha256:aa, got sha256:bb" in caught.value.message
    assert report_of(run)["checks"][0]["passed"] is False


def test_a_server_that_dies_under_a_check(tmp_path: Path) -> None:
    run = Run()
    with serving(tmp_path, "dies") as container, pytest.raises(NotReady, match="exit code 9") as caught:
        carry_out(container, spec(echo(), echo(name="second"), startup_seconds=5.0), run)
    assert "about to die" in caught.value.message
    assert run.failed


# --- the probe's answers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (ExecResult(127, b"", b"no such file: /opt/venv/bin/python"), "exit code 127: no such file"),
        (ExecResult(2, b'{"error": "expected port"}', b""), "exit code 2: expected port"),
        (ExecResult(0, b"not json", b""), "exit code 0: not json"),
        (ExecResult(0, b"[]", b""), "exit code 0"),
        (ExecResult(0, b"{}", b""), "something else than expected"),
        (
            ExecResult(0, b'{"responses": [], "repeat": null, "metrics": null, "driver": null}', b""),
            "answered 0 of 1 requests",
        ),
    ],
)
def test_a_probe_that_does_not_work_is_an_error(result: ExecResult, problem: str) -> None:
    with pytest.raises(SmokeError, match=problem):
        ask(Scripted(result), 80, [{"method": "GET", "path": "/"}], timeout=1)


def test_a_request_that_is_too_large_is_refused() -> None:
    request = {"method": "POST", "path": "/embed", "body": "x" * 200_000}
    with pytest.raises(SmokeError, match=r"/embed: .*at most 120,000"):
        ask(Scripted(ExecResult(0, b"", b"")), 80, [request], timeout=1)


@pytest.mark.parametrize(
    ("state", "log", "words"),
    [
        (ContainerState(False, 137, True), "", "killed for lack of memory"),
        (ContainerState(False, 1, False), "", "ended with exit code 1"),
        (ContainerState(False, 65, False), "{}\n[]\n{broken\n", "weights are not those"),
        (
            ContainerState(False, 65, False),
            '{"event": "missing", "file": "a.bin", "expected": "x", "actual": "nothing"}',
            "a.bin: missing: expected x, got nothing",
        ),
        (
            ContainerState(False, 66, False),
            '{"event": "manifest_unusable", "level": "error", "error": "not JSON"}',
            "not JSON",
        ),
    ],
)
def test_why_a_container_ended(state: ContainerState, log: str, words: str) -> None:
    assert words in why_ended(state, log)[0]


def test_a_logs_end_is_shown() -> None:
    text = shown_log("\n".join(f"line {number}" for number in range(100)) + "\n" + "x" * 1000)
    assert "line 98" in text
    assert "line 12\n" not in text
    assert max(map(len, text.splitlines())) < 320
    assert "is empty" in shown_log("\n\n")


# --- device, metrics, verdicts -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "engine_has_gpu", "gpu"),
    [
        ("cuda", True, True),
        ("any", True, True),
        ("cpu", True, False),
        ("any", False, False),
        ("cpu", False, False),
    ],
)
def test_which_device_is_used(device: str, engine_has_gpu: bool, gpu: bool) -> None:
    assert wants_gpu(model(device), engine_has_gpu) is gpu


def test_a_model_that_needs_a_gpu_is_not_tried_without() -> None:
    with pytest.raises(GpuUnavailable, match=r"(?s)m 1\.0\.0.*DOCKER_HOST.*device: any"):
        wants_gpu(model("cuda"), False)


def test_gpus_that_somebody_names_have_to_be_used() -> None:
    assert wants_gpu(model("any"), True, Gpus(count=1))
    assert wants_gpu(model("cuda"), True, ALL)
    with pytest.raises(GpuUnavailable, match=r"(?s)--gpus names GPUs, and this engine has no GPU.*leave"):
        wants_gpu(model("any"), False, ALL)
    with pytest.raises(UsageError, match="the model says `device: cpu`"):
        wants_gpu(model("cpu"), True, ALL)
    # Whether a remote engine knows a CDI name is not known before it is asked.
    assert wants_gpu(model("any"), False, Gpus(cdi=("nvidia.com/gpu=0",)))
    with pytest.raises(UsageError):
        wants_gpu(model("cpu"), False, Gpus(cdi=("nvidia.com/gpu=0",)))


def test_metrics_are_read() -> None:
    samples = parse_metrics(METRICS)
    assert total(samples, "modelbake_load_seconds") == 1.25
    assert total(samples, "modelbake_gpu_memory_peak_bytes") == 3e9
    assert total(samples, "nan_metric") is None
    assert total(samples, "absent") is None
    assert label_of(samples, "modelbake_info", "device") == "cpu"
    assert label_of(samples, "modelbake_info", "model") == 'a"b, c}d'
    assert Sample("modelbake_requests_total", 3.0, {"route": "/x", "status": "200"}) in samples


@pytest.mark.parametrize("text", ["", "x" * 1000, "{}", 'a{b="' * 500, "\x00\n1 2 3"])
def test_nonsense_has_no_metrics(text: str) -> None:
    assert parse_metrics(text) == []


def test_percentiles_are_measured_values() -> None:
    values = [float(number) for number in range(20, 0, -1)]
    assert percentile(values, 50) == 10
    assert percentile(values, 95) == 19
    assert percentile(values, 100) == 20
    assert percentile([7.0], 50) == percentile([7.0], 95) == 7.0


def test_throughput_is_answers_in_sequence_a_second() -> None:
    latency, throughput = summarize([0.1, 0.1, 0.2, 0.1], 0.5)
    assert throughput == 8.0
    assert latency is not None
    assert (latency.p50, latency.p95, latency.max) == (0.1, 0.2, 0.2)
    assert summarize([], 1.0) == (None, None)


def probed(metrics: str | None = METRICS, driver: Driver | None = None) -> Probed:
    repeat = Repeat(seconds=(0.1, 0.2), wall=0.4, errors=0)
    return Probed(responses=(), repeat=repeat, metrics=metrics, driver=driver)


def problems_of(measured: Probed, *facts: str, require_gpu: bool = False) -> tuple[str, ...]:
    verdict = judge_device(measured, *facts, require_gpu=require_gpu)
    assert verdict is not None
    return verdict.problems


def test_a_gpu_that_is_not_used_fails_the_run() -> None:
    for required in (False, True):
        assert problems_of(probed(), require_gpu=required) == ("the server's device: expected cuda, got cpu",)
        assert problems_of(probed('modelbake_info{device="cuda:0"} 1'), require_gpu=required) == ()


@pytest.mark.parametrize("used", [None, 0, 4 << 20])
def test_a_gpu_of_which_nothing_is_seen_is_not_taken_for_used(used: int | None) -> None:
    for measured in (
        probed(None, Driver(gpu="H100", memory_used_bytes=used)),
        probed("", Driver(gpu="H100", memory_used_bytes=used)),
        probed(None),
    ):
        assert judge_device(measured) is None
        (problem,) = problems_of(measured, require_gpu=True)
        assert "no sign of it (/metrics has no modelbake_info{device}, and the driver shows" in problem


def test_a_gpu_that_the_driver_sees_in_use_is_used() -> None:
    measured = probed(None, Driver(gpu="H100", memory_used_bytes=500 << 20))
    assert problems_of(measured) == problems_of(measured, require_gpu=True) == ()


def test_a_server_that_says_nothing_of_its_gpu_is_warned_of(tmp_path: Path) -> None:
    with serving(tmp_path, "good") as container:
        run = Run()
        log = carry_out(container, spec(echo()), run, gpu=True)
        assert "warning: gpu: not checked" in log and not run.failed
        assert "gpu" not in [check.report.name for check in run.checks]
        run = Run()
        log = carry_out(container, spec(echo(), require_gpu=True), run, gpu=True)
        assert [check.report.name for check in run.failed] == ["gpu"] and "not checked" not in log


def test_a_driver_that_is_too_old_is_named() -> None:
    log = (
        "UserWarning: CUDA initialization: The NVIDIA driver on your system is too old (found version 12040)."
    )
    (problem,) = problems_of(probed(), log, "13.0")
    assert problem.startswith(
        "the server's device: expected cuda, got cpu"
        " (the image has CUDA 13.0, and the host's driver goes up to CUDA 12.4; update the host's"
    )
    assert problems_of(probed('modelbake_info{device="cuda:0"} 1'), log, "13.0") == ()
    ended, hint = why_ended(ContainerState(False, 70, False), log, "13.0")
    assert ended.endswith("exit code 70: the image has CUDA 13.0, and the host's driver goes up to CUDA 12.4")
    assert "update the host's NVIDIA driver" in hint


def test_the_report_of_a_gpu_run() -> None:
    run = Run([judged("ready", 200, 200, 1.0)], 1.0, probed(driver=Driver(gpu="H200", memory_used_bytes=7)))
    report = report_of(run, gpu=True)
    assert (report["device"], report["gpu"]) == ("cuda:H200", True)
    assert report["gpu_memory"] == {"torch_peak_bytes": 3_000_000_000, "driver_bytes": 7}
    assert report["throughput_per_second"] == 5.0


def test_an_amount_that_no_gpu_has_is_not_known() -> None:
    run = Run([judged("ready", 200, 200, 1.0)], 1.0, probed("modelbake_gpu_memory_peak_bytes 1e300"))
    assert report_of(run, gpu=True)["gpu_memory"] == {"torch_peak_bytes": None, "driver_bytes": None}


def test_what_is_not_known_is_null() -> None:
    run = Run([judged("ready", 200, 200, 1.0)], 1.0, probed(metrics=None))
    report = report_of(run, gpu=True)
    assert report["device"] == "cuda:unknown"
    assert report["gpu_memory"] == {"torch_peak_bytes": None, "driver_bytes": None}
    assert report["load_seconds"] is None


def test_a_response_without_an_answer_fails_its_check() -> None:
    verdict = judge_check(
        echo(), Response(status=0, body="", seconds=60.0, error="TimeoutError: too long"), NO_GOLDENS
    )
    assert verdict.report.passed is False
    assert "TimeoutError" in verdict.problems[0]
    assert judge_repeats(Repeat(seconds=(), wall=1.0, errors=3)).problems == (
        "good answers: expected 3, got 0",
    )
    json.dumps(verdict.report.model_dump(mode="json"))


def test_one_check_is_not_many() -> None:
    assert (counted(1), counted(2), counted(0)) == ("1 check", "2 checks", "0 checks")
    failed = judged("ready", 200, None, 1.0, ("it ended",))
    assert failure_message(Run([failed])).splitlines() == ["1 of 1 check failed", "  ready: it ended"]
