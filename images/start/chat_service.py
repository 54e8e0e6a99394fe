"""What the servers of chat models share: POST /v1/chat/completions, as OpenAI's API has it.

A runtime's Chat is a ChatService. It says what a request means to its library (``read_order``) and how that
generates an answer, piece by piece, in a thread (``generate``). Here is the rest: the queue before the model,
the answer at once or as a stream, and that nothing is generated any more once the client has gone away.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import chat_parameters
import openai_api
import serving
from openai_api import ApiError
from serving import Handler
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

Order = TypeVar("Order")
T = TypeVar("T")


class Piece(NamedTuple):
    """Some text of an answer; ``part`` is the key of OpenAI's message that it belongs to."""

    text: str
    part: str = "content"


@dataclass(frozen=True)
class End:
    """How an answer ended; ``usage`` as OpenAI's API has it."""

    finish_reason: str
    usage: Mapping[str, Any]


Emit = Callable[[Piece], None]


@dataclass(frozen=True)
class Generation:
    """An answer on its way from a model's thread: its pieces, after the last one None, and how it ended."""

    pieces: asyncio.Queue[Piece | None]
    given_up: threading.Event
    ended: asyncio.Future[End]

    async def read(self) -> AsyncGenerator[Piece | End, None]:
        """The pieces as they come, and then the end, or what the thread raised.

        Closing this ends the generation early.
        """
        try:
            while (piece := await self.pieces.get()) is not None:
                yield piece
            yield await self.ended
        finally:
            self.given_up.set()


class ChatService(ABC, Generic[Order]):
    """The requests that wait for a model; ``threads`` of them are answered side by side."""

    def __init__(self, settings: serving.Settings, threads: int = 1) -> None:
        self.routes: Mapping[str, Handler] = {"/v1/chat/completions": self.completions}
        self.settings = settings
        self.default_max_tokens = serving.setting("MODELBAKE_DEFAULT_MAX_TOKENS", 512)
        self.max_waiting = serving.setting("MODELBAKE_MAX_WAITING", 64)
        self.waiting = 0
        self.threads = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="model")

    @abstractmethod
    async def read_order(self, body: dict[str, Any]) -> Order:
        """Check what a request says of messages and sampling; ApiError for what cannot be."""

    @abstractmethod
    def generate(self, order: Order, emit: Emit, given_up: threading.Event) -> End:
        """Generate one answer, in a thread of the model, until it ends or is given up.

        ApiError where the library refuses the order.
        """

    async def completions(self, request: Request, body: dict[str, Any]) -> Response:
        """POST /v1/chat/completions."""
        chat_parameters.check(body)
        stream = openai_api.flag(body, "stream")
        usage_wanted = chat_parameters.read_stream_options(body, stream)
        pieces = self.start(await self.read_order(body)).read()
        answer = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": self.settings.model,
        }
        if not stream:
            choice, usage = await unless_gone(request, gather(pieces))
            body = {**answer, "object": "chat.completion", "choices": [choice], "usage": usage}
            return JSONResponse(body)
        # Only once it has begun well: a request that the library refuses is answered with a status.
        first = await unless_gone(request, begin(pieces))
        events = stream_answer(answer, first, pieces, usage_wanted)
        return StreamingResponse(
            events, media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )

    def start(self, order: Order) -> Generation:
        """Put an order into the queue before the model; ApiError 503 where that is full."""
        if self.waiting >= self.max_waiting:
            raise ApiError(503, "too many requests are waiting already; try again later", code="overloaded")
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Piece | None] = asyncio.Queue()
        given_up = threading.Event()

        def emit(piece: Piece) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        def answer() -> End:
            if given_up.is_set():  # while it waited
                return End("stop", {})
            return self.generate(order, emit, given_up)

        def end(future: asyncio.Future[End]) -> None:
            self.waiting -= 1
            pieces.put_nowait(None)
            # What was raised is for whoever reads; where nobody does any more, it is meant for nobody.
            _ = future.cancelled() or future.exception()

        self.waiting += 1
        ended = loop.run_in_executor(self.threads, answer)
        ended.add_done_callback(end)
        return Generation(pieces, given_up, ended)


def count_usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """How many tokens went in and came out."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


async def begin(pieces: AsyncGenerator[Piece | End, None]) -> Piece | End:
    """The first piece, as a coroutine that can be a task."""
    return await anext(pieces)


async def gather(pieces: AsyncGenerator[Piece | End, None]) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """The choice and the usage of a whole answer, for a client who did not ask for a stream."""
    texts: dict[str, list[str]] = {"content": []}
    async for piece in pieces:
        if isinstance(piece, End):
            message = {"role": "assistant", **{part: "".join(given) for part, given in texts.items()}}
            end = {"logprobs": None, "finish_reason": piece.finish_reason}
            return {"index": 0, "message": message, **end}, piece.usage
        texts.setdefault(piece.part, []).append(piece.text)
    raise RuntimeError("an answer without an end")


async def stream_answer(
    answer: Mapping[str, Any],
    first: Piece | End,
    pieces: AsyncGenerator[Piece | End, None],
    usage_wanted: bool,
) -> AsyncIterator[str]:
    """The events of an answer, as text/event-stream; ``answer`` is what all of them say."""

    def event(choices: list[dict[str, Any]], **others: Any) -> str:
        chunk = {**answer, "object": "chat.completion.chunk", "choices": choices, **others}
        return f"data: {json.dumps(chunk)}\n\n"

    def choice(delta: dict[str, str], finish_reason: str | None = None) -> list[dict[str, Any]]:
        return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]

    def events(piece: Piece | End) -> str:
        if isinstance(piece, Piece):
            return event(choice({piece.part: piece.text}))
        return event(choice({}, piece.finish_reason)) + (event([], usage=piece.usage) if usage_wanted else "")

    try:
        yield event(choice({"role": "assistant", "content": ""}))
        yield events(first)
        async for piece in pieces:
            yield events(piece)
    except Exception as error:  # The status is long sent; the stream is the only place left to tell it.
        serving.log("error", "request_failed", **serving.describe_error(error))
        failure = ApiError(500, "the model could not answer", code="internal_error")
        yield f"data: {json.dumps(failure.body)}\n\n"
    finally:
        await pieces.aclose()
    yield "data: [DONE]\n\n"


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The outcome of ``work``, which ends early where the client goes away: ClientDisconnect then."""
    working = asyncio.create_task(work)
    watching = asyncio.create_task(serving.until_disconnect(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        watching.cancel()
