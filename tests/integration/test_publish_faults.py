"""The stream lane in trouble: whatever breaks, nothing wrong is committed and no version tag is written.

The hub, the registry and the engine are real; a proxy before the registry breaks what a test tells it to.
What counts as true is read from the registry directly, past the proxy.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from modelbake import plan as plans
from modelbake import registryhttp
from modelbake.config import ModelSpec
from modelbake.credentials import Secret
from modelbake.dockerconfig import RegistryCredentials
from modelbake.errors import (
    ModelbakeError,
    ReadBackMismatch,
    RegistryAuthError,
    RegistryError,
    RegistryUnavailable,
)
from modelbake.lock import LockedFile, LockedModel
from modelbake.manifest import Manifest
from modelbake.output import Output
from modelbake.registry import Registry
from modelbake.sources import reading
from modelbake.sources.hub_read import HubReader
from modelbake.sources.patience import Patience
from modelbake.stream.lane import Lane
from modelbake.stream.publish import WeightsSpec, ensure_layers
from modelbake.stream.repository import RegistryRepository
from modelbake.stream.view import TransferView
from modelbake.versiontag import VersionTag
from modelbake.workspace import Workspace
from tests.conftest import Tally
from tests.integration.conftest import TestRegistry
from tests.integration.truth import KINDS, require_truth
from tests.integration.world import TINY, BehindProxy, Services, World
from tests.promises import cases, full
from tests.servers.environment import ROOT, run_script, shell_exports
from tests.servers.hub import Fault, Hub, Repo
from tests.servers.registry_proxy import Action
from tests.servers.registry_streaming import StreamingProxy

pytestmark = pytest.mark.engine

SMALL = {
    "config.json": b'{"kind": "tiny"}\n',
    "model.safetensors": random.Random(1).randbytes(300_000),
    "tokenizer/vocab.txt": b"a\nb\n",
}
FOREVER = 1_000_000
OURS = "modelbake"
EAGER = Patience(first_wait=0.01)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses between attempts are tested elsewhere."""
    monkeypatch.setattr(registryhttp, "_FIRST_WAIT", 0.0)


@pytest.fixture(scope="module")
def disk_services(services: Services) -> Iterator[Services]:
    """The services with a registry of this module's own, into whose folder the tests look."""
    name = "pubfaults"
    yield services.with_registry(shell_exports("registry", "up", "--name", name))
    run_script("registry", "down", "--name", name, "--purge")


@pytest.fixture(scope="module")
def proxy(disk_services: Services) -> Iterator[StreamingProxy]:
    with StreamingProxy(disk_services.registry) as running:
        yield running


# --- layers alone: the hub's connection, the registry's connection, cut at random ---------------------------


@dataclass
class Layers:
    """The weights of one lock, in layers small enough to be cut fifty times."""

    hub: Hub
    token: str
    locked: LockedModel
    registry: TestRegistry
    namespace: str

    def spec(self, compression: str = "none") -> WeightsSpec:
        return WeightsSpec(self.locked, plans.group_files(self.locked.files), compression, "amd64")

    def ensure(self, host: str, name: str, compression: str = "none", *, jobs: int = 4) -> list[str]:
        """Bring all layers to a repository of their own; return their digests."""
        credentials = RegistryCredentials(self.registry.user, self.registry.password)
        with Registry(host, credentials) as connected:
            made = ensure_layers(
                self.spec(compression),
                RegistryRepository(connected, f"{self.namespace}/{name}/weights"),
                self._reader,
                TransferView(Output(stderr=io.StringIO())),
                jobs=jobs,
            )
        return [layer.blob.digest for layer in made]

    def _reader(self, stop: threading.Event) -> HubReader:
        return HubReader(self.locked, Secret(self.token), patience=EAGER, stop=stop)


SHARDS = {
    **{f"model-{n}.safetensors": random.Random(n).randbytes(200_000 + 100_000 * n) for n in range(1, 4)},
    "config.json": b"{}",
    "tokenizer/deep/vocab.txt": b"a\nb\n",
}


