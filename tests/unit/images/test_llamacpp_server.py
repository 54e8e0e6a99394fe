"""The llama.cpp server, run as its image runs it, with a tiny Llama of random weights in one GGUF file."""

from __future__ import annotations

import http.client
import importlib.util
import json
import re
import signal
import struct
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbake.config import ModelSpec
from modelbake.fitness import Evidence, objections
from modelbake.runtime import load_runtime
from tests.servers.tiny_gguf import CONTEXT, tiny_gguf
from tests.unit.images.model_server import IMAGES, ModelServer, Reply, missing

NEEDED = ("xllamacpp", "starlette", "uvicorn", "prometheus_client")
needs_llama = pytest.mark.skipif(
    bool(missing(*NEEDED)), reason=f"needs {', '.join(missing(*NEEDED))} (requirements/reference.txt)"
)

PATH = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
TINY = tiny_gguf()
STRICT_TEMPLATE = "{{ raise_exception('roles have to alternate') if messages | length > 1 }}x"


def start(weights: Path, folder: Path, **environment: str) -> ModelServer:
    # Where this machine's Python has OpenMP; the image has it elsewhere.
    library = Path(str(importlib.util.find_spec("xllamacpp").origin)).parents[1] / "cmeel.prefix/lib"  # type: ignore[union-attr]
    assert (library / "libgomp.so.1").exists()
    return ModelServer("llamacpp", weights, folder, LD_LIBRARY_PATH=str(library), **environment)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llamacpp")


@pytest.fixture(scope="module")
def weights(folder: Path) -> Path:
    return written(folder / "weights", TINY)


@pytest.fixture(scope="module")
def server(weights: Path, folder: Path) -> Iterator[ModelServer]:
    limits = {"MODELBAKE_DEFAULT_MAX_TOKENS": "40", "MODELBAKE_MAX_WAITING": "4"}
    with start(weights, folder, **limits) as running:
        running.wait()
        yield running


def written(weights: Path, model: bytes, name: str = "tiny.gguf") -> Path:
    weights.mkdir(exist_ok=True)
    (weights / name).write_bytes(model)
    return weights


def post(server: ModelServer, **parameters: Any) -> Reply:
    return server.request("POST", PATH, {"messages": HELLO, **parameters})


def ask(server: ModelServer, **parameters: Any) -> Any:
    reply = post(server, **parameters)
    assert reply.status == 200, reply.text
    return reply.json


def content(answer: Any) -> str:
    (choice,) = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    return str(choice["message"]["content"])


def stream(server: ModelServer, **parameters: Any) -> list[Any]:
    """The chunks of a streamed answer, once it is clear that it is a whole one."""
    reply = post(server, stream=True, **parameters)
    assert reply.status == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    *events, done, rest = reply.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert {(chunk["object"], chunk["model"]) for chunk in chunks} == {("chat.completion.chunk", "served")}
    assert len({chunk["id"] for chunk in chunks}) == 1
    return chunks


def text_of(chunks: list[Any]) -> str:
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert deltas[0]["role"] == "assistant"
    return "".join(delta.get("content") or "" for delta in deltas)


@needs_llama
def test_a_greedy_answer_is_always_the_same(server: ModelServer) -> None:
    answer = ask(server, temperature=0, max_tokens=60, model="served")
    assert (answer["object"], answer["model"]) == ("chat.completion", "served")
    assert answer["id"].startswith("chatcmpl-")
    assert answer["choices"][0]["finish_reason"] == "length"
    assert len(content(answer)) == 60, "every token of this model is a letter"
    usage = answer["usage"]
    assert usage["completion_tokens"] == 60
    assert usage["total_tokens"] == usage["prompt_tokens"] + 60
    for _ in range(3):
        assert content(ask(server, temperature=0, max_tokens=60)) == content(answer)
    other = [{"role": "user", "content": "another question"}]
    assert content(ask(server, temperature=0, max_tokens=60, messages=other)) != content(answer), "control"


