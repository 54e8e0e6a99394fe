"""The Docker engine: finding it, what it is, and what it does with images and containers.

The only module, with `containers`, `engine_push` and `buildkit`, that knows the Docker SDK. Its exceptions
end here: every call is translated into modelbake.errors (see buildkit.failure).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import docker
from docker.context import ContextAPI
from docker.errors import TLSParameterError, create_api_error_from_http_exception
from docker.tls import TLSConfig
from docker.utils import kwargs_from_env
from requests import HTTPError

from modelbake.buildkit.failure import FOREIGN, START_AN_ENGINE, translate, translating
from modelbake.containers import (
    Container,
    ContainerSpec,
    ContainerState,
    ExecResult,
    remove_leftovers,
    started,
)
from modelbake.dockerconfig import split_reference
from modelbake.engine_pull import pull
from modelbake.engine_push import PushedTag, push
from modelbake.engine_stream import LayerProgress
from modelbake.enginereach import not_reached
from modelbake.errors import EngineNotFound, EngineTooOld, ModelbakeError
from modelbake.errors import ImageNotFound as NoSuchImage
from modelbake.gpus import NVIDIA

if TYPE_CHECKING:
    from modelbake.dockerconfig import RegistryCredentials

__all__ = [
    "OLDEST",
    "Container",
    "ContainerSpec",
    "ContainerState",
    "Engine",
    "EngineInfo",
    "ExecResult",
    "LayerProgress",
    "LocalImage",
    "PushedTag",
    "connect",
]

OLDEST = (23, 0)
"""The first engine whose built-in BuildKit frontend knows `COPY --link`."""

_DEFAULT_HOST = "unix:///var/run/docker.sock"
_CONTEXT = "modelbake"
_PROBE_SECONDS = 10
_EXPORT_CHUNK = 1 << 20  # bytes
# Some engines write the whole archive to their own disk before its first byte: minutes, for 10 GB.
_EXPORT_SECONDS = 1800


@dataclass(frozen=True)
class EngineInfo:
    """What an engine says of itself. `store`: 'classic' or 'containerd'; `gpu`: it hands out NVIDIA GPUs."""

    version: str
    api_version: str
    os: str
    arch: str
    store: str
    gpu: bool
    root_dir: str
    name: str


@dataclass(frozen=True)
class LocalImage:
    """An image in the engine's store; `size` in bytes, `created` as RFC 3339."""

    id: str
    size: int
    labels: Mapping[str, str]
    tags: tuple[str, ...]
    created: str


class _Client(docker.APIClient):
    """The SDK's client, with the engine's own CA certificate where one was given.

    `requests` prefers REQUESTS_CA_BUNDLE, which companies set for the web, to what a client asks for.
    """

    def merge_environment_settings(self, *settings: Any, **named: Any) -> Any:
        """See requests.Session; its parameters are url, proxies, stream, verify, cert."""
        merged = super().merge_environment_settings(*settings, **named)
        return {**merged, "verify": self.verify} if isinstance(self.verify, str) else merged


def connect(host: str | None = None) -> Engine:
    """Find the engine as the docker program does, and make sure that it answers.

    Order: `host`, DOCKER_HOST (with DOCKER_TLS_VERIFY, DOCKER_CERT_PATH), DOCKER_CONTEXT, the current
    context of the Docker configuration, the default socket.

    Raises:
        EngineNotFound: none answers; says which was tried.
        EngineTooOld: it answers, and is older than the SDK can speak to.
    """
    try:
        address, tls = _address(host)
    except TLSParameterError as error:
        raise not_reached(error, host or os.environ.get("DOCKER_HOST", "")) from error
    try:
        _probe(address)
        api = _Client(base_url=address, tls=tls or False, version="auto")
    except FOREIGN as error:
        failure = translate(error, address)
        if isinstance(failure, EngineTooOld):
            raise failure from error
        raise not_reached(error, address) from error
    return Engine(api, address, tls)


