"""The stream lane as its users see it: weights go from the hub to the registry, and an image is there."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from modelbake.credentials import Secret
from modelbake.dockerconfig import RegistryCredentials
from modelbake.engine import connect
from modelbake.errors import NotReady
from modelbake.locked import LockedFile
from modelbake.plan import WeightGroup
from modelbake.registry import Registry
from modelbake.sample import FOLDER, SAMPLED_ABOVE
from modelbake.stream.flow import TAR
from modelbake.stream.layers import WeightLayer
from modelbake.stream.repository import RegistryRepository
from modelbake.stream.weights import OCI_CONFIG, StoredLayer, data_image, group_tag
from tests.integration.conftest import TestRegistry
from tests.integration.world import TINY, BehindProxy, Services, World
from tests.servers.canary import found_in_bytes, found_in_files
from tests.servers.environment import run_script, shell_exports
from tests.servers.hub import Hub
from tests.servers.registry_streaming import StreamingProxy

pytestmark = pytest.mark.engine

GROUP = "io.modelbake.group"  # annotation of a weight layer
SMALL = {
    "config.json": b'{"kind": "tiny"}\n',
    "model.safetensors": b"\3" * 300_000,
    "tokenizer/deep/vocab.txt": b"a\nb\n",
}
NOWHERE = "tcp://127.0.0.1:9"


# --- one namespace for most tests: a runtime, and a model of two shards, published once ---------------------


@dataclass
class Released:
    """A registry's namespace with `tiny` 1.0.0 in it, behind a proxy that counts what arrives."""

    world: World
    proxy: StreamingProxy
    reference: str
    hub_bytes: dict[str, int]

    def copy(self, folder: Path) -> World:
        """Another user of the same namespace, hub and lock, who has just cloned the repository."""
        world = replace(self.world, folder=folder)
        world.login(*self.world._others)
        for name in ("models.yaml", "models.lock"):
            shutil.copy(self.world.folder / name, folder / name)
        world.hub.reset_log()
        self.proxy.forget()
        return world

    def received(self, name: str) -> int:
        return self.proxy.received[f"{self.world.namespace}/{name}"]


@pytest.fixture(scope="module")
def released(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Released]:
    token, folder = f"hf_{secrets.token_hex(17)}", tmp_path_factory.mktemp("released")
    with (
        StreamingProxy(services.registry) as proxy,
        Hub(folder / "hub", {token: None}, host=services.bridge) as hub,
    ):
        world = World(BehindProxy.of(services, proxy.address), folder, hub, token)
        world.login(services)
        world.repo("acme/tiny")
        world.models(tiny={})
        world.run("lock")
        hub.reset_log()
        reference = world.run("publish").out.strip()
        yield Released(world, proxy, reference, {path: hub.bytes_sent(path) for path in TINY})
        world.remove_images()


def publish_candidate(world: World, *more: str, **environment: str | None) -> str:
    return world.build_py("publish", "tiny", "--candidate", *more, **environment).ok().out.strip()


def digest_of(reference: str) -> str:
    return reference.rpartition("@")[2]


def manifests_of(world: World, name: str, tag: str) -> list[dict[str, Any]]:
    """Return the manifest under a tag, or those that an index under it lists."""
    path = f"{world.namespace}/{name}"
    found = world.services.manifest(path, tag)
    listed = found.get("manifests")
    return [found] if listed is None else [world.services.manifest(path, each["digest"]) for each in listed]


def manifest_of(world: World, reference: str, name: str = "tiny") -> dict[str, Any]:
    return world.services.manifest(f"{world.namespace}/{name}", digest_of(reference))


def weight_layers(manifest: dict[str, Any]) -> dict[str, str]:
    """Digest of each weight layer -> digest of its group of files, bottom first."""
    return {
        layer["digest"]: layer["annotations"][GROUP]
        for layer in manifest["layers"]
        if GROUP in layer.get("annotations", {})
    }


def weight_requests(world: World) -> list[str]:
    return [record.path for record in world.hub.requests_for("*.safetensors")]


# --- the main job -------------------------------------------------------------------------------------------