@needs_llama
@pytest.mark.parametrize("seed", range(3))
def test_a_streamed_answer_is_the_same(server: ModelServer, seed: int) -> None:
    parameters = {"temperature": 1.5, "seed": seed, "max_tokens": 50}
    chunks = stream(server, **parameters)
    assert len(chunks) > 10, "it comes in pieces"
    assert text_of(chunks) == content(ask(server, **parameters))
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


@needs_llama
def test_usage_at_the_end_of_a_stream(server: ModelServer) -> None:
    chunks = stream(server, max_tokens=5, temperature=0, stream_options={"include_usage": True})
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 5
    assert all("usage" not in chunk for chunk in stream(server, max_tokens=5, temperature=0))


@needs_llama
def test_seeds(server: ModelServer) -> None:
    def sample(**parameters: Any) -> str:
        return content(ask(server, temperature=2, max_tokens=30, **parameters))

    assert sample(seed=1) == sample(seed=1)
    assert sample(seed=1) != sample(seed=2)
    assert len({sample() for _ in range(3)}) == 3


@needs_llama
def test_a_small_top_p_is_greedy(server: ModelServer) -> None:
    greedy = content(ask(server, temperature=0, max_tokens=20))
    assert content(ask(server, top_p=1e-6, max_tokens=20)) == greedy


@needs_llama
def test_lengths_and_stop_strings(server: ModelServer) -> None:
    whole = content(ask(server, temperature=0))
    assert len(whole) == 40, "the default"
    assert content(ask(server, temperature=0, max_completion_tokens=3)) == whole[:3]
    answer = ask(server, temperature=0, stop=[whole[10:14], "never there"])
    assert content(answer) == whole[: whole.index(whole[10:14])]
    assert answer["choices"][0]["finish_reason"] == "stop"


@needs_llama
@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"messages": []}, "messages", "not empty"),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, "messages[0].content", "not Unicode"),
        ({"messages": [{"role": "user", "content": "x" * 500}]}, "messages", "exceeds the available context"),
        ({"max_tokens": 0}, "max_tokens", "whole number"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "differ"),
        ({"temperature": "hot"}, "temperature", "from 0 to 2"),
        ({"top_p": 0}, "top_p", "more than 0"),
        ({"seed": 2**32 - 1}, "seed", "whole number"),
        ({"stop": ["a"] * 5}, "stop", "at most 4"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options", "include_usage only"),
        ({"n": 2}, "n", "not supported, but as 1"),
        ({"grammar": "x"}, "grammar", "not supported"),
        ({"cache_prompt": False}, "cache_prompt", "not supported"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_what_is_refused(
    server: ModelServer, body: dict[str, Any], param: str, words: str, streamed: bool
) -> None:
    reply = post(server, **{"stream": streamed, **body})
    assert reply.status == 400, reply.text
    assert reply.error["param"] == param
    assert words in reply.error["message"]


@needs_llama
def test_what_the_chat_template_refuses(tmp_path: Path) -> None:
    with start(written(tmp_path / "weights", tiny_gguf(chat_template=STRICT_TEMPLATE)), tmp_path) as server:
        server.wait()
        reply = post(server, messages=HELLO * 2)
        assert reply.status == 400
        assert "roles have to alternate" in reply.error["message"]
        assert post(server, max_tokens=1).status == 200, "it goes on"


@needs_llama
def test_a_client_that_goes_away_frees_the_model(server: ModelServer) -> None:
    """Both ways: while it waits for the whole answer, and in the middle of a stream."""
    for parameters in ({}, {"stream": True}):
        body = {"messages": HELLO, "max_tokens": 220, "temperature": 2, **parameters}
        for _ in range(8):
            connection = http.client.HTTPConnection("127.0.0.1", server.port)
            connection.request("POST", PATH, body=json.dumps(body))
            connection.close()
        deadline = time.monotonic() + 60
        while post(server, max_tokens=1).status == 503:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@needs_llama
def test_too_many_requests_are_refused(server: ModelServer) -> None:
    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda _: post(server, max_tokens=220, temperature=2), range(12)))
    assert {reply.status for reply in replies} == {200, 503}
    refused = [reply for reply in replies if reply.status == 503]
    assert {reply.error["code"] for reply in refused} == {"overloaded"}
    assert len(replies) - len(refused) >= 4


