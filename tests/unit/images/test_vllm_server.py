"""The launcher of vLLM and its middleware, with a package in vLLM's place (fake_vllm.py) and no GPU."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import socket
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from modelbake.config import ModelSpec
from modelbake.fitness import Evidence, objections
from modelbake.runtime import load_runtime
from tests.unit.images.fake_vllm import write_compiler, write_driver, write_vllm
from tests.unit.images.model_server import IMAGES, ModelServer, Reply, missing, run_python

NEEDED = ("starlette", "uvicorn", "prometheus_client")
needs_server = pytest.mark.skipif(
    bool(missing(*NEEDED)), reason=f"needs {', '.join(missing(*NEEDED))} (requirements/reference.txt)"
)
pytestmark = needs_server

PATH = "/v1/completions"


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine that has all that vLLM needs."""
    write_vllm(tmp_path / "packages")
    write_driver(tmp_path / "driver", 0)
    return {
        "PYTHONPATH": str(tmp_path / "packages"),
        "LD_LIBRARY_PATH": str(tmp_path / "driver"),
        "CC": str(write_compiler(tmp_path)),
        "FAKE_FOLDER": str(tmp_path),
    }


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "model.safetensors").touch()
    return folder


def start(weights: Path, machine: dict[str, str], **environment: str) -> ModelServer:
    return ModelServer("vllm", weights, weights.parent, **{**machine, **environment})


def fails(weights: Path, machine: dict[str, str], **environment: str) -> str:
    """Start what cannot be served; return why that is."""
    with start(weights, machine, **environment) as server:
        assert server.end() == 70
        (event,) = server.events("load_failed")
        assert event["model"] == "served"
        assert not server.events("loaded")
        return str(event["error"])


def started(folder: Path) -> dict[str, Any]:
    """How the launcher has started vLLM, once it has."""
    for _ in range(2000):
        if (folder / "started.json").exists() and (text := (folder / "started.json").read_text()):
            return dict(json.loads(text))
        time.sleep(0.01)
    raise AssertionError("vLLM was not started")


def complete(server: ModelServer, prompt: str) -> Reply:
    return server.request("POST", PATH, {"model": "served", "prompt": prompt, "max_tokens": 1})


# --- the contract of every runtime --------------------------------------------------------------------------


def test_nothing_is_ready_before_the_model_has_answered(
    weights: Path, machine: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "wait").touch()
    with start(weights, machine) as server:
        server.wait("/metrics")
        for path in ("/health", "/ping"):
            reply = server.request("GET", path)
            assert (reply.status, reply.json) == (
                503,
                {"status": "loading", "model": "served", "version": "1.2.3"},
            )
        for reply in (server.request("GET", "/v1/models"), complete(server, "hi")):
            assert reply.status == 503
            assert reply.error["code"] == "not_ready"
            assert reply.headers["retry-after"] == "1"
        assert not server.events("loaded")
        (tmp_path / "wait").unlink()
        server.wait()
        assert complete(server, "hi").status == 200
        assert server.request("GET", "/ping").status == 200
        (loaded,) = server.events("loaded")
        assert (loaded["device"], loaded["gpu"], loaded["dtype"]) == ("cuda", "NVIDIA Fake", "bfloat16")
        assert loaded["context"] == 256
        assert 0 < loaded["warm_up_seconds"] < loaded["seconds"] + loaded["warm_up_seconds"]


def test_metrics_are_vllms_and_ours(weights: Path, machine: dict[str, str], tmp_path: Path) -> None:
    with start(weights, machine, FAKE_LOAD_SECONDS="0.5") as server:
        server.wait()
        assert complete(server, "hi").status == 200
        metrics = server.metrics()
        assert metrics["vllm:requests_total", ()] == 2, "the first request of all is no client's"
        route = (("route", PATH), ("status", "200"))
        assert metrics["modelbake_requests_total", route] == 1
        assert metrics["modelbake_load_seconds", ()] >= 0.5
        assert metrics["modelbake_gpu_memory_peak_bytes", ()] == 61, "of both workers"
        assert metrics["modelbake_gpu_memory_allocated_bytes", ()] == 20
        info = {"device": "cuda", "model": "served", "version": "1.2.3"}
        assert metrics["modelbake_info", tuple(sorted(info.items()))] == 1
        # A dead engine does not take the metrics with it, which then are all the more wanted.
        (tmp_path / "no-memory").touch()
        assert server.metrics()["modelbake_gpu_memory_peak_bytes", ()] == 61
        assert "the engine is dead" in server.events("gpu_memory_unknown")[0]["error"]