def test_weights_stream_into_a_tested_and_tagged_image(released: Released) -> None:
    world, reference = released.world, released.reference
    assert re.fullmatch(rf"{world.services.registry}/{world.namespace}/tiny@sha256:[0-9a-f]{{64}}", reference)
    assert "1.0.0" in world.version_tags()
    report = json.loads((world.folder / "reports/tiny/1.0.0.json").read_text())
    assert report["passed"] is True
    assert not world.hub.token_leaks()
    sizes = {path: len(content) for path, content in TINY.items()}
    assert {path: released.hub_bytes[path] for path in sizes} == sizes, "each byte was read once"
    world.hub.reset_log()
    again = world.run("publish")
    assert again.out.strip() == reference
    assert world.hub.requests() == [], "nothing changed: the hub is not even asked"
    assert "weights-first" in world.build_py("plan", "tiny").ok().out


def test_goldens_and_a_required_gpu_are_asked_for_before_anything_moves(
    released: Released, tmp_path: Path
) -> None:
    world = released.copy(tmp_path)
    check = {"post": "/sum", "body": {"numbers": [1, 2]}, "expect": {"sum": {"golden": "sum"}}}
    smoke = {"requests": 3, "checks": [check]}
    world.models(tiny={"version": "2.5.0", "smoke": {**smoke, "require_gpu": True}})
    if not _engine_has_gpu(world):
        refused = world.build_py("publish", "tiny")
        assert refused.code == 53 and "`require_gpu: true`" in refused.err
    world.models(tiny={"version": "2.5.0", "smoke": smoke})
    refused = world.build_py("publish", "tiny")
    assert refused.code == 54 and "golden sum is missing" in refused.err
    assert world.build_py("publish", "tiny", "--candidate", "--gpus", "all").code == 2
    assert released.proxy.received == {}, "nothing was sent"
    made = world.build_py("publish", "tiny", "--update-goldens").ok()
    assert "sum: new, 3" in made.err
    assert released.received("tiny") > 0, "control"
    assert "2.5.0" not in world.version_tags() and "no version tag was put" in made.err
    assert world.build_py("publish", "tiny").ok().out == made.out
    assert "2.5.0" in world.version_tags(), "once somebody could look at them"
    kept = (tmp_path / "goldens/tiny.json").read_bytes()
    (tmp_path / "goldens/tiny.json").unlink()
    # A version that is released already is tried again for its goldens, and stays what it is.
    again = world.build_py("publish", "tiny", "--update-goldens").ok()
    assert (again.out, (tmp_path / "goldens/tiny.json").read_bytes()) == (made.out, kept)


def _engine_has_gpu(world: World) -> bool:
    with connect(world.services.docker_host) as engine:
        return engine.info.gpu


# --- what both lanes make -----------------------------------------------------------------------------------

# What Docker itself puts into every container.
_DOCKERS_OWN = re.compile(r"\.dockerenv|dev(/.*)?|proc|sys|etc/(hosts|hostname|resolv\.conf|mtab)")
_CONFIG = ("Env", "Entrypoint", "Cmd", "User", "WorkingDir", "ExposedPorts", "Labels")


def tree_of(world: World, image: str) -> dict[str, tuple[Any, ...]]:
    """Path -> type, mode, owner, link's target, sha256 of everything in an image."""
    container = world.docker("create", image, "true").ok().out.strip()
    exported = world.folder / f"{container}.tar"
    try:
        world.docker("export", "--output", str(exported), container).ok()
        return {path: facts for path, facts in _members(exported) if not _DOCKERS_OWN.fullmatch(path)}
    finally:
        world.docker("rm", "--force", container)
        exported.unlink(missing_ok=True)


def config_of(world: World, image: str) -> dict[str, Any]:
    (inspected,) = json.loads(world.docker("image", "inspect", image).ok().out)
    config: dict[str, Any] = inspected["Config"]
    return config


def _members(exported: Path) -> Iterator[tuple[str, tuple[Any, ...]]]:
    with tarfile.open(exported) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isreg() else None
            content = hashlib.file_digest(file, "sha256").hexdigest() if file else ""  # type: ignore[arg-type]
            owner = (member.uid, member.gid)
            yield (
                member.name.rstrip("/"),
                (member.type, oct(member.mode), owner, member.linkname, member.size, content),
            )


