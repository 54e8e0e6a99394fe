"""Releases through a real engine into a real registry, with a proxy between them that fails on demand.

Whatever fails, no version tag is left behind; and what is under one is the image that passed its smoke run.
"""

from __future__ import annotations

import io
import json
import random
import socket
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from modelbake import registryhttp
from modelbake.credentials import Secret
from modelbake.dockerconfig import RegistryAuth, RegistryCredentials
from modelbake.engine import Engine, LocalImage, connect
from modelbake.errors import (
    ModelbakeError,
    PushFailed,
    ReadBackMismatch,
    RegistryAuthError,
    RegistryError,
    RegistryUnavailable,
    ReportMissing,
    TagConflict,
)
from modelbake.manifest import Manifest
from modelbake.output import Output
from modelbake.push import PushedImage, push
from modelbake.referrers import referrers_tag
from modelbake.registry import Registry
from modelbake.report import write_report
from tests.conftest import Tally
from tests.integration.conftest import TestRegistry, tar
from tests.integration.truth import KINDS, require_truth
from tests.promises import cases, full
from tests.servers.environment import run_script, shell_exports
from tests.servers.registry_proxy import Action, RegistryProxy
from tests.unit.reporting import ASKED, report

pytestmark = pytest.mark.engine

VERSION = "1.0.0"
OURS = "modelbake"  # the beginning of our client's User-Agent; the engine's is docker
ENGINES = "docker"


def make_image(engine: Engine, marker: str) -> LocalImage:
    """Import an image of one small layer; `marker` makes it one of its own."""
    name = f"modelbake-test/push:{uuid.uuid4().hex[:12]}"
    repository, _, tag = name.partition(":")
    engine.api.import_image_from_data(tar({"marker": marker * 1000}), repository=repository, tag=tag)
    image = engine.image(name)
    assert image is not None
    return image


def remove_image(engine: Engine, image: LocalImage) -> None:
    found = engine.image(image.id)
    for tag in found.tags if found else ():
        engine.api.remove_image(tag, force=True)


@pytest.fixture(scope="module")
def image(engine: Engine) -> Iterator[LocalImage]:
    made = make_image(engine, uuid.uuid4().hex)
    yield made
    remove_image(engine, made)


@pytest.fixture(scope="module")
def other_image(engine: Engine) -> Iterator[LocalImage]:
    made = make_image(engine, uuid.uuid4().hex)
    yield made
    remove_image(engine, made)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses between attempts are tested elsewhere."""
    monkeypatch.setattr(registryhttp, "_FIRST_WAIT", 0.0)


@dataclass
class Releasing:
    """One model's repository behind a proxy, and a release of it."""

    engine: Engine
    registry: TestRegistry
    proxy: RegistryProxy
    reports: Path

    def __post_init__(self) -> None:
        self.model = f"m{uuid.uuid4().hex[:12]}"
        self.path = f"test/{self.model}"
        self.log = io.StringIO()

    @property
    def repository(self) -> str:
        return f"{self.proxy.address}/{self.path}"

    def __call__(
        self,
        image: LocalImage,
        *,
        repository: str = "",
        password: str = "",
        engine: Engine | None = None,
        untagged: bool = False,
    ) -> PushedImage:
        repository = repository or self.repository
        passed = report(model=self.model, version=VERSION, image_id=image.id)
        write_report(self.reports, passed)
        environ = {
            "MODELBAKE_REGISTRY": repository,
            "MODELBAKE_REGISTRY_USER": self.registry.user,
            "MODELBAKE_REGISTRY_PASSWORD": password or self.registry.password.reveal(),
        }
        return push(
            engine or self.engine,
            RegistryAuth(self.reports / "no-config.json", environ=environ),
            repository=repository,
            version=VERSION,
            image=image,
            asked=ASKED,
            require_gpu=False,
            reports=self.reports,
            output=Output(stderr=self.log),
            untagged=untagged,
        )

    def direct(self) -> Registry:
        """Return a client of the registry that does not go through the proxy."""
        return Registry(
            self.registry.host, RegistryCredentials(self.registry.user, self.registry.password), attempts=1
        )

    def released(self) -> Manifest | None:
        """Return what is under the version tag."""
        with self.direct() as registry:
            return registry.manifest(self.path, VERSION)

    def upload(self, image: LocalImage, tag: str) -> Manifest:
        """Put an image under a tag, past everything that is tested."""
        name = f"{self.registry.host}/{self.path}:{tag}"
        credentials = RegistryCredentials(self.registry.user, self.registry.password)
        self.engine.tag(image.id, name)
        self.engine.push(name, credentials, lambda event: None)
        with self.direct() as registry:
            found = registry.manifest(self.path, tag)
        assert found is not None
        return found

    def clean(self) -> None:
        auth = (self.registry.user, self.registry.password.reveal())
        with self.direct() as registry:
            for tag in registry.tags(self.path):
                if found := registry.manifest(self.path, tag):
                    address = f"http://{self.registry.host}/v2/{self.path}/manifests/{found.digest}"
                    httpx2.delete(address, auth=auth, trust_env=False)


