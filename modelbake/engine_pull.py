"""Pulling one image by its digest through the engine, whose answer tells failures under HTTP 200."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING

from modelbake.buildkit.failure import registry_error, translating
from modelbake.dockerconfig import Reference
from modelbake.engine_push import auth_header
from modelbake.engine_stream import LayerProgress, json_objects, layer_progress, problem_of
from modelbake.errors import DiskFull, EngineError, ImageNotFound, ModelbakeError

if TYPE_CHECKING:
    from docker import APIClient

    from modelbake.dockerconfig import RegistryCredentials


def pull(
    api: APIClient,
    reference: Reference,
    credentials: RegistryCredentials | None,
    on_event: Callable[[LayerProgress], None],
) -> None:
    """See Engine.pull."""
    subject = str(reference)
    with translating(subject):
        response = api.post(
            f"{api.base_url}/v{api.api_version}/images/create",
            params={"fromImage": reference.name, "tag": reference.digest or reference.tag or "latest"},
            headers={"X-Registry-Auth": auth_header(reference.registry, credentials)},
            stream=True,
            timeout=None,
        )
    problems: list[str] = []
    with closing(response), translating(subject):
        if response.status_code != 200:
            said = problem_of({"error": response.json().get("message")}) or f"HTTP {response.status_code}"
            raise _pull_error(said, subject)
        for message in json_objects(response.iter_content(chunk_size=None)):
            if problem := problem_of(message):
                problems.append(problem)
            elif event := layer_progress(message):
                on_event(event)
    if problems:
        raise _pull_error("; ".join(dict.fromkeys(problems)), subject)


def _pull_error(said: str, ref: str) -> ModelbakeError:
    if "no space left on device" in said.lower():
        return DiskFull(
            said, subject=ref, hint="free space on the engine; `docker system df` says what uses it"
        )
    if "not found" in said.lower() or "manifest unknown" in said.lower():
        return ImageNotFound(f"the engine cannot find it ({said})", subject=ref)
    return registry_error(said, ref) or EngineError(f"the engine cannot pull it: {said}", subject=ref)