def test_all_output_is_json(weights: Path, machine: dict[str, str]) -> None:
    with start(weights, machine) as server:
        server.wait()
        said = {line.get("message"): line for line in server.events("log")}
        assert said["the engine starts"]["logger"] == "vllm.engine"
        assert said["the engine starts"]["model"] == "served"
        assert (said["a plain line"]["level"], said["90%"]["level"]) == ("info", "warning")


@pytest.mark.parametrize(
    "line",
    ['{"a":' * 5000 + "1" + "}" * 5000, "{" * 9000, '{"time": 1, "level": {}}', "{" + "9" * 5000 + "}"],
)
def test_no_line_ends_the_reading_of_those_after_it(
    weights: Path, machine: dict[str, str], line: str
) -> None:
    """Where nobody reads them any more, vLLM stands still as soon as the pipe is full."""
    with start(weights, machine, FAKE_LINE=line) as server:
        server.wait()
        assert server.events("loaded")
        assert any(event["message"].startswith(line[:8]) for event in server.events("log"))


def test_sigterm_lets_open_requests_end(weights: Path, machine: dict[str, str]) -> None:
    with start(weights, machine) as server, ThreadPoolExecutor() as pool:
        server.wait()
        slow = pool.submit(complete, server, "slow")
        while server.metrics().get(("vllm:requests_total", ())) != 2:
            time.sleep(0.02)
        server.process.send_signal(signal.SIGTERM)
        assert slow.result().status == 200
        assert server.end() == 0
        assert [event["signal"] for event in server.events("stopped")] == ["SIGTERM"]


def test_sigterm_ends_loading(weights: Path, machine: dict[str, str], tmp_path: Path) -> None:
    with start(weights, machine, FAKE_LOAD_SECONDS="60") as server:
        started(tmp_path)
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == 0
        assert not server.events("load_failed")


def test_vllm_ends_with_the_launcher(weights: Path, machine: dict[str, str], tmp_path: Path) -> None:
    with start(weights, machine, FAKE_LOAD_SECONDS="60") as server:
        child = started(tmp_path)["pid"]
        assert Path(f"/proc/{child}").exists()
        server.process.kill()
        server.process.wait()
        for _ in range(500):
            if not Path(f"/proc/{child}").exists():
                return
            time.sleep(0.02)
        raise AssertionError("vLLM goes on, and keeps the GPU")


# --- what goes wrong ----------------------------------------------------------------------------------------


def test_a_first_answer_that_is_none(weights: Path, machine: dict[str, str]) -> None:
    assert "not one token, but 500" in fails(weights, machine, FAKE_STATUS="500")
    assert "not one token, but 200" in fails(weights, machine, FAKE_TOKENS="0")


def test_the_cause_of_a_failed_load_is_named(weights: Path, machine: dict[str, str]) -> None:
    assert fails(weights, machine, FAKE_LOAD="fails") == "ValueError: the model has 3 layers"


def test_vllm_that_ends_by_itself(weights: Path, machine: dict[str, str]) -> None:
    with start(weights, machine) as server:
        server.wait()
        with pytest.raises((OSError, Exception)):
            server.request("POST", "/end")
        assert server.end() == 72
        (event,) = server.events("vllm_ended")
        assert event["error"] == "RuntimeError: CUDA error: an illegal memory access"
        assert event["exit_code"] == 1