@pytest.fixture
def release(engine: Engine, registry: TestRegistry, tmp_path: Path) -> Iterator[Releasing]:
    with RegistryProxy(registry.host) as proxy:
        releasing = Releasing(engine, registry, proxy, tmp_path)
        yield releasing
        proxy.forget()
        releasing.clean()


# --- what works --------------------------------------------------------------------------------------------


def test_a_release_is_the_image_that_was_tested(
    release: Releasing, image: LocalImage, engine: Engine
) -> None:
    pushed = release(image)
    released = release.released()
    assert released is not None
    assert pushed.reference == f"{release.repository}@{released.digest}"
    assert (pushed.digest, pushed.tag, pushed.already) == (released.digest, VERSION, False)
    assert released.config.digest == image.id
    with release.direct() as registry:
        candidate = f"candidate-{image.id[7:19]}"
        assert registry.tags(release.path) == [VERSION, candidate, referrers_tag(released.digest)]
        assert registry.manifest(release.path, candidate) == released
    assert release.registry.password.reveal() not in release.log.getvalue()


def test_untagged_it_keeps_the_report_and_puts_no_version_tag(release: Releasing, image: LocalImage) -> None:
    pushed = release(image, untagged=True)
    assert release.released() is None
    assert pushed.tag == f"candidate-{image.id[7:19]}"
    with release.direct() as registry:
        assert registry.tags(release.path) == [pushed.tag, referrers_tag(pushed.digest)]
    assert "gives it its version tag" in release.log.getvalue()
    assert release(image).digest == pushed.digest
    assert release.released() is not None, "control: with the tag"
    assert release(image, untagged=True).already, "what has its tag keeps it"


@pytest.mark.promise("tags")
def test_the_version_tag_is_the_last_thing_written(release: Releasing, image: LocalImage) -> None:
    release(image)
    written = [seen.path for seen in release.proxy.seen if seen.method in ("PUT", "POST", "PATCH")]
    assert written[-1].endswith(f"/manifests/{VERSION}")
    assert not any(path.endswith(f"/manifests/{VERSION}") for path in written[:-1])
    assert release.proxy.seen[-1].method == "GET", "and then it is read back"


def test_what_is_released_can_be_pulled(release: Releasing, other_image: LocalImage, engine: Engine) -> None:
    pushed = release(other_image)
    auth = {"username": release.registry.user, "password": release.registry.password.reveal()}
    engine.api.pull(release.repository, tag=pushed.digest, auth_config=auth)
    pulled = engine.image(pushed.reference)
    assert pulled is not None
    assert pulled.id == other_image.id
    engine.api.remove_image(pushed.reference)


def test_a_second_release_sends_nothing(release: Releasing, image: LocalImage) -> None:
    first = release(image)
    release.proxy.forget()
    second = release(image)
    assert second.already is True
    assert second.reference == first.reference
    assert {seen.method for seen in release.proxy.seen} == {"GET", "HEAD"}
    assert not any(seen.agent.startswith(ENGINES) for seen in release.proxy.seen)


