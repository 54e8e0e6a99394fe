"""One build: a context, secrets and registry credentials in, an image out, events on the way.

Two transports stand behind one interface, Builder: a session over the Docker SDK's own connection, and the
`buildx` program for an engine that has no sessions (Engine API 1.53 announces their end). There is no third:
build arguments would leave a secret in the image's history, and the classic builder has no secrets at all.
"""

from __future__ import annotations

import base64
import binascii
import json
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import requests

from modelbake.buildkit import wire
from modelbake.buildkit.buildx import BuildxBuilder, find_buildx
from modelbake.buildkit.failure import Unsuitable, build_error, translating
from modelbake.buildkit.progress import BuildEvent, Trace
from modelbake.buildkit.request import Builder, BuildRequest
from modelbake.buildkit.services import Services
from modelbake.buildkit.session import Session
from modelbake.buildkit.status import decode_status
from modelbake.credentials import Redactor, Secret
from modelbake.engine_stream import json_objects
from modelbake.errors import EngineError

if TYPE_CHECKING:
    from modelbake.dockerconfig import RegistryAuth
    from modelbake.engine import Engine

_CANCEL_SECONDS = 5

_Parameters = dict[str, str | list[str]]


@dataclass(frozen=True)
class BuiltImage:
    """An image in the engine's store; `id` is 'sha256:...' of its config (containerd store: its manifest)."""

    id: str


def build(
    engine: Engine,
    context: bytes | IO[bytes],
    *,
    secrets: Mapping[str, Secret],
    registries: RegistryAuth | None = None,
    target: str | None = None,
    tags: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    no_cache: bool = False,
    network: str | None = None,
    builder: str | None = None,
    on_event: Callable[[BuildEvent], None],
) -> BuiltImage:
    """Build an image with BuildKit. Ctrl-C cancels the build on the engine, too.

    Args:
        engine: where to build.
        context: a tar with the Dockerfile at its top, as bytes or as a seekable file.
        secrets: by id, for `RUN --mount=type=secret,id=...`; also masked in every event and error.
        registries: credentials of private base images; None builds with public ones only.
        target: the stage to build; None is the last one.
        tags: names the image gets. None at all is fine: the id names it.
        labels: labels the image gets.
        no_cache: run every step again.
        network: of RUN steps: None (engine's default), 'none' or 'host'.
        builder: a builder of buildx, which builds instead of the engine; the image is loaded into the engine.
        on_event: called in this thread, for each event, redacted.

    Raises:
        BuildFailed: a step failed; carries its name and last lines.
        SourceError, WrongBytes: a fetch step said so.
        SecretMissing, DiskFull, EngineTooOld, EngineError: as they say.
        RegistryAuthError, RegistryUnavailable: a base image could not be pulled.
        UsageError: buildx has no such builder.
    """
    if builder is None:
        engine.require_buildkit()
    request = BuildRequest(
        context, dict(secrets), registries, target, tuple(tags), dict(labels or {}), no_cache, network
    )
    refusals: list[str] = []
    ways: tuple[Builder, ...] = (SessionBuilder(engine), BuildxBuilder(engine))
    for way in ways if builder is None else (BuildxBuilder(engine, builder),):
        trace = Trace(Redactor(secrets.values()))
        try:
            return BuiltImage(way.build(request, trace, on_event))
        except Unsuitable as error:
            refusals.append(str(error))
    raise _closed(engine, refusals)


def ways_to_build(engine: Engine) -> str:
    """Try the ways in which `build` would reach BuildKit; return the name of the first that is open.

    Raises EngineTooOld or EngineError where none is.
    """
    engine.require_buildkit()
    try:
        with Session(engine.api, Services({})):
            return "a session of the Docker SDK"
    except Unsuitable as no_session:
        try:
            return find_buildx()
        except Unsuitable as no_buildx:
            raise _closed(engine, [str(no_session), str(no_buildx)]) from no_buildx


