"""What the servers of all runtimes share: settings, JSON logs, metrics, health, error bodies, the run loop.

A runtime's server is a Service: how to load a model, how to let it answer once, and a handler for each path
of its API. ``run`` does the rest:

    GET /health      200 once the model has answered by itself, 503 before
    GET /metrics     Prometheus text
    GET /v1/models   the one model there is, as OpenAI's API lists it
    POST ...         the service's own; refused with 503 until the model is ready

It listens before it loads, so that whoever watches can tell "still loading" from "not there". Events are JSON
lines on stdout, of the same form as start.py's. SIGTERM lets open requests end, within
``MODELBAKE_DRAIN_SECONDS``, and then the server exits with 0.

    exit code 70    the model could not be loaded, or did not answer
    exit code 71    the port could not be opened
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import uvicorn
from model_metrics import Metrics
from openai_api import ApiError, check_model, parse_object, read_body
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from start import Log

LOAD_FAILED = 70
PORT_UNUSABLE = 71

log = Log("", "")

Handler = Callable[[Request, dict[str, Any]], Awaitable[Response]]


class LoadError(Exception):
    """The model cannot be served; the message says why."""


class Service(Protocol):
    """What a runtime adds."""

    routes: Mapping[str, Handler]

    def load(self) -> dict[str, Any]:
        """Load the model, once, in a thread; return facts for the log, ``device`` among them."""

    def warm_up(self) -> None:
        """Let the model answer once; raise where the answer is no good one."""


def setting(name: str, default: int) -> int:
    """A whole number above 0 from the environment; LoadError where it is something else."""
    text = os.environ.get(name, str(default))
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 2**63):
        raise LoadError(f"{name} has to be a whole number above 0, and is {text!r}")
    return int(text)


@dataclass(frozen=True)
class Settings:
    """What the environment says, for every runtime alike."""

    weights: Path
    model: str
    version: str
    host: str
    port: int
    max_body_bytes: int
    drain_seconds: int

    @classmethod
    def from_environment(cls) -> Settings:
        """Read them; LoadError names what is wrong."""
        weights = Path(os.environ.get("MODELBAKE_WEIGHTS", "/models"))
        return cls(
            weights=weights,
            model=os.environ.get("MODELBAKE_MODEL") or weights.resolve().name,
            version=os.environ.get("MODELBAKE_VERSION", ""),
            host=os.environ.get("MODELBAKE_HOST", "0.0.0.0"),  # noqa: S104 (a container's own address)
            port=setting("MODELBAKE_PORT", 8000),
            max_body_bytes=setting("MODELBAKE_MAX_BODY_BYTES", 8 * 1024 * 1024),
            # Less than the 10 s after which `docker stop` kills.
            drain_seconds=setting("MODELBAKE_DRAIN_SECONDS", 8),
        )


class Server:
    """The HTTP application around one Service, and whether that is ready."""

    def __init__(self, service: Service, settings: Settings) -> None:
        self.service = service
        self.settings = settings
        self.state = "loading"
        self.exit_code = 0
        self.started = int(time.time())
        self.metrics = Metrics([*service.routes, "/health", "/metrics", "/v1/models"])
        app = Starlette(
            routes=[
                Route("/health", self.health),
                Route("/metrics", self.show_metrics),
                Route("/v1/models", self.models),
                *(
                    Route(path, self.endpoint(path, handler), methods=["POST"])
                    for path, handler in service.routes.items()
                ),
            ],
            exception_handlers={HTTPException: http_error},
        )
        config = uvicorn.Config(
            self.metrics.wrap(app),
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=settings.drain_seconds,
        )
        self.uvicorn = uvicorn.Server(config)

    async def health(self, _request: Request) -> Response:
        """Ready only once the model has answered."""
        body = {"status": self.state, "model": self.settings.model, "version": self.settings.version}
        return JSONResponse(body, 200 if self.state == "ready" else 503)

    async def show_metrics(self, _request: Request) -> Response:
        """All metrics as Prometheus text."""
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def models(self, _request: Request) -> Response:
        """The one model."""
        model = {
            "id": self.settings.model,
            "object": "model",
            "created": self.started,
            "owned_by": "modelbake",
        }
        return JSONResponse({"object": "list", "data": [model]})

    def endpoint(self, path: str, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        """Put a service's handler behind what they all need: readiness, a bounded JSON body, error bodies."""

        async def answer(request: Request) -> Response:
            try:
                if self.state != "ready":
                    raise ApiError(503, "the model is still loading", code="not_ready")
                body = parse_object(await read_body(request, self.settings.max_body_bytes))
                check_model(body, self.settings.model)
                return await handler(request, body)
            except ApiError as error:
                refusal = error
            except ClientDisconnect:
                refusal = ApiError(499, "the client went away", code="disconnected")
            except Exception as error:
                refusal = ApiError(500, "the model could not answer", code="internal_error")
                log("error", "request_failed", route=path, **describe_error(error))
            level = "error" if refusal.status >= 500 else "warning"
            log(level, "request_error", route=path, status=refusal.status, error=refusal.message)
            headers = {"Retry-After": "1"} if refusal.status == 503 else None
            return JSONResponse(refusal.body, refusal.status, headers=headers)

        return answer

    def load(self) -> None:
        """Load the model and let it answer once; where that fails, end the server."""
        started = time.monotonic()
        try:
            facts = self.service.load()
            loaded = time.monotonic()
            self.service.warm_up()
        except Exception as error:
            seconds = round(time.monotonic() - started, 3)
            log("error", "load_failed", **describe_error(error), seconds=seconds)
            self.exit_code = LOAD_FAILED
            self.state = "failed"
            self.uvicorn.should_exit = True
            return
        settings = self.settings
        self.metrics.info.info(
            {"model": settings.model, "version": settings.version, "device": str(facts["device"])}
        )
        self.metrics.load_seconds.set(loaded - started)
        if facts["device"] != "cpu":
            self.metrics.watch_gpu()
        self.state = "ready"
        times = {
            "seconds": round(loaded - started, 3),
            "warm_up_seconds": round(time.monotonic() - loaded, 3),
        }
        log("info", "loaded", **times, **facts)


