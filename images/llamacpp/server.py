"""Chat completions over HTTP, as OpenAI's API has them: POST /v1/chat/completions, streamed or at once.

The model, one GGUF file or its shards in ``$MODELBAKE_WEIGHTS``, is read once by llama.cpp. Its own
server runs within this process (xllamacpp); it listens on a socket that nobody can reach. Of a request only
what chat_parameters.py knows gets there. The rest is serving.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

try:
    import serving
except ModuleNotFoundError:  # Outside of an image, where it lies beside this runtime's folder.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "start"))
    import serving

import chat_parameters
import gguf_file
import openai_api
from openai_api import ApiError
from serving import Handler, LoadError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

SEEDS = (0, 2**32 - 2)  # one more means random, to llama.cpp
TOO_LONG = "exceed_context_size_error"
T = TypeVar("T")


@dataclass(frozen=True)
class Generation:
    """An answer on its way from llama.cpp: its chunks, after the last one None, and how its thread ended."""

    chunks: asyncio.Queue[dict[str, Any] | None]
    given_up: threading.Event
    ended: asyncio.Future[None]

    async def read(self) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks as they come; ApiError where one is an error. Closing this ends the generation early."""
        try:
            while (chunk := await self.chunks.get()) is not None:
                if "error" in chunk:
                    raise refusal(chunk["error"])
                yield chunk
            try:
                await self.ended
            except (ValueError, RuntimeError) as error:  # how xllamacpp passes on what llama.cpp throws
                words = f"llama.cpp refuses this request: {error}"[:1000]
                raise ApiError(400, words, param="messages") from error
        finally:
            self.given_up.set()


