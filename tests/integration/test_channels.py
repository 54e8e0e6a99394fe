"""Channels in a real registry: moved, moved back, by two at once, killed and troubled at every request."""

from __future__ import annotations

import io
import json
import random
import re
import secrets
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from modelbake import registryhttp
from modelbake.credentials import Secret
from modelbake.dockerconfig import RegistryCredentials
from modelbake.errors import ChannelMoved, ModelbakeError
from modelbake.manifest import OCI_MANIFEST, Manifest, digest_of
from modelbake.output import Output
from modelbake.registry import Registry
from modelbake.registryreply import Reply
from modelbake.registryupload import open_upload
from modelbake.release import moving
from modelbake.release.channels import Channel
from modelbake.release.entries import ChannelEntry
from modelbake.release.evidence import seen
from modelbake.release.moving import Mover
from modelbake.stream.repository import RegistryRepository
from tests.conftest import Tally
from tests.integration.conftest import TestRegistry
from tests.integration.truth import KINDS
from tests.integration.world import World
from tests.promises import cases, full
from tests.servers.environment import ROOT, run_script, shell_exports
from tests.servers.registry_proxy import Action, RegistryProxy

pytestmark = pytest.mark.engine

VERSIONS = ("1.0.0", "1.1.0", "1.2.0")
FREE = ChannelEntry()
_UNCERTAIN = ("could not be read back", "does not have it")


def put_image(repository: RegistryRepository, version: str) -> str:
    """Release a small image that an engine can pull; return its digest."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        member = tarfile.TarInfo("version")
        member.size = len(version)
        archive.addfile(member, io.BytesIO(version.encode()))
    layer = content.getvalue()
    said = {"model": "tiny", "version": version, "lock": digest_of(layer)}
    config = {
        "os": "linux",
        "architecture": "amd64",
        "config": {"Labels": {f"io.modelbake.{key}": value for key, value in said.items()}},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(layer)]},
    }
    blobs = [
        repository.put(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
        repository.put(layer, "application/vnd.oci.image.layer.v1.tar"),
    ]
    described = [{"mediaType": b.media_type, "digest": b.digest, "size": b.size} for b in blobs]
    body = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": described[0], "layers": described[1:]}
    manifest = Manifest.of(OCI_MANIFEST, json.dumps(body).encode())
    repository.put_manifest(version, manifest)
    return manifest.digest


def quiet() -> Output:
    return Output(stdout=io.StringIO(), stderr=io.StringIO())


class KilledError(BaseException):
    """Ends a run as nothing else does: no handler sees it."""


class DyingRegistry(Registry):
    """A registry whose client is killed at its nth request, before it is sent or after it was carried out."""

    nth = 0
    before = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._counter = count(1)

    def ask(self, *arguments: Any, **more: Any) -> Reply:
        here = next(self._counter) == self.nth
        if here and self.before:
            raise KilledError
        reply = super().ask(*arguments, **more)
        if here:
            raise KilledError
        return reply


@dataclass
class Released:
    """Three released versions, and a channel of theirs, in a repository that each case has anew."""

    host: str
    credentials: RegistryCredentials
    template: RegistryRepository
    digests: dict[str, str]
    direct: RegistryRepository
    _kept: dict[tuple[str, ...], dict[str, Manifest]] = field(default_factory=dict)

    def begin(self, *versions: str) -> None:
        """Take a new repository, in which the channel has been at these versions, and at nothing else."""
        registry = self.template.registry
        self.direct = RegistryRepository(registry, f"t{secrets.token_hex(6)}/tiny")
        for version, digest in self.digests.items():
            image = self.template.manifest(digest)
            assert image is not None
            for blob in (image.config, *image.layers):
                open_upload(registry, self.direct.path, mount=blob.digest, source=self.template.path)
            registry.put_manifest(self.direct.path, version, image)
        if versions not in self._kept:
            for version in versions:
                self.mover().promote(version, FREE)
            made = [tag for tag in registry.tags(self.direct.path) if tag.startswith("production")]
            found = {tag: self.direct.manifest(tag) for tag in made}
            self._kept[versions] = {tag: each for tag, each in found.items() if each}
            return
        for tag, manifest in self._kept[versions].items():
            registry.put_manifest(self.direct.path, tag, manifest)

    def mover(self, registry: Registry | None = None, who: str = "me") -> Mover:
        repository = RegistryRepository(registry or self.direct.registry, self.direct.path)
        return Mover(repository, "tiny", "production", quiet(), who)

    def state(self) -> Channel:
        """What is true, asked past everything that is in the way."""
        return seen(self.direct, "production", quiet())


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses between attempts are tested elsewhere."""
    monkeypatch.setattr(registryhttp, "_FIRST_WAIT", 0.0)


