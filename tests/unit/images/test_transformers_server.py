"""The chat server, run as its image runs it, with a tiny Llama of random weights."""

from __future__ import annotations

import http.client
import importlib.util
import json
import random
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.images.model_server import IMAGES, ModelServer, Reply, missing, run_python

NEEDED = ("torch", "transformers", "starlette", "uvicorn", "prometheus_client")
pytestmark = pytest.mark.skipif(
    bool(missing(*NEEDED)), reason=f"needs {', '.join(missing(*NEEDED))} (requirements/reference.txt)"
)

PATH = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello, caf\u00e9 \U0001f600"}]
CONTEXT = 256
MAKE = """
import json, sys
from pathlib import Path
from tests.servers.minilm import tiny_llama
tiny_llama(Path(sys.argv[1]))
print(json.dumps(None))
"""
CONTEXTS = """
import json, sys, transformers
sys.path[:0] = sys.argv[1:]
import server
names = ("LlamaConfig", "GPT2Config", "MambaConfig", "BloomConfig")
print(json.dumps([server.longest_context(getattr(transformers, name)()) for name in names]))
"""
DIRECT = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
prompt = tokenizer.apply_chat_template(
    json.loads(sys.argv[2]), add_generation_prompt=True, return_tensors="pt", return_dict=True
)
output = model.generate(**prompt, max_new_tokens=60, do_sample=False)
length = prompt["input_ids"].shape[1]
print(json.dumps({
    "text": tokenizer.decode(output[0, length:], skip_special_tokens=True),
    "prompt_tokens": length,
    "completion_tokens": output.shape[1] - length,
}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("transformers")


@pytest.fixture(scope="module")
def weights(folder: Path) -> Path:
    run_python(MAKE, str(folder / "weights"))
    return folder / "weights"


@pytest.fixture(scope="module")
def server(weights: Path, folder: Path) -> Iterator[ModelServer]:
    limits = {"MODELBAKE_DEFAULT_MAX_TOKENS": "40", "MODELBAKE_MAX_WAITING": "4"}
    with ModelServer("transformers", weights, folder, **limits) as running:
        assert running.wait().status == 503
        yield running


def ask(server: ModelServer, **parameters: Any) -> Any:
    reply = post(server, **parameters)
    assert reply.status == 200, reply.text
    return reply.json


def post(server: ModelServer, **parameters: Any) -> Reply:
    return server.request("POST", PATH, {"messages": HELLO, **parameters})


def read_events(text: str) -> list[Any]:
    """The chunks of a stream, once it is clear that it is a whole one."""
    *events, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(event.startswith("data: ") for event in events)
    return [json.loads(event.removeprefix("data: ")) for event in events]


def content(answer: Any) -> str:
    (choice,) = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    return str(choice["message"]["content"])


def stream(server: ModelServer, **parameters: Any) -> tuple[str, str]:
    """The text and the finish reason of a streamed answer."""
    reply = post(server, stream=True, **parameters)
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/event-stream")
    chunks = read_events(reply.text)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    return text, chunks[-1]["choices"][0]["finish_reason"]


def test_the_greedy_answer_is_the_models_own(server: ModelServer, weights: Path) -> None:
    direct = run_python(DIRECT, str(weights), json.dumps(HELLO))
    answer = ask(server, temperature=0, max_tokens=60, model="served")
    assert (answer["object"], answer["model"]) == ("chat.completion", "served")
    assert answer["id"].startswith("chatcmpl-")
    assert content(answer) == direct["text"]
    usage = answer["usage"]
    assert usage["prompt_tokens"] == direct["prompt_tokens"]
    assert usage["completion_tokens"] == direct["completion_tokens"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert answer["choices"][0]["finish_reason"] == ("length" if usage["completion_tokens"] == 60 else "stop")


@pytest.mark.parametrize("seed", range(4))
def test_a_streamed_answer_is_the_same(server: ModelServer, seed: int) -> None:
    parameters = {"temperature": 1.5, "seed": seed, "max_tokens": 50}
    answer = ask(server, **parameters)
    assert stream(server, **parameters) == (content(answer), answer["choices"][0]["finish_reason"])


def test_usage_at_the_end_of_a_stream(server: ModelServer) -> None:
    reply = post(server, stream=True, max_tokens=5, temperature=0, stream_options={"include_usage": True})
    last = read_events(reply.text)[-1]
    assert last["choices"] == []
    assert last["usage"] == ask(server, max_tokens=5, temperature=0)["usage"]


def test_seeds(server: ModelServer) -> None:
    def sample(**parameters: Any) -> str:
        return content(ask(server, temperature=2, max_tokens=30, **parameters))

    assert sample(seed=1) == sample(seed=1)
    assert sample(seed=1) != sample(seed=2)
    # A seed is of one request: what comes after it is random again.
    assert len({(sample(seed=1), sample())[1] for _ in range(3)}) == 3


def test_a_small_top_p_is_greedy(server: ModelServer) -> None:
    greedy = content(ask(server, temperature=0, max_tokens=20))
    assert content(ask(server, top_p=1e-6, max_tokens=20)) == greedy
    assert content(ask(server, temperature=1e-30, max_tokens=20)) == greedy


def test_the_default_length(server: ModelServer) -> None:
    assert ask(server, temperature=0)["usage"]["completion_tokens"] <= 40
    assert ask(server, temperature=0, max_completion_tokens=3)["usage"]["completion_tokens"] <= 3


def test_stop_strings(server: ModelServer) -> None:
    parameters = {"temperature": 1.5, "seed": 5, "max_tokens": 50}
    whole = content(ask(server, **parameters))
    stop = whole[10:13]
    place = whole.index(stop)
    answer = ask(server, **parameters, stop=[stop, "never there"])
    assert content(answer) == whole[:place]
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] < 50
    assert stream(server, **parameters, stop=stop) == (whole[:place], "stop")


def test_text_parts_are_put_together(server: ModelServer) -> None:
    text = HELLO[0]["content"]
    parts = [{"type": "text", "text": text[:3]}, {"type": "text", "text": text[3:]}]
    one = ask(server, temperature=0, messages=[{"role": "user", "content": parts, "name": None}])
    assert content(one) == content(ask(server, temperature=0))


def test_neutral_values_are_allowed(server: ModelServer) -> None:
    ask(server, max_tokens=1, n=1, frequency_penalty=0, logprobs=False, tools=None, user="somebody")


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"messages": None}, "messages", "not empty"),
        ({"messages": []}, "messages", "not empty"),
        ({"messages": ["hello"]}, "messages", "messages[0] has to be an object"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages", "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "string"),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, "messages[0].content", "not Unicode"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "text parts only"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": []}]}, "messages", "tool_calls"),
        ({"messages": [{"role": "user", "content": "x" * 500}]}, "messages", "more than 256"),
        ({"max_tokens": 0}, "max_tokens", "whole number"),
        ({"max_tokens": 1.5}, "max_tokens", "whole number"),
        ({"max_tokens": True}, "max_tokens", "whole number"),
        ({"max_tokens": CONTEXT}, "messages", "more than 256"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "differ"),
        ({"temperature": 2.1}, "temperature", "from 0 to 2"),
        ({"temperature": "hot"}, "temperature", "from 0 to 2"),
        ({"top_p": 0}, "top_p", "more than 0"),
        ({"top_p": 1.1}, "top_p", "from 0 to 1"),
        ({"seed": 2**64}, "seed", "whole number"),
        ({"stop": ""}, "stop", "empty string"),
        ({"stop": ["a"] * 5}, "stop", "at most 4"),
        ({"stop": 5}, "stop", "at most 4"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "where stream is true"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options", "include_usage only"),
        ({"n": 2}, "n", "not supported, but as 1"),
        ({"n": True}, "n", "not supported, but as 1"),
        ({"logprobs": True}, "logprobs", "not supported"),
        ({"tools": []}, "tools", "not supported"),
        ({"top_k": 5}, "top_k", "not supported"),
        ({"user": 5}, "user", "string"),
    ],
)
def test_what_is_refused(server: ModelServer, body: dict[str, Any], param: str, words: str) -> None:
    reply = post(server, **body)
    assert reply.status == 400, reply.text
    assert reply.error["param"] == param
    assert words in reply.error["message"]


