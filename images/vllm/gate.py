"""Lets requests through to vLLM once the model has answered, and adds to its metrics.

`vllm serve` takes it as ``--middleware``: it sees every request first. vLLM listens when its engine is up;
then this asks for one token, in the way that any request goes, but past the network. Until that has been
answered everything but GET /metrics gets 503, /health among it; after that vLLM answers all of it, /health as
well, which is 503 again should its engine die.

A first answer that is none ends the server, with serving.LOAD_FAILED as its exit code.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from functools import partial
from typing import Any

import serving
from model_metrics import GPU_MEMORY, Metrics
from openai_api import ApiError
from prometheus_client import REGISTRY
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# time.monotonic() of when server.py began, which is the same clock for all processes.
STARTED = "MODELBAKE_STARTED"
ROUTES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/models",
    "/health",
    "/metrics",
)
HEALTH = ("/health", "/ping")  # by either vLLM says how it is
FIRST = {"prompt": "Hello", "max_tokens": 1, "temperature": 0}
GPU_SECONDS = 5.0  # for the workers to say what memory they have; a step of the model is shorter


class Gate:
    """The middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.settings = serving.Settings.from_environment()
        serving.log.model, serving.log.version = self.settings.model, self.settings.version
        self.ready = False
        self.memory = dict.fromkeys(GPU_MEMORY, 0.0)
        self.metrics = Metrics(ROUTES, REGISTRY)  # the registry whose text vLLM's /metrics is
        self.observed = self.metrics.wrap(self.answer)
        self.first: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, or the server's beginning and end."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, self.watching(scope, send))
        else:
            await self.observed(scope, receive, send)

    def watching(self, scope: Scope, send: Send) -> Send:
        """``send``, and once the application is up the first request."""

        async def watch(message: Message) -> None:
            await send(message)
            if message["type"] == "lifespan.startup.complete":
                self.first = asyncio.create_task(self.open(scope))

        return watch

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, where that may be."""
        if self.ready or scope["path"] == "/metrics":
            if self.ready and scope["path"] == "/metrics":
                await self.read_memory(scope)
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1013})  # try again later
        else:
            refusal = refuse_health(self.settings) if scope["path"] in HEALTH else refuse()
            await refusal(scope, receive, send)

    async def open(self, scope: Scope) -> None:
        """Let the model answer once; where it does not, end the server."""
        loaded = time.monotonic()
        started = float(os.environ.get(STARTED, loaded))
        try:
            await self.ask_first(scope)
            (gpu, *_), memory = await worker_memory(scope)
        except Exception as error:
            seconds = round(time.monotonic() - started, 3)
            serving.log("error", "load_failed", **serving.describe_error(error), seconds=seconds)
            serving.leave(serving.LOAD_FAILED)
        self.memory.update(memory)
        settings, metrics = self.settings, self.metrics
        metrics.info.info({"model": settings.model, "version": settings.version, "device": "cuda"})
        metrics.load_seconds.set(loaded - started)
        metrics.show_gpu({name: partial(self.memory.__getitem__, name) for name in GPU_MEMORY})
        self.ready = True
        config = scope["app"].state.engine_client.model_config
        serving.log(
            "info",
            "loaded",
            seconds=round(loaded - started, 3),
            warm_up_seconds=round(time.monotonic() - loaded, 3),
            device="cuda",
            gpu=gpu,
            dtype=str(config.dtype).removeprefix("torch."),
            context=config.max_model_len,
        )

    async def ask_first(self, scope: Scope) -> None:
        """One token, by vLLM's own API. LoadError where the answer is not one token."""
        headers = [(b"content-type", b"application/json")]
        if key := os.environ.get("VLLM_API_KEY"):
            headers.append((b"authorization", f"Bearer {key}".encode()))
        request = {
            "type": "http",
            "asgi": scope["asgi"],
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/v1/completions",
            "raw_path": b"/v1/completions",
            "root_path": "",
            "query_string": b"",
            "headers": headers,
            "client": ("127.0.0.1", 0),
            "server": ("127.0.0.1", self.settings.port),
            "state": dict(scope.get("state") or {}),
            "app": scope["app"],
        }
        body = json.dumps({**FIRST, "model": self.settings.model}).encode()
        status, text = await ask(self.app, request, body)
        try:
            tokens = json.loads(text)["usage"]["completion_tokens"]
        except (ValueError, KeyError, TypeError):
            tokens = None
        if status != 200 or tokens != 1:
            words = text.decode("utf-8", "replace")[:500]
            raise serving.LoadError(f"the model's first answer is not one token, but {status}: {words}")

    async def read_memory(self, scope: Scope) -> None:
        """Ask the workers for their memory; what was known stays where they do not say."""
        try:
            _, memory = await worker_memory(scope)
        except Exception as error:  # The other metrics are all the more wanted then.
            serving.log("warning", "gpu_memory_unknown", **serving.describe_error(error))
        else:
            self.memory.update(memory)


async def worker_memory(scope: Scope) -> tuple[list[str], dict[str, float]]:
    """The GPUs' names, and the sums of their memory."""
    engine = scope["app"].state.engine_client
    found: list[dict[str, Any]] = await asyncio.wait_for(
        engine.collective_rpc("modelbake_gpu_memory"), GPU_SECONDS
    )
    return [each["gpu"] for each in found], {
        name: float(sum(each[name] for each in found)) for name in GPU_MEMORY
    }


async def ask(app: ASGIApp, scope: Scope, body: bytes) -> tuple[int, bytes]:
    """Send an application one request; return its answer's status and body."""
    status, text = 0, bytearray()
    sent = False
    ended = asyncio.Event()

    async def receive() -> Message:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        await ended.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            text.extend(message.get("body", b""))
            if not message.get("more_body"):
                ended.set()

    await app(scope, receive, send)
    return status, bytes(text)


def refuse_health(settings: serving.Settings) -> JSONResponse:
    """Not yet, in the words of the other runtimes."""
    body = {"status": "loading", "model": settings.model, "version": settings.version}
    return JSONResponse(body, 503)


def refuse() -> JSONResponse:
    """Not yet, as OpenAI's API says it."""
    error = ApiError(503, "the model is still loading", code="not_ready")
    return JSONResponse(error.body, 503, headers={"Retry-After": "1"})
