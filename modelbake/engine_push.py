"""Pushing one tag through the engine.

The engine answers 200 and reports what goes wrong inside the answer: a registry that said 401, 403, 429 or
500, or that hung up. All of it is read; and an answer without a digest is a failure as well.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelbake.buildkit.failure import registry_error, translating
from modelbake.dockerconfig import split_reference
from modelbake.engine_stream import json_objects
from modelbake.errors import DiskFull, ImageNotFound, ModelbakeError, PushFailed

if TYPE_CHECKING:
    from docker import APIClient

    from modelbake.dockerconfig import RegistryCredentials

# The containerd store of engines before 27 tells the digest in words only.
_DIGEST_LINE = re.compile(r"\S+: digest: (?P<digest>sha256:[0-9a-f]{64}) size: (?P<size>[0-9]+)")


@dataclass(frozen=True)
class PushEvent:
    """How far a layer is: `current` of `total` bytes (0 where unknown), `status` in the engine's words."""

    layer: str
    status: str
    current: int
    total: int


@dataclass(frozen=True)
class PushedTag:
    """What the engine says it pushed: the manifest's digest and its size in bytes."""

    ref: str
    digest: str
    size: int


def push(
    api: APIClient, ref: str, credentials: RegistryCredentials | None, on_event: Callable[[PushEvent], None]
) -> PushedTag:
    """See Engine.push."""
    reference = split_reference(ref)
    tag = reference.tag or "latest"
    problems: list[str] = []
    pushed: PushedTag | None = None
    with closing(
        _messages(api, reference.name, tag, _auth_header(reference.registry, credentials))
    ) as messages:
        for message in messages:
            if problem := message.get("errorDetail") or message.get("error"):
                said = problem.get("message") if isinstance(problem, dict) else problem
                problems.append(str(said))
            elif digest := _part(message, "aux").get("Digest"):
                pushed = PushedTag(f"{reference.name}:{tag}", str(digest), int(message["aux"].get("Size", 0)))
            elif said_so := _DIGEST_LINE.fullmatch(str(message.get("status", ""))):
                pushed = PushedTag(f"{reference.name}:{tag}", said_so["digest"], int(said_so["size"]))
            elif layer := message.get("id"):
                detail = _part(message, "progressDetail")
                current, total = int(detail.get("current", 0)), int(detail.get("total", 0))
                on_event(PushEvent(str(layer), str(message.get("status", "")), current, total))
    if problems:
        raise _push_error("; ".join(dict.fromkeys(problems)), str(reference))
    if pushed is None:
        raise PushFailed("the engine ended the push without a digest and without an error", subject=ref)
    return pushed


def _messages(api: APIClient, name: str, tag: str, auth: str) -> Generator[dict[str, Any], None, None]:
    with translating(f"{name}:{tag}"):
        response = api.post(
            f"{api.base_url}/v{api.api_version}/images/{name}/push",
            params={"tag": tag},
            headers={"X-Registry-Auth": auth},
            stream=True,
            timeout=None,
        )
    with closing(response):
        if response.status_code != 200:
            with suppress(ValueError, KeyError, TypeError):
                raise _push_error(str(response.json()["message"]), f"{name}:{tag}")
            raise PushFailed(f"the engine answered {response.status_code}", subject=f"{name}:{tag}")
        with translating(f"{name}:{tag}"):
            yield from json_objects(response.iter_content(chunk_size=None))


def _auth_header(registry: str, credentials: RegistryCredentials | None) -> str:
    """Return X-Registry-Auth: base64 of JSON; the engine wants the header also without credentials."""
    document: dict[str, str] = {}
    if credentials is not None:
        document["serveraddress"] = "https://index.docker.io/v1/" if registry == "docker.io" else registry
        if credentials.identity_token:
            document["identitytoken"] = credentials.identity_token.reveal()
        else:
            document |= {"username": credentials.username, "password": credentials.password.reveal()}
    return base64.urlsafe_b64encode(json.dumps(document).encode()).decode()


def _push_error(said: str, ref: str) -> ModelbakeError:
    if "no space left on device" in said.lower():
        return DiskFull(said, subject=ref, hint="free space on the engine and on the registry")
    if "does not exist locally" in said or "No such image" in said or "tag does not exist" in said:
        return ImageNotFound(said, subject=ref)
    return registry_error(said, ref) or PushFailed(said, subject=ref)


def _part(message: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = message.get(key)
    return value if isinstance(value, dict) else {}
