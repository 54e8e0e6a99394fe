"""The image server, run as its image runs it, with a tiny Stable Diffusion of random weights."""

from __future__ import annotations

import base64
import http.client
import json
import shutil
import signal
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.unit.images.model_server import ModelServer, Reply, missing, run_python
from tests.unit.images.test_transformers_server import rename_tensor

NEEDED = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "PIL",
    "starlette",
    "uvicorn",
    "prometheus_client",
)
pytestmark = pytest.mark.skipif(
    bool(missing(*NEEDED)), reason=f"needs {', '.join(missing(*NEEDED))} (requirements/reference.txt)"
)

PATH = "/v1/images/generations"
MAKE = """
import json, sys
from pathlib import Path
from tests.servers.tiny_diffusion import tiny_diffusion
tiny_diffusion(Path(sys.argv[1]))
print(json.dumps(None))
"""
DIRECT = """
import base64, io, json, sys, torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], local_files_only=True)
pipeline.set_progress_bar_config(disable=True)
image = pipeline(
    "a cat", width=64, height=96, num_inference_steps=2, generator=torch.Generator("cpu").manual_seed(1)
).images[0]
file = io.BytesIO()
image.save(file, format="PNG")
print(json.dumps(base64.b64encode(file.getvalue()).decode()))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("diffusers")


@pytest.fixture(scope="module")
def weights(folder: Path) -> Path:
    run_python(MAKE, str(folder / "weights"))
    return folder / "weights"


@pytest.fixture(scope="module")
def server(weights: Path, folder: Path) -> Iterator[ModelServer]:
    with ModelServer("diffusers", weights, folder, MODELBAKE_MAX_WAITING="2") as running:
        assert running.wait().status == 503
        yield running


def post(server: ModelServer, **parameters: Any) -> Reply:
    body = {"prompt": "a cat", "size": "64x96", "steps": 2, **parameters}
    return server.request("POST", PATH, body)


def drawn(server: ModelServer, **parameters: Any) -> list[str]:
    reply = post(server, **parameters)
    assert reply.status == 200, reply.text
    images = [entry["b64_json"] for entry in reply.json["data"]]
    for image in images:
        data = base64.b64decode(image)
        assert data.startswith(b"\x89PNG\r\n\x1a\n")
        assert struct.unpack(">II", data[16:24]) == (64, 96)
    return images


def test_an_image_is_the_models_own(server: ModelServer, weights: Path) -> None:
    (image,) = drawn(server, seed=1, model="served", response_format="b64_json")
    assert image == run_python(DIRECT, str(weights))
    assert drawn(server, seed=1) == [image]
    assert drawn(server, seed=2) != [image], "control"
    assert drawn(server, seed=1, prompt="a dog") != [image]
    assert drawn(server, seed=1, steps=3) != [image]
    assert drawn(server, seed=1, guidance_scale=1) != [image]
    assert drawn(server, seed=1, negative_prompt="a dog") != [image]
    assert len({*drawn(server), *drawn(server)}) == 2, "without a seed each is another"


def test_several_images(server: ModelServer) -> None:
    images = drawn(server, seed=5, n=3)
    assert len(set(images)) == 3
    assert images == [drawn(server, seed=seed)[0] for seed in (5, 6, 7)]


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"prompt": None}, "prompt", "string"),
        ({"prompt": ""}, "prompt", "not empty"),
        ({"prompt": "x" * 10_001}, "prompt", "more than 10000"),
        ({"size": "64x65"}, "size", "multiples of 16"),
        ({"size": "4096x64"}, "size", "to 2048"),
        ({"size": "64"}, "size", "WIDTHxHEIGHT"),
        ({"n": 5}, "n", "from 1 to 4"),
        ({"steps": 0}, "steps", "from 1 to 200"),
        ({"guidance_scale": "much"}, "guidance_scale", "number"),
        ({"seed": -1}, "seed", "whole number"),
        ({"response_format": "url"}, "response_format", "b64_json"),
        ({"quality": "hd"}, "quality", "not supported"),
        ({"user": 5}, "user", "string"),
    ],
)
def test_what_is_refused(server: ModelServer, body: dict[str, Any], param: str, words: str) -> None:
    reply = post(server, **body)
    assert reply.status == 400, reply.text
    assert reply.error["param"] == param
    assert words in reply.error["message"]


def test_a_client_that_goes_away_frees_the_model(server: ModelServer) -> None:
    body = json.dumps({"prompt": "a cat", "size": "512x512", "steps": 200})
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("POST", PATH, body=body)
    time.sleep(0.5)
    connection.close()
    assert post(server).status == 200
    assert server.events("request_failed") == []


def test_too_many_requests_are_refused(server: ModelServer) -> None:
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: post(server, steps=20), range(8)))
    assert {reply.status for reply in replies} == {200, 503}
    refused = [reply for reply in replies if reply.status == 503]
    assert {reply.error["code"] for reply in refused} == {"overloaded"}
    assert len(replies) - len(refused) >= 2


def test_health_metrics_and_the_log(server: ModelServer) -> None:
    assert server.request("GET", "/health").json["status"] == "ready"
    samples = server.metrics()
    assert samples["modelbake_load_seconds", ()] > 0
    assert samples["modelbake_requests_total", (("route", PATH), ("status", "400"))] > 0
    (loaded,) = server.events("loaded")
    assert loaded["pipeline"] == "StableDiffusionPipeline"
    assert server.events("log") == []


def test_sigterm_ends_a_long_request(weights: Path, folder: Path) -> None:
    with (
        ModelServer("diffusers", weights, folder, MODELBAKE_DRAIN_SECONDS="1") as server,
        ThreadPoolExecutor(2) as pool,
    ):
        server.wait()
        pool.submit(post, server, size="512x512", steps=200)
        time.sleep(0.5)
        started = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == 0
        assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("no index", "no pipeline of diffusers"),
        ("no weights", "no safetensors"),
        ("a tensor of the unet", "lack parts of the model: unet.conv_out.weight"),
        ("a tensor of the text encoder", "final_layer_norm.weight"),
    ],
)
def test_a_model_that_cannot_be_loaded(weights: Path, tmp_path: Path, fault: str, words: str) -> None:
    broken = tmp_path / "weights"
    shutil.copytree(weights, broken)
    if fault == "no index":
        (broken / "model_index.json").unlink()
    elif fault == "no weights":
        for path in broken.rglob("*.safetensors"):
            path.unlink()
    elif fault.endswith("unet"):
        path = broken / "unet/diffusion_pytorch_model.safetensors"
        rename_tensor(path, "conv_out.weight", "conv_oux.weight")
    else:
        path = broken / "text_encoder/model.safetensors"
        data = path.read_bytes()
        assert data.count(b"final_layer_norm.weight") == 1
        path.write_bytes(data.replace(b"final_layer_norm.weight", b"final_layer_norx.weight"))
    with ModelServer("diffusers", broken, tmp_path) as server:
        assert server.end(120) == 70
        (failed,) = server.events("load_failed")
        assert words in failed["error"]
