"""Runs that are killed or interrupted at every stage, and several of them at once.

After `kill -9` the next run succeeds with the same result, and nothing of the killed one is left; after
Ctrl-C nothing is left at once. Stages are events of the log, so that each of them is hit; random moments
come on top. What ends here is `build.py` alone: test_engine_crash.py ends the engine.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from modelbake.containers import LABEL, OWNER_LABEL, ContainerSpec
from modelbake.engine import Engine
from modelbake.owner import owner_of
from tests.conftest import Tally
from tests.integration.ending import Ended, Stage, end_at, left
from tests.integration.world import Ran, Services, World
from tests.promises import cases, full
from tests.servers.hub import Hub

pytestmark = pytest.mark.engine

# Events at which each verb is ended; `make test` tries the first one.
STAGES = {
    "lock": ["resolved", "transfer"],
    "build": ["transfer", "step_done", "builder_note", "built"],
    "smoke": ["smoke_ready", "smoke_started", "smoke_check", "smoke_measuring", "smoke_passed"],
    "push": ["push_started", "report_kept", "pushed"],
    "publish": [
        *("smoke_ready", "layer_stored", "runtime_started", "runtime_checked", "runtime_pushed", "transfer"),
        *("weights_stored", "assembled", "candidate", "pull_started", "smoke_started", "smoke_passed"),
        *("report_kept", "published"),
    ],
}
LAST = {verb: stages[-1] for verb, stages in STAGES.items()}
LASTS = {"lock": 1.3, "build": 4.5, "smoke": 1.5, "push": 2.3, "publish": 5.0}  # seconds, about
# Each lane takes one model all the way. What `make test` leaves out, other modules try a little of: Ctrl-C
# during smoke, and a killed or interrupted publish.
DOCKER_LANE, STREAM_LANE = ("lock", "build", "smoke", "push"), ("lock", "publish")
KILLED = [DOCKER_LANE, STREAM_LANE] if full() else [DOCKER_LANE[:3]]
INTERRUPTED = [DOCKER_LANE, STREAM_LANE] if full() else [DOCKER_LANE[:2]]


@dataclass
class Crashed:
    """A world whose one model has a name of its own, so that what is left of it is known to be its."""

    world: World
    name: str
    moments: random.Random
    versions: int = 0

    def anew(self) -> None:
        """Take weights that nobody has seen, as another version."""
        self.versions += 1
        repo = f"acme/{self.name}{self.versions}"
        self.world.repo(repo, {"config.json": b"{}", "model.safetensors": os.urandom(8 << 20)})
        self.world.models(**{self.name: {"source": f"hf://{repo}", "version": f"1.0.{self.versions}"}})

    def rounds(self, verbs: Sequence[str], moments: int) -> Iterator[dict[str, Stage]]:
        """Yield when each verb is ended: at every one of its stages, then at random moments."""
        for number in range(cases(1, max(len(STAGES[verb]) for verb in verbs))):
            yield {verb: Stage(STAGES[verb][number % len(STAGES[verb])]) for verb in verbs}
        for _ in range(cases(0, moments)):
            yield {verb: Stage(seconds=self.moments.uniform(0.0, LASTS[verb])) for verb in verbs}

    def end(self, verb: str, stage: Stage, number: signal.Signals) -> Ended:
        return end_at(self.world, stage, number, verb, self.name)

    def again(self, verb: str) -> str:
        """Run a verb that must succeed; return what it says of the image."""
        return self.world.build_py(verb, self.name).ok().out

    def left(self) -> list[str]:
        return left(self.world, self.name)


@pytest.fixture(scope="module")
def crashed(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crashed]:
    token, folder = f"hf_{secrets.token_hex(17)}", tmp_path_factory.mktemp("crash")
    with (
        tempfile.TemporaryDirectory(prefix="mbcrash-") as temporary,
        Hub(folder / "hub", {token: None}, host=services.bridge) as hub,
    ):
        world = World(services, folder, hub, token)
        world.environment["TMPDIR"] = temporary
        yield Crashed(world, f"crash{secrets.token_hex(3)}", random.Random(11))
        world.remove_images()


@pytest.mark.promise("crash")
@pytest.mark.parametrize("verbs", KILLED)
def test_killed_and_run_again(crashed: Crashed, tally: Tally, verbs: Sequence[str]) -> None:
    """The next run succeeds, a third one says the same, and nothing of the killed one is left."""
    killed = 0
    for stages in crashed.rounds(verbs, moments=8):
        crashed.anew()
        for verb, stage in stages.items():
            ended = crashed.end(verb, stage, signal.SIGKILL)
            assert ended.code in (0, -signal.SIGKILL), ended.said
            killed += ended.code == -signal.SIGKILL
            tally.count(ended.code == -signal.SIGKILL)
            assert_no_half_release(crashed)
            again = crashed.again(verb)
            assert crashed.left() == [], f"of {verb} that was killed at {stage}"
            if verb == verbs[-1]:
                assert crashed.again(verb) == again
    assert killed >= len(verbs), "control: most were killed"


def assert_no_half_release(crashed: Crashed) -> None:
    """Raise AssertionError where a version's tag is there, and not all of its image."""
    services, path = crashed.world.services, f"{crashed.world.namespace}/{crashed.name}"
    if f"1.0.{crashed.versions}" in services.tags(path):
        manifest = services.manifest(path, f"1.0.{crashed.versions}")
        for blob in (manifest["config"], *manifest["layers"]):
            assert services.has_blob(blob["digest"])