def test_both_lanes_yield_the_same_image(released: Released, tmp_path: Path) -> None:
    world = released.copy(tmp_path)
    large = os.urandom(SAMPLED_ABOVE + 1_000_001)
    world.repo("acme/small", {**SMALL, "large.safetensors": large})
    base = {
        "version": "2.0.0",
        "source": "hf://acme/small",
        "env": {"GREETING": "hello $HOME"},
        "labels": {"org.example.a": "b"},
    }
    world.models(tiny=base)
    world.run("lock", "build")
    built = tree_of(world, "modelbake/tiny:2.0.0")
    assert built["models/model.safetensors"][:3] == (tarfile.REGTYPE, "0o444", (0, 0))
    assert built["models/tokenizer/deep"][:3] == (tarfile.DIRTYPE, "0o555", (0, 0))
    assert built[f"{FOLDER}/{hashlib.sha256(large).hexdigest()}"][1:3] == ("0o644", (0, 0))
    assert built[FOLDER][1:3] == ("0o755", (0, 0))
    assert len(built) > 1000, "control: the whole system is compared"
    config = config_of(world, "modelbake/tiny:2.0.0")
    for order in ("weights-first", "base-first"):
        world.models(tiny={**base, "layer_order": order})
        reference = publish_candidate(world)
        bottom = manifest_of(world, reference)["layers"][0]
        assert (GROUP in bottom.get("annotations", {})) == (order == "weights-first")
        world.docker("pull", "--quiet", reference).ok()
        published = tree_of(world, reference)
        differ = {path for path in built.keys() | published.keys() if built.get(path) != published.get(path)}
        assert {path: (built.get(path), published.get(path)) for path in sorted(differ)} == {}, order
        theirs = config_of(world, reference)
        assert sorted(config["Env"]) == sorted(theirs["Env"])
        for key in _CONFIG[1:]:
            assert config.get(key) == theirs.get(key), (order, key)
    world.docker("image", "rm", "--force", "modelbake/tiny:2.0.0")


# --- what did not change does not move ----------------------------------------------------------------------


def patched_base(world: World, *lines: str) -> str:
    """Push a base image with more in it; return its reference by digest."""
    folder = world.folder / f"base-{secrets.token_hex(4)}"
    folder.mkdir()
    (folder / "Dockerfile").write_text("\n".join([f"FROM {world.services.base}", *lines]) + "\n")
    name = f"{world.services.registry}/{world.namespace}/bases:{folder.name}"
    world.docker("build", "--quiet", "--tag", name, str(folder)).ok()
    world.docker("push", "--quiet", name).ok()
    digest = world.services.manifest(f"{world.namespace}/bases", folder.name)["digest"]
    return f"{name.rpartition(':')[0]}@{digest}"


def test_a_changed_program_setting_or_base_moves_no_weight(released: Released, tmp_path: Path) -> None:
    world = released.copy(tmp_path)
    world.images = tmp_path / "images"
    shutil.copytree(released.world.images, world.images)
    world.models(tiny={"version": "2.0.0"})
    before = manifest_of(world, released.reference)
    weights = weight_layers(before)
    assert [layer["digest"] for layer in before["layers"]][:3] == list(weights), "weights at the bottom"
    seen = {digest_of(released.reference)}

    def require_no_weights_moved(change: str) -> None:
        world.hub.reset_log()
        released.proxy.forget()
        reference = publish_candidate(world)
        assert digest_of(reference) not in seen, f"control: the {change} is in another image"
        seen.add(digest_of(reference))
        assert world.hub.requests() == [], change
        layers = manifest_of(world, reference)["layers"]
        assert [layer["digest"] for layer in layers][:3] == list(weights), change
        assert released.received("weights") == 0, change
        assert released.received("tiny") < 100_000, "the configuration and the model's manifest"
        assert sum(released.proxy.received.values()) < 90_000_000 < sum(map(len, TINY.values()))

    with (world.images / "tiny/server.py").open("a") as program:
        program.write("# patched\n")
    require_no_weights_moved("program")
    with (world.images / "tiny/runtime.yaml").open("a") as settings:
        settings.write("env: {PATCHED: yes please}\n")
    require_no_weights_moved("setting")
    base = patched_base(world, "RUN echo patched > /etc/patched")
    world.models(tiny={"version": "2.0.0", "base": base})
    require_no_weights_moved("base")