class Engine:
    """A connected engine; close it, or use it in a `with` statement.

    `api` is for modelbake.buildkit alone; `host` is the address it was found at.
    """

    def __init__(self, api: docker.APIClient, host: str, tls: TLSConfig | None = None) -> None:
        self.api = api
        self.host = host
        self._tls = tls
        self._cdi = False
        with translating(host):
            self._version: dict[str, Any] = api.version()
        self.info = self._read_info()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self.api.close()

    def require_buildkit(self) -> None:
        """Make sure that the engine can build what we render.

        Raises:
            EngineTooOld: older than 23.0, not Docker, or for Windows containers.
        """
        parts = [str(each.get("Name", "")) for each in self._version.get("Components") or ()]
        if any("podman" in part.lower() for part in parts):
            raise EngineTooOld(
                "this is Podman, which has no BuildKit", subject=self.host, hint=START_AN_ENGINE
            )
        if self.info.os != "linux":
            raise EngineTooOld(
                f"it builds {self.info.os} images", subject=self.host, hint="use Linux containers"
            )
        found = re.match(r"(\d+)\.(\d+)", self.info.version)
        if found and (int(found[1]), int(found[2])) < OLDEST:
            raise EngineTooOld(
                f"Docker Engine {self.info.version} is too old",
                subject=self.host,
                hint="update it to 23.0 or newer",
            )

    def image(self, ref: str) -> LocalImage | None:
        """Return an image by name or id, None where the engine has none such."""
        try:
            with translating(ref):
                found: dict[str, Any] = self.api.inspect_image(ref)  # type: ignore[no-untyped-call]
        except NoSuchImage:
            return None
        return LocalImage(
            id=found["Id"],
            size=int(found.get("Size", 0)),
            labels=dict((found.get("Config") or {}).get("Labels") or {}),
            tags=tuple(found.get("RepoTags") or ()),
            created=str(found.get("Created", "")),
        )

    def tag(self, image_id: str, ref: str) -> None:
        """Give an image another name.

        Raises:
            ImageNotFound: there is no such image.
        """
        reference = split_reference(ref)
        with translating(ref):
            self.api.tag(image_id, reference.name, reference.tag or "latest")

    @contextmanager
    def tagged(self, image_id: str, ref: str) -> Iterator[None]:
        """Give an image another name inside the `with` block only; its other names stay.

        Raises:
            ImageNotFound: there is no such image.
        """
        self.tag(image_id, ref)
        try:
            yield
        finally:
            with suppress(ModelbakeError), translating(ref):
                self.api.remove_image(ref, noprune=True)

    def remove(self, ref: str) -> None:
        """Take a name from an image; one that has no other goes with it.

        Raises:
            ImageNotFound: there is no such image.
        """
        with translating(ref):
            self.api.remove_image(ref)

    def export(self, image_id: str) -> Iterator[bytes]:
        """Yield an image as `docker save` writes it: a tar, in chunks.

        Raises:
            ImageNotFound: there is no such image.
            EngineError: the engine cannot read it, or the connection ended.
        """
        url = f"{self.api.base_url}/v{self.api.api_version}/images/{quote(image_id, safe='/:')}/get"
        with translating(image_id):
            response = self.api.get(url, stream=True, timeout=_EXPORT_SECONDS)
            with closing(response):
                if response.status_code == 404:
                    raise NoSuchImage("the engine has no such image", subject=image_id)
                try:
                    response.raise_for_status()
                except HTTPError as error:
                    create_api_error_from_http_exception(error)  # raises
                yield from response.iter_content(chunk_size=_EXPORT_CHUNK)

    def names(self, repository: str) -> list[str]:
        """Return the tags that the engine has of a local repository, such as `modelbake/minilm`."""
        with translating(repository):
            found: list[dict[str, Any]] = self.api.images(name=repository)
        prefix = f"{repository}:"
        tags = {tag for image in found for tag in image.get("RepoTags") or ()}
        return sorted(tag.removeprefix(prefix) for tag in tags if tag.startswith(prefix))

    def disk_free(self) -> int | None:
        """Return the bytes free where the engine keeps its data; None for an engine on another machine."""
        # Where the path exists here by chance (a container, a virtual machine), the names differ.
        if not self.host.startswith("unix://") or self.info.name != socket.gethostname():
            return None
        try:
            return shutil.disk_usage(self.info.root_dir).free
        except OSError:
            return None

    def push(
        self, ref: str, credentials: RegistryCredentials | None, on_event: Callable[[LayerProgress], None]
    ) -> PushedTag:
        """Push one tag. The engine reports failures inside a successful answer: all of them are read.

        Raises:
            RegistryAuthError: the registry refused the credentials, or wants some.
            RegistryUnavailable: the engine cannot reach it, or it keeps failing.
            PushFailed: anything else, also an answer without a digest.
            ImageNotFound: the engine has no such tag.
        """
        return push(self.api, ref, credentials, on_event)

    def pull(
        self,
        ref: str,
        credentials: RegistryCredentials | None,
        on_event: Callable[[LayerProgress], None],
    ) -> LocalImage:
        """Pull an image by its digest; layers that the engine has are not pulled again.

        Raises:
            RegistryAuthError: the registry refused the credentials, or wants some.
            RegistryUnavailable: the engine cannot reach it, or it keeps failing.
            ImageNotFound: the registry has no such image.
            DiskFull, EngineError: as they say.
        """
        pull(self.api, split_reference(ref), credentials, on_event)
        image = self.image(ref)
        if image is None:
            raise NoSuchImage("the engine says that it pulled it, and does not have it", subject=ref)
        return image

    def start(self, spec: ContainerSpec) -> AbstractContextManager[Container]:
        """Start a container that is removed at the end of the `with` block, however it ends."""
        return started(self.api, spec, cdi=self._cdi)

    def remove_leftovers(self) -> list[str]:
        """Remove containers of runs that were killed; return their names. Raises EngineError."""
        return remove_leftovers(self.api)

    def write_context(self, config: Path) -> str:
        """Write a docker context for this engine below a Docker configuration folder; return its name.

        Docker's own programs find the engine and its TLS files by it; of the environment, some of them
        (`buildx` by itself, for one) heed DOCKER_HOST only. Layout: `cli/context/store` of docker/cli.
        """
        folder = hashlib.sha256(_CONTEXT.encode()).hexdigest()
        described = {"Host": self.host, "SkipTLSVerify": self._tls is not None and not self._tls.verify}
        meta = config / "contexts" / "meta" / folder
        meta.mkdir(parents=True)
        document = {"Name": _CONTEXT, "Metadata": {}, "Endpoints": {"docker": described}}
        (meta / "meta.json").write_text(json.dumps(document))
        if self._tls is not None:
            certificates = config / "contexts" / "tls" / folder / "docker"
            certificates.mkdir(parents=True)
            paths = (self._tls.ca_cert, *(self._tls.cert or ()))
            for name, path in zip(("ca.pem", "cert.pem", "key.pem"), paths, strict=False):
                if path:
                    (certificates / name).symlink_to(Path(path).absolute())
        return _CONTEXT

    def _read_info(self) -> EngineInfo:
        with translating(self.host):
            info: dict[str, Any] = self.api.info()
        # The containerd store says so among the driver's facts; the classic one has a graph driver's instead.
        status = json.dumps(info.get("DriverStatus") or [])
        runtime = any("nvidia" in name.lower() for name in info.get("Runtimes") or {})
        self._cdi = not runtime and _knows_cdi_gpus(info, local=self.host.startswith("unix://"))
        return EngineInfo(
            version=str(self._version.get("Version", info.get("ServerVersion", ""))),
            api_version=self.api.api_version,
            os=str(info.get("OSType", "")),
            arch=str(self._version.get("Arch", info.get("Architecture", ""))),
            store="containerd" if "io.containerd.snapshotter" in status else "classic",
            gpu=runtime or self._cdi,
            root_dir=str(info.get("DockerRootDir", "")),
            name=str(info.get("Name", "")),
        )


