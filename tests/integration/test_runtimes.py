"""Each runtime built by the docker lane, published by the stream lane, and asked in both images."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from modelbake.engine import Engine
from modelbake.runtime import load_runtime
from tests.integration.world import World
from tests.servers.environment import ROOT
from tests.servers.minilm import tiny_llama
from tests.servers.tiny_diffusion import tiny_diffusion
from tests.servers.tiny_gguf import tiny_gguf

pytestmark = pytest.mark.engine
large = pytest.mark.skipif(
    not os.environ.get("MODELBAKE_LARGE_TESTS"),
    reason="a build with torch takes minutes: set MODELBAKE_LARGE_TESTS=1",
)


def test_llamacpp(world: World) -> None:
    world.images = ROOT / "images"
    world.repo("acme/gguf", {"tiny-Q4.gguf": tiny_gguf(), "tiny-Q8.gguf": tiny_gguf(seed=1)})
    ask = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "temperature": 0}
    checks = [
        {
            "post": "/v1/chat/completions",
            "body": ask,
            "expect": {"length(choices[0].message.content)": 8, "usage.completion_tokens": 8},
        }
    ]
    world.models(
        gguf={
            "source": "hf://acme/gguf",
            "include": ["*-Q4.gguf"],
            "runtime": "llamacpp",
            "device": "cpu",
            "smoke": {"requests": 3, "checks": checks},
        }
    )
    world.run("lock", "build", "smoke")
    report = json.loads((world.folder / "reports/gguf/1.0.0.json").read_text())
    assert (report["passed"], report["device"]) == (True, "cpu")
    assert report["load_seconds"] > 0
    world.login(world.services)
    reference = world.run("publish").out.strip()
    manifest = world.services.manifest(f"{world.namespace}/gguf", reference.rpartition("@")[2])
    assert sum(layer["size"] for layer in manifest["layers"]) <= 200e6, "compressed, with base and model"
    assert world.version_tags("gguf") == ["1.0.0"]


@large
def test_diffusers(world: World) -> None:
    pytest.importorskip("diffusers", reason="`make test` installs requirements/reference.txt")
    world.images = ROOT / "images"
    world.repo("acme/sd", tiny_diffusion(world.folder / "pipeline"))
    ask = {"prompt": "a cat", "size": "64x64", "steps": 2, "seed": 1}
    expect = {"length(data)": 1, "starts_with(data[0].b64_json, 'iVBORw0KGgo')": True}
    checks = [{"post": "/v1/images/generations", "body": ask, "expect": expect}]
    world.models(
        sd={
            "source": "hf://acme/sd",
            "runtime": "diffusers",
            "device": "cpu" if world.services.wheels_cpu else "any",
            "smoke": {"requests": 2, "checks": checks},
        }
    )
    world.run("lock", "build", "smoke")
    world.login(world.services)
    world.run("publish")
    assert world.version_tags("sd") == ["1.0.0"]


CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "temperature": 0}


def vllm_model(world: World, **keys: Any) -> None:
    pytest.importorskip("transformers", reason="`make test` installs requirements/reference.txt")
    world.images = ROOT / "images"
    world.repo("acme/llama", tiny_llama(world.folder / "llama"))
    checks = [{"post": "/v1/chat/completions", "body": CHAT, "expect": {"usage.completion_tokens": 8}}]
    smoke = {"requests": 3, "checks": checks, "startup_seconds": 900}
    world.models(
        chat={"source": "hf://acme/llama", "runtime": "vllm", "device": "cuda", "smoke": smoke, **keys}
    )
    world.run("lock", "build")


@large
def test_vllm_as_far_as_it_goes_without_a_gpu(world: World) -> None:
    """The image of 4 GB from PyPI: what it imports, how vLLM reads the launcher's words, what it says."""
    vllm_model(world)
    image = "modelbake/chat:1.0.0"
    strict = ["run", "--rm", "--read-only", "--cap-drop", "ALL", "--network", "none", "--tmpfs", "/tmp:exec"]
    program = (ROOT / "tests/servers/vllm_without_gpu.py").read_text()
    python = ["--entrypoint", "/opt/venv/bin/python", image, "-c", program]
    told = json.loads(world.docker(*strict, *python, "/app", "/modelbake").ok().out.splitlines()[-1])
    assert (told["architecture"], told["context"], told["served"]) == ("LlamaForCausalLM", 256, "chat")
    assert told["nccl"] == 2
    assert {"ptx", "cubin"} <= set(told["compiled"])
    assert told["answers"] == {"/health": 503, "/ping": 503, "/v1/models": 503, "/metrics": 200}
    if told["gpu"]:
        return
    started = world.docker(*strict, image)
    assert started.code == 70
    events = [json.loads(line) for line in started.out.splitlines()]
    assert [event["event"] for event in events] == ["verified", "load_failed"]
    assert "start the container with --gpus" in events[1]["error"]
    smoked = world.build_py("smoke", "chat")
    assert smoked.code == 53, "the engine has no GPU"
    assert not (world.folder / "reports/chat/1.0.0.json").exists()


