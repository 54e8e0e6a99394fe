"""An existing Dask cluster whose workers stream layers. The only module that opens a connection to one.

`dask://HOST:PORT` is a scheduler in clear, `dasks://HOST:PORT` one with TLS, whose files are named by Dask's
own configuration (distributed.comm.tls, or DASK_DISTRIBUTED__COMM__TLS__CA_FILE and so on). A worker that is
lost costs its layer alone: the scheduler gives it to another one, as often as
distributed.scheduler.allowed-failures says. Nothing that is sent there holds a secret; see `stream.task`.

Source: https://distributed.dask.org/en/stable/api.html, .../tls.html, .../killed.html
"""

from __future__ import annotations

import logging
import pkgutil
import re
import threading
import time
import traceback
import warnings
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from modelbake import __version__
from modelbake.errors import ClusterError, ModelbakeError, UsageError
from modelbake.stream.pool import LayerPool
from modelbake.stream.task import other_version

if TYPE_CHECKING:
    from distributed import Client

    from modelbake.output import Output

PORT = 8786  # of a scheduler, where none is given
_ADDRESS = re.compile(r"(dasks?)://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?/?")
_SCHEMES = {"dask": "tcp", "dasks": "tls"}
_CONNECT_SECONDS = 10.0
_WITHOUT_WORKERS_SECONDS = 30.0  # workers may be on their way
_ASK_SECONDS = 2.0
_LEAST_SLOTS, _MOST_SLOTS = 8, 256  # layers on their way; a cluster that grows by need has to see a need
_AGAIN = "run it again: layers that are finished are not sent again"


def scheduler_address(given: str) -> str:
    """Return Dask's own form of an address, `tcp://HOST:PORT` or `tls://HOST:PORT`. Raises UsageError."""
    found = _ADDRESS.fullmatch(given)
    port = int(found[3] or PORT) if found else 0
    if not found or not 0 < port < 65536:
        # What was given is not repeated where it may hold a password.
        shown = repr(given) if "@" not in given else "an address with a user or password"
        raise UsageError(f"expected dask://HOST:PORT or dasks://HOST:PORT (TLS), got {shown}", subject="--on")
    return f"{_SCHEMES[found[1]]}://{found[2]}:{port}"


class DaskPool(LayerPool):
    """Layers streamed by the workers of a Dask cluster. A context manager: the end calls off what runs.

    Args:
        client: connected.
        address: of the scheduler, as Dask writes it.
        threads: of all workers.
        slots: how many layers are on their way at once; by default as many as there are threads.
    """

    def __init__(self, client: Client, address: str, threads: int, slots: int | None = None) -> None:
        executor = client.get_executor(pure=False)
        # The client's own topic: the scheduler forgets it some time after the client has left.
        topic = str(client.id)
        super().__init__(executor, slots or min(_MOST_SLOTS, max(_LEAST_SLOTS, threads)), topic)
        self._client = client
        self._address = address
        self._asking = threading.Lock()
        self._asked = self._worked = time.monotonic()
        client.subscribe_topic(topic, self._event)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _quietly(lambda: self._executor.shutdown(wait=False))
        _quietly(lambda: self._client.close(timeout=_ASK_SECONDS))

    def check(self) -> None:
        """See LayerPool. Workers that left are waited for a while: others may be about to come."""
        with self._asking:
            now = time.monotonic()
            if now - self._asked < _ASK_SECONDS:
                return
            self._asked = now
            if self._client.status == "closed":
                raise ClusterError("the scheduler was lost", subject=self._address, hint=_AGAIN)
            if self._client.status != "running":
                return  # the client tries to connect again; it has called off what was on its way
            try:
                if self._client.nthreads():
                    self._worked = now
            except Exception:  # as above
                return
            if now - self._worked > _WITHOUT_WORKERS_SECONDS:
                raise ClusterError("all workers are gone", subject=self._address, hint=_AGAIN)

    def explain(self, error: Exception, subject: str) -> ModelbakeError:
        """See LayerPool."""
        from concurrent.futures import CancelledError

        from distributed.scheduler import KilledWorker

        if isinstance(error, KilledWorker):
            lost = error.allowed_failures + 1
            who = "its worker was" if lost == 1 else f"{lost} workers, one after the other, were"
            return ClusterError(
                f"{who} lost while streaming this layer",
                subject=subject,
                hint="their logs, or the system's, say why; memory is the usual reason. Then " + _AGAIN,
            )
        if isinstance(error, CancelledError | OSError):
            return ClusterError("the scheduler was lost", subject=self._address, hint=_AGAIN)
        return ClusterError(
            f"a worker could not do its work ({type(error).__name__})",
            subject=subject,
            hint=f"has every worker modelbake {__version__} with its packages? Their logs say more",
        )

    def _event(self, event: tuple[float, Any]) -> None:
        _, said = event
        if isinstance(said, dict) and isinstance(said.get("bytes"), int):
            self.heard(str(said.get("ticket")), said["bytes"])