@needs_llama
def test_models_health_metrics_and_the_log(server: ModelServer) -> None:
    assert server.request("GET", "/v1/models").json["data"][0]["id"] == "served"
    assert server.request("GET", "/health").json["status"] == "ready"
    samples = server.metrics()
    assert samples["modelbake_load_seconds", ()] > 0
    assert samples["modelbake_requests_total", (("route", PATH), ("status", "400"))] > 0
    (loaded,) = server.events("loaded")
    assert (loaded["context"], loaded["device"], loaded["file"]) == (CONTEXT, "cpu", "tiny.gguf")
    assert server.events("request_failed") == []
    assert server.events("log") == []


@needs_llama
def test_nothing_listens_but_the_port(server: ModelServer) -> None:
    """llama.cpp opens a socket of its own: it has to be one that has no name any more."""
    pid = server.process.pid
    inodes = {
        match[1]
        for link in Path(f"/proc/{pid}/fd").iterdir()
        if (match := re.fullmatch(r"socket:\[(\d+)\]", str(link.readlink())))
    }
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    listening = {row[1].rpartition(":")[2] for row in rows if row[3] == "0A" and row[9] in inodes}
    assert listening == {f"{server.port:04X}"}
    names = [line.split() for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]]
    own = [row[7] for row in names if row[6] in inodes and len(row) > 7]
    assert [name for name in own if name.endswith("llama.sock")], "control: the socket that it opened"
    assert not [name for name in own if Path(name).exists()]


@needs_llama
def test_sigterm_ends_a_long_answer(weights: Path, folder: Path) -> None:
    with (
        start(weights, folder, MODELBAKE_DRAIN_SECONDS="1") as server,
        ThreadPoolExecutor(8) as pool,
    ):
        server.wait()
        for _ in range(8):
            pool.submit(post, server, max_tokens=220, temperature=2)
        time.sleep(0.2)
        started = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == 0
        assert time.monotonic() - started < 10


@needs_llama
@pytest.mark.parametrize(
    ("model", "words"),
    [
        (tiny_gguf(chat_template=None), "tiny.gguf has no chat template (llama)"),
        (TINY[:200_000], "llama.cpp cannot load tiny.gguf: llama_model_load: error loading model: tensor"),
        (b"GGML" + TINY[4:], "tiny.gguf: no GGUF file"),
    ],
    ids=["no template", "cut", "another format"],
)  # fmt: skip
def test_a_model_that_cannot_be_loaded(tmp_path: Path, model: bytes, words: str) -> None:
    with start(written(tmp_path / "weights", model), tmp_path) as server:
        assert server.end() == 70
        (failed,) = server.events("load_failed")
        assert words in failed["error"]


# --- which file it is: the part of the server that needs no llama.cpp --------------------------------------