def test_with_the_containerd_store(release: Releasing, registry: TestRegistry) -> None:
    """There an image is named by its manifest's digest instead of its configuration's."""
    name = "pushctrd"
    host = shell_exports("engine", "up", "--name", name, "--containerd-snapshotter")["DOCKER_HOST"]
    try:
        with connect(host) as engine:
            assert engine.info.store == "containerd"
            image = make_image(engine, uuid.uuid4().hex)
            pushed = release(image, engine=engine)
            assert release(image, engine=engine).already is True
            other = make_image(engine, uuid.uuid4().hex)
            with pytest.raises(TagConflict):
                release(other, engine=engine)
            released = release.released()
            assert released is not None
            assert pushed.digest == released.digest == image.id
    finally:
        run_script("engine", "down", "--name", name, "--purge")


# --- what is refused before anything is sent ---------------------------------------------------------------


@pytest.mark.promise("tags")
def test_a_version_is_not_overwritten(release: Releasing, image: LocalImage, other_image: LocalImage) -> None:
    release(other_image)
    before = release.released()
    release.proxy.forget()
    with pytest.raises(TagConflict, match="taken by another image") as caught:
        release(image)
    assert caught.value.exit_code == 63
    assert "raise `version`" in caught.value.hint
    assert release.released() == before
    assert {seen.method for seen in release.proxy.seen} == {"GET"}


def test_without_a_report_of_this_image_nothing_is_asked(
    release: Releasing, image: LocalImage, other_image: LocalImage
) -> None:
    write_report(release.reports, report(model=release.model, image_id=other_image.id))
    with pytest.raises(ReportMissing) as caught:
        push(
            release.engine,
            RegistryAuth(),
            repository=release.repository,
            version=VERSION,
            image=image,
            asked=ASKED,
            require_gpu=False,
            reports=release.reports,
            output=Output(stderr=release.log),
        )
    assert caught.value.exit_code == 66
    assert release.proxy.seen == []


def test_a_wrong_password(release: Releasing, image: LocalImage) -> None:
    with pytest.raises(RegistryAuthError, match="refused the credentials") as caught:
        release(image, password="a-wrong-password")
    assert caught.value.exit_code == 62
    assert "a-wrong-password" not in f"{caught.value}{release.log.getvalue()}"
    assert release.released() is None


def test_a_registry_that_is_down(release: Releasing, image: LocalImage) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(RegistryUnavailable, match="cannot be reached") as caught:
        release(image, repository=f"{nowhere}/test/{release.model}")
    assert caught.value.exit_code == 61


# --- faults at every request of ours -----------------------------------------------------------------------

# (method, path, which of these requests). The first GET of the version tag is sent twice: without
# credentials, and, once the registry has asked for them, with them.
BEFORE_THE_TAG = {
    "is the tag free": ("GET", rf"/manifests/{VERSION}$", 1),
    "the manifest by digest": ("GET", r"/manifests/sha256:", 1),
    "the manifest by candidate tag": ("GET", r"/manifests/candidate-", 1),
    "the configuration": ("HEAD", r"/blobs/", 1),
    "the layer": ("HEAD", r"/blobs/", 2),
    "is the tag still free": ("GET", rf"/manifests/{VERSION}$", 3),
    "the tag": ("PUT", rf"/manifests/{VERSION}$", 1),
}
READ_BACK = ("GET", rf"/manifests/{VERSION}$", 4)
LASTING: tuple[Action, ...] = (401, 403, 429, 500, "reset", "garbage")
FOREVER = 1_000_000


def some_of(steps: Iterable[str], actions: Sequence[Action]) -> list[tuple[str, Action]]:
    """Return all pairs; in a quick run as many as there are steps, so that each of both is in one."""
    names = list(steps)
    if full():
        return [(step, action) for step in names for action in actions]
    return [(step, actions[number % len(actions)]) for number, step in enumerate(names)]


