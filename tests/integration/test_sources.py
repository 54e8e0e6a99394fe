"""What every kind of source has to do: one test for all, from `lock` to a serving image, in both lanes."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.aws_shelves import plain_s3_shelf, s3_shelf, sagemaker_shelf
from tests.integration.shelves import SERVERS, SHELVES, Shelf
from tests.integration.test_publish import tree_of
from tests.integration.web_shelves import WEB_SERVERS, WEB_SHELVES
from tests.integration.world import World
from tests.promises import full
from tests.servers.s3 import S3Server

pytestmark = pytest.mark.engine

_LEFT_OUT = "onnx/model.onnx"


_AWS = {"s3": s3_shelf, "s3 without versions": plain_s3_shelf, "sagemaker": sagemaker_shelf}
_MAKERS: dict[str, Callable[..., Shelf]] = {**SHELVES, **_AWS, **WEB_SHELVES}
_SERVERS = {**SERVERS, **dict.fromkeys(_AWS, "s3_server"), **WEB_SERVERS}


# One of each way that bytes take: addresses, members of images, the build context. `make sources` tries all.
_QUICK = ("file", "s3", "oci")


@pytest.fixture
def files() -> dict[str, bytes]:
    """What is on a shelf; other bytes in each test, so that no build finds them in the engine's cache."""
    this = secrets.token_hex(8).encode()
    return {
        "config.json": b'{"kind": "tiny", "of": "%s"}\n' % this,
        "empty.txt": b"",
        "model.safetensors": this * 4096 * 1040,  # 68 MB: a layer of its own, fetched in ranges
        _LEFT_OUT: b"\4" * 1000,
        "tokenizer/a name+ü%20.txt": this,
    }


@pytest.fixture(params=list(_MAKERS) if full() else _QUICK)
def shelf(
    request: pytest.FixtureRequest, world: World, tmp_path: Path, files: dict[str, bytes]
) -> Iterator[Shelf]:
    """A source of each kind, and a world whose model `tiny` is of it."""
    named = _SERVERS.get(request.param)
    server = [request.getfixturevalue(named)] if named else []
    made = _MAKERS[request.param](world, files, tmp_path, *server)
    world.environment |= made.environment
    world.secrets |= made.secrets
    world.models(tiny={**made.entry, "exclude": ["onnx/*"]})
    yield made
    made.close()


def locked(world: World, name: str = "tiny") -> dict[str, Any]:
    entry: dict[str, Any] = json.loads((world.folder / "models.lock").read_text())["models"][name]
    return entry


def weights_in(world: World, image: str) -> dict[str, Any]:
    """Return the weights of an image, with their modes, owners and sha256."""
    return {path: facts for path, facts in tree_of(world, image).items() if path.startswith("models/")}


def test_locked_published_built_and_served(world: World, shelf: Shelf, files: dict[str, bytes]) -> None:
    world.build_py("lock").ok()
    facts = {file["path"]: (file["size"], file["sha256"]) for file in locked(world)["files"]}
    truth = {
        path: (len(content), hashlib.sha256(content).hexdigest())
        for path, content in files.items()
        if path != _LEFT_OUT and path not in shelf.lost
    }
    assert facts == truth
    first = (world.folder / "models.lock").read_bytes()
    world.build_py("lock").ok()
    assert (world.folder / "models.lock").read_bytes() == first, "the same facts give the same bytes"
    assert "agrees" in world.build_py("lock", "--check").ok().err
    reference = world.build_py("publish", "tiny").ok().out.strip()  # its smoke run verifies every byte
    world.build_py("build", "tiny").ok()
    world.build_py("smoke", "tiny").ok()
    world.docker("pull", reference).ok()
    streamed, built = weights_in(world, reference), weights_in(world, "modelbake/tiny:1.0.0")
    assert streamed == built, "both lanes make the same tree"
    found = {path.removeprefix("models/"): facts[5] for path, facts in built.items() if facts[5]}
    assert found == {path: sha256 for path, (_, sha256) in truth.items()}
    assert world.leaks() == []