def test_one_changed_shard_is_all_that_is_read(released: Released, tmp_path: Path) -> None:
    world = released.copy(tmp_path)
    shard = os.urandom(66 << 20)
    world.repo("acme/changed", {**TINY, "model-00002-of-00002.safetensors": shard})
    world.models(tiny={"source": "hf://acme/changed", "version": "2.0.0"})
    world.run("lock")
    world.hub.reset_log()
    released.proxy.forget()
    after = weight_layers(manifest_of(world, publish_candidate(world)))
    before = weight_layers(manifest_of(world, released.reference))
    assert len(after.keys() - before.keys()) == 1
    assert {record.file for record in world.hub.requests()} == {"model-00002-of-00002.safetensors"}
    assert world.hub.bytes_sent("*.safetensors") == len(shard)
    assert len(shard) < released.received("weights") < 1.001 * len(shard)
    assert released.received("tiny") < 100_000, "the others are mounted"


def test_another_model_with_the_same_weights_reads_nothing(released: Released, tmp_path: Path) -> None:
    world = released.copy(tmp_path)
    world.repo("acme/mirror")
    world.models(other={"source": "hf://acme/mirror", "version": "0.1.0"})
    world.run("lock")
    world.hub.reset_log()
    reference = world.build_py("publish", "other", "--candidate").ok().out.strip()
    assert world.hub.requests() == []
    manifest = manifest_of(world, reference, "other")
    assert weight_layers(manifest) == weight_layers(manifest_of(world, released.reference))
    mounted = [seen for seen in released.proxy.seen if seen.method == "POST" and "?mount=" in seen.path]
    assert {seen.status for seen in mounted} == {201}
    assert len(mounted) == len(manifest["layers"]) - 1, "all but its own small layer"
    assert released.received("other") < 100_000
    assert released.received("weights") < 100_000, "another lock has its own record of the same layers"


def test_the_same_lock_gives_the_same_digests_anywhere(
    released: Released, services: Services, tmp_path: Path
) -> None:
    """In another namespace of another registry, from another hub, on another day."""
    name = "pubother"
    try:
        exports = shell_exports("registry", "up", "--name", name)
        world = World(services.with_registry(exports), tmp_path, released.world.hub, released.world.token)
        world.login(services)
        world.models(tiny={})
        shutil.copy(released.world.folder / "models.lock", tmp_path)
        manifest = manifest_of(world, publish_candidate(world))
        assert weight_layers(manifest) == weight_layers(manifest_of(released.world, released.reference))
        (tag,) = (t for t in world.services.tags(f"{world.namespace}/weights") if t.startswith("weights-"))
        here = world.services.manifest(f"{world.namespace}/weights", tag)
        there = released.world.services.manifest(f"{released.world.namespace}/weights", tag)
        assert here == there
        assert manifest["digest"] == digest_of(released.reference), "the engine's cache has the same runtime"
    finally:
        run_script("registry", "down", "--name", name, "--purge")


# --- engines: with and without ------------------------------------------------------------------------------


def test_no_engine_is_needed_once_the_runtime_is_there(released: Released, tmp_path: Path) -> None:
    world = released.copy(tmp_path)
    assert digest_of(publish_candidate(world, DOCKER_HOST=NOWHERE)) == digest_of(released.reference)
    world.repo("acme/fifty", SMALL)
    world.models(fifty={"source": "hf://acme/fifty"})
    world.run("lock")
    reference = world.build_py("publish", "fifty", "--candidate", DOCKER_HOST=NOWHERE).ok().out.strip()
    assert manifest_of(world, reference, "fifty")["layers"]
    assert world.version_tags("fifty") == []

    ran = world.build_py("publish", "fifty", DOCKER_HOST=NOWHERE)
    assert ran.code == 41, ran.err
    assert "--candidate" in ran.err
    assert world.version_tags("fifty") == []


def test_without_runtime_and_engine_nothing_moves(world: World) -> None:
    world.repo("acme/tiny", SMALL)
    world.models(tiny={})
    world.run("lock")
    world.hub.reset_log()
    ran = world.build_py("publish", "tiny", "--candidate", DOCKER_HOST=NOWHERE)
    assert ran.code == 68, ran.err
    assert "publish one model of this runtime where an engine is" in ran.err
    ran = world.build_py("publish", "tiny", DOCKER_HOST=NOWHERE)
    assert ran.code == 41, ran.err
    assert "--candidate" in ran.err
    assert world.hub.requests() == []
    assert world.tags() == world.services.tags(f"{world.namespace}/weights") == []


# --- what is refused, and when ------------------------------------------------------------------------------