def run(create: Callable[[Settings], Service]) -> NoReturn:
    """Serve until a signal comes or the model cannot be loaded; never returns."""
    log.model = os.environ.get("MODELBAKE_MODEL", "")
    log.version = os.environ.get("MODELBAKE_VERSION", "")
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn takes these over while it serves, and raises them once more after it has drained.
        signal.signal(number, stop)
    log_as_json()
    try:
        settings = Settings.from_environment()
        log.model, log.version = settings.model, settings.version
        server = Server(create(settings), settings)
    except LoadError as error:
        log("error", "load_failed", error=str(error))
        leave(LOAD_FAILED)
    try:
        listener = socket.create_server((settings.host, settings.port), backlog=1024)
    except OSError as error:
        log("error", "port_unusable", host=settings.host, port=settings.port, error=str(error))
        leave(PORT_UNUSABLE)
    threading.Thread(target=server.load, name="load", daemon=True).start()
    server.uvicorn.run(sockets=[listener])
    leave(server.exit_code)


def stop(number: int, _frame: object) -> NoReturn:
    """End with success: whoever sends SIGTERM to a server wants just that."""
    log("info", "stopped", signal=signal.Signals(number).name)
    leave(0)


def leave(code: int) -> NoReturn:
    """Exit at once: an interpreter's orderly end waits for threads that may be in the middle of a model."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class JsonHandler(logging.Handler):
    """Sends what libraries log to the same JSON lines."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, without its traceback."""
        log(record.levelname.lower(), "log", logger=record.name, message=record.getMessage()[:2000])


def log_as_json() -> None:
    """Let all libraries' warnings and errors, and nothing below that, be JSON lines."""
    logging.basicConfig(handlers=[JsonHandler()], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    # It warns of each piece that is written to a client that has gone away, which is no news of ours.
    logging.getLogger("asyncio").setLevel(logging.ERROR)


def tame_transformers() -> None:
    """Let transformers log like everybody else, and draw no progress bars."""
    from transformers.utils import logging as transformers_logging

    library: Any = transformers_logging  # Its functions have no types.
    library.disable_default_handler()
    library.enable_propagation()
    library.disable_progress_bar()


def require_safetensors(weights: Path) -> None:
    """Refuse a folder that has pickled weights and no safetensors: loading a pickle may run anything."""
    if not weights.is_dir():
        raise LoadError(f"no such folder: {weights}")
    pickles = [path for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in weights.rglob(pattern)]
    for path in sorted(pickles):
        if not any(path.parent.glob("*.safetensors")):
            raise LoadError(f"{path.relative_to(weights)}: pickled weights, and no safetensors beside them")
    if not any(weights.rglob("*.safetensors")):
        raise LoadError("there are no safetensors files among the weights")


async def until_disconnect(request: Request) -> None:
    """Wait until the client of a request, whose body has been read, goes away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def describe_error(error: BaseException) -> dict[str, Any]:
    """What an unexpected error was, and where, for one log line."""
    frames = traceback.extract_tb(error.__traceback__)
    where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-3:]]
    return {"error": f"{type(error).__name__}: {error}"[:1000], "where": where}


async def http_error(_request: Request, error: Exception) -> Response:
    """Answer unknown paths and methods in the shape of all other errors."""
    if not isinstance(error, HTTPException):
        raise TypeError(f"not an HTTP error: {error!r}")
    refusal = ApiError(error.status_code, error.detail)
    return JSONResponse(refusal.body, error.status_code, headers=error.headers)
