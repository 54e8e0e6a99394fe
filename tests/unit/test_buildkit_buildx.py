"""What buildx is given to read, without running it."""

from __future__ import annotations

import base64
import io
import json
import os
from pathlib import Path

import pytest

from modelbake.buildkit.buildx import _credentials, _dockerfile, _Progress, _secret_file
from modelbake.buildkit.request import BuildRequest
from modelbake.credentials import Secret
from modelbake.dockerconfig import RegistryCredentials
from modelbake.errors import EngineError
from tests.integration.conftest import tar

DOCKERFILE = """\
# syntax = docker.io/docker/dockerfile:1
ARG X
FROM --platform=linux/amd64 registry.example.com/base@sha256:{digest} AS base
FROM python:3.11 AS other
from registry.example.com/again:1
COPY --from=tools.example.com:5000/tool:1 /a /b
RUN --mount=type=bind,from=mounted.example.com/x,target=/x true
FROM ${{X}}
FROM $$$
"""


class Registries:
    """Credentials for every registry; remembers which were asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def for_registry(self, host: str) -> RegistryCredentials | None:
        self.asked.append(host)
        known = {
            "docker.io": RegistryCredentials("", Secret(""), Secret("identity")),
            "registry.example.com": RegistryCredentials("ci", Secret("p:ss")),
        }
        return known.get(host)


def test_only_the_registries_that_the_dockerfile_names() -> None:
    registries = Registries()
    context = tar({"other": "FROM never.example.com/x", "./Dockerfile": DOCKERFILE.format(digest="a" * 64)})
    found = dict(_credentials(BuildRequest(context, registries=registries)))  # type: ignore[arg-type]
    hosts = ["docker.io", "mounted.example.com", "registry.example.com", "tools.example.com:5000"]
    assert registries.asked == hosts
    assert found == {
        "https://index.docker.io/v1/": {"identitytoken": "identity"},
        "registry.example.com": {"auth": base64.b64encode(b"ci:p:ss").decode()},
    }


def test_no_registries_no_credentials() -> None:
    assert dict(_credentials(BuildRequest(tar({"Dockerfile": "FROM python"})))) == {}


def test_a_context_file_is_left_where_it_stood() -> None:
    file = io.BytesIO(b"12345" + tar({"x": "y", "Dockerfile": "FROM a"}))
    file.seek(5)
    assert _dockerfile(file) == b"FROM a"
    assert file.tell() == 5
    assert _dockerfile(tar({"x": "y"})) == b""
    with pytest.raises(EngineError):
        _dockerfile(b"not a tar")


@pytest.mark.parametrize("memory", [True, False])
def test_a_secrets_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: bool) -> None:
    if not memory:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    elif not hasattr(os, "memfd_create"):
        pytest.skip("no memfd on this system")
    value = b"\x00secret\xff" * 1000
    with _secret_file(tmp_path, Secret(value)) as (path, descriptor):
        for _ in range(2):  # buildx may read it more than once
            assert Path(path).read_bytes() == value
        assert (descriptor is not None) is memory
        if not memory:
            assert Path(path).stat().st_mode & 0o777 == 0o600
    assert memory is (list(tmp_path.iterdir()) == [])


STATUS = {"vertexes": [{"digest": "sha256:1", "name": "RUN x"}]}


@pytest.mark.parametrize("indent", [None, 2])
def test_progress_of_old_and_new_versions(indent: int | None) -> None:
    lines = [
        *json.dumps(STATUS, indent=indent).splitlines(),
        "ERROR: failed",
        *json.dumps(STATUS, indent=indent).splitlines(),
        "",
        "{",
        "odd",
        "}",
    ]
    progress = _Progress()
    updates = [update for line in lines if (update := progress.read(line.encode() + b"\n"))]
    assert [update.vertexes[0].name for update in updates] == ["RUN x", "RUN x"]
    assert progress.said == ["ERROR: failed", "{", "odd", "}"]