def _address(host: str | None) -> tuple[str, TLSConfig | None]:
    """Resolve an engine's address and TLS settings, as the docker program does."""
    from_environment = kwargs_from_env()
    with translating(host or os.environ.get("DOCKER_HOST") or "docker context"):
        if host or from_environment.get("base_url"):
            return host or from_environment["base_url"], from_environment.get("tls")
        name = os.environ.get("DOCKER_CONTEXT")
        if ContextAPI.get_context(name) is None:
            raise EngineNotFound(
                "no such docker context",
                subject=name or "current context",
                hint="`docker context ls` lists them",
            )
        found = ContextAPI.kwargs_from_context()
    tls = found.get("tls")
    return found.get("base_url") or _DEFAULT_HOST, tls if isinstance(tls, TLSConfig) else None


def _probe(address: str) -> None:
    """Open and close a connection to a local socket: the SDK leaves its own open where it is refused."""
    if address.startswith("unix://"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_PROBE_SECONDS)
            probe.connect("/" + address.removeprefix("unix://").lstrip("/"))


def _knows_cdi_gpus(info: Mapping[str, Any], *, local: bool) -> bool:
    """Tell whether CDI names NVIDIA GPUs: new engines list them, of older ones the spec folders are known."""
    devices = info.get("DiscoveredDevices") or ()
    if any(str(each.get("ID", "")).startswith(NVIDIA) for each in devices):
        return True
    for folder in (info.get("CDISpecDirs") or ()) if local else ():
        for spec in (*Path(folder).glob("*.json"), *Path(folder).glob("*.yaml")):
            with suppress(OSError):
                if NVIDIA in spec.read_text(errors="replace"):
                    return True
    return False