@pytest.fixture(scope="module")
def quick_registry() -> Iterator[TestRegistry]:
    """A registry that waits for no disk."""
    exports = shell_exports("registry", "up", "--name", "channels", "--memory")
    password = Path(exports["MODELBAKE_REGISTRY_PASSWORD_FILE"]).read_text().strip()
    yield TestRegistry(exports["MODELBAKE_REGISTRY"], exports["MODELBAKE_REGISTRY_USER"], Secret(password))
    run_script("registry", "down", "--name", "channels", "--purge")


@pytest.fixture(scope="module")
def released(quick_registry: TestRegistry) -> Iterator[Released]:
    credentials = RegistryCredentials(quick_registry.user, quick_registry.password)
    with Registry(quick_registry.host, credentials) as connected:
        repository = RegistryRepository(connected, f"t{secrets.token_hex(4)}/tiny")
        digests = {version: put_image(repository, version) for version in VERSIONS}
        yield Released(quick_registry.host, credentials, repository, digests, repository)


@pytest.fixture(scope="module")
def proxy(quick_registry: TestRegistry) -> Iterator[RegistryProxy]:
    with RegistryProxy(quick_registry.host) as running:
        yield running


Act = Callable[[Mover], str]


def promote(mover: Mover) -> str:
    return mover.promote("1.1.0", FREE)


def rollback(mover: Mover) -> str:
    return mover.rollback()


# What is done, the versions the channel was at before, and where it should end.
ACTS: dict[str, tuple[Act, tuple[str, ...], str]] = {
    "first promote": (promote, (), "1.1.0"),
    "promote": (promote, ("1.0.0",), "1.1.0"),
    "rollback": (rollback, ("1.1.0", "1.0.0"), "1.1.0"),
}


def step(act: str, promote: int = 1) -> int:
    """Return at every how many requests something is tried; quick runs try a promotion's most."""
    return 1 if full() else promote if act == "promote" else 6


def require_true(
    released: Released, before: tuple[str, ...], after: str, claimed: str | None, error: str
) -> None:
    """Hold a run to what the registry has; then the next promotion works."""
    state = released.state()
    now = next((version for version, digest in released.digests.items() if digest == state.digest), None)
    assert not state.by_hand
    assert now in (before[-1] if before else None, after), "neither the old nor the new state"
    if claimed is not None:
        assert claimed == released.digests[after] and now == after, "a false success"
    elif error and now == after:
        assert any(words in error for words in _UNCERTAIN), f"it failed, and the channel was moved: {error}"
    released.mover().promote("1.2.0", FREE)
    state = released.state()
    assert state.digest == released.digests["1.2.0"] and not state.by_hand and state.unfinished is None


@dataclass
class Ending:
    """Sends a signal to a program when its first PUT of a path arrives, before the registry sees that."""

    run: subprocess.Popen[str]
    number: signal.Signals
    path: str
    fired: bool = False

    def __call__(self, method: str, path: str) -> None:
        if method == "PUT" and re.search(self.path, path) and not self.fired:
            self.fired = True
            self.run.send_signal(self.number)
            time.sleep(0.1)


# --- killed at every request --------------------------------------------------------------------------------


@pytest.mark.promise("channel", "crash")
@pytest.mark.parametrize("act", ACTS)
def test_killed_at_every_request(released: Released, act: str, tally: Tally) -> None:
    """Of the process itself: no handler runs. The registry sees what it would see of `kill -9`."""
    do, before, after = ACTS[act]
    ended = False
    moments = [False, True] if full() else [act == "promote"]
    for nth in range(1, 60, step(act)):
        for early in moments:
            released.begin(*before)
            with DyingRegistry(released.host, released.credentials) as dying:
                dying.nth, dying.before = nth, early
                try:
                    do(released.mover(dying))
                except KilledError:
                    tally.count()
                else:
                    ended = True
            require_true(released, before, after, None, "")
        if ended:
            break
    assert ended and nth > 8, "control: there was a request after the other"