def _closed(engine: Engine, refusals: list[str]) -> EngineError:
    return EngineError(
        "no way to build with secrets: " + "; ".join(refusals),
        subject=engine.host,
        hint="install the buildx plugin (package docker-buildx-plugin or docker-buildx), 0.13 or newer",
    )


class SessionBuilder:
    """Builds over a session on the Docker SDK's connection; no other program is needed."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._api = engine.api

    def build(self, request: BuildRequest, trace: Trace, on_event: Callable[[BuildEvent], None]) -> str:
        """See Builder."""
        services = Services(request.secrets, request.registries, request.context)
        with Session(self._api, services) as session:
            parameters = _parameters(request) | {"session": session.id, "remote": services.context_url}
            image_id, failure = self._solve(parameters, trace, on_event)
        if failure:
            raise services.failure or build_error(Redactor(request.secrets.values())(failure), trace)
        if not image_id:
            raise EngineError("the engine ended the build without an image and without an error")
        return image_id

    def _solve(
        self, parameters: _Parameters, trace: Trace, on_event: Callable[[BuildEvent], None]
    ) -> tuple[str, str]:
        """Return the image's id, or '', and what the engine says went wrong, or ''."""
        build_id = uuid.uuid4().hex
        image_id, failure = "", ""
        with closing(self._messages({**parameters, "buildid": build_id})) as messages:
            try:
                for message in messages:
                    if message.get("id") == "moby.buildkit.trace":
                        for event in _events(message.get("aux"), trace):
                            on_event(event)
                    elif message.get("id") == "moby.image.id":
                        image_id = str(message.get("aux", {}).get("ID", ""))
                    elif detail := message.get("errorDetail") or message.get("error"):
                        said = detail.get("message") if isinstance(detail, dict) else detail
                        failure = failure or str(said)
            except BaseException:
                self._cancel(build_id)
                raise
        for event in trace.finish():
            on_event(event)
        return image_id, failure

    def _messages(self, parameters: _Parameters) -> Generator[dict[str, Any], None, None]:
        with translating("build"):
            response = self._api.post(
                f"{self._api.base_url}/v{self._api.api_version}/build",
                params=parameters,
                headers={"Content-Type": "application/x-tar"},
                stream=True,
                timeout=None,  # a step may be silent for as long as it likes
            )
        with closing(response):
            if response.status_code != 200:
                raise EngineError(_refusal(response), subject="build")
            yield from json_objects(_chunks(response))

    def _cancel(self, build_id: str) -> None:
        # Closing the request ends the build as well, unless something between us keeps it open.
        with suppress(requests.RequestException):
            self._api.post(
                f"{self._api.base_url}/v{self._api.api_version}/build/cancel",
                params={"id": build_id},
                timeout=_CANCEL_SECONDS,
            ).close()


def _parameters(request: BuildRequest) -> _Parameters:
    """Return the query of `POST /build`."""
    parameters: _Parameters = {
        "version": "2",  # BuildKit
        "t": list(request.tags),
        "labels": json.dumps(request.labels),
    }
    if request.target:
        parameters["target"] = request.target
    if request.network:
        parameters["networkmode"] = request.network
    if request.no_cache:
        parameters["nocache"] = "1"
    return parameters


def _chunks(response: requests.Response) -> Iterator[bytes]:
    with translating("build"):
        yield from response.iter_content(chunk_size=None)


def _events(aux: object, trace: Trace) -> Iterator[BuildEvent]:
    # Progress is for the eye: one message that cannot be read must not fail a build that succeeds.
    with suppress(wire.WireError, binascii.Error):
        if isinstance(aux, str):
            yield from trace.update(decode_status(base64.b64decode(aux, validate=True)))


def _refusal(response: requests.Response) -> str:
    try:
        said = str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        said = response.text.strip()[:500]
    return f"the engine refused the build ({response.status_code}): {said}"
