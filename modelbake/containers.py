"""A container that lives as long as a `with` block: how a built image is tried out.

It runs as locked up as production should: read-only, without capabilities, without new privileges, with a
small /tmp in memory, and by default without a network. It is removed in every case but one: a run that is
killed cannot do so, and the next run does it (`remove_leftovers`).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from docker.errors import NotFound
from docker.types import DeviceRequest

from modelbake.buildkit.failure import translating
from modelbake.buildkit.hijack import hijack
from modelbake.errors import EngineError, GpuUnavailable, ModelbakeError
from modelbake.gpus import NVIDIA, Gpus, engine_trouble
from modelbake.owner import is_gone, this_process

if TYPE_CHECKING:
    import requests
    from docker import APIClient

LABEL = "io.modelbake.smoke"
OWNER_LABEL = "io.modelbake.owner"
_STREAMS = {1: "stdout", 2: "stderr"}
_CHUNK = 64 * 1024  # bytes
_HEADER = 8  # bytes before each frame of a multiplexed stream: stream, 3 zeros, length (big endian)
# Inside the container. Executable, as an `emptyDir` is: compilers of kernels load what they put there.
_TMP = {"/tmp": "rw,exec,nosuid,nodev,size=1g,mode=1777"}  # noqa: S108
_LONGEST_RUN = 2 * 86_400  # seconds; `startup_seconds` is a day at most, and no run takes two
_INTERRUPTED_SECONDS = 2.0  # how long a container whose creation was cut off may take to appear


@dataclass(frozen=True)
class ContainerSpec:
    """What to start. `gpus`: which, or None for none; `memory`: a limit in bytes, or None."""

    image: str
    name_prefix: str = "modelbake"
    read_only: bool = True
    network: str = "none"
    gpus: Gpus | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    memory: int | None = None
    command: Sequence[str] | None = None


@dataclass(frozen=True)
class ContainerState:
    """Whether it runs; how it ended if not (`exit_code`), and whether the kernel killed it for memory."""

    running: bool
    exit_code: int | None
    oom_killed: bool


@dataclass(frozen=True)
class ExecResult:
    """How a command inside a container ended, and what it wrote."""

    exit_code: int
    stdout: bytes
    stderr: bytes


class Container:
    """A started container."""

    def __init__(self, api: APIClient, name: str) -> None:
        self._api = api
        self.name = name

    def state(self) -> ContainerState:
        """Ask the engine how the container is."""
        with translating(self.name):
            state: dict[str, Any] = self._api.inspect_container(self.name)["State"]
        running = bool(state.get("Running"))
        return ContainerState(
            running=running,
            exit_code=None if running else int(state.get("ExitCode", 0)),
            oom_killed=bool(state.get("OOMKilled")),
        )

    def logs(self, tail: int = 200) -> str:
        """Return the last lines of what it wrote, both streams as they came."""
        with translating(self.name):
            written: bytes = self._api.logs(self.name, stdout=True, stderr=True, tail=tail)
        return written.decode(errors="replace")

    def exec(self, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> ExecResult:
        """Run a command in the container and wait for its end, however long that takes.

        The connection is upgraded, and read below HTTP. The SDK's own way to do that loses the bytes that
        came in one packet with the response's header; and a plain response that ends with its connection is
        lost over SSH, where http.client closes the channel before its body is read.
        """
        with translating(self.name):
            created = self._api.exec_create(self.name, list(argv), environment=dict(environment or {}))
            response = self._api.post(
                f"{self._api.base_url}/v{self._api.api_version}/exec/{created['Id']}/start",
                json={"Detach": False, "Tty": False},
                headers={"Connection": "Upgrade", "Upgrade": "tcp"},
                stream=True,
                timeout=None,
            )
            try:
                if response.status_code == 101:
                    output = b"".join(_received(response))
                elif response.status_code == 200:  # something between us has not upgraded it
                    output = b"".join(response.iter_content(chunk_size=None))
                else:
                    raise EngineError(
                        f"the engine cannot run {argv[0]}: {response.text.strip()}", subject=self.name
                    )
            finally:
                response.close()
            exit_code = self._api.exec_inspect(created["Id"])["ExitCode"]
        if exit_code is None:
            raise EngineError(f"the connection ended before {argv[0]} did", subject=self.name)
        streams = split_streams(output)
        return ExecResult(int(exit_code), streams["stdout"], streams["stderr"])


def _received(response: requests.Response) -> Iterator[bytes]:
    """Yield what an upgraded connection carries, until its end."""
    sock, early = hijack(response)
    sock.settimeout(None)
    yield early
    while data := sock.recv(_CHUNK):
        yield data


def split_streams(output: bytes) -> dict[str, bytes]:
    """Split what the engine sends of a process without a terminal into 'stdout' and 'stderr'.

    The framing: https://docs.docker.com/reference/api/engine/ (ContainerAttach, "Stream format").

    Raises:
        EngineError: it is cut off.
    """
    streams = {"stdout": bytearray(), "stderr": bytearray()}
    position = 0
    while position < len(output):
        end = position + _HEADER + int.from_bytes(output[position + 4 : position + _HEADER], "big")
        name = _STREAMS.get(output[position])
        if end > len(output) or end < position + _HEADER or name is None:
            raise EngineError("the output of a command in the container is cut off")
        streams[name] += output[position + _HEADER : end]
        position = end
    return {name: bytes(data) for name, data in streams.items()}


def gpu_request(gpus: Gpus, *, cdi: bool) -> DeviceRequest:
    """Return the device request for some GPUs.

    Args:
        gpus: which. CDI names are asked for by these; everything else in the way that the engine has.
        cdi: the engine knows GPUs by CDI names only, not by an nvidia runtime.
    """
    if gpus.cdi:
        return DeviceRequest(driver="cdi", device_ids=list(gpus.cdi))
    if cdi:
        names = gpus.devices or (["all"] if gpus.count is None else map(str, range(gpus.count)))
        return DeviceRequest(driver="cdi", device_ids=[f"{NVIDIA}={name}" for name in names])
    if gpus.devices:
        return DeviceRequest(device_ids=list(gpus.devices), capabilities=[["gpu"]])
    return DeviceRequest(count=-1 if gpus.count is None else gpus.count, capabilities=[["gpu"]])


@contextmanager
def started(api: APIClient, spec: ContainerSpec, *, cdi: bool) -> Iterator[Container]:
    """Create and start a container; remove it, running or not, and its volumes at the end.

    Raises:
        ImageNotFound: no such image.
        GpuUnavailable: the engine cannot give it these GPUs, or the driver there is too old for the image.
        EngineError: the engine cannot start it.
    """
    # Named by us beforehand, so that it can be removed even where its creation was interrupted.
    name = f"{spec.name_prefix}-{uuid.uuid4().hex[:12]}"
    known = False
    try:
        with _telling_of_gpus(spec), translating(spec.image):
            host = api.create_host_config(
                read_only=spec.read_only,
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                tmpfs=_TMP,
                network_mode=spec.network,
                device_requests=None if spec.gpus is None else [gpu_request(spec.gpus, cdi=cdi)],
                mem_limit=spec.memory,
                memswap_limit=spec.memory,
            )
            api.create_container(
                spec.image,
                name=name,
                command=None if spec.command is None else list(spec.command),
                environment=dict(spec.environment),
                labels={LABEL: "1", OWNER_LABEL: this_process()},
                host_config=host,
            )
            known = True
            api.start(name)
        yield Container(api, name)
    finally:
        try:
            _remove(api, name, wait=not known)
        except KeyboardInterrupt:  # a second Ctrl-C must not leave it running
            _remove(api, name, wait=False)
            raise


def remove_leftovers(api: APIClient) -> list[str]:
    """Remove the containers of runs that were killed; return their names.

    Those are the ones whose process is gone; and where that cannot be seen from here (a run in a container,
    or on another machine), the ones that are older than any run.
    """
    with translating("containers"):
        ours: list[dict[str, Any]] = api.containers(all=True, filters={"label": LABEL})
    removed = []
    for each in ours:
        name = str((each.get("Names") or [each["Id"]])[0]).removeprefix("/")
        owner = str((each.get("Labels") or {}).get(OWNER_LABEL, ""))
        if is_gone(owner) or time.time() - float(each.get("Created", time.time())) > _LONGEST_RUN:
            # Another run may be removing it at this moment.
            with suppress(ModelbakeError), translating(name):
                api.remove_container(each["Id"], force=True, v=True)
                removed.append(name)
    return removed


@contextmanager
def _telling_of_gpus(spec: ContainerSpec) -> Iterator[None]:
    """Turn an engine's error that is about GPUs into one that says what to do about it."""
    try:
        yield
    except EngineError as error:
        trouble = engine_trouble(error.message) if spec.gpus is not None else None
        if trouble is None:
            raise
        message = f"{trouble.message}\n  the engine said: {error.message}"
        raise GpuUnavailable(message, subject=error.subject, hint=trouble.hint) from error


def _remove(api: APIClient, name: str, *, wait: bool) -> None:
    deadline = time.monotonic() + (_INTERRUPTED_SECONDS if wait else 0)
    while True:
        try:
            with translating(name):
                api.remove_container(name, force=True, v=True)
        except EngineError as error:
            if not isinstance(error.__cause__, NotFound):
                raise
            if time.monotonic() < deadline:
                time.sleep(0.2)
                continue
        return
