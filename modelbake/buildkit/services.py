"""What BuildKit may ask its client for in a session: secrets, registry credentials, the build context.

Only what was handed in is ever answered: a secret of another name does not exist, and credentials are looked
up for the one registry that the engine names. Services: `session/` of moby/buildkit.

The context goes this way too, not as the body of the build request: an engine with the containerd image
store does not find it there (moby/moby#47717), and looks for it in the DNS instead.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import IO, TYPE_CHECKING, Any

from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError

from modelbake.buildkit import wire
from modelbake.credentials import Secret
from modelbake.errors import ModelbakeError

if TYPE_CHECKING:
    from modelbake.dockerconfig import RegistryAuth

_GET_SECRET = "/moby.buildkit.secrets.v1.Secrets/GetSecret"  # noqa: S105 - a method's name
_CREDENTIALS = "/moby.filesync.v1.Auth/Credentials"
_PULL = "/moby.upload.v1.Upload/Pull"
_HEALTH = "/grpc.health.v1.Health/Check"
# With these BuildKit asks for tokens in place of a password. They are not served: it then asks for
# Credentials and fetches the token itself. But they are answered by us: grpclib's own answer to an unknown
# method lacks the content type, without which BuildKit's client does not see the UNIMPLEMENTED in it.
_ABSENT = tuple(
    f"/moby.filesync.v1.Auth/{name}" for name in ("FetchToken", "GetTokenAuthority", "VerifyTokenAuthority")
)
_SERVING = 1  # grpc.health.v1.HealthCheckResponse.ServingStatus
_UPLOAD_HOST = "http://buildkit-session"  # BuildKit's name for "ask the session"
_CHUNK = 256 * 1024

# Docker Hub answers under this name, and is known under another one to everybody else.
_HUB_HOST = "registry-1.docker.io"
_HUB_NAME = "docker.io"

_Method = Callable[[bytes], Awaitable[bytes]]


class Services:
    """What one build's session answers.

    Afterwards `asked` has every secret's id and registry's host that the engine wanted, in order, and
    `failure` why credentials could not be looked up, or the context not be read.
    """

    def __init__(
        self,
        secrets: Mapping[str, Secret],
        registries: RegistryAuth | None = None,
        context: bytes | IO[bytes] = b"",
    ) -> None:
        self.asked: list[str] = []
        self.failure: ModelbakeError | None = None
        self._secrets = dict(secrets)
        self._registries = registries
        self._context = context
        self._context_path = f"/{uuid.uuid4().hex}"
        self._start = 0 if isinstance(context, bytes) else context.tell()

    @property
    def context_url(self) -> str:
        """Where the engine finds the build context."""
        return _UPLOAD_HOST + self._context_path

    @property
    def announced(self) -> tuple[str, ...]:
        """The methods that the engine is told of."""
        return (*self._methods, _PULL)

    @property
    def _methods(self) -> dict[str, _Method]:
        return {
            _GET_SECRET: self._get_secret,
            _HEALTH: self._check_health,
            _CREDENTIALS: self._credentials,
        }

    def __mapping__(self) -> dict[str, Handler]:
        """Return what grpclib's server wants to know."""
        unary = {**dict.fromkeys(_ABSENT, _absent), **self._methods}
        return {
            **{
                path: Handler(_unary(method), Cardinality.UNARY_UNARY, bytes, bytes)
                for path, method in unary.items()
            },
            _PULL: Handler(self._pull, Cardinality.STREAM_STREAM, bytes, bytes),
        }

    async def _get_secret(self, request: bytes) -> bytes:
        name = _only_text(request)
        self.asked.append(name)
        secret = self._secrets.get(name)
        if secret is None:
            raise GRPCError(Status.NOT_FOUND, f"secret {name}: not found")
        return wire.bytes_field(1, secret.reveal_bytes())

    async def _check_health(self, request: bytes) -> bytes:
        return wire.varint_field(1, _SERVING)

    async def _credentials(self, request: bytes) -> bytes:
        host = _only_text(request)
        self.asked.append(host)
        if self._registries is None:
            return b""
        name = _HUB_NAME if host == _HUB_HOST else host
        try:
            # A credential helper is a program that may ask a server: health checks must go on meanwhile.
            found = await asyncio.to_thread(self._registries.for_registry, name)
        except ModelbakeError as error:
            self.failure = error
            raise GRPCError(Status.UNKNOWN, f"no credentials for {host}") from None
        if found is None:
            return b""
        if found.identity_token:
            return wire.bytes_field(2, found.identity_token.reveal_bytes())
        user, password = found.username.encode(), found.password.reveal_bytes()
        return wire.bytes_field(1, user) + wire.bytes_field(2, password)

    async def _pull(self, stream: Any) -> None:
        """Send the context in pieces; it may be asked for again."""
        if stream.metadata.get("urlpath") != self._context_path:
            raise GRPCError(Status.NOT_FOUND, "no such upload")
        position = 0
        while True:
            if isinstance(self._context, bytes):
                piece = self._context[position : position + _CHUNK]
            else:
                piece = await asyncio.to_thread(self._read, self._context, position)
            if not piece:
                return
            position += len(piece)
            await stream.send_message(wire.bytes_field(1, piece))

    def _read(self, context: IO[bytes], position: int) -> bytes:
        """Read a piece, in a thread: it may come from far away, and health checks must go on meanwhile."""
        try:
            context.seek(self._start + position)
            return context.read(_CHUNK)
        except ModelbakeError as error:
            self.failure = error
            raise GRPCError(Status.UNKNOWN, "the context cannot be read") from None


async def _absent(request: bytes) -> bytes:
    raise GRPCError(Status.UNIMPLEMENTED, "not served")


def _unary(method: _Method) -> Callable[[Any], Awaitable[None]]:
    async def answer(stream: Any) -> None:
        request = await stream.recv_message()
        try:
            await stream.send_message(await method(request or b""))
        except wire.WireError as error:
            raise GRPCError(Status.INVALID_ARGUMENT, str(error)) from None

    return answer


def _only_text(request: bytes) -> str:
    """Return field 1 of a request, a string."""
    for number, value in wire.fields(request):
        if number == 1:
            return wire.as_text(value)
    return ""