def test_an_image_that_fails_its_test_stays_a_candidate(released: Released, tmp_path: Path) -> None:
    world = released.copy(tmp_path)
    wrong = {"requests": 1, "checks": [{"post": "/sum", "body": {"numbers": [1, 2]}, "expect": {"sum": 4}}]}
    world.models(wrong={"smoke": wrong})
    world.run("lock")
    ran = world.build_py("publish", "wrong")
    assert ran.code == 51, ran.err
    assert ran.out == ""
    (candidate,) = world.tags("wrong")
    assert candidate.startswith("candidate-")
    assert world.version_tags("wrong") == []


def test_a_version_that_is_taken_is_refused_before_a_byte_moves(released: Released, tmp_path: Path) -> None:
    world = released.copy(tmp_path)
    world.repo("acme/new", {**SMALL, "model.safetensors": os.urandom(300_000)})
    world.models(tiny={"source": "hf://acme/new"})
    world.run("lock")
    world.hub.reset_log()
    ran = world.build_py("publish", "tiny")
    assert ran.code == 63, ran.err
    assert "raise `version`" in ran.err
    assert world.hub.requests() == []
    assert sum(released.proxy.received.values()) == 0
    assert world.services.manifest(f"{world.namespace}/tiny", "1.0.0")["digest"] == digest_of(
        released.reference
    )


def test_the_order_of_layers(released: Released, tmp_path: Path) -> None:
    """`auto` puts the heavier part at the bottom, and no weights below a runtime that would hide them."""
    world = released.copy(tmp_path)
    world.repo("acme/light", {**SMALL, "model.safetensors": os.urandom(300_000)})

    def bottom(**keys: Any) -> str:
        world.models(tiny={"version": "2.0.0", **keys})
        world.run("lock")
        layers = manifest_of(world, publish_candidate(world))["layers"]
        marked = [GROUP in layer.get("annotations", {}) for layer in layers]
        assert marked.count(True) == (3 if "source" not in keys else 1)
        assert not marked[-1], "the model's manifest lies on top"
        return "weights" if marked[0] else "runtime"

    light = "hf://acme/light"
    assert bottom() == "weights"
    assert bottom(source=light) == "runtime"
    assert bottom(source=light, layer_order="weights-first") == "weights"
    assert bottom(layer_order="base-first") == "runtime"


@pytest.mark.parametrize("hidden", ["folder", "whiteout"])
def test_a_base_that_would_hide_weights(released: Released, tmp_path: Path, hidden: str) -> None:
    world = released.copy(tmp_path)
    lines = ["RUN mkdir /models"] + (["RUN rmdir /models"] if hidden == "whiteout" else [])
    base = patched_base(world, *lines)
    name = f"acme/{hidden}{secrets.token_hex(4)}"
    world.repo(name, {**SMALL, "model.safetensors": os.urandom(300_000)})
    wanted = {"version": "2.0.0", "base": base, "source": f"hf://{name}", "layer_order": "weights-first"}
    world.models(tiny=wanted)
    world.run("lock")
    world.hub.reset_log()
    ran = world.build_py("publish", "tiny", "--candidate")
    assert ran.code == 10, ran.err
    assert "would hide weights" in ran.err
    assert "base-first" in ran.err
    assert (".wh.models" if hidden == "whiteout" else "models") in ran.err
    assert world.hub.requests() == [], "refused before a weight byte moves"

    shutil.copy(released.world.folder / "models.lock", tmp_path)
    world.models(tiny={"version": "2.0.0", "base": base})
    layers = manifest_of(world, publish_candidate(world))["layers"]
    assert GROUP not in layers[0].get("annotations", {}), "auto: heavy weights, and on top nevertheless"
    planned = json.loads(world.build_py("plan", "tiny", "--json").ok().out)[0]
    assert planned["layer_order"] == "base-first"
    assert planned["runtime"]["hides_weights"]


# --- OCI layouts --------------------------------------------------------------------------------------------