@pytest.mark.promise("channel", "crash", "interrupt")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_ends_in_the_middle(
    released: Released, proxy: RegistryProxy, channel_world: World, number: signal.Signals, tally: Tally
) -> None:
    """The same of `build.py` itself, at some requests that write."""
    writes = [r"-0003\.", r"-0003$", "/production$"]
    for written in writes if full() else writes[-1:]:
        released.begin("1.0.0", "1.1.0")
        channel_world.models(tiny={})
        models = json.loads((channel_world.folder / "models.yaml").read_text())
        models["registry"] = f"{proxy.address}/{released.direct.path.removesuffix('/tiny')}"
        (channel_world.folder / "models.yaml").write_text(json.dumps(models))
        command = [sys.executable, str(ROOT / "build.py"), "promote", "tiny", "1.2.0", "--to", "production"]
        password = channel_world.folder / "password"
        password.write_text(released.credentials.password.reveal())
        environment = {
            **channel_world.environment,
            "MODELBAKE_REGISTRY": proxy.address,
            "MODELBAKE_REGISTRY_PASSWORD_FILE": str(password),
        }
        run = subprocess.Popen(
            [*command, "--images", str(channel_world.images)],
            cwd=channel_world.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        ending = Ending(run, number, written)
        proxy.before = ending
        said = run.communicate(timeout=120)[1]
        proxy.before = None
        assert ending.fired, said
        tally.count()
        assert "Traceback" not in said
        assert run.returncode in ((-signal.SIGKILL,) if number == signal.SIGKILL else (130, 0)), said
        require_true(released, ("1.1.0",), "1.2.0", None, "")


# --- any fault at any request -------------------------------------------------------------------------------


def attempt(
    released: Released, proxy: RegistryProxy, act: str, nth: int, action: Action, times: int
) -> tuple[str | None, str]:
    do, before, _ = ACTS[act]
    released.begin(*before)
    proxy.forget()
    proxy.fail(".*", "", action, nth=nth, times=times)
    with Registry(proxy.address, released.credentials, timeout=1.0) as troubled:
        try:
            return do(released.mover(troubled)), ""
        except ModelbakeError as error:
            return None, str(error)
        finally:
            proxy.forget()


@pytest.mark.promise("channel", "false-success")
@pytest.mark.parametrize("act", ACTS)
def test_any_fault_at_any_request(released: Released, proxy: RegistryProxy, act: str, tally: Tally) -> None:
    _, before, after = ACTS[act]
    proxy.forget()
    released.begin(*before)
    with Registry(proxy.address, released.credentials) as clear:
        ACTS[act][0](released.mover(clear))
    requests = len(proxy.seen)
    assert requests > 8
    chance = random.Random(act)
    waiting = ("hang", "slow")
    kinds = [kind for kind in KINDS if full() or kind not in waiting]
    for nth in range(1, requests + 1, step(act, promote=2)):
        chosen = kinds if full() and act == "promote" else chance.sample(kinds, cases(1, 4))
        for action in chosen:
            times = 1 if action in waiting else chance.choice((1, 1000))
            tally.count()
            claimed, error = attempt(released, proxy, act, nth, action, times)
            require_true(released, before, after, claimed, error)


@pytest.mark.control("channel")
def test_one_that_believes_a_registry_which_says_yes_is_found_out(
    released: Released, proxy: RegistryProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def believing(state: Channel, image: Manifest, record: Any, index: Any, where: str) -> Any:
        from modelbake.release.promotion import Ask

        try:
            yield Ask("put", (state.name,), image)
        except ModelbakeError:
            return

    monkeypatch.setattr(moving, "move", believing)
    released.begin()
    proxy.forget()
    proxy.fail("PUT", "/production$", 500, times=1000)
    with Registry(proxy.address, released.credentials) as troubled:
        claimed = promote(released.mover(troubled))
    proxy.forget()
    with pytest.raises(AssertionError, match="a false success"):
        require_true(released, (), "1.1.0", claimed, "")


# --- two at once --------------------------------------------------------------------------------------------


@pytest.mark.promise("channel", "at-once")
def test_two_at_once_are_never_both_told_that_they_did_it(released: Released, tally: Tally) -> None:
    outcomes: set[str] = set()
    for turn in range(cases(6, 150)):
        released.begin(*("1.0.0",)[: turn % 2])
        barrier, ends = threading.Barrier(2), dict[str, str | ModelbakeError]()

        def act(version: str, barrier: Any = barrier, ends: Any = ends) -> None:
            with Registry(released.host, released.credentials) as connected:
                mover = released.mover(connected, who=version)
                look = mover._look

                def together(over: str | None) -> Channel:
                    state = look(over)
                    barrier.wait(30)
                    return state

                object.__setattr__(mover, "_look", together)
                try:
                    ends[version] = mover.promote(version, FREE)
                except ModelbakeError as error:
                    ends[version] = error

        threads = [threading.Thread(target=act, args=(version,)) for version in ("1.1.0", "1.2.0")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        tally.count()
        assert set(ends) == {"1.1.0", "1.2.0"}
        done = [version for version, end in ends.items() if isinstance(end, str)]
        assert len(done) <= 1, "both looked before either moved, and both are told that they moved it"
        assert all(isinstance(end, str | ChannelMoved) for end in ends.values()), ends
        state = released.state()
        assert not state.by_hand
        if done:
            assert state.digest == released.digests[done[0]], "a false success"
        outcomes.add(f"{len(done)} succeeded")
        released.mover().promote("1.0.0", FREE)
    assert outcomes, "control"


# --- what a person does -------------------------------------------------------------------------------------


@pytest.fixture
def channel_world(world: World) -> World:
    world.models(tiny={})
    return world


@pytest.fixture
def of_world(channel_world: World) -> Iterator[tuple[RegistryRepository, dict[str, str]]]:
    """The model's repository in the world's registry with three released versions, and their digests."""
    services = channel_world.services
    credentials = RegistryCredentials(services.registry_user, Secret(services.password))
    with Registry(services.registry, credentials) as connected:
        repository = RegistryRepository(connected, f"{channel_world.namespace}/tiny")
        yield repository, {version: put_image(repository, version) for version in VERSIONS}


def test_promoted_rolled_back_and_listed(
    channel_world: World, of_world: tuple[RegistryRepository, dict[str, str]]
) -> None:
    world, (repository, digests) = channel_world, of_world
    reference = repository.name
    empty = world.build_py("channels", "tiny").ok().out
    assert empty.count("empty") == 2 and "production" in empty
    nothing = world.build_py("rollback", "tiny", "--channel", "production")
    assert nothing.code == 72 and "is empty" in nothing.err
    unknown = world.build_py("promote", "tiny", "1.0.1", "--to", "production")
    assert unknown.code == 73 and "released are" in unknown.err and "1.0.0" in unknown.err
    for version in ("1.0.0", "1.1.0"):
        ran = world.build_py("promote", "tiny", version, "--to", "production", GITHUB_ACTOR="octo").ok()
        assert ran.out.strip() == f"{reference}@{digests[version]}"
    assert "1.0.0 -> 1.1.0" in ran.err and "weights: lock" in ran.err
    again = world.build_py("promote", "tiny", "1.1.0", "--to", "production").ok()
    assert "is in production already" in again.err and again.out == ran.out
    back = world.build_py("rollback", "tiny", "--channel", "production").ok()
    assert back.out.strip() == f"{reference}@{digests['1.0.0']}"
    none_left = world.build_py("rollback", "tiny", "--channel", "production")
    assert none_left.code == 72 and "1.1.0" in none_left.err, "what was rolled back from is no default"
    world.build_py("rollback", "tiny", "--channel", "production", "--to", "1.1.0").ok()

    told = json.loads(world.build_py("channels", "tiny", "--json", "--history").ok().out)
    (document,) = [each for each in told if each["channel"] == "production"]
    assert document["current"]["version"] == "1.1.0" and document["state"] == "set"
    assert [each["number"] for each in document["history"]] == [4, 3, 2, 1]
    assert document["history"][3]["by"] == "octo" and document["history"][0]["kind"] == "rollback"
    assert all(each["took_effect"] for each in document["history"])

    for tag in ("production-0001", "production"):
        pulled = world.docker("pull", f"{reference}:{tag}")
        assert pulled.code == 0, pulled.err
    listed = json.loads(world.build_py("history", "tiny", "--json").ok().out)
    assert [each["version"] for each in listed] == list(reversed(VERSIONS)), "no channel is a version"


def test_a_channel_that_was_moved_by_hand(
    channel_world: World, of_world: tuple[RegistryRepository, dict[str, str]]
) -> None:
    world, (repository, digests) = channel_world, of_world
    Mover(repository, "tiny", "production", quiet(), "me").promote("1.1.0", FREE)
    theirs = repository.manifest("1.2.0")
    assert theirs is not None
    repository.put_manifest("production", theirs)
    tags = repository.registry.tags(repository.path)
    ran = world.build_py("rollback", "tiny", "--channel", "production")
    assert ran.code == 74 and theirs.digest in ran.err and digests["1.1.0"] in ran.err, ran.err
    assert repository.registry.tags(repository.path) == tags, "nothing was written"
    world.build_py("promote", "tiny", "1.0.0", "--to", "production", "--over", theirs.digest).ok()
    assert "0002 promote over" in world.build_py("channels", "tiny").ok().out