@pytest.fixture(scope="module")
def files() -> Iterator[Any]:
    if missing("starlette", "uvicorn", "prometheus_client"):
        pytest.skip("needs starlette, uvicorn and prometheus_client (requirements/reference.txt)")
    before, path = set(sys.modules), list(sys.path)
    sys.path[:0] = [str(IMAGES / "start"), str(IMAGES / "llamacpp")]
    try:
        yield importlib.import_module("gguf_file")
    finally:
        sys.path[:] = path
        for name in {"serving", "openai_api", "model_metrics", "start", "gguf_file"} - before:
            sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["model.gguf"], "model.gguf"),
        (["README.md", "Q4/model.gguf"], "Q4/model.gguf"),
        (["a-00002-of-00002.gguf", "a-00001-of-00002.gguf"], "a-00001-of-00002.gguf"),
    ],
)
def test_the_model_is_found(files: Any, tmp_path: Path, names: list[str], found: str) -> None:
    put(tmp_path, names)
    assert files.find_model(tmp_path) == tmp_path / found


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["model.safetensors"], "there is no .gguf file among the weights"),
        (["a.gguf", "b/c.gguf"], "expected one model, found several: a.gguf, b/c.gguf; let `include`"),
        (["a-00001-of-00002.gguf", "b.gguf"], "found several: a-00001-of-00002.gguf, b.gguf"),
        (["a-00001-of-00003.gguf", "a-00003-of-00003.gguf"], "shards are missing: a-00002-of-00003.gguf"),
        (["a-00001-of-00002.gguf", "b/a-00002-of-00002.gguf"], "found several"),
    ],
)  # fmt: skip
def test_what_is_no_model(files: Any, tmp_path: Path, names: list[str], words: str) -> None:
    put(tmp_path, names)
    with pytest.raises(files.LoadError, match=re.escape(words)):
        files.find_model(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ["model.gguf"],
        ["Q4/deep/model.gguf", "README.md"],
        ["Q4/a-00001-of-00002.gguf", "Q4/a-00002-of-00002.gguf"],
        ["model.safetensors"],
        ["a.gguf", "b/c.gguf"],
        ["a.gguf", "mmproj-a.gguf"],
        ["a-00001-of-00002.gguf", "b.gguf"],
        ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf", "b/a.gguf"],
        ["a-00001-of-00003.gguf", "a-00003-of-00003.gguf"],
        ["a-00001-of-00002.gguf", "b/a-00002-of-00002.gguf"],
    ],
)
def test_check_refuses_what_the_server_would_refuse(files: Any, tmp_path: Path, names: list[str]) -> None:
    put(tmp_path, names)
    try:
        files.find_model(tmp_path)
    except files.LoadError:
        loads = False
    else:
        loads = True
    spec = ModelSpec(name="chat", version="1.0.0", source="hf://a/b", runtime="llamacpp", device="cpu")
    assert (objections(spec, load_runtime(IMAGES, "llamacpp"), Evidence(names)) == []) is loads


def put(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_the_header_is_read(files: Any, tmp_path: Path) -> None:
    path = written(tmp_path, TINY) / "tiny.gguf"
    header = files.read_header(path)
    assert header["general.architecture"] == "llama"
    assert header["llama.context_length"] == CONTEXT
    assert header["tokenizer.ggml.tokens"] is None
    assert header["tokenizer.ggml.add_bos_token"] is True
    assert "<|assistant|>" in header["tokenizer.chat_template"]


@given(data=st.one_of(st.binary(max_size=200), st.integers(0, 6000)), flip=st.integers(0, 400))
def test_a_damaged_header_is_an_error_and_nothing_else(
    files: Any, tmp_path_factory: pytest.TempPathFactory, data: bytes | int, flip: int
) -> None:
    model = TINY[:6000]  # the header's beginning
    damaged = b"GGUF" + data if isinstance(data, bytes) else model[:data]
    damaged = (
        damaged[:flip] + bytes([damaged[flip] ^ 255]) + damaged[flip + 1 :] if flip < len(damaged) else b""
    )
    path = written(tmp_path_factory.mktemp("damaged"), damaged) / "tiny.gguf"
    with pytest.raises(
        files.LoadError, match=r"tiny\.gguf: (no GGUF file|GGUF version|the header is damaged)"
    ):
        files.read_header(path)


def test_arrays_within_arrays_without_end_are_a_damaged_header(files: Any, tmp_path: Path) -> None:
    entry = struct.pack("<Q1sI", 1, b"a", 9) + struct.pack("<IQ", 9, 1) * 5000
    path = written(tmp_path, b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry) / "tiny.gguf"
    with pytest.raises(files.LoadError, match="the header is damaged"):
        files.read_header(path)