def test_a_layout_carries_the_image(released: Released, tmp_path: Path) -> None:
    world = released.copy(tmp_path)
    world.repo("acme/carried", {**SMALL, "model.safetensors": os.urandom(300_000)})
    world.models(carried={"source": "hf://acme/carried"})
    world.run("lock")
    written = world.build_py("publish", "carried", "--output", "oci:layout").ok().out.strip()
    assert re.fullmatch(r"oci:layout@sha256:[0-9a-f]{64}", written)
    assert world.tags("carried") == []
    folder = world.folder / "layout"
    assert json.loads((folder / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    (entry,) = json.loads((folder / "index.json").read_text())["manifests"]
    assert entry["digest"] == digest_of(written)
    for blob in (folder / "blobs/sha256").iterdir():
        with blob.open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == blob.name
    world.hub.reset_log()
    again = world.build_py("publish", "carried", "--output", "oci:layout").ok().out.strip()
    assert again == written
    assert world.hub.requests() == []

    ran = world.build_py("publish", "carried", "--from", "oci:layout", DOCKER_HOST=NOWHERE)
    assert ran.code == 41, ran.err
    assert world.version_tags("carried") == []
    candidate = world.build_py("publish", "carried", "--from", "oci:layout", "--candidate").ok().out.strip()
    assert digest_of(candidate) == digest_of(written)
    assert world.version_tags("carried") == []
    reference = world.build_py("publish", "carried", "--from", "oci:layout").ok().out.strip()
    assert digest_of(reference) == digest_of(written)
    assert world.version_tags("carried") == ["1.0.0"]
    assert world.hub.requests() == []
    direct = world.build_py("publish", "carried").ok().out.strip()
    assert direct == reference, "the direct way makes the same image"
    assert json.loads((world.folder / "reports/carried/1.0.0.json").read_text())["passed"] is True


# --- plan ---------------------------------------------------------------------------------------------------


def plan_of(world: World, name: str = "tiny") -> dict[str, Any]:
    (document,) = json.loads(world.build_py("plan", name, "--json").ok().out)
    assert isinstance(document, dict)
    return document


def test_plan_before_anything_is_there(world: World) -> None:
    world.repo("acme/tiny")
    world.models(tiny={})
    world.run("lock")
    world.hub.reset_log()
    planned = plan_of(world)
    size = sum(map(len, TINY.values()))
    assert (planned["files"], planned["weight_bytes"], planned["download_bytes"]) == (4, size, size)
    assert [layer["stored"] for layer in planned["layers"]] == [False] * 3
    assert size < planned["upload_bytes"] < 1.001 * size
    assert planned["runtime"]["stored"] is False
    assert planned["layer_order"] is planned["previous"] is None
    assert "not in the registry yet" in world.build_py("plan", "tiny", DOCKER_HOST=NOWHERE).ok().out
    assert world.hub.requests() == []
    assert world.tags() == [], "nothing is changed"


def test_plan_of_what_is_there_and_of_the_next_version(released: Released, tmp_path: Path) -> None:
    world = released.copy(tmp_path)
    planned = plan_of(world)
    manifest = manifest_of(world, released.reference)
    assert all(layer["stored"] for layer in planned["layers"])
    assert planned["download_bytes"] == 0
    assert planned["upload_bytes"] < 100_000
    assert planned["image_layers"] == len(manifest["layers"])
    assert planned["layer_order"] == "weights-first"
    assert planned["released"] == {"digest": digest_of(released.reference), "is_this": True}
    marked = [layer for layer in manifest["layers"] if GROUP in layer.get("annotations", {})]
    assert [layer["bytes"] for layer in planned["layers"]] == [layer["size"] for layer in marked]
    runtime = planned["runtime"]["bytes"]
    assert runtime == sum(layer["size"] for layer in manifest["layers"][3:-1])
    assert planned["orders"]["weights-first"]["runtime_patched"] == runtime
    assert planned["needs"]["disk_bytes"] == 0

    shard = os.urandom(66 << 20)
    world.repo("acme/next", {**TINY, "model-00002-of-00002.safetensors": shard})
    world.models(tiny={"source": "hf://acme/next", "version": "1.1.0"})
    world.run("lock")
    world.hub.reset_log()
    planned = plan_of(world)
    assert planned["released"] is None
    assert planned["download_bytes"] == len(shard)
    assert planned["previous"]["version"] == "1.0.0"
    assert len(shard) < planned["previous"]["containerd_bytes"] < 1.001 * len(shard)
    assert planned["previous"]["classic_bytes"] > len(shard) + runtime
    said = world.build_py("plan", "tiny").ok().out
    assert "a host with 1.0.0 pulls" in said
    assert "to publish" in said
    assert "stored" in said
    assert world.hub.requests() == []
    assert "1.1.0" not in world.version_tags(), "nothing is changed"

    world.models(tiny={"source": "hf://acme/next"})
    world.run("lock")
    assert plan_of(world)["released"] == {"digest": digest_of(released.reference), "is_this": False}
    assert "another image: raise `version`" in world.build_py("plan", "tiny").ok().out


def test_a_model_that_cannot_be_planned_does_not_hide_the_others(released: Released, tmp_path: Path) -> None:
    world = released.copy(tmp_path)
    world.models(other={"source": "hf://acme/other"}, tiny={})
    ran = world.build_py("plan", "--all", "--json")
    assert ran.code and [each["model"] for each in json.loads(ran.out)] == ["tiny"]
    assert "other: " in ran.err and "1 of 2 models failed" in ran.err


# --- a remembered layer that lies ---------------------------------------------------------------------------


@pytest.mark.parametrize("verify", ["full", "off"])
def test_a_remembered_layer_with_other_bytes_never_gets_a_version(world: World, verify: str) -> None:
    """Its tar is as it has to be: only the smoke run can find out, and a person has to know where."""
    world.repo("acme/tiny", SMALL)
    world.models(tiny={"verify": verify})
    world.run("lock")
    locked = json.loads((world.folder / "models.lock").read_text())["models"]["tiny"]["files"]
    group = WeightGroup(tuple(LockedFile(each["path"], each["size"], each["sha256"]) for each in locked))
    forged = b"".join(
        segment.literal if segment.literal is not None else b"\4" * segment.size
        for segment in WeightLayer(group).segments
    )
    services = world.services
    credentials = RegistryCredentials(services.registry_user, Secret(services.password))
    with Registry(services.registry, credentials) as registry:
        weights = RegistryRepository(registry, f"{world.namespace}/weights")
        blob = replace(weights.put(forged, TAR), media_type=TAR)
        config, manifest = data_image(
            (StoredLayer(group, blob, blob.digest),), None, {"architecture": "amd64", "os": "linux"}
        )
        weights.put(config, OCI_CONFIG)
        weights.put_manifest(group_tag(group, "none"), manifest)
    ran = world.build_py("publish", "tiny")
    assert ran.code == NotReady.exit_code, ran.err
    assert f"{world.namespace}/weights remembers has other bytes" in ran.err
    assert f"delete its tag {group_tag(group, 'none')}" in ran.err and "no-cache" not in ran.err
    assert world.version_tags() == []


# --- the token ----------------------------------------------------------------------------------------------


@pytest.mark.promise("token-leak")
def test_the_token_is_found_nowhere(world: World, registry: TestRegistry) -> None:
    """Not in what the registry keeps, a layout, or what is said; test_canary.py has more controls."""
    needle, began = world.token.encode(), time.time() - 1
    world.repo("acme/tiny", {**SMALL, "model.safetensors": os.urandom(300_000)})
    world.models(tiny={})
    said = ""
    for log_format, *arguments in (
        ["text", "lock"],
        ["json", "lock"],
        ["text", "plan", "tiny", "--json"],
        ["json", "publish", "tiny", "--output", "oci:layout"],
        ["text", "publish", "tiny", "--candidate"],
        ["json", "publish", "tiny", "--from", "oci:layout"],
        ["text", "publish", "tiny"],
        ["json", "plan", "tiny"],
    ):
        ran = world.build_py(*arguments, "--log-format", log_format).ok()
        said += ran.out + ran.err
    assert not found_in_bytes(needle, said.encode())
    assert not found_in_bytes(world.services.password.encode(), said.encode())
    assert [path.name for path in found_in_files(needle, world.folder)] == ["hub.token"]
    assert found_in_files(needle, world.services.storage, began) == []
    for place in (world.services.storage, world.folder / "layout"):
        found = found_in_files(b"modelbake weights /models/", place, began)
        assert found, "control: configurations and their history are read"
    for name in ("tiny", "weights"):
        for tag in world.services.tags(f"{world.namespace}/{name}"):
            for manifest in manifests_of(world, name, tag):
                # Of an image the configuration is read, of a report all of it.
                blobs = [manifest["config"], *(manifest["layers"] if "subject" in manifest else ())]
                paths = [f"{world.namespace}/{name}/blobs/{blob['digest']}" for blob in blobs]
                content = b"".join(world.services.registry_get(path).content for path in paths)
                assert not found_in_bytes(needle, content + json.dumps(manifest).encode())
    assert not world.hub.token_leaks()