@pytest.fixture(scope="module")
def hub_of_shards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, str, LockedModel]]:
    token, root = f"hf_{secrets.token_hex(17)}", tmp_path_factory.mktemp("shards")
    with Hub(root, {token: None}) as hub:
        commit = Repo.create(root, "acme/shards", SHARDS).head
        spec = ModelSpec(
            name="shards", version="1.0.0", source="hf://acme/shards", runtime="tiny", hub=hub.url
        )
        files = [LockedFile(p, len(c), hashlib.sha256(c).hexdigest()) for p, c in SHARDS.items()]
        yield hub, token, LockedModel.of(spec, commit.id, files)


@pytest.fixture(scope="module")
def quick_registry() -> Iterator[TestRegistry]:
    """A registry that waits for no disk: hundreds of layers are committed here."""
    exports = shell_exports("registry", "up", "--name", "ram", "--memory")
    password = Path(exports["MODELBAKE_REGISTRY_PASSWORD_FILE"]).read_text().strip()
    yield TestRegistry(exports["MODELBAKE_REGISTRY"], exports["MODELBAKE_REGISTRY_USER"], Secret(password))
    run_script("registry", "down", "--name", "ram", "--purge")


@pytest.fixture
def layers(
    hub_of_shards: tuple[Hub, str, LockedModel],
    quick_registry: TestRegistry,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Layers]:
    monkeypatch.setattr(plans, "OWN_GROUP_BYTES", 100_000)
    monkeypatch.setattr(reading, "_PIECE", 1 << 14)  # what of a piece has come is read again
    hub, token, locked = hub_of_shards
    hub.faults.clear()
    hub.reset_log()
    yield Layers(hub, token, locked, quick_registry, f"t{secrets.token_hex(4)}")
    hub.faults.clear()


_known: dict[str, list[str]] = {}


def reference(layers: Layers, compression: str = "none") -> list[str]:
    """The digests of a run without trouble; what is in these layers has been looked at."""
    if compression not in _known:
        digests = layers.ensure(layers.registry.host, f"reference-{compression}", compression)
        if compression == "none":
            credentials = RegistryCredentials(layers.registry.user, layers.registry.password)
            found = {}
            with Registry(layers.registry.host, credentials) as connected:
                for digest in digests:
                    path = f"{layers.namespace}/reference-{compression}/weights"
                    blob = b"".join(connected.read_blob(path, digest))
                    assert f"sha256:{hashlib.sha256(blob).hexdigest()}" == digest
                    with tarfile.open(fileobj=io.BytesIO(blob)) as archive:
                        for member in archive:
                            if file := archive.extractfile(member):
                                found[member.name] = file.read()
            assert found == {f"models/{path}": content for path, content in SHARDS.items()}
        _known[compression] = digests
        layers.hub.reset_log()
    return _known[compression]


@pytest.mark.promise("resume", "wrong-bytes")
@pytest.mark.parametrize("seed", range(cases(5, 50)))
def test_a_hub_connection_that_is_cut_is_continued(layers: Layers, seed: int) -> None:
    compression = "zstd" if seed % 5 == 4 else "none"
    expected = reference(layers, compression)
    chance = random.Random(seed)
    cuts = 0
    for path, content in SHARDS.items():
        for _ in range(chance.randint(1, 2) if len(content) > 1000 else 0):
            where = chance.randrange(len(content))
            kind = chance.choice(["drop", "truncate"])
            fault = Fault("drop", path, count=1, offset=where)
            if kind == "truncate":
                fault = Fault("truncate", path, count=1, size=len(content) - where)
            layers.hub.faults.add(fault)
            cuts += 1
    digests = layers.ensure(layers.registry.host, f"seed-{seed}", compression)
    assert digests == expected
    cut = [record for record in layers.hub.requests() if record.faults]
    assert cut, "control: something was cut"
    assert any(record.range for record in layers.hub.requests()), "and continued, not begun anew"
    assert not layers.hub.token_leaks()