def test_an_architecture_may_have_no_longest_context() -> None:
    """Those of Mamba and BLOOM are `*ForCausalLM` like the others."""
    llama, gpt2, *others = run_python(CONTEXTS, str(IMAGES / "transformers"), str(IMAGES / "start"))
    assert (llama, gpt2, others) == (2048, 1024, [None, None])


def test_what_the_chat_template_refuses(weights: Path, tmp_path: Path) -> None:
    strict = tmp_path / "weights"
    shutil.copytree(weights, strict)
    template = "{{ raise_exception('roles have to alternate') if messages | length > 1 }}x"
    (strict / "chat_template.jinja").write_text(template)
    with ModelServer("transformers", strict, tmp_path) as server:
        server.wait()
        reply = post(server, messages=HELLO * 2)
        assert reply.status == 400
        assert "roles have to alternate" in reply.error["message"]


def test_a_client_that_goes_away_frees_the_model(server: ModelServer) -> None:
    """Both ways: while it waits for the whole answer, and in the middle of a stream."""
    for parameters in ({}, {"stream": True}):
        body = {"messages": HELLO, "max_tokens": 200, "temperature": 2, **parameters}
        for _ in range(8):
            connection = http.client.HTTPConnection("127.0.0.1", server.port)
            connection.request("POST", PATH, body=json.dumps(body))
            time.sleep(0.05)
            connection.close()
            time.sleep(0.05)
        deadline = time.monotonic() + 60
        while post(server, max_tokens=1).status == 503:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    ended = {key[1]: value for key, value in server.metrics().items() if key[0] == "modelbake_requests_total"}
    assert ended[("route", PATH), ("status", "499")] > 0


