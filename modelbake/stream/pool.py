"""Layers that others stream: an Executor does the work, here is asked for it and told of it.

The executor may be any `concurrent.futures.Executor` that runs `stream_layer` where modelbake is installed;
`modelbake.cluster` has the one of a Dask cluster. What is small stays here: what the registry remembers, what
it is to remember, and every manifest.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from typing import TYPE_CHECKING

from modelbake.errors import ClusterError, Interrupted, ModelbakeError, ReadBackMismatch
from modelbake.stream.task import LayerFailure, LayerResult, LayerTask, stream_layer
from modelbake.stream.weights import StoredLayer
from modelbake.weightpath import shown

if TYPE_CHECKING:
    from modelbake.locked import LockedModel
    from modelbake.plan import WeightGroup
    from modelbake.stream.repository import RegistryRepository
    from modelbake.stream.view import TransferView

_LOOK_SECONDS = 0.5


class LayerPool:
    """Streams layers by an executor. `slots`: how many at once; `topic`: see `LayerTask`."""

    def __init__(self, executor: Executor, slots: int, topic: str = "") -> None:
        self._executor = executor
        self.slots = slots
        self._topic = topic
        self._listening: dict[str, Callable[[int], None]] = {}

    def check(self) -> None:
        """Raise ClusterError where waiting has become useless."""

    def explain(self, error: Exception, subject: str) -> ModelbakeError:
        """Return what to say of an exception of the executor, or of its failure to run the work."""
        return ClusterError(
            f"no worker could stream it: {type(error).__name__}",
            subject=subject,
            hint="see the workers' logs",
        )

    def heard(self, ticket: str, count: int) -> None:
        """Take note that `count` bytes of a layer have passed."""
        if listening := self._listening.get(ticket):
            listening(count)

    def stream(
        self,
        locked: LockedModel,
        group: WeightGroup,
        compression: str,
        repository: RegistryRepository,
        view: TransferView,
        stop: threading.Event,
    ) -> StoredLayer:
        """Have a layer streamed into a repository; return it.

        Raises:
            ClusterError: no worker could do it.
            Interrupted: `stop` was set; the work is called off.
            ModelbakeError: what it raised where it ran.
        """
        task = LayerTask(
            locked,
            group,
            compression,
            repository.registry.host,
            repository.path,
            topic=self._topic,
            ticket=uuid.uuid4().hex,
        )
        with view.layer(group) as on_bytes:
            self._listening[task.ticket] = told = _forward(on_bytes)
            try:
                result = self._result(task, stop)
            finally:
                del self._listening[task.ticket]
            if isinstance(result, LayerFailure):
                if result.worker:  # "here" is there
                    result.error.message += f" (on the worker {shown(result.worker)})"
                raise result.error
            told(group.size)
        for verified in result.verified:
            view.verified(locked, verified, worker=result.worker)
        if not repository.has(result.blob):
            raise ReadBackMismatch(
                f"{result.worker or 'the worker'} has sent {result.blob.digest}, and it is not here",
                subject=repository.name,
                hint="does this name lead to the same registry there as here?",
            )
        view.stored(group, result.blob.digest, result.blob.size)
        return StoredLayer(group, result.blob, result.diff_id, result.samples)

    def _result(self, task: LayerTask, stop: threading.Event) -> LayerResult | LayerFailure:
        subject = shown(task.group.largest.path)
        future: Future[LayerResult | LayerFailure] | None = None
        try:
            future = self._executor.submit(stream_layer, task)
            while not wait([future], timeout=_LOOK_SECONDS).done:
                if stop.is_set():
                    raise Interrupted("stopped", subject=subject)
                self.check()
            return future.result()
        except ModelbakeError:
            if future is not None:
                future.cancel()
            raise
        except Exception as error:
            raise self.explain(error, subject) from error


def _forward(on_bytes: Callable[[int], None]) -> Callable[[int], None]:
    """Turn how far a layer is into how much more that is; one that is begun again stands still meanwhile."""
    told, guard = 0, threading.Lock()

    def tell(passed: int) -> None:
        nonlocal told
        with guard:
            more, told = passed - told, max(told, passed)
        if more > 0:
            on_bytes(more)

    return tell