@large
@pytest.mark.gpu
def test_vllm_on_a_gpu(world: World, engine: Engine) -> None:
    if not engine.info.gpu:
        pytest.skip("this engine has no GPU")
    # Its own base, with a C compiler: the one of the tests has none.
    vllm_model(world, base=load_runtime(ROOT / "images", "vllm").base)
    world.run("smoke")
    report = json.loads((world.folder / "reports/chat/1.0.0.json").read_text())
    assert (report["passed"], report["gpu"]) == (True, True)
    assert report["device"].startswith("cuda:")
    assert report["load_seconds"] > 0
    assert report["gpu_memory"]["torch_peak_bytes"] > 0


APP = """
import json, os, signal, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from greeting import GREETING

config = json.loads((Path(os.environ["MODELBAKE_WEIGHTS"]) / "config.json").read_text())

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.reply({"status": "ready"})
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.reply({"text": f"{GREETING} {asked['prompt']}", "kind": config["kind"], "uid": os.getuid()})
    def reply(self, answer):
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
ThreadingHTTPServer(("0.0.0.0", int(os.environ["MODELBAKE_PORT"])), Handler).serve_forever()
"""
APP_RUNTIME = f"""
description: our own app
base: docker.io/library/python@sha256:{"0" * 64}
app: [app.py, greeting.py]
command: [/opt/venv/bin/python, /app/app.py]
port: 5000
health: /health
"""
SMALL = {"config.json": b'{"kind": "small"}', "model.safetensors": b"\1" * 100_000}


def test_an_app_of_ones_own(world: World) -> None:
    """Nothing of the toolkit is in the folder, nor of the folder in the toolkit: a path joins them."""
    folder = world.folder / "services/our-app"
    folder.mkdir(parents=True)
    files = {"app.py": APP, "greeting.py": "GREETING = 'hello'\n", "runtime.yaml": APP_RUNTIME}
    for name, content in files.items():
        (folder / name).write_text(content)
    world.repo("acme/small", SMALL)
    answer = {"text": "hello you", "kind": "small", "uid": 65532}
    checks = [{"post": "/any", "body": {"prompt": "you"}, "expect": {"@": answer}}]
    world.models(
        own={
            "source": "hf://acme/small",
            "runtime": "./services/our-app",
            "smoke": {"requests": 1, "checks": checks},
        }
    )
    world.run("lock", "build", "smoke")
    world.login(world.services)
    world.run("publish")
    assert world.version_tags("own") == ["1.0.0"]


def test_weights_alone(world: World) -> None:
    world.images = ROOT / "images"
    world.repo("acme/small", SMALL)
    world.models(data={"source": "hf://acme/small", "runtime": "weights", "device": "cuda", "smoke": {}})
    world.run("lock", "build", "smoke")
    report = json.loads((world.folder / "reports/data/1.0.0.json").read_text())
    assert [(check["name"], check["passed"]) for check in report["checks"]] == [("verified", True)]
    assert report["device"] == "cpu"
    image = "modelbake/data:1.0.0"
    listed = world.docker("run", "--rm", image, "ls", "/models").ok().out.splitlines()
    assert listed[-2:] == ["config.json", "model.safetensors"]
    assert '"verified"' in listed[0], "verified before anything runs"
    config = json.loads(world.docker("image", "inspect", image).ok().out)[0]["Config"]
    assert not config.get("ExposedPorts")
    world.login(world.services)
    world.run("publish")
    assert world.version_tags("data") == ["1.0.0"]

    # Control: the same image with one file more ends otherwise, and its smoke run fails.
    dockerfile = f"FROM {image}\nUSER 0\nRUN printf x > /models/extra\nUSER 65532:65532\n"
    (world.folder / "Dockerfile").write_text(dockerfile)
    world.docker("build", "--quiet", "--tag", image, str(world.folder)).ok()
    ran = world.build_py("smoke", "data")
    assert ran.code == 52
    assert "extra: extra" in ran.err