def test_too_many_requests_are_refused(server: ModelServer) -> None:
    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda _: post(server, max_tokens=200, temperature=2), range(12)))
    assert {reply.status for reply in replies} == {200, 503}
    refused = [reply for reply in replies if reply.status == 503]
    assert {reply.error["code"] for reply in refused} == {"overloaded"}
    assert len(replies) - len(refused) >= 4


def test_models_health_and_metrics(server: ModelServer) -> None:
    assert server.request("GET", "/v1/models").json["data"][0]["id"] == "served"
    assert server.request("GET", "/health").json["status"] == "ready"
    samples = server.metrics()
    assert samples["modelbake_load_seconds", ()] > 0
    assert samples["modelbake_requests_total", (("route", PATH), ("status", "400"))] > 0


def test_the_log(server: ModelServer) -> None:
    (loaded,) = server.events("loaded")
    assert (loaded["context"], loaded["dtype"]) == (
        CONTEXT,
        "float32" if loaded["device"] == "cpu" else "bfloat16",
    )
    assert server.events("request_failed") == []
    assert [event["message"] for event in server.events("log")] == []


def test_sigterm_ends_a_long_answer(weights: Path, folder: Path) -> None:
    with (
        ModelServer("transformers", weights, folder, MODELBAKE_DRAIN_SECONDS="1") as server,
        ThreadPoolExecutor(8) as pool,
    ):
        server.wait()
        for _ in range(8):
            pool.submit(post, server, max_tokens=200, temperature=2)
        time.sleep(0.5)
        started = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == 0
        assert time.monotonic() - started < 10


@pytest.mark.parametrize("fault", ["no template", "no weights", "a missing tensor"])
def test_a_model_that_cannot_be_loaded(weights: Path, tmp_path: Path, fault: str) -> None:
    broken = tmp_path / "weights"
    shutil.copytree(weights, broken)
    if fault == "no template":
        (broken / "chat_template.jinja").unlink()
    elif fault == "no weights":
        (broken / "model.safetensors").unlink()
    else:
        rename_tensor(broken / "model.safetensors", "model.norm.weight", "model.nork.weight")
    with ModelServer("transformers", broken, tmp_path) as server:
        assert server.end() == 70
        (failed,) = server.events("load_failed")
        words = {
            "no template": "chat template",
            "no weights": "no safetensors",
            "a missing tensor": "norm.weight",
        }
        assert words[fault] in failed["error"]


def rename_tensor(path: Path, old: str, new: str) -> None:
    """Rename a tensor in a safetensors file to something of the same length."""
    data = path.read_bytes()
    assert data.count(f'"{old}"'.encode()) == 1
    path.write_bytes(data.replace(f'"{old}"'.encode(), f'"{new}"'.encode()))


@pytest.fixture(scope="module")
def program() -> Any:
    """The part of the server that needs no model."""
    spec = importlib.util.spec_from_file_location("chat_pieces", IMAGES / "transformers" / "pieces.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@given(
    text=st.text("ab", max_size=40),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=4),
    cuts=st.randoms(use_true_random=False),
)
def test_stop_strings_across_pieces(program: Any, text: str, stops: list[str], cuts: random.Random) -> None:
    """However the text is cut, what comes out is everything before the stop string that is complete first."""
    pieces = []
    rest = text
    while rest:
        size = cuts.randint(1, 5)
        pieces.append(rest[:size])
        rest = rest[size:]
    stop_filter = program.StopFilter(tuple(stops))
    streamer = program.Streamer(
        program.Decoder(lambda _: ""), stop_filter, lambda piece: output.append(piece)
    )
    output: list[str] = []
    for piece in pieces:
        streamer.pass_on(stop_filter.add(piece))
    streamer.end()
    result = "".join(output)
    assert text.startswith(result)
    assert not any(stop in result for stop in stops)
    if any(stop in text for stop in stops):
        assert stop_filter.found
        assert any(text[len(result) :].startswith(stop) for stop in stops)
    else:
        assert result == text


def test_no_half_characters(program: Any) -> None:
    """Tokens that are single bytes become text only where a character is complete."""
    text = "a\u00e9\u4f60\U0001f600\nz"
    decoder = program.Decoder(lambda tokens: bytes(tokens).decode("utf-8", "replace"))
    pieces = [decoder.add(byte) for byte in text.encode()]
    assert "".join(pieces) == text
    assert [piece for piece in pieces if piece] == list(text)
    assert decoder.pending() == ""


def test_broken_characters_are_not_lost(program: Any) -> None:
    decoder = program.Decoder(lambda tokens: bytes(tokens).decode("utf-8", "replace"))
    text = "".join(decoder.add(byte) for byte in b"ab\xf0\x9f") + decoder.pending()
    assert text == "ab\ufffd"
