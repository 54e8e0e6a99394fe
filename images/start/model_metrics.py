"""The servers' Prometheus metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

GPU_MEMORY = {
    "allocated": "GPU memory that tensors take now.",
    "reserved": "GPU memory that PyTorch holds now.",
    "peak": "The most GPU memory that tensors ever took.",
}


class Metrics:
    """The Prometheus metrics, in a registry of their own, or in another server's, which has more."""

    def __init__(self, routes: Collection[str], registry: CollectorRegistry | None = None) -> None:
        self.routes = frozenset(routes)
        self.registry = registry or CollectorRegistry()
        if registry is None:
            ProcessCollector(registry=self.registry)
        self.info = Info("modelbake", "What is served, and on what.", registry=self.registry)
        self.load_seconds = Gauge(
            "modelbake_load_seconds", "How long it took to load the model.", registry=self.registry
        )
        self.requests = Counter(
            "modelbake_requests", "Requests answered.", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "modelbake_request_seconds",
            "From a request's arrival to the end of its answer.",
            ["route"],
            registry=self.registry,
            buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300),
        )

    def watch_gpu(self) -> None:
        """Add PyTorch's view of the GPU memory, read whenever somebody asks."""
        import torch

        cuda = torch.cuda
        reads = {"allocated": cuda.memory_allocated, "reserved": cuda.memory_reserved}
        self.show_gpu({**reads, "peak": cuda.max_memory_allocated})

    def show_gpu(self, reads: Mapping[str, Callable[[], float]]) -> None:
        """Add the GPU memory, each of GPU_MEMORY by a function that reads it."""
        for name, words in GPU_MEMORY.items():
            gauge = Gauge(f"modelbake_gpu_memory_{name}_bytes", words, registry=self.registry)
            gauge.set_function(reads[name])

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """Count and time the requests to ``app``, each until the last byte of its answer."""

        async def observe(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            # Other paths are anybody's invention; a label for each would fill the memory.
            route = scope["path"] if scope["path"] in self.routes else "other"
            status = 499  # The client went away before there was an answer.

            async def observe_send(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            started = time.monotonic()
            try:
                await app(scope, receive, observe_send)
            finally:
                self.requests.labels(route, str(status)).inc()
                self.seconds.labels(route).observe(time.monotonic() - started)

        return observe