class Chat:
    """The model, and the requests that wait for it."""

    def __init__(self, settings: serving.Settings) -> None:
        self.routes: Mapping[str, Handler] = {"/v1/chat/completions": self.completions}
        self.settings = settings
        self.default_max_tokens = serving.setting("MODELBAKE_DEFAULT_MAX_TOKENS", 512)
        self.max_waiting = serving.setting("MODELBAKE_MAX_WAITING", 64)
        self.context = serving.setting("MODELBAKE_CONTEXT", 8192)
        self.parallel = serving.setting("MODELBAKE_PARALLEL", 1)
        self.cores = serving.setting("MODELBAKE_THREADS", len(os.sched_getaffinity(0)))
        self.waiting = 0
        self.threads = ThreadPoolExecutor(max_workers=self.parallel, thread_name_prefix="answer")
        self.llama: Any

    def load(self) -> dict[str, Any]:
        """Load the model into memory."""
        path = gguf_file.find_model(self.settings.weights)
        header = gguf_file.read_header(path)
        architecture = header.get("general.architecture")
        if not header.get("tokenizer.chat_template"):  # llama.cpp would take some other model's.
            raise LoadError(f"{path.name} has no chat template ({architecture}): this is no chat model")
        trained = header.get(f"{architecture}.context_length")
        if isinstance(trained, int):
            self.context = min(self.context, trained)
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.model_alias = {self.settings.model}
        params.n_parallel = self.parallel
        params.n_ctx = self.context * self.parallel
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self.cores
        params.fit_params = False
        params.cache_ram_mib = 0  # It keeps old prompts in memory otherwise, up to 8 GiB of them.
        params.verbosity = 1  # errors
        params.offline = True
        params.ui = False
        with tempfile.TemporaryDirectory() as folder, errors_kept() as errors:
            params.hostnames = [f"{folder}/llama.sock"]
            try:
                self.llama = xllamacpp.Server(params)
            except RuntimeError as error:
                raise LoadError(f"llama.cpp cannot load {path.name}: {errors() or error}"[:1000]) from error
        return {
            "device": "cpu",
            "file": path.name,
            "architecture": architecture,
            "context": self.context,
            "parallel": self.parallel,
            "threads": self.cores,
        }

    def warm_up(self) -> None:
        """Generate one token."""
        messages = [{"role": "user", "content": "Hello"}]
        order = {"messages": messages, "max_tokens": 1, "temperature": 0}
        answer = self.threads.submit(self.llama.handle_chat_completions, order).result()
        tokens = answer.get("usage", {}).get("completion_tokens")
        if tokens != 1:
            words = answer.get("error", f"{tokens} tokens")
            raise LoadError(f"the model's first answer is not one token: {words}"[:1000])

    async def completions(self, request: Request, body: dict[str, Any]) -> Response:
        """POST /v1/chat/completions."""
        chat_parameters.check(body)
        stream = openai_api.flag(body, "stream")
        usage_wanted = chat_parameters.read_stream_options(body, stream)
        chunks = self.start(self.read_order(body)).read()
        if not stream:
            return JSONResponse(await unless_gone(request, gather(chunks)))
        # Only once it has begun well: a request that llama.cpp refuses is answered with a status.
        first = await unless_gone(request, begin(chunks))
        events = self.stream(first, chunks, usage_wanted)
        headers = {"Cache-Control": "no-store"}
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    def read_order(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Check a request's parameters; return what llama.cpp is to do, which is always to stream."""
        messages = chat_parameters.read_messages(body.get("messages"))
        sampling = chat_parameters.read_sampling(body, SEEDS)
        order: dict[str, Any] = {
            "messages": messages,
            "max_tokens": sampling.max_tokens or self.default_max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if sampling.temperature is not None or sampling.top_p is not None:
            # As OpenAI's API means them: no default of llama.cpp cuts the choice of tokens besides.
            order |= {"top_k": 0, "min_p": 0, "temperature": 1, "top_p": 1}
            given = {"temperature": sampling.temperature, "top_p": sampling.top_p}
            order |= {name: value for name, value in given.items() if value is not None}
        if sampling.seed is not None:
            # A prompt that was computed in other portions gives numbers that differ in their last digits.
            order |= {"seed": sampling.seed, "cache_prompt": False}
        if sampling.stop:
            order["stop"] = list(sampling.stop)
        return order

    def start(self, order: dict[str, Any]) -> Generation:
        """Put an order into the queue before the model; ApiError 503 where that is full."""
        if self.waiting >= self.max_waiting:
            raise ApiError(503, "too many requests are waiting already; try again later", code="overloaded")
        loop = asyncio.get_running_loop()
        chunks: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        given_up = threading.Event()

        def emit(chunk: bytes) -> bool:
            loop.call_soon_threadsafe(chunks.put_nowait, json.loads(chunk))
            return given_up.is_set()

        def answer() -> None:
            if not given_up.is_set():
                self.llama.handle_chat_completions(json.dumps(order).encode(), emit)

        def end(_: object) -> None:
            self.waiting -= 1
            chunks.put_nowait(None)

        self.waiting += 1
        ended = loop.run_in_executor(self.threads, answer)
        ended.add_done_callback(end)
        return Generation(chunks, given_up, ended)

    async def stream(
        self, first: dict[str, Any], chunks: AsyncGenerator[dict[str, Any], None], usage_wanted: bool
    ) -> AsyncIterator[str]:
        """The events of an answer, as text/event-stream."""
        try:
            yield event(first)
            async for chunk in chunks:
                if chunk["choices"]:
                    yield event(chunk)
                elif usage_wanted:
                    yield event(chunk, usage=chunk["usage"])
        except Exception as error:  # The status is long sent; the stream is the only place left to tell it.
            serving.log("error", "request_failed", **serving.describe_error(error))
            failure = ApiError(500, "the model could not answer", code="internal_error")
            yield f"data: {json.dumps(failure.body)}\n\n"
        finally:
            await chunks.aclose()
        yield "data: [DONE]\n\n"


def event(chunk: Mapping[str, Any], **others: Any) -> str:
    """One event: of llama.cpp's chunk, what OpenAI's API knows."""
    kept = {name: chunk[name] for name in ("id", "object", "created", "model", "choices")}
    return f"data: {json.dumps({**kept, **others})}\n\n"


async def begin(chunks: AsyncGenerator[dict[str, Any], None]) -> dict[str, Any]:
    """The first chunk, as a coroutine that can be a task."""
    return await anext(chunks)


async def gather(chunks: AsyncGenerator[dict[str, Any], None]) -> dict[str, Any]:
    """All chunks of an answer as the one body that a client gets who did not ask for a stream."""
    texts: dict[str, str] = {"content": ""}
    finish_reason, usage, last = None, None, {}
    async for chunk in chunks:
        last, usage = chunk, chunk.get("usage", usage)
        for choice in chunk["choices"]:
            finish_reason = choice["finish_reason"] or finish_reason
            for name in ("content", "reasoning_content"):
                if choice["delta"].get(name):
                    texts[name] = texts.get(name, "") + choice["delta"][name]
    if finish_reason is None or usage is None:
        raise RuntimeError("an answer without an end")
    choice = {
        "index": 0,
        "message": {"role": "assistant", **texts},
        "logprobs": None,
        "finish_reason": finish_reason,
    }
    facts = {name: last[name] for name in ("id", "created", "model")}
    return {**facts, "object": "chat.completion", "choices": [choice], "usage": usage}


def refusal(error: Mapping[str, Any]) -> ApiError:
    """What llama.cpp says of a request that it does not answer."""
    message = str(error.get("message"))[:1000]
    if error.get("type") == TOO_LONG:
        return ApiError(400, message, param="messages", code="context_length_exceeded")
    return ApiError(400 if error.get("code") == 400 else 500, message)


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


@contextlib.contextmanager
def errors_kept() -> Iterator[Any]:
    """Keep what llama.cpp writes to stderr meanwhile; yields what returns its first error.

    Why a model cannot be loaded it tells nobody but its log.
    """
    with tempfile.TemporaryFile() as file:

        def first_error() -> str:
            file.seek(0)
            lines = file.read().decode("utf-8", "replace").splitlines()
            return next((line.partition(" E ")[2].strip() for line in lines if " E " in line), "")

        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield first_error
        finally:
            os.dup2(kept, 2)
            os.close(kept)


if __name__ == "__main__":
    serving.run(Chat)