def test_a_port_that_is_taken(weights: Path, machine: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with start(weights, machine, MODELBAKE_PORT=port, MODELBAKE_HOST="127.0.0.1") as server:
            assert server.end() == 71


def test_pickles_are_refused(weights: Path, machine: dict[str, str]) -> None:
    (weights / "model.safetensors").rename(weights / "model.bin")
    assert "pickled weights" in fails(weights, machine)


@pytest.mark.parametrize(("result", "words"), [(100, "finds no GPU"), (3, "cuInit returns error 3")])
def test_a_machine_without_a_gpu(
    weights: Path, machine: dict[str, str], tmp_path: Path, result: int, words: str
) -> None:
    write_driver(tmp_path / "driver", result)
    assert words in fails(weights, machine)
    assert not (tmp_path / "started.json").exists()


def test_a_machine_without_a_driver(weights: Path, machine: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "driver/libcuda.so.1").write_bytes(b"")
    assert "no CUDA driver" in (told := fails(weights, machine))
    assert "--gpus" in told


def test_a_base_image_without_a_compiler(weights: Path, machine: dict[str, str], tmp_path: Path) -> None:
    del machine["CC"]
    assert "no C compiler (gcc or clang)" in fails(weights, machine, PATH=str(tmp_path))
    failing = tmp_path / "failing"
    failing.write_text("#!/bin/sh\necho 'Python.h: No such file' >&2\nexit 1\n")
    failing.chmod(0o755)
    assert "Python.h: No such file" in fails(weights, machine, CC=str(failing))
    assert "cannot compile for Triton" in fails(weights, machine, CC=str(tmp_path / "gone"))


def test_a_folder_that_nothing_may_run_from(weights: Path, machine: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "compiled.so").write_bytes(b"what cannot be loaded")
    assert "--tmpfs /tmp:exec" in fails(weights, machine)


@pytest.mark.skipif(
    not shutil.which("gcc")
    or not Path(sysconfig.get_paths(scheme="posix_prefix")["include"], "Python.h").exists(),
    reason="needs gcc and Python's headers",
)
def test_a_real_compiler(weights: Path, machine: dict[str, str], tmp_path: Path) -> None:
    del machine["CC"]
    with start(weights, machine):
        started(tmp_path)


# --- what a model may say -----------------------------------------------------------------------------------


def test_vllm_is_told_what_the_image_says(weights: Path, machine: dict[str, str], tmp_path: Path) -> None:
    added = "--max-model-len 8192 --override-generation-config '{\"temperature\": 0}'"
    with start(weights, machine, MODELBAKE_VLLM_ARGS=added, VLLM_USE_RUST_FRONTEND="1") as server:
        server.wait()
        told = started(tmp_path)
        argv = told["argv"]
        assert argv[:2] == ["serve", str(weights)]
        assert argv[-4:] == ["--max-model-len", "8192", "--override-generation-config", '{"temperature": 0}']
        pairs = dict(itertools.pairwise(argv))
        assert pairs["--served-model-name"] == "served"
        assert pairs["--load-format"] == "safetensors"
        assert pairs["--shutdown-timeout"] == "8"
        assert told["env"]["HF_HUB_OFFLINE"] == "1"
        assert told["env"]["VLLM_NO_USAGE_STATS"] == "1"
        assert told["env"]["VLLM_USE_RUST_FRONTEND"] == "0", (
            "it has no middleware, so /health would be untrue"
        )


JUDGE = """
import json, sys
sys.path[:0] = sys.argv[1:3]
import arguments
def judge(words):
    try:
        arguments.refuse_owned([words])
    except arguments.LoadError as error:
        return str(error)
print(json.dumps([judge(words) for words in json.loads(sys.argv[3])]))
"""


def test_what_the_image_decides_no_model_changes() -> None:
    refused = ["--middleware=x.Y", "--model", "--trust-remote-code", "--trust_remote_code", "--trust-rem"]
    refused += [
        "--host=0.0.0.0",
        "--served_model_name=x",
        "--config",
        "-asc",
        "--headless",
        "--load-format=pt",
    ]
    allowed = ["--max-model-len=8", "-tp", "--data-parallel-size", "--config-format=hf", "2", "--dtype=half"]
    allowed += ["--model-impl", "--chat-template", "--enable-lora", "--hf-overrides.rope", "--max_num_seqs"]
    told = run_python(JUDGE, str(IMAGES / "vllm"), str(IMAGES / "start"), json.dumps(refused + allowed))
    reasons = dict(zip(refused + allowed, told, strict=True))
    assert [words for words in refused if reasons[words] is None] == []
    assert {words: reasons[words] for words in allowed if reasons[words]} == {}
    assert "no server runs code" in str(reasons["--trust_remote_code"])


def test_bad_settings(weights: Path, machine: dict[str, str]) -> None:
    assert "No closing quotation" in fails(weights, machine, MODELBAKE_VLLM_ARGS="'a")
    assert "MODELBAKE_DRAIN_SECONDS" in fails(weights, machine, MODELBAKE_DRAIN_SECONDS="soon")
    said = fails(weights, machine, MODELBAKE_MAX_BODY_BYTES="1000")
    assert "MODELBAKE_MAX_BODY_BYTES is no setting of runtime vllm" in said


@pytest.mark.parametrize(
    ("files", "fits"),
    [
        (["config.json", "model.safetensors", "tokenizer.json"], True),
        (["config.json", "model.safetensors"], False),
        (["config.json", "tokenizer.json", "model.gguf"], False),
        (["model.safetensors", "tokenizer.json"], False),
    ],
)
def test_models_that_it_cannot_serve_are_refused(files: list[str], fits: bool) -> None:
    spec = ModelSpec(name="chat", version="1.0.0", source="hf://a/b", runtime="vllm", device="cuda")
    assert (objections(spec, load_runtime(IMAGES, "vllm"), Evidence(files)) == []) is fits


def test_only_a_build_for_cuda() -> None:
    runtime = load_runtime(IMAGES, "vllm")
    assert runtime.offers("cuda")
    assert not runtime.offers("cpu")
    assert not {"triton", "nccl"} & {word for rule in runtime.slim.stub for word in rule.split("/")}
    assert not any(rule.startswith("triton/**") for rule in runtime.slim.remove)