@pytest.mark.promise("false-success", "tags")
@pytest.mark.parametrize(("step", "action"), some_of(BEFORE_THE_TAG, LASTING))
def test_a_lasting_fault_leaves_no_version_tag(
    release: Releasing, image: LocalImage, step: str, action: Action
) -> None:
    method, path, nth = BEFORE_THE_TAG[step]
    fault = release.proxy.fail(method, path, action, nth=nth, times=FOREVER, agent=OURS)
    expected = RegistryAuthError if action in (401, 403) else RegistryUnavailable
    with pytest.raises(expected):
        release(image)
    assert fault.fired
    assert release.released() is None
    release.proxy.forget()
    assert release(image).already is False, "and without the fault it works"


@pytest.mark.promise("false-success")
@pytest.mark.parametrize(
    ("step", "action"),
    some_of([*BEFORE_THE_TAG, "read back"], [401, 429, 500, "reset", "garbage", "lose"]),
)
def test_a_passing_fault_is_survived(
    release: Releasing, image: LocalImage, step: str, action: Action
) -> None:
    method, path, nth = BEFORE_THE_TAG.get(step, READ_BACK)
    fault = release.proxy.fail(method, path, action, nth=nth, agent=OURS)
    pushed = release(image)
    released = release.released()
    assert fault.fired == 1
    assert released is not None
    assert (released.digest, released.config.digest) == (pushed.digest, image.id)


@pytest.mark.promise("false-success", "tags")
@pytest.mark.parametrize("action", LASTING[:: cases(3, 1)])
def test_a_tag_that_cannot_be_read_back_is_said_to_be_uncertain(
    release: Releasing, image: LocalImage, action: Action
) -> None:
    """The tag was written, and it is right; only nobody could confirm it. The next run does."""
    method, path, nth = READ_BACK
    release.proxy.fail(method, path, action, nth=nth, times=FOREVER, agent=OURS)
    with pytest.raises(RegistryError, match="was sent, but could not be read back") as caught:
        release(image)
    assert "again" in caught.value.hint
    released = release.released()
    assert released is not None
    assert released.config.digest == image.id
    release.proxy.forget()
    assert release(image).already is True


@pytest.mark.promise("false-success")
def test_a_tag_whose_answers_are_all_lost_is_found_out(release: Releasing, image: LocalImage) -> None:
    fault = release.proxy.fail("PUT", rf"/manifests/{VERSION}$", "lose", times=FOREVER, agent=OURS)
    pushed = release(image)
    assert fault.fired == 4
    released = release.released()
    assert released is not None
    assert released.digest == pushed.digest


# --- content that changes on the way: the read-back can fail -----------------------------------------------


@pytest.mark.promise("false-success", "tags")
@pytest.mark.parametrize("step", ["the manifest by digest", "the manifest by candidate tag"])
def test_a_manifest_that_changes_on_its_way_back(release: Releasing, image: LocalImage, step: str) -> None:
    method, path, nth = BEFORE_THE_TAG[step]
    release.proxy.fail(method, path, lambda body: body + b"\n", nth=nth, times=FOREVER, agent=OURS)
    with pytest.raises(ReadBackMismatch) as caught:
        release(image)
    assert caught.value.exit_code == 65
    assert release.released() is None


@pytest.mark.promise("false-success", "tags")
def test_a_manifest_that_changes_on_its_way_there(release: Releasing, image: LocalImage) -> None:
    """The engine says it pushed one digest, and the registry has another."""
    fault = release.proxy.fail("PUT", r"/manifests/candidate-", "alter", times=FOREVER, agent=ENGINES)
    with pytest.raises((ReadBackMismatch, PushFailed)):
        release(image)
    assert fault.fired
    assert release.released() is None


