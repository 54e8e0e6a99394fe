"""Adopted weights are a model like any other: built by the docker lane, streamed by the other."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.world import World
from tests.servers.azurite_server import ACCOUNT, AzuriteServer
from tests.servers.gcs import GcsServer
from tests.servers.s3 import S3Server

pytestmark = pytest.mark.engine

LOOSE = {
    "config.json": b'{"kind": "tiny"}\n',
    "model-00001-of-00002.safetensors": b"\1" * (1 << 20),
    "model-00002-of-00002.safetensors": b"\2" * (12 << 20),
    "tokenizer/vocab.txt": b"a\nb\n",
}


@pytest.fixture
def loose(world: World) -> World:
    """A folder of weights, and a models.yaml whose defaults have the checks that no entry of `adopt` has."""
    for name, content in LOOSE.items():
        place = world.folder / "loose" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    world.models(tiny={})
    document = json.loads((world.folder / "models.yaml").read_text())
    smoke = document["models"]["tiny"]["smoke"]
    document["defaults"] |= {"runtime": "tiny", "device": "any", "smoke": smoke}
    (world.folder / "models.yaml").write_text(json.dumps(document, indent=2))
    return world


def test_loose_weights_become_an_image_that_verifies(loose: World) -> None:
    world = loose
    world.repo("acme/tiny", LOOSE)
    (world.folder / "disk").mkdir()
    for name, to in (("on-hub", "hf://acme/adopted"), ("on-disk", f"file://{world.folder}/disk/adopted")):
        create = ["--create"] if to.startswith("hf:") else []
        done = world.build_py("adopt", "loose", "--to", to, "--name", name, *create).ok()
        assert len(done.out.splitlines()) == len(LOOSE) and "loose may be deleted now" in done.err
    json.loads((world.folder / "models.yaml").read_text())  # JSON as it was
    assert world.hub.token_leaks() == []
    world.build_py("publish", "on-hub").ok()
    assert world.version_tags("on-hub") == ["1.0.0"]
    world.build_py("build", "on-disk").ok()


@dataclass(frozen=True)
class Written:
    """A store that may be written to."""

    address: str
    endpoint: str
    environment: dict[str, str]
    secrets: frozenset[str]


def _s3(server: S3Server) -> Written:
    environment = server.environment_for(server.owner)
    to = f"s3://{server.bucket()}/models/llama 3"
    return Written(to, server.endpoint, environment, frozenset({server.owner.secret}))


def _gcs(server: GcsServer) -> Written:
    to = f"gs://{server.bucket()}/models/llama 3"
    return Written(to, server.endpoint, server.environment_for(server.owner), frozenset())


def _azure(server: AzuriteServer) -> Written:
    to = f"az://{ACCOUNT}/{server.container()}/models/llama 3"
    environment = {"AZURE_STORAGE_KEY": server.key}
    return Written(to, server.account_url, environment, frozenset({server.key}))


@pytest.mark.parametrize(
    ("named", "written"), [("s3_server", _s3), ("gcs_server", _gcs), ("azure_server", _azure)]
)
def test_loose_weights_are_published_from_each_store(
    loose: World, request: pytest.FixtureRequest, named: str, written: Callable[[Any], Written]
) -> None:
    world, store = loose, written(request.getfixturevalue(named))
    large = world.folder / "loose/model-00003.safetensors"
    large.write_bytes(secrets.token_bytes(1 << 10) * (40 << 10))  # 40 MiB: several parts at every store
    to = (*("adopt", "loose", "--name", "kept", "--to", store.address), "--endpoint", store.endpoint)
    unarmed = world.build_py(*to)
    assert unarmed.code and "Traceback" not in unarmed.err
    assert "kept" not in (world.folder / "models.yaml").read_text()
    world.environment |= store.environment
    world.secrets |= store.secrets
    done = world.build_py(*to).ok()
    folder = world.folder / "loose"
    for path in filter(Path.is_file, folder.rglob("*")):
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        assert f"{path.relative_to(folder)} {sha256} verified\n" in done.out
    world.build_py("lock", "--check", "kept").ok()
    world.build_py("publish", "kept").ok()
    assert world.version_tags("kept") == ["1.0.0"]
