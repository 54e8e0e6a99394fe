"""Pushing one tag through the engine.

The engine answers 200 and reports what goes wrong inside the answer: a registry that said 401, 403, 429 or
500, or that hung up. All of it is read; and an answer without a digest is a failure as well.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelbake.buildkit.failure import registry_error, translating
from modelbake.dockerconfig import split_reference
from modelbake.engine_stream import LayerProgress, json_objects, layer_progress, part, problem_of
from modelbake.errors import DiskFull, ImageNotFound, ModelbakeError, PushFailed

if TYPE_CHECKING:
    from docker import APIClient

    from modelbake.dockerconfig import RegistryCredentials

# The containerd store of engines before 27 tells the digest in words only.
_DIGEST_LINE = re.compile(r"\S+: digest: (?P<digest>sha256:[0-9a-f]{64}) size: (?P<size>[0-9]+)")


@dataclass(frozen=True)
class PushedTag:
    """What the engine says it pushed: the manifest's digest and its size in bytes."""

    ref: str
    digest: str
    size: int


def push(
    api: APIClient,
    ref: str,
    credentials: RegistryCredentials | None,
    on_event: Callable[[LayerProgress], None],
) -> PushedTag:
    """See Engine.push."""
    reference = split_reference(ref)
    tag = reference.tag or "latest"
    problems: list[str] = []
    pushed: PushedTag | None = None
    with closing(
        _messages(api, reference.name, tag, auth_header(reference.registry, credentials))
    ) as messages:
        for message in messages:
            if problem := problem_of(message):
                problems.append(problem)
            elif digest := part(message, "aux").get("Digest"):
                pushed = PushedTag(f"{reference.name}:{tag}", str(digest), int(message["aux"].get("Size", 0)))
            elif said_so := _DIGEST_LINE.fullmatch(str(message.get("status", ""))):
                pushed = PushedTag(f"{reference.name}:{tag}", said_so["digest"], int(said_so["size"]))
            elif event := layer_progress(message):
                on_event(event)
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


def auth_header(registry: str, credentials: RegistryCredentials | None) -> str:
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