def test_what_was_replaced_after_the_lock(world: World, shelf: Shelf) -> None:
    world.build_py("lock").ok()
    shelf.put("config.json", b'{"kind": "tiny", "changed": 1}\n')
    drift = world.build_py("lock", "--check")
    assert drift.code != 0 and "tiny: moved:" in drift.out, drift.err
    published = world.build_py("publish", "tiny")
    built = world.build_py("build", "tiny")
    if shelf.keeps_versions:
        published.ok()
        built.ok()
    else:
        for ran in (published, built):
            assert ran.code != 0 and "config.json" in ran.err, ran.err
        assert world.version_tags() == [], "nothing half-published"
    world.build_py("lock").ok()
    assert "agrees" in world.build_py("lock", "--check").ok().err


@pytest.mark.skipif(not full(), reason="six commands of some seconds each; `make sources` runs it")
def test_an_approval_that_was_withdrawn_stops_the_next_version(
    world: World, tmp_path: Path, s3_server: S3Server
) -> None:
    files = {"config.json": b'{"kind": "tiny"}\n', "model.safetensors": secrets.token_bytes(1000)}
    shelf = sagemaker_shelf(world, files, tmp_path, s3_server)
    world.environment |= shelf.environment
    world.secrets |= shelf.secrets
    world.models(tiny=shelf.entry)
    world.build_py("lock").ok()
    world.build_py("publish", "tiny", "--candidate").ok()
    world.models(tiny={**shelf.entry, "version": "1.0.1"})
    s3_server.approve(shelf.entry["source"].removeprefix("sagemaker:"), "Rejected")
    refused = world.build_py("publish", "tiny", "--candidate")  # the registry has all of its weights
    assert refused.code != 0 and "is not approved" in refused.err, refused.err
    s3_server.approve(shelf.entry["source"].removeprefix("sagemaker:"))
    world.build_py("publish", "tiny", "--candidate").ok()


def test_models_that_differ_in_an_adapter_share_all_else(world: World, tmp_path: Path) -> None:
    """The base of a hub, adapters of two folders: in both lanes the adapter is a layer of its own, on top."""
    world.repo("acme/base", {"config.json": b"{}", "model.safetensors": b"\1" * (65 << 20)})
    entries = {}
    for name in ("legal", "medical"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(name.encode() * 1000)
        added = {"source": f"file://{folder}", "into": "adapter"}
        entries[name] = {"source": "hf://acme/base", "layer_order": "weights-first", "add": [added]}
    world.models(**entries)
    world.build_py("lock").ok()
    assert [each["into"] for each in locked(world, "legal")["added"]] == ["adapter"]
    references = dict(zip(entries, world.build_py("publish", "--all").ok().out.split(), strict=True))
    manifests = {
        name: world.services.manifest(f"{world.namespace}/{name}", reference.partition("@")[2])
        for name, reference in references.items()
    }
    layers = {name: [layer["digest"] for layer in each["layers"]] for name, each in manifests.items()}
    assert layers["legal"][:-2] == layers["medical"][:-2], "the base and the runtime"
    assert not set(layers["legal"][-2:]) & set(layers["medical"][-2:]), "the adapter, and the manifest"
    (told,) = json.loads(world.build_py("plan", "medical", "--json").ok().out)
    assert [layer["stored"] for layer in told["layers"]] == [True] * len(told["layers"])
    world.build_py("build", "legal").ok()
    world.build_py("smoke", "legal").ok()
    world.docker("pull", references["legal"]).ok()
    assert weights_in(world, references["legal"]) == weights_in(world, "modelbake/legal:1.0.0")
    labels = json.loads(world.docker("image", "inspect", references["legal"]).ok().out)[0]["Config"]["Labels"]
    commit = locked(world, "legal")["added"][0]["commit"]
    assert json.loads(labels["io.modelbake.added"]) == [f"file://{tmp_path / 'legal'}@{commit}"]
    assert "1 images hold it, 1 do not" in world.build_py("incident", "--commit", commit).ok().err
