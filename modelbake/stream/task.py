"""Streaming one layer, as a piece of work that any machine can do: plain facts in, plain facts out.

A `LayerTask` says what is meant and never how to get at it. Where it runs, `stream_layer` makes its own
reader and its own connection to the registry, with credentials that this machine finds by the usual chain.
A task is shown by a cluster's dashboard and written to its logs; it can hold no secret, because a `Secret`
refuses to be pickled.

What goes wrong is returned, not raised: an exception that a cluster carries takes its causes with it, and the
request that failed may have had a signed address.
"""

from __future__ import annotations

import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelbake import __version__
from modelbake.credentials import Redactor, hub_token
from modelbake.dockerconfig import RegistryAuth
from modelbake.errors import ClusterError, ModelbakeError
from modelbake.manifest import Descriptor
from modelbake.parallel import pausing
from modelbake.registry import Registry
from modelbake.sources import reader_for
from modelbake.stream.flow import LayerFlow, Reader, Verified
from modelbake.stream.layers import WeightLayer
from modelbake.stream.onworker import Worker, this_worker
from modelbake.stream.repository import RegistryRepository, Repository

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelbake.locked import LockedModel
    from modelbake.plan import WeightGroup


@dataclass(frozen=True)
class LayerTask:
    """One layer to bring from its source to a registry.

    Attributes:
        locked: the model that the files are of: where its source is.
        group: the files of the layer.
        compression: 'none' or 'zstd'.
        registry: `host[:port]`.
        repository: the path there.
        topic: under which a worker tells how far it is; '' to tell nobody.
        ticket: what it calls the layer when it tells.
        version: of the modelbake that asks.
    """

    locked: LockedModel
    group: WeightGroup
    compression: str
    registry: str
    repository: str
    topic: str = ""
    ticket: str = ""
    version: str = __version__


@dataclass(frozen=True)
class LayerResult:
    """A layer that is in the registry; `verified` tells of each file, `worker` who brought it."""

    blob: Descriptor
    diff_id: str
    samples: tuple[str, ...]
    verified: tuple[Verified, ...] = ()
    worker: str = ""


@dataclass(frozen=True)
class LayerFailure:
    """Why a layer is not there: an error without a cause and with no secret of the worker in its text."""

    error: ModelbakeError
    worker: str


def flow_layer(
    group: WeightGroup,
    compression: str,
    reader: Reader,
    repository: Repository,
    *,
    on_bytes: Callable[[int], None],
    on_verified: Callable[[Verified], None],
    stop: threading.Event,
) -> LayerResult:
    """Let a layer flow from a reader into a repository. Raises what `LayerFlow` and the repository raise."""
    flow = LayerFlow(
        WeightLayer(group),
        reader,
        compression=compression,
        on_bytes=on_bytes,
        on_verified=on_verified,
        stop=stop,
    )
    repository.upload(flow)
    return LayerResult(Descriptor(flow.media_type, flow.digest, flow.sent), flow.diff_id, flow.samples)


def stream_layer(task: LayerTask) -> LayerResult | LayerFailure:
    """Do a task here, with this machine's credentials; return what became of it."""
    worker, redact = this_worker(), Redactor()
    try:
        return _stream(task, worker, redact)
    except ModelbakeError as error:
        plain = type(error)(
            redact(error.message), subject=redact(error.subject), hint=redact(error.hint)
        )  # a new one: without cause and traceback
    except Exception as defect:  # its text may say anything; where it was raised says enough
        last = traceback.extract_tb(defect.__traceback__)[-1]
        plain = ClusterError(
            f"a worker failed with {type(defect).__name__} at {Path(last.filename).name}:{last.lineno}",
            subject=worker.name,
            hint="this is a defect; has the worker the packages that modelbake asks for?",
        )
    return LayerFailure(plain, worker.name)


def _stream(task: LayerTask, worker: Worker, redact: Redactor) -> LayerResult:
    if task.version != __version__:
        raise other_version({worker.name: __version__}, task.version)
    token = hub_token()
    credentials = RegistryAuth().for_registry(task.registry)
    for secret in (*([token] if token else []), *(credentials.secrets if credentials else ())):
        redact.add(secret)
    verified: list[Verified] = []
    stop = threading.Event()
    with (
        Registry(task.registry, credentials, sleep=pausing(stop)) as registry,
        worker.telling(task.topic, task.ticket, stop) as on_bytes,
    ):
        made = flow_layer(
            task.group,
            task.compression,
            reader_for(task.locked, token, stop),
            RegistryRepository(registry, task.repository, stop),
            on_bytes=on_bytes,
            on_verified=verified.append,
            stop=stop,
        )
    return LayerResult(made.blob, made.diff_id, made.samples, tuple(verified), worker.name)


def other_version(found: dict[str, str], own: str = __version__) -> ClusterError:
    """Return the error for workers (name -> version, '' without modelbake) that are not of this version."""
    said = ", ".join(
        f"{name} has {'modelbake ' + version if version else 'no modelbake'}"
        for name, version in sorted(found.items())
    )
    return ClusterError(
        f"the workers' modelbake is another one: {said}; here it is {own}",
        hint=f"install modelbake {own} where the workers run: another one may make other layers",
    )