def connect(given: str, output: Output, slots: int | None = None) -> DaskPool:
    """Connect to a cluster, and make sure that its workers are fit for it.

    Raises:
        UsageError: the address is none, or `distributed` is not installed.
        ClusterError: the scheduler does not answer, or has no workers, or one of them has another modelbake.
    """
    address = scheduler_address(given)
    client = _client(address, output)
    try:
        threads = client.nthreads()
        if not threads:
            raise ClusterError(
                "has no workers",
                subject=address,
                hint=f"`dask worker {address}` starts one; let a cluster that adapts keep at least one",
            )
        # By a function of the standard library: the worker may lack modelbake.
        _require_same(client.run(pkgutil.resolve_name, "modelbake:__version__", on_error="return"))
    except ModelbakeError:
        _quietly(lambda: client.close(timeout=_ASK_SECONDS))
        raise
    except Exception as error:
        _quietly(lambda: client.close(timeout=_ASK_SECONDS))
        raise ClusterError(
            f"the scheduler was lost ({type(error).__name__})", subject=address, hint=_AGAIN
        ) from error
    pool = DaskPool(client, address, sum(threads.values()), slots)
    output.event(
        "cluster",
        f"layers are streamed by {len(threads)} worker{'' if len(threads) == 1 else 's'} of {address}",
        scheduler=address,
        workers=len(threads),
        threads=sum(threads.values()),
    )
    return pool


def _client(address: str, output: Output) -> Client:
    try:
        from distributed import Client, Security
    except ImportError as error:
        raise UsageError(
            "the package `distributed` is not installed here",
            subject="--on",
            hint="`make setup` in the clone of modelbake has it; elsewhere `pip install '.[dask]'` there",
        ) from error
    # What it logs is said here, once and in our words; its configuration gives several loggers a handler.
    for name in ("distributed", "distributed.client", "tornado", "tornado.application"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [logging.NullHandler()], False
    logging.getLogger("asyncio").addFilter(_is_of_others)
    # Warnings come from the client's own thread while it connects: of other versions of Python, for example.
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            security = Security(require_encryption=True) if address.startswith("tls:") else None
            client = Client(
                address,
                timeout=_CONNECT_SECONDS,
                set_as_default=False,
                security=security,
                name="modelbake",
            )
        except Exception as error:
            encrypted = "; the files of Dask's own configuration (distributed.comm.tls) are used"
            raise ClusterError(
                f"no Dask scheduler answers ({type(error).__name__})",
                subject=address,
                hint="is it running, and may this machine reach it? dask:// is in clear, dasks:// with TLS"
                + (encrypted if security else ""),
            ) from error
    for each in heard:
        if each.category.__name__ == "VersionMismatchWarning":
            output.event("cluster_versions", str(each.message), level="warning")
    return client


def _is_of_others(record: logging.LogRecord) -> bool:
    """Tell whether a log record is about another exception than one that passed through Dask's client."""
    trace = record.exc_info[2] if record.exc_info else None
    return not any("/distributed/" in frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace))


def _require_same(found: Mapping[str, Any]) -> None:
    """Raise ClusterError where a worker answers another version; one that left meanwhile is no worker."""
    others = {
        worker: "" if isinstance(said, ImportError) else str(said)
        for worker, said in found.items()
        if isinstance(said, str | ImportError) and said != __version__
    }
    if others:
        raise other_version(others)


def _quietly(action: Any) -> None:
    try:
        action()
    except Exception:  # the connection is given up anyhow
        logging.getLogger("distributed").debug("not closed", exc_info=True)
