"""The embeddings server, run as its image runs it, with a real model."""

from __future__ import annotations

import base64
import math
import signal
import struct
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.servers.minilm import minilm
from tests.unit.images.model_server import ModelServer, missing, run_python

NEEDED = ("torch", "sentence_transformers", "starlette", "uvicorn", "prometheus_client")
pytestmark = pytest.mark.skipif(
    bool(missing(*NEEDED)), reason=f"needs {', '.join(missing(*NEEDED))} (requirements/reference.txt)"
)

TEXTS = [
    "hello",
    "The quick brown fox jumps over the lazy dog.",
    "\u4f60\u597d, caf\u00e9 \U0001f600",
    "x " * 200,
]
DIRECT = """
import json, sys
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu", local_files_only=True)
texts = json.loads(sys.argv[2])
print(json.dumps({
    "vectors": model.encode(texts, show_progress_bar=False).tolist(),
    "tokens": sum(len(model.tokenizer(text)["input_ids"]) for text in texts),
}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("embeddings")


@pytest.fixture(scope="module")
def weights() -> Path:
    return minilm()


@pytest.fixture(scope="module")
def server(weights: Path, folder: Path) -> Iterator[ModelServer]:
    limits = {
        "MODELBAKE_MAX_INPUTS": "16",
        "MODELBAKE_MAX_WAITING": "40",
        "MODELBAKE_MAX_BODY_BYTES": "100000",
    }
    with ModelServer("embeddings", weights, folder, **limits) as running:
        first = running.wait()
        # It listened before it had loaded, and said that it was not ready.
        assert (first.status, first.json["status"]) == (503, "loading")
        yield running


@pytest.fixture(scope="module")
def direct(weights: Path) -> Any:
    import json

    return run_python(DIRECT, str(weights), json.dumps(TEXTS))


def embed(server: ModelServer, text: str | list[str], **others: Any) -> Any:
    reply = server.request("POST", "/v1/embeddings", {"input": text, **others})
    assert reply.status == 200, reply.text
    return reply.json


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / math.sqrt(sum(a * a for a in one) * sum(b * b for b in other))


def test_embeddings_are_the_models_own(server: ModelServer, direct: Any) -> None:
    answer = embed(server, TEXTS, model="served")
    assert set(answer) == {"object", "data", "model", "usage"}
    assert (answer["object"], answer["model"]) == ("list", "served")
    assert [entry["index"] for entry in answer["data"]] == [0, 1, 2, 3]
    assert {entry["object"] for entry in answer["data"]} == {"embedding"}
    for entry, expected in zip(answer["data"], direct["vectors"], strict=True):
        assert len(entry["embedding"]) == 384
        assert cosine(entry["embedding"], expected) > 0.9999
    assert cosine(answer["data"][0]["embedding"], direct["vectors"][1]) < 0.9
    assert answer["usage"] == {"prompt_tokens": direct["tokens"], "total_tokens": direct["tokens"]}


def test_base64_holds_the_same_numbers(server: ModelServer) -> None:
    numbers = embed(server, "hello")["data"][0]["embedding"]
    encoded = embed(server, "hello", encoding_format="base64")["data"][0]["embedding"]
    decoded = struct.unpack("<384f", base64.b64decode(encoded, validate=True))
    assert cosine(decoded, numbers) > 0.999999


def test_requests_at_the_same_time_do_not_mix(server: ModelServer) -> None:
    def ask(number: int) -> Any:
        texts = [f"text {number} {index} " + "word " * (number * 3) for index in range(1 + number % 2)]
        return [entry["embedding"] for entry in embed(server, texts)["data"]]

    alone = [ask(number) for number in range(16)]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(ask, range(16)))
    for one, other in zip(alone, together, strict=True):
        assert [cosine(a, b) > 0.9999 for a, b in zip(one, other, strict=True)] == [True] * len(one)


def test_too_much_at_the_same_time_is_refused(server: ModelServer) -> None:
    body = {"input": ["word " * 50] * 16}
    with ThreadPoolExecutor(20) as pool:
        replies = list(pool.map(lambda _: server.request("POST", "/v1/embeddings", body), range(20)))
    refused = [reply for reply in replies if reply.status != 200]
    assert 0 < len(refused) < len(replies)
    assert {(reply.status, reply.error["code"]) for reply in refused} == {(503, "overloaded")}
    assert refused[0].headers["retry-after"] == "1"


def test_health_answers_while_the_model_computes(server: ModelServer) -> None:
    body = {"input": ["word " * 250] * 8}
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(server.request, "POST", "/v1/embeddings", body) for _ in range(2)]
        slowest = 0.0
        while not all(one.done() for one in waiting):
            started = time.monotonic()
            assert server.request("GET", "/health").status == 200
            slowest = max(slowest, time.monotonic() - started)
        assert [one.result().status for one in waiting] == [200, 200]
    assert 0 < slowest < 1


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "input", "not empty"),
        ({"input": []}, "input", "not empty"),
        ({"input": ""}, "input", "is empty"),
        ({"input": {"a": 1}}, "input", "string"),
        ({"input": [1, 2, 3]}, "input", "takes no tokens"),
        ({"input": [[1, 2], [3]]}, "input", "takes no tokens"),
        ({"input": ["a", None]}, "input[1]", "string"),
        ({"input": "half \ud83d"}, "input[0]", "not Unicode"),
        ({"input": ["x"] * 17}, "input", "at most 16"),
        ({"input": "x " * 300}, "input", "302 tokens"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format", "base64"),
        ({"input": "x", "dimensions": 64}, "dimensions", "not supported"),
        ({"input": "x", "truncate": 1}, "truncate", "true or false"),
        ({"input": "x", "user": 7}, "user", "string"),
    ],
)
def test_what_is_refused(server: ModelServer, body: dict[str, Any], param: str, words: str) -> None:
    reply = server.request("POST", "/v1/embeddings", body)
    assert reply.status == 400
    assert reply.error["param"] == param
    assert words in reply.error["message"]


def test_too_long_a_text_is_cut_only_where_that_is_wanted(server: ModelServer, direct: Any) -> None:
    answer = embed(server, "x " * 300, truncate=True)
    assert answer["usage"]["prompt_tokens"] == 256


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b'{"input": NaN}', b"[" * 90_000])
def test_bodies_that_are_no_json_object(server: ModelServer, data: bytes) -> None:
    reply = server.request("POST", "/v1/embeddings", data=data)
    assert (reply.status, reply.error["code"]) == (400, "invalid_json")


def test_a_body_that_is_too_large(server: ModelServer) -> None:
    reply = server.request("POST", "/v1/embeddings", {"input": "x" * 100_000})
    assert (reply.status, reply.error["code"]) == (413, "body_too_large")


def test_another_model(server: ModelServer) -> None:
    reply = server.request("POST", "/v1/embeddings", {"input": "x", "model": "gpt-5"})
    assert (reply.status, reply.error["code"]) == (404, "model_not_found")


def test_other_paths_and_methods(server: ModelServer) -> None:
    assert server.request("GET", "/v1/embeddings").status == 405
    reply = server.request("POST", "/v1/nothing", {})
    assert (reply.status, reply.error["message"]) == (404, "Not Found")


def test_models_lists_the_one(server: ModelServer) -> None:
    answer = server.request("GET", "/v1/models").json
    assert [model["id"] for model in answer["data"]] == ["served"]


def test_health_names_the_version(server: ModelServer) -> None:
    expected = {"status": "ready", "model": "served", "version": "1.2.3"}
    assert server.request("GET", "/health").json == expected


def test_metrics(server: ModelServer) -> None:
    route = ("route", "/v1/embeddings")

    def read() -> tuple[float, float, float]:
        samples = server.metrics()
        return (
            samples.get(("modelbake_requests_total", (route, ("status", "200"))), 0),
            samples.get(("modelbake_requests_total", (route, ("status", "400"))), 0),
            samples.get(("modelbake_request_seconds_count", (route,)), 0),
        )

    before = read()
    embed(server, "hello")
    server.request("POST", "/v1/embeddings", {"input": ""})
    server.request("GET", "/made/up")
    assert read() == (before[0] + 1, before[1] + 1, before[2] + 2)
    samples = server.metrics()
    assert samples["modelbake_load_seconds", ()] > 0
    labels = (("device", "cpu"), ("model", "served"), ("version", "1.2.3"))
    device = server.events("loaded")[0]["device"]
    assert samples["modelbake_info", (("device", device), *labels[1:])] == 1
    gpu = {name for name, _ in samples if name.startswith("modelbake_gpu_memory_")}
    assert gpu == (
        set()
        if device == "cpu"
        else {f"modelbake_gpu_memory_{kind}_bytes" for kind in ("allocated", "reserved", "peak")}
    )
    # Nobody can fill the memory with paths of their own.
    assert {dict(key)["route"] for name, key in samples if name == "modelbake_requests_total"} <= {
        "/v1/embeddings",
        "/v1/models",
        "/health",
        "/metrics",
        "other",
    }


def test_the_log(server: ModelServer) -> None:
    (loaded,) = server.events("loaded")
    assert (loaded["model"], loaded["version"], loaded["dimension"]) == ("served", "1.2.3", 384)
    assert loaded["seconds"] > 0
    server.request("POST", "/v1/embeddings", {"input": "a secret text" * 100, "colour": "red"})
    refused = server.events("request_error")[-1]
    assert (refused["route"], refused["status"], refused["level"]) == ("/v1/embeddings", 400, "warning")
    assert "secret" not in server.output.read_text()


def test_sigterm_lets_open_requests_end(weights: Path, folder: Path) -> None:
    with (
        ModelServer("embeddings", weights, folder, MODELBAKE_DRAIN_SECONDS="60") as server,
        ThreadPoolExecutor(1) as pool,
    ):
        server.wait()
        waiting = pool.submit(server.request, "POST", "/v1/embeddings", {"input": ["word " * 200] * 64})
        time.sleep(0.3)
        assert not waiting.done()
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == 0
        assert waiting.result().status == 200
        assert server.events("stopped")[0]["signal"] == "SIGTERM"


def test_sigterm_while_it_loads(weights: Path, folder: Path) -> None:
    with ModelServer("embeddings", weights, folder) as server:
        assert server.wait(status=503).status == 503
        refused = server.request("POST", "/v1/embeddings", {"input": "x"})
        assert (refused.status, refused.error["code"]) == (503, "not_ready")
        server.process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        assert server.end() == 0
        assert time.monotonic() - started < 5


def copy_with(weights: Path, target: Path, **changes: bytes | None) -> Path:
    """The same model, with links to its files, but for some."""
    target.mkdir()
    for path in weights.iterdir():
        (target / path.name).symlink_to(path)
    for name, data in changes.items():
        (target / name).unlink(missing_ok=True)
        if data is not None:
            (target / name).write_bytes(data)
    return target


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.safetensors": b"\x08\0\0\0\0\0\0\0{}      "}, "lack parts of the model"),
        ({"model.safetensors": b"\xff" * 1000}, "SafetensorError"),
        ({"model.safetensors": None, "pytorch_model.bin": b"pickle"}, "pickled weights"),
        ({"model.safetensors": None}, "no safetensors"),
        ({"config.json": b"{"}, ""),
    ],
    ids=["empty", "broken", "pickle", "missing", "config"],
)
def test_a_model_that_cannot_be_loaded(
    weights: Path, tmp_path: Path, changes: dict[str, bytes | None], words: str
) -> None:
    broken = copy_with(weights, tmp_path / "weights", **changes)
    with ModelServer("embeddings", broken, tmp_path) as server:
        assert server.end() == 70
        (failed,) = server.events("load_failed")
        assert failed["level"] == "error"
        assert words in failed["error"]


def test_settings_that_are_wrong(tmp_path: Path) -> None:
    with ModelServer("embeddings", tmp_path, tmp_path, MODELBAKE_BATCH_SIZE="many") as server:
        assert server.end() == 70
        assert "MODELBAKE_BATCH_SIZE" in server.events("load_failed")[0]["error"]


def test_a_port_that_is_taken(server: ModelServer, tmp_path: Path) -> None:
    with ModelServer("embeddings", tmp_path, tmp_path, MODELBAKE_PORT=str(server.port)) as second:
        assert second.end() == 71
        assert second.events("port_unusable")[0]["port"] == server.port