@pytest.mark.promise("false-success", "tags")
@pytest.mark.parametrize("step", ["the configuration", "the layer"])
@pytest.mark.parametrize(("action", "words"), [(404, "it is not there"), (lambda body: b"", "has 0 bytes")])
def test_a_blob_that_is_not_there_or_cut(
    release: Releasing, image: LocalImage, step: str, action: Action, words: str
) -> None:
    method, path, nth = BEFORE_THE_TAG[step]
    release.proxy.fail(method, path, action, nth=nth, times=FOREVER, agent=OURS)
    with pytest.raises(ReadBackMismatch, match=words):
        release(image)
    assert release.released() is None


@pytest.mark.promise("false-success")
def test_a_release_that_lost_a_blob_is_not_called_released(release: Releasing, image: LocalImage) -> None:
    release(image)
    release.proxy.fail("HEAD", r"/blobs/", 404, times=FOREVER, agent=OURS)
    with pytest.raises(ReadBackMismatch, match="it is not there"):
        release(image)


# --- any fault at any request ------------------------------------------------------------------------------


def attempt(release: Releasing, image: LocalImage) -> tuple[str | None, ModelbakeError | None]:
    try:
        return release(image).digest, None
    except ModelbakeError as error:
        return None, error


def require_true_release(
    release: Releasing, image: LocalImage, claimed: str | None, error: ModelbakeError | None
) -> None:
    with release.direct() as registry:
        found = registry.manifest(release.path, VERSION)

        def right(digest: str) -> bool:
            manifest = registry.manifest(release.path, digest)
            return manifest is not None and manifest.config.digest == image.id

        require_truth(claimed, error, found.digest if found else None, right=right)