@pytest.mark.promise("resume", "wrong-bytes")
@pytest.mark.parametrize("seed", range(cases(1, 5)))
def test_a_hub_that_knows_no_ranges_is_begun_anew(
    layers: Layers, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = reference(layers)
    for site in layers.hub._sites:
        monkeypatch.setattr(site, "ranges", False)
    chance = random.Random(100 + seed)
    layers.hub.faults.add(
        *(
            Fault("drop", path, count=1, offset=chance.randrange(len(content)))
            for path, content in SHARDS.items()
            if len(content) > 1000
        )
    )
    assert layers.ensure(layers.registry.host, f"whole-{seed}") == expected


@pytest.mark.promise("resume", "wrong-bytes")
@pytest.mark.parametrize("seed", range(cases(2, 10)))
@pytest.mark.parametrize("keeps", [True, False], ids=["uploads are kept", "docker-registry"])
def test_an_upload_that_is_cut(layers: Layers, seed: int, keeps: bool) -> None:
    """Where the registry knows how far an upload came it goes on there; else it begins anew."""
    expected = reference(layers)
    chance = random.Random(200 + seed)
    sizes = [sum(file.size for file in group.files) for group in layers.spec().groups]
    with StreamingProxy(layers.registry.host, keeps_uploads=keeps) as proxy:
        # Late, so that whoever begins anew sends twice as much.
        for nth in range(1, 4):
            proxy.fail("PATCH", "/uploads/", f"cut {chance.randrange(200_000, 290_000)}", nth=nth)
        assert layers.ensure(proxy.address, f"cut-{int(keeps)}-{seed}") == expected
        assert sum(fault.fired for fault in proxy.faults) == 3, "control: each was cut"
        sent = sum(proxy.received.values())
        if keeps:
            assert sent < 1.1 * sum(sizes), "nothing that had arrived was sent again"
            assert proxy.uploads == {}
        else:
            assert sent > 1.3 * sum(sizes), "control: docker-registry gives an upload up"
    for record in layers.hub.requests_for("*.safetensors", host="cdn", method="GET"):
        assert record.status in (200, 206)


@pytest.mark.parametrize("status", [404, 416])
def test_an_upload_that_is_not_known_any_more_is_begun_anew(layers: Layers, status: int) -> None:
    """A registry that has noticed the cut late answers so to what its own status has invited."""
    expected = reference(layers)
    with StreamingProxy(layers.registry.host, keeps_uploads=True) as proxy:
        proxy.fail("PATCH", "/uploads/", "cut 100000")
        fault = proxy.fail("PATCH", "/uploads/", status, nth=2)
        assert layers.ensure(proxy.address, f"gone-{status}", jobs=1) == expected
        assert fault.fired


@pytest.mark.promise("resume", "wrong-bytes")
def test_hub_and_registry_are_cut_at_once(layers: Layers) -> None:
    expected = reference(layers)
    for seed in range(cases(2, 5)):
        chance = random.Random(300 + seed)
        with StreamingProxy(layers.registry.host, keeps_uploads=bool(seed % 2)) as proxy:
            for nth in (1, 2, 4):
                proxy.fail("PATCH", "/uploads/", f"cut {chance.randrange(1, 290_000)}", nth=nth)
            for path in ("model-1*", "model-2*", "model-3*"):
                layers.hub.faults.add(Fault("drop", path, count=2, offset=chance.randrange(1, 290_000)))
            assert layers.ensure(proxy.address, f"both-{seed}") == expected


@pytest.mark.promise("wrong-bytes")
def test_a_flipped_bit_at_the_registry_is_not_committed(layers: Layers) -> None:
    """The bytes are right when they leave, and wrong when they arrive: the registry compares the digest."""
    expected = reference(layers)
    with StreamingProxy(layers.registry.host, keeps_uploads=True) as proxy:

        def flip(method: str, path: str) -> None:
            if method == "PUT":
                for upload in proxy.uploads.values():
                    if len(upload.held) > 100_000:
                        upload.held[50_000] ^= 1

        proxy.before = flip
        with pytest.raises(RegistryError):
            layers.ensure(proxy.address, "flipped")
        proxy.before = None
        assert layers.ensure(proxy.address, "flipped") == expected


# --- whole publishes in this process: every request to the registry fails -----------------------------------


@dataclass
class Published:
    """A small model that was published once without trouble; its engine image and report are kept."""

    world: World
    proxy: StreamingProxy
    reference: str

    @property
    def digest(self) -> str:
        return self.reference.rpartition("@")[2]

    def __call__(self, *, candidate_only: bool = False) -> str:
        return publish(self.world, candidate_only=candidate_only)

    def tag(self) -> str | None:
        """The digest under the version tag, as the registry itself says."""
        services, path = self.world.services, f"{self.world.namespace}/tiny"
        if services.registry_get(f"{path}/manifests/1.0.0").status_code == 404:
            return None
        return str(services.manifest(path, "1.0.0")["digest"])

    def require_whole(self, reference: str) -> None:
        """Nothing that a success promises is missing or wrong; the registry is asked past the proxy."""
        services, path = self.world.services, f"{self.world.namespace}/tiny"
        assert reference == self.reference
        assert self.tag() == self.digest
        manifest = services.manifest(path, self.digest)
        for blob in (manifest["config"], *manifest["layers"]):
            if blob["size"] < 1_000_000:  # the runtime's are the ones that the engine has pulled
                content = services.registry_get(f"{path}/blobs/{blob['digest']}").content
                assert f"sha256:{hashlib.sha256(content).hexdigest()}" == blob["digest"]
            folder = services.repository_folder(path) / "_layers/sha256" / blob["digest"][7:]
            assert folder.exists(), "every blob is one of this repository"
            assert services.has_blob(blob["digest"])

    def forget(self) -> None:
        """Take away all but the runtime, as if nothing had been published yet."""
        self.proxy.forget()
        self.proxy.mounts, self.proxy.keeps_uploads = True, False
        for name in ("tiny", "weights"):
            shutil.rmtree(
                self.world.services.repository_folder(f"{self.world.namespace}/{name}"), ignore_errors=True
            )

    def unfinished(self) -> list[Path]:
        return unfinished(self.world)


def publish(world: World, *, candidate_only: bool = False) -> str:
    workspace = Workspace(file=world.folder / "models.yaml", images=world.images)
    (spec,) = workspace.config.select(["tiny"], all=False)
    output = Output(stdout=io.StringIO(), stderr=io.StringIO())
    secrets_of_builds = {"hf_token": Secret(world.token)}
    plan = workspace.plan(spec)
    with Lane(workspace, plan, secrets=secrets_of_builds, output=output, jobs=4) as lane:
        return lane.publish(candidate_only=candidate_only)


def unfinished(world: World) -> list[Path]:
    """The upload sessions that the registry still keeps for this world.

    Of those that were cancelled or committed, docker-registry itself leaves a folder `hashstates`.
    """
    root = world.services.repository_folder(world.namespace)
    return sorted(path.parent for path in root.glob("**/_uploads/*/startedat"))


@pytest.fixture(scope="module")
def module_world(
    services: Services,
    disk_services: Services,
    proxy: StreamingProxy,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[World]:
    token, folder = f"hf_{secrets.token_hex(17)}", tmp_path_factory.mktemp("faults")
    with Hub(folder / "hub", {token: None}, host=services.bridge) as hub:
        world = World(BehindProxy.of(disk_services, proxy.address), folder, hub, token)
        world.login(services)
        world.repo("acme/tiny", SMALL)
        world.models(tiny={})
        yield world
        proxy.forget()
        world.remove_images()


@pytest.fixture(scope="module")
def published_once(module_world: World, proxy: StreamingProxy) -> Published:
    module_world.run("lock")
    return Published(module_world, proxy, module_world.run("publish").out.strip())


@pytest.fixture
def published(published_once: Published, monkeypatch: pytest.MonkeyPatch) -> Iterator[Published]:
    for name, value in published_once.world.environment.items():
        monkeypatch.setenv(name, value)
    published_once.world.hub.faults.clear()
    published_once.forget()
    yield published_once
    published_once.forget()


# (method, path, which of these requests). In the order in which a first publish makes them; the very first
# one is sent twice, without credentials and with them.
BEFORE_THE_TAG = {
    "is the version free": ("GET", r"/tiny/manifests/1\.0\.0$", 2),
    "find the runtime": ("GET", r"/runtimes/manifests/", 1),
    "read its configuration": ("GET", r"/runtimes/blobs/", 1),
    "are the weights remembered": ("GET", r"/weights/manifests/weights-", 1),
    "is the layer remembered": ("GET", r"/weights/manifests/group-", 1),
    "begin an upload": ("POST", r"/weights/blobs/uploads/", 1),
    "send": ("PATCH", r"/weights/blobs/uploads/", 1),
    "commit": ("PUT", r"/weights/blobs/uploads/", 1),
    "is the layer there": ("HEAD", r"/weights/blobs/", 1),
    "commit a configuration": ("PUT", r"/weights/blobs/uploads/", 2),
    "remember the layer": ("PUT", r"/weights/manifests/group-", 1),
    "read that back": ("GET", r"/weights/manifests/group-", 2),
    "remember the weights": ("PUT", r"/weights/manifests/weights-", 1),
    "mount": ("POST", r"/tiny/blobs/uploads/\?mount=", 1),
    "is the model layer there": ("HEAD", r"/tiny/blobs/", 1),
    "put the candidate": ("PUT", r"/tiny/manifests/candidate-", 1),
    "read the candidate back": ("GET", r"/tiny/manifests/candidate-", 1),
    "is the version still free": ("GET", r"/tiny/manifests/1\.0\.0$", 3),
    "put the tag": ("PUT", r"/tiny/manifests/1\.0\.0$", 1),
}
READ_BACK = ("GET", r"/tiny/manifests/1\.0\.0$", 4)
LASTING: tuple[Action, ...] = (401, 403, 429, 500, "reset", "garbage")
# Two kinds of trouble are tried at every step, all kinds at these.
THOROUGHLY = (
    "read its configuration",
    "send",
    "commit",
    "mount",
    "put the candidate",
    "put the tag",
)


def pairs(
    steps: Iterable[str], everywhere: Sequence[Action], also: Sequence[Action]
) -> list[tuple[str, Action]]:
    """The pairs of step and action that are tried; in a quick run one action a step, each somewhere."""
    names, every = list(steps), (*everywhere, *also)
    if not full():
        return [(step, every[number % len(every)]) for number, step in enumerate(names)]
    return [
        (step, action) for step in names for action in (*everywhere, *(also if step in THOROUGHLY else ()))
    ]


@pytest.mark.promise("false-success", "tags")
@pytest.mark.parametrize(
    ("step", "action"), pairs(BEFORE_THE_TAG, (403, 500), (401, 429, "reset", "garbage"))
)
def test_a_lasting_fault_is_no_success_and_leaves_no_version_tag(
    published: Published, step: str, action: Action
) -> None:
    method, path, nth = BEFORE_THE_TAG[step]
    fault = published.proxy.fail(method, path, action, nth=nth, times=FOREVER, agent=OURS)
    expected = RegistryAuthError if action in (401, 403) else RegistryUnavailable
    with pytest.raises(expected):
        published()
    assert fault.fired
    assert published.tag() is None


@pytest.mark.promise("false-success", "tags")
@pytest.mark.parametrize(
    ("step", "action"),
    pairs([*BEFORE_THE_TAG, "read the tag back"], (500, "lose"), (401, 429, "reset", "garbage")),
)
def test_a_passing_fault_is_survived_or_said(published: Published, step: str, action: Action) -> None:
    """One failure passes, but for a 401 in the middle: whoever is told so has to log in again."""
    method, path, nth = BEFORE_THE_TAG.get(step, READ_BACK)
    fault = published.proxy.fail(method, path, action, nth=nth, agent=OURS)
    try:
        reference = published()
    except RegistryAuthError:
        assert action == 401
        assert published.tag() is None
        reference = published()
    assert fault.fired == 1
    published.require_whole(reference)
    if action != "lose":  # what answers nothing gives no address to cancel it at
        assert published.unfinished() == []


@pytest.mark.promise("false-success", "tags")
@pytest.mark.parametrize("action", LASTING[:: cases(3, 1)])
def test_a_tag_that_cannot_be_read_back_is_said_to_be_uncertain(published: Published, action: Action) -> None:
    method, path, nth = READ_BACK
    published.proxy.fail(method, path, action, nth=nth, times=FOREVER, agent=OURS)
    with pytest.raises(RegistryError, match="was sent, but could not be read back"):
        published()
    assert published.tag() == published.digest, "it is there, and right; only nobody could say so"
    published.proxy.forget()
    published.require_whole(published())


@pytest.mark.promise("false-success", "tags")
@pytest.mark.parametrize("step", ["send", "commit", "remember the layer", "put the candidate", "put the tag"])
def test_answers_that_are_always_lost(published: Published, step: str) -> None:
    method, path, nth = BEFORE_THE_TAG[step]
    fault = published.proxy.fail(method, path, "lose", nth=nth, times=FOREVER, agent=OURS)
    try:
        published.require_whole(published())
    except RegistryError:
        assert step != "put the tag", "it is found out that the tag is there"
        assert published.tag() is None
    assert fault.fired
    published.proxy.forget()
    published.require_whole(published())


@pytest.mark.parametrize("step", ["send", "commit a configuration"])
def test_a_body_that_is_cut_in_the_middle(published: Published, step: str) -> None:
    nth = 1 if step == "send" else 2
    fault = published.proxy.fail("PATCH", r"/weights/blobs/uploads/", "cut 100", nth=nth, agent=OURS)
    published.require_whole(published())
    assert fault.fired == 1


@pytest.mark.promise("false-success", "tags")
def test_a_body_that_is_cut_again_and_again_is_given_up(published: Published) -> None:
    published.proxy.fail("PATCH", r"/weights/blobs/uploads/", "cut 100", times=FOREVER, agent=OURS)
    with pytest.raises(RegistryUnavailable, match="again and again"):
        published()
    assert published.tag() is None


@pytest.mark.promise("false-success", "tags")
@pytest.mark.parametrize("step", ["read that back", "read the candidate back", "read the tag back"])
def test_a_manifest_that_changes_on_its_way_back(published: Published, step: str) -> None:
    method, path, nth = BEFORE_THE_TAG.get(step, READ_BACK)
    published.proxy.fail(method, path, lambda body: body + b"\n", nth=nth, times=FOREVER, agent=OURS)
    with pytest.raises(RegistryError):
        published()
    if step != "read the tag back":
        assert published.tag() is None


def test_a_registry_that_mounts_nothing_gets_copies(published: Published) -> None:
    published.proxy.mounts = False
    published.require_whole(published())
    assert published.proxy.received[f"{published.world.namespace}/tiny"] > 300_000
    assert published.unfinished() == []


@pytest.mark.promise("tags")
def test_a_tag_that_somebody_takes_meanwhile_is_left_to_them(published: Published) -> None:
    world = published.world
    path = f"{world.namespace}/tiny"
    published(candidate_only=True)
    theirs = world.services.manifest(f"{world.namespace}/weights", weights_tag_of(world))["digest"]
    published.forget()

    def take(method: str, seen: str) -> None:
        if method == "PUT" and "/manifests/candidate-" in seen:
            published.proxy.before = None
            credentials = RegistryCredentials(world.services.registry_user, Secret(world.services.password))
            with Registry(published.proxy.upstream, credentials) as direct:
                weights = direct.manifest(f"{world.namespace}/weights", theirs)
                assert weights is not None
                source = world.services.repository_folder(f"{world.namespace}/weights")
                shutil.copytree(
                    source / "_layers", world.services.repository_folder(path) / "_layers", dirs_exist_ok=True
                )
                direct.put_manifest(path, "1.0.0", weights)

    published.proxy.before = take
    with pytest.raises(ModelbakeError) as caught:
        published()
    assert caught.value.exit_code == 63
    assert published.tag() == theirs


def weights_tag_of(world: World) -> str:
    (tag,) = [t for t in world.services.tags(f"{world.namespace}/weights") if t.startswith("weights-")]
    return tag


# --- any fault at any request ------------------------------------------------------------------------------


def attempt(published: Published) -> tuple[str | None, ModelbakeError | None]:
    try:
        return published().rpartition("@")[2], None
    except ModelbakeError as error:
        return None, error


def require_true_publish(published: Published, claimed: str | None, error: ModelbakeError | None) -> None:
    require_truth(claimed, error, published.tag(), right=lambda digest: digest == published.digest)


@pytest.mark.promise("false-success", "tags")
def test_any_fault_at_any_request(
    published: Published, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also at those that remember layers and keep the report."""
    defaults = registryhttp.RegistryConnection.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "timeout", 1.0)
    published()
    requests = len(published.proxy.seen)
    for seed in range(cases(2, 60)):
        chance = random.Random(seed)
        nth, action, times = (
            1 + chance.randrange(requests),
            chance.choice(KINDS),
            chance.choice([1, 4, FOREVER]),
        )
        published.forget()
        published.proxy.fail(".*", "", action, nth=nth, times=times)
        claimed, error = attempt(published)
        published.proxy.forget()
        try:
            require_true_publish(published, claimed, error)
            claimed, error = attempt(published)
            assert claimed is not None, error
            published.require_whole(f"{published.reference.rpartition('@')[0]}@{claimed}")
        except AssertionError as wrong:
            raise AssertionError(f"seed {seed}: {action} at request {nth}, {times} times: {wrong}") from wrong
        tally.count()


@pytest.mark.control("false-success")
def test_one_that_believes_a_registry_which_says_yes_is_found_out(
    published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy answers 201 to the tag, and the registry never sees it; the same without reading back."""
    published.proxy.fail("PUT", r"/tiny/manifests/1\.0\.0$", 201, times=FOREVER, agent=OURS)
    claimed, error = attempt(published)
    assert claimed is None, "what is read back is not there"
    require_true_publish(published, claimed, error)

    def naive(tag: VersionTag, manifest: Manifest) -> Manifest:
        tag.registry.put_manifest(tag.path, tag.version, manifest)
        return manifest

    monkeypatch.setattr(VersionTag, "put", naive)
    claimed, error = attempt(published)
    assert claimed == published.digest
    with pytest.raises(AssertionError, match="a false success"):
        require_true_publish(published, claimed, error)


@pytest.mark.control("tags")
def test_one_that_tags_before_it_has_looked_is_found_out(
    published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    def naive(tag: VersionTag, manifest: Manifest) -> Manifest:
        tag.registry.put_manifest(tag.path, tag.version, manifest)
        raise ReadBackMismatch("a layer is missing", subject=tag.name)

    monkeypatch.setattr(VersionTag, "put", naive)
    claimed, error = attempt(published)
    with pytest.raises(AssertionError, match="a version tag on a failure"):
        require_true_publish(published, claimed, error)


# --- the program, killed and interrupted --------------------------------------------------------------------


def start(world: World, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "build.py"), *arguments, "--images", str(world.images)]
    return subprocess.Popen(
        command,
        cwd=world.folder,
        env=world.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests may ignore it; the program inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.fixture
def large(published_once: Published, tmp_path: Path) -> Iterator[World]:
    """The module's world, runtime and all, with a model of two large layers and a small one."""
    source = published_once.world
    published_once.forget()
    world = replace(source, folder=tmp_path)
    name = f"acme/large{secrets.token_hex(4)}"
    Repo.create(source.hub.root, name, TINY)
    world.models(tiny={"source": f"hf://{name}"})
    world.run("lock")
    world.hub.reset_log()
    yield world
    published_once.forget()


def layer_digests(world: World, reference: str) -> list[str]:
    manifest = world.services.manifest(f"{world.namespace}/tiny", reference.rpartition("@")[2])
    marked = [layer for layer in manifest["layers"] if "io.modelbake.group" in layer.get("annotations", {})]
    return [layer["digest"] for layer in marked]


def when_bytes(proxy: StreamingProxy, count: int, act: Callable[[], object]) -> None:
    """Do something once, when so many bytes of bodies have arrived at the registry."""
    done = threading.Event()

    def look(total: int) -> None:
        if total >= count and not done.is_set():
            done.set()
            act()

    proxy.on_bytes = look


@pytest.mark.promise("resume", "tags", "crash")
def test_killed_at_random_moments_and_run_again(large: World, proxy: StreamingProxy, tally: Tally) -> None:
    """Each run goes on where the one before was killed; what is finished is not read again."""
    expected = layer_digests(large, large.build_py("publish", "tiny", "--candidate").ok().out.strip())
    assert len(expected) == 3
    total = sum(map(len, TINY.values()))
    chance = random.Random(7)
    groups = {
        group.digest: [file.path for file in group.files]
        for group in Workspace(file=large.folder / "models.yaml", images=large.images)
        .plan(Workspace(file=large.folder / "models.yaml", images=large.images).config.models["tiny"])
        .groups
    }
    kills = finished_before = 0
    rounds = cases(4, 12)
    for round_ in range(rounds):
        if round_ % 2 == 0:
            for name in ("tiny", "weights"):
                shutil.rmtree(large.services.repository_folder(f"{large.namespace}/{name}"))
        proxy.forget()
        jobs = str(chance.choice([1, 3]))
        run = start(large, "publish", "tiny", "--candidate", "--jobs", jobs)
        # Odd rounds go on after a kill, with about one layer less to send.
        when_bytes(proxy, int(total * chance.uniform(0.02, 0.95 if round_ % 2 == 0 else 0.45)), run.kill)
        run.communicate()
        proxy.on_bytes = None
        kills += run.returncode == -signal.SIGKILL
        assert large.version_tags() == []
        if round_ % 2 == 0:
            continue
        finished = [
            path
            for tag in large.services.tags(f"{large.namespace}/weights")
            for path in groups.get(tag.removeprefix("group-"), [])
        ]
        finished_before += len(finished)
        large.hub.reset_log()
        again = large.build_py("publish", "tiny", "--candidate").ok()
        assert layer_digests(large, again.out.strip()) == expected
        for path in finished:
            assert large.hub.requests_for(path) == [], "a finished layer is not read again"
        assert large.version_tags() == []
    tally.count(kills)
    assert kills >= rounds * 3 // 4, "control: most of the runs were killed"
    assert finished_before, "control: some layers were finished before a kill"


@pytest.mark.promise("interrupt")
@pytest.mark.parametrize("share", [0.1, 0.6])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_in_the_middle(
    large: World, proxy: StreamingProxy, number: signal.Signals, share: float
) -> None:
    total = sum(map(len, TINY.values()))
    # docker-registry forgets how to cancel an upload in whose middle its client goes away.
    proxy.keeps_uploads = True
    run = start(large, "publish", "tiny")
    when_bytes(proxy, int(total * share), lambda: run.send_signal(number))
    said = run.communicate()[1]
    proxy.on_bytes = None
    assert run.returncode == 130, said
    assert "Traceback" not in said
    assert large.tags() == [], "no candidate, no version"
    assert (unfinished(large), proxy.uploads) == ([], {}), "the upload sessions were cancelled"
    again = large.build_py("publish", "tiny", "--candidate").ok()
    assert len(layer_digests(large, again.out.strip())) == 3


@pytest.mark.promise("wrong-bytes")
@pytest.mark.parametrize(
    ("path", "offset"), [("model.safetensors", 0), ("model.safetensors", -1), ("config.json", 5)]
)
def test_a_flipped_bit_is_never_committed(
    published_once: Published, tmp_path: Path, path: str, offset: int
) -> None:
    source = published_once.world
    published_once.forget()
    published_once.proxy.keeps_uploads = True
    world = replace(source, folder=tmp_path)
    content = {**SMALL, "model.safetensors": os.urandom(300_000)}
    name = f"acme/flipped{secrets.token_hex(4)}"
    Repo.create(source.hub.root, name, content)
    world.models(tiny={"source": f"hf://{name}"})
    world.run("lock")
    world.hub.faults.clear()
    world.hub.faults.add(Fault("corrupt", path, offset=offset))
    ran = world.build_py("publish", "tiny")
    world.hub.faults.clear()
    assert ran.code == 27, ran.err
    assert "was not committed" in ran.err
    assert world.tags() == [], "no tag at all"
    assert world.services.tags(f"{world.namespace}/weights") == []
    assert (unfinished(world), published_once.proxy.uploads) == ([], {})
    flipped = bytearray(content[path])
    flipped[offset] ^= 1
    good = layer_digests(world, world.build_py("publish", "tiny", "--candidate").ok().out.strip())
    assert len(good) == 1
    wrong = digest_with(world, good[0], {path: bytes(flipped)})
    assert world.services.has_blob(good[0]), "control: this is how a committed layer is found"
    assert not world.services.has_blob(wrong)


def digest_with(world: World, digest: str, changed: dict[str, bytes]) -> str:
    """The digest that a layer would have with other contents of the same size."""
    blob = world.services.registry_get(f"{world.namespace}/weights/blobs/{digest}").content
    made = bytearray(blob)
    with tarfile.open(fileobj=io.BytesIO(blob)) as archive:
        for path, content in changed.items():
            member = archive.getmember(f"models/{path}")
            made[member.offset_data : member.offset_data + member.size] = content
    assert made != blob
    return f"sha256:{hashlib.sha256(made).hexdigest()}"