@pytest.mark.promise("interrupt")
@pytest.mark.parametrize("verbs", INTERRUPTED)
def test_interrupted(crashed: Crashed, tally: Tally, verbs: Sequence[str]) -> None:
    """Ctrl-C ends it with 130 within seconds, and nothing is left; what is done already is done."""
    interrupted = 0
    for stages in crashed.rounds(verbs, moments=8):
        crashed.anew()
        for verb, stage in stages.items():
            ended = crashed.end(verb, stage, signal.SIGINT)
            done = stage.event == LAST[verb] or not ended.reached
            assert ended.code == 130 or (ended.code == 0 and (done or ended.out)), f"{stage}: {ended}"
            interrupted += ended.code == 130
            tally.count(ended.code == 130)
            assert ended.took < 15
            assert crashed.left() == [], f"of {verb} that was interrupted at {stage}"
            crashed.again(verb)
    assert interrupted >= len(verbs), "control: most were interrupted"


@pytest.mark.control("crash")
@pytest.mark.control("interrupt")
def test_what_is_left_is_found(crashed: Crashed, engine: Engine, tiny: str) -> None:
    world = crashed.world
    assert crashed.left() == []
    candidate = f"{world.services.registry}/{world.namespace}/{crashed.name}:candidate-0123456789ab"
    planted = [world.folder / ".models.lock.abc.tmp", Path(world.environment["TMPDIR"]) / "modelbake-x"]
    for path in planted:
        path.touch()
    engine.tag(tiny, candidate)
    spec = ContainerSpec(tiny, f"modelbake-{crashed.name}", command=["sleep", "100"])
    with engine.start(spec):
        assert sorted(each.split()[0] for each in crashed.left()) == ["container", "file", "file", "tag"]
    engine.api.remove_image(candidate)
    for path in planted:
        path.unlink()
    assert crashed.left() == []


@pytest.mark.control("crash")
def test_a_container_of_a_living_run_is_left_to_it(crashed: Crashed, engine: Engine, tiny: str) -> None:
    """Only the one whose process is gone is taken away; not this one's, nor one that nobody here can see."""
    gone = subprocess.Popen(["sleep", "100"])
    owner = owner_of(gone.pid)
    gone.kill()
    gone.wait()
    started = []
    try:
        for name, label in {"gone": owner, "alive": owner_of(os.getpid()), "elsewhere": "b/1/2/3"}.items():
            created = engine.api.create_container(
                tiny,
                ["sleep", "100"],
                name=f"modelbake-{crashed.name}-{name}",
                labels={LABEL: "1", OWNER_LABEL: label},
            )
            engine.api.start(created["Id"])
            started.append(created["Id"])
        assert engine.remove_leftovers() == [f"modelbake-{crashed.name}-gone"]
        assert sorted(each.rpartition("-")[2] for each in crashed.left()) == ["alive", "elsewhere"]
    finally:
        for each in started[1:]:
            engine.api.remove_container(each, force=True)


# --- at once ------------------------------------------------------------------------------------------------


@pytest.mark.promise("at-once")
@pytest.mark.parametrize("verb", ["publish", *(["build", "push"] * cases(0, 1))])
def test_one_model_at_once(crashed: Crashed, tally: Tally, verb: str) -> None:
    """All of them succeed and name one digest; nothing that one has finished is taken from it by another."""
    crashed.anew()
    for earlier in ("lock", *(("build", "smoke") if verb == "push" else ())):
        crashed.again(earlier)
    runs = at_once(crashed, 8, verb)
    tally.count(len(runs))
    require_one(runs)
    assert_no_half_release(crashed)
    assert crashed.again(verb) == runs[0].out
    assert crashed.left() == []


def require_one(runs: Sequence[Ran]) -> None:
    """Raise AssertionError unless all runs succeeded, and say the same."""
    for run in runs:
        assert run.code == 0, run.err
    assert len({run.out for run in runs}) == 1, "one digest"


@pytest.mark.control("at-once")
@pytest.mark.parametrize("other", [Ran(0, "tiny sha256:2", ""), Ran(60, "", "refused")])
def test_a_run_that_makes_another_image_is_found(other: Ran) -> None:
    one = Ran(0, "tiny sha256:1", "")
    require_one([one, one])
    with pytest.raises(AssertionError):
        require_one([one, other])


def at_once(crashed: Crashed, count: int, *arguments: str) -> list[Ran]:
    """Run `build.py` so many times at the same moment."""
    together = threading.Barrier(count)

    def run(_: int) -> Ran:
        together.wait()
        return crashed.world.build_py(*arguments, crashed.name)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))