@pytest.mark.promise("false-success", "tags")
def test_any_fault_at_any_request(
    release: Releasing, image: LocalImage, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also at those that keep the report, and those of the engine."""
    defaults = registryhttp.RegistryConnection.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "timeout", 1.0)
    release(image)
    requests = len(release.proxy.seen)
    assert any("/referrers/" in seen.path or "/manifests/sha256-" in seen.path for seen in release.proxy.seen)
    for seed in range(cases(2, 40)):
        chance = random.Random(seed)
        nth, action, times = (
            1 + chance.randrange(requests),
            chance.choice(KINDS),
            chance.choice([1, 4, FOREVER]),
        )
        each = Releasing(release.engine, release.registry, release.proxy, release.reports)
        release.proxy.forget()
        release.proxy.fail(".*", "", action, nth=nth, times=times)
        claimed, error = attempt(each, image)
        release.proxy.forget()
        try:
            require_true_release(each, image, claimed, error)
            # What is in the way now is nothing; but a candidate that a fault has damaged may be.
            claimed, error = attempt(each, image)
            assert claimed is not None, error
            require_true_release(each, image, claimed, error)
        except AssertionError as wrong:
            raise AssertionError(f"seed {seed}: {action} at request {nth}, {times} times: {wrong}") from wrong
        finally:
            each.clean()
        tally.count()


@pytest.mark.control("false-success")
def test_a_pusher_that_believes_the_sdk_is_found_out(release: Releasing, image: LocalImage) -> None:
    """The SDK raises nothing when a push fails."""
    name = f"{release.repository}:{VERSION}"
    release.engine.tag(image.id, name)
    release.proxy.fail("PUT", "/manifests/", 500, times=FOREVER, agent=ENGINES)
    auth = {"username": release.registry.user, "password": release.registry.password.reveal()}
    release.engine.api.push(release.repository, tag=VERSION, auth_config=auth)
    release.engine.api.remove_image(name)
    with pytest.raises(AssertionError, match="a false success"):
        require_true_release(release, image, "sha256:what-it-says", None)


@pytest.mark.control("tags")
def test_a_pusher_that_tags_first_is_found_out(release: Releasing, image: LocalImage) -> None:
    release.upload(image, VERSION)
    error = ReadBackMismatch("a blob is missing", subject=release.repository)
    with pytest.raises(AssertionError, match="a version tag on a failure"):
        require_true_release(release, image, None, error)


# --- others at the same time -------------------------------------------------------------------------------


def when(proxy: RegistryProxy, method: str, path: str, act: Callable[[], None], *, nth: int = 1) -> None:
    """Do something once, when the nth such request arrives and before it is passed on."""
    left = [nth]

    def before(seen_method: str, seen_path: str) -> None:
        if seen_method == method and path in seen_path:
            left[0] -= 1
            if left[0] == 0:
                act()

    proxy.before = before


@pytest.mark.promise("tags")
def test_a_tag_that_somebody_takes_meanwhile_is_left_to_them(
    release: Releasing, image: LocalImage, other_image: LocalImage
) -> None:
    theirs = release.upload(other_image, "theirs")

    def take() -> None:
        with release.direct() as registry:
            registry.put_manifest(release.path, VERSION, theirs)

    when(release.proxy, "GET", "/manifests/candidate-", take)
    with pytest.raises(TagConflict, match="taken by another image"):
        release(image)
    assert release.released() == theirs


@pytest.mark.promise("false-success", "tags")
def test_a_tag_that_somebody_moves_at_the_last_moment_is_noticed(
    release: Releasing, image: LocalImage, other_image: LocalImage
) -> None:
    theirs = release.upload(other_image, "theirs")

    def move() -> None:
        with release.direct() as registry:
            registry.put_manifest(release.path, VERSION, theirs)

    when(release.proxy, "GET", f"/manifests/{VERSION}", move, nth=4)
    with pytest.raises(TagConflict, match="somebody moved the tag"):
        release(image)


@pytest.mark.promise("at-once")
def test_the_same_release_twice_at_the_same_time(release: Releasing, image: LocalImage) -> None:
    def finish_first() -> None:
        release.proxy.before = None
        release(image)

    when(release.proxy, "GET", "/manifests/candidate-", finish_first)
    pushed = release(image)
    released = release.released()
    assert released is not None
    assert pushed.digest == released.digest


# --- faults at the engine's own requests -------------------------------------------------------------------

ENGINE_FAULTS: dict[str, tuple[str, str, Action, type[ModelbakeError]]] = {
    "403 for an upload": ("POST", "/blobs/uploads/", 403, RegistryAuthError),
    "401 for everything": (".*", "/v2/", 401, RegistryAuthError),
    "500 for the manifest": ("PUT", "/manifests/", 500, RegistryUnavailable),
    "403 for the manifest": ("PUT", "/manifests/", 403, RegistryAuthError),
    "reset for the manifest": ("PUT", "/manifests/", "reset", RegistryUnavailable),
    "garbage for the manifest": ("PUT", "/manifests/", "garbage", RegistryError),
    "429 for the manifest": ("PUT", "/manifests/", 429, RegistryUnavailable),
}


@pytest.mark.promise("false-success", "tags")
@pytest.mark.parametrize("fault", ENGINE_FAULTS)
def test_what_the_engine_meets_leaves_no_version_tag(
    release: Releasing, image: LocalImage, fault: str
) -> None:
    method, path, action, expected = ENGINE_FAULTS[fault]
    made = release.proxy.fail(method, path, action, times=FOREVER, agent=ENGINES)
    with pytest.raises(expected):
        release(image)
    assert made.fired
    assert release.released() is None


def test_an_answer_is_json_all_the_way(release: Releasing, image: LocalImage) -> None:
    """The log for machines has one object a line, and no password in any of them."""
    log = io.StringIO()
    write_report(release.reports, report(model=release.model, image_id=image.id))
    environ = {
        "MODELBAKE_REGISTRY": release.proxy.address,
        "MODELBAKE_REGISTRY_USER": release.registry.user,
        "MODELBAKE_REGISTRY_PASSWORD": release.registry.password.reveal(),
    }
    push(
        release.engine,
        RegistryAuth(environ=environ),
        repository=release.repository,
        version=VERSION,
        image=image,
        asked=ASKED,
        require_gpu=False,
        reports=release.reports,
        output=Output(stderr=log, log_format="json"),
    )
    events = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["push_started", "report_kept", "pushed"]
    assert events[-1]["digest"].startswith("sha256:")
    assert Secret(release.registry.password.reveal()).reveal() not in log.getvalue()
