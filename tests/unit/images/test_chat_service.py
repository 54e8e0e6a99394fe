"""What the servers of chat models share, around a model that does what its messages say."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.images.model_server import IMAGES, ModelServer, Reply, missing

pytestmark = pytest.mark.skipif(
    bool(missing("starlette", "uvicorn", "prometheus_client")), reason="needs requirements/reference.txt"
)

PATH = "/v1/chat/completions"
SERVER = """
import time
import chat_parameters, serving
from chat_service import ChatService, End, Piece, count_usage
from openai_api import ApiError

class Chat(ChatService):
    def load(self):
        return {"device": "cpu"}

    def warm_up(self):
        pass

    async def read_order(self, body):
        (message,) = chat_parameters.read_messages(body["messages"])
        return message["content"].split()

    def generate(self, order, emit, given_up):
        for word in order:
            if word == "refuse":
                raise ApiError(400, "not this", param="messages")
            if word == "fail":
                raise ValueError("broken")
            if word == "linger":
                serving.log("info", "lingering")
                while not given_up.wait(0.01):
                    pass
                serving.log("info", "given_up")
            emit(Piece(word, "reasoning_content" if word == "hm" else "content"))
        return End("stop", count_usage(1, len(order)))

serving.run(Chat)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    folder = tmp_path_factory.mktemp("chat")
    (folder / "server.py").write_text(SERVER)
    (folder / "runtime.yaml").write_text("env: {}")
    with ModelServer(str(folder), folder, folder, PYTHONPATH=str(IMAGES / "start")) as running:
        running.wait()
        yield running


def body_of(words: str, **parameters: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": words}], **parameters}


def ask(server: ModelServer, words: str, **parameters: Any) -> Reply:
    return server.request("POST", PATH, body_of(words, **parameters))


def chunks(reply: Reply) -> list[Any]:
    *events, done, rest = reply.text.split("\n\n")
    assert (reply.status, done, rest) == (200, "data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def wait_for(server: ModelServer, event: str, count: int) -> None:
    deadline = time.monotonic() + 30
    while len(server.events(event)) < count:
        assert time.monotonic() < deadline, server.events()
        time.sleep(0.02)


def test_all_parts_of_an_answer(server: ModelServer) -> None:
    answer = ask(server, "hm a hm b").json
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "ab", "reasoning_content": "hmhm"}
    assert (choice["finish_reason"], answer["usage"]["total_tokens"]) == ("stop", 5)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks(ask(server, "hm a", stream=True))]
    start = {"role": "assistant", "content": ""}
    assert deltas == [start, {"reasoning_content": "hm"}, {"content": "a"}, {}]


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("frequency_penalty", 0.0, 200),
        ("presence_penalty", -0.0, 200),
        ("n", 1.0, 200),
        ("logprobs", False, 200),
        ("n", True, 400),
        ("frequency_penalty", False, 400),
        ("logprobs", 0, 400),
        ("presence_penalty", 0.1, 400),
        ("n", [1], 400),
    ],
)
def test_a_value_that_asks_for_nothing_is_taken_however_it_is_written(
    server: ModelServer, name: str, value: Any, status: int
) -> None:
    assert ask(server, "one", **{name: value}).status == status


def test_an_answer_without_a_piece(server: ModelServer) -> None:
    assert ask(server, " ").json["choices"][0]["message"]["content"] == ""
    asked = ask(server, " ", stream=True, stream_options={"include_usage": True})
    (_, end, usage) = chunks(asked)
    assert end["choices"][0]["finish_reason"] == "stop"
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 0)


@pytest.mark.parametrize("stream", [False, True])
def test_what_goes_wrong_before_the_first_piece_is_answered_with_a_status(
    server: ModelServer, stream: bool
) -> None:
    refused = ask(server, "refuse", stream=stream)
    assert (refused.status, refused.error["message"]) == (400, "not this")
    failed = ask(server, "fail", stream=stream)
    assert (failed.status, failed.error["code"]) == (500, "internal_error")
    assert "broken" not in failed.text


def test_what_goes_wrong_later_is_told_in_the_stream(server: ModelServer) -> None:
    before = len(server.events("request_failed"))
    *begun, last = chunks(ask(server, "a b fail", stream=True))
    assert [chunk["choices"][0]["delta"].get("content") for chunk in begun] == ["", "a", "b"]
    assert last["error"]["code"] == "internal_error"
    assert ask(server, "a b fail").status == 500
    told = [event["error"] for event in server.events("request_failed")[before:]]
    assert told == ["ValueError: broken"] * 2


@pytest.mark.parametrize("words", ["linger", "a linger", "linger fail"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_the_generation(server: ModelServer, words: str, stream: bool) -> None:
    """Before the first piece or after it; and what the model raises then is told nobody."""
    before = {event: len(server.events(event)) for event in ("lingering", "given_up", "log")}
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("POST", PATH, body=json.dumps(body_of(words, stream=stream)))
    wait_for(server, "lingering", before["lingering"] + 1)
    assert len(server.events("given_up")) == before["given_up"], "control: it goes on while somebody waits"
    connection.close()
    wait_for(server, "given_up", before["given_up"] + 1)
    assert ask(server, "b").json["choices"][0]["message"]["content"] == "b"
    assert len(server.events("log")) == before["log"]
