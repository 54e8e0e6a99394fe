"""The engine facade and containers on a real engine."""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from modelbake.containers import LABEL, ContainerSpec
from modelbake.credentials import Secret
from modelbake.dockerconfig import RegistryCredentials
from modelbake.engine import Engine, LayerProgress
from modelbake.errors import (
    EngineError,
    GpuUnavailable,
    ImageNotFound,
    ModelbakeError,
    RegistryAuthError,
    RegistryUnavailable,
)
from modelbake.gpus import ALL, Gpus
from tests.integration.conftest import TestRegistry, tar

pytestmark = pytest.mark.engine

FOREVER = ["sleep", "100000"]


@pytest.fixture
def names(engine: Engine) -> Iterator[Callable[[str], str]]:
    """Makes image names that are removed at the end."""
    made: list[str] = []

    def name(repository: str) -> str:
        made.append(f"{repository}-{uuid.uuid4().hex[:8]}:1")
        return made[-1]

    yield name
    for each in made:
        with suppress(Exception):
            engine.api.remove_image(each, force=True)


def leftovers(engine: Engine, prefix: str) -> list[Any]:
    return list(engine.api.containers(all=True, filters={"name": prefix, "label": LABEL}))


def test_what_it_says_of_itself(engine: Engine) -> None:
    engine.require_buildkit()
    assert engine.info.os == "linux"
    assert engine.info.store in {"classic", "containerd"}
    assert int(engine.info.version.split(".")[0]) >= 23
    free = engine.disk_free()
    assert free is None or free > 1 << 20


def test_images(engine: Engine, tiny: str, names: Callable[[str], str]) -> None:
    image = engine.image(tiny)
    assert image is not None
    assert image.id.startswith("sha256:")
    assert image.size > 1_000_000
    assert tiny in image.tags
    name = names("modelbake-test/tagged")
    engine.tag(image.id, name)
    tagged = engine.image(name)
    assert tagged is not None
    assert tagged.id == image.id


def test_an_image_that_is_not_there(engine: Engine) -> None:
    assert engine.image("modelbake-test/none:1") is None
    assert engine.image("sha256:" + "0" * 64) is None
    with pytest.raises(ImageNotFound):
        engine.tag("sha256:" + "0" * 64, "modelbake-test/none:1")


# Containers


def test_a_container_is_locked_up_and_removed(engine: Engine, tiny: str) -> None:
    prefix = f"mbtest-{uuid.uuid4().hex[:8]}"
    spec = ContainerSpec(tiny, prefix, environment={"GREETING": "hello there"}, command=FOREVER)
    with engine.start(spec) as container:
        assert container.state().running
        assert len(leftovers(engine, prefix)) == 1
        shown = container.exec(["sh", "-c", "env; echo oops >&2; exit 3"], {"EXTRA": "yes"})
        assert shown.exit_code == 3
        assert b"GREETING=hello there\n" in shown.stdout
        assert b"EXTRA=yes\n" in shown.stdout
        assert shown.stderr == b"oops\n"
        assert container.exec(["sh", "-c", "echo x > /file"]).exit_code != 0  # read-only
        assert container.exec(["sh", "-c", "echo x > /tmp/file && cat /tmp/file"]).stdout == b"x\n"
        status = container.exec(["cat", "/proc/self/status"]).stdout.decode()
        assert "CapBnd:\t0000000000000000" in status
        assert "NoNewPrivs:\t1" in status
        devices = container.exec(["cat", "/proc/net/dev"]).stdout.decode()
        assert "eth0" not in devices
    assert leftovers(engine, prefix) == []


def test_output_larger_than_every_buffer(engine: Engine, tiny: str) -> None:
    with engine.start(ContainerSpec(tiny, command=FOREVER)) as container:
        for _ in range(20):  # bytes that come with the response's header were once lost, now and then
            assert container.exec(["echo", "at once"]).stdout == b"at once\n"
        big = container.exec(["sh", "-c", "seq 1 500000; seq 1 1000 >&2"])
    assert big.stdout == b"".join(b"%d\n" % number for number in range(1, 500_001))
    assert big.stderr.count(b"\n") == 1000


def test_a_command_that_does_not_exist(engine: Engine, tiny: str) -> None:
    with engine.start(ContainerSpec(tiny, command=FOREVER)) as container:
        try:
            assert container.exec(["/no/such"]).exit_code in {126, 127}
        except EngineError as error:
            assert "/no/such" in error.message


def test_a_container_that_ends(engine: Engine, tiny: str) -> None:
    command = ["sh", "-c", "echo first; echo second; echo last words >&2; exit 65"]
    with engine.start(ContainerSpec(tiny, command=command)) as container:
        deadline = time.monotonic() + 10
        while container.state().running and time.monotonic() < deadline:
            time.sleep(0.05)
        state = container.state()
        assert (state.running, state.exit_code, state.oom_killed) == (False, 65, False)
        assert set(container.logs().splitlines()) == {"first", "second", "last words"}
        assert len(container.logs(tail=1).splitlines()) == 1
        with pytest.raises(EngineError):
            container.exec(["true"])


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (ContainerSpec("modelbake-test/none:1"), ImageNotFound),
        (ContainerSpec("", command=["/no/such"]), EngineError),
        (ContainerSpec("", command=FOREVER, gpus=ALL), GpuUnavailable),
        (ContainerSpec("", command=FOREVER, gpus=Gpus(cdi=("nvidia.com/gpu=7",))), GpuUnavailable),
    ],
)
def test_a_container_that_cannot_start(
    engine: Engine, tiny: str, spec: ContainerSpec, expected: type[ModelbakeError]
) -> None:
    prefix = f"mbtest-{uuid.uuid4().hex[:8]}"
    if spec.gpus and engine.info.gpu:
        pytest.skip("this engine has a GPU")
    fields = {**vars(spec), "image": spec.image or tiny, "name_prefix": prefix}
    with pytest.raises(expected), engine.start(ContainerSpec(**fields)):
        pass
    assert leftovers(engine, prefix) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nothing_is_left_running(engine: Engine, tiny: str, error: type[BaseException]) -> None:
    prefix = f"mbtest-{uuid.uuid4().hex[:8]}"
    with pytest.raises(error), engine.start(ContainerSpec(tiny, prefix, command=FOREVER)):
        raise error
    assert leftovers(engine, prefix) == []


def test_ctrl_c_while_a_command_runs(engine: Engine, tiny: str) -> None:
    prefix = f"mbtest-{uuid.uuid4().hex[:8]}"
    started = time.monotonic()
    with (
        pytest.raises(KeyboardInterrupt),
        engine.start(ContainerSpec(tiny, prefix, command=FOREVER)) as container,
    ):
        threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
        container.exec(FOREVER)
    assert time.monotonic() - started < 10
    assert leftovers(engine, prefix) == []


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1, 0.2, 0.4])
def test_ctrl_c_while_it_starts(engine: Engine, tiny: str, delay: float) -> None:
    prefix = f"mbtest-{uuid.uuid4().hex[:8]}"
    with suppress(KeyboardInterrupt):
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)).start()
        with engine.start(ContainerSpec(tiny, prefix, command=FOREVER)):
            time.sleep(5)
    assert leftovers(engine, prefix) == []


# Pushes


def test_a_push(engine: Engine, registry: TestRegistry, names: Callable[[str], str]) -> None:
    name = names(f"{registry.host}/test/pushed")
    # Bytes that no registry has: of a layer that it has, the engine says "already exists" and no progress.
    own = tar({"own": os.urandom(16 << 20)})
    repository, _, tag = name.rpartition(":")
    engine.api.import_image_from_data(own, repository=repository, tag=tag)
    image = engine.image(name)
    assert image is not None
    events: list[LayerProgress] = []
    pushed = engine.push(name, registry.for_registry(registry.host), events.append)
    assert pushed.ref == name
    assert pushed.digest.startswith("sha256:")
    assert pushed.size > 100
    assert any(0 < event.current <= event.total for event in events)
    # From the registry, by that digest, comes the image that was pushed.
    login = {"username": registry.user, "password": registry.password.reveal()}
    engine.api.pull(f"{repository}@{pushed.digest}", auth_config=login)
    pulled = engine.image(f"{repository}@{pushed.digest}")
    assert pulled is not None
    assert pulled.id == image.id


def test_pushes_that_are_refused(
    engine: Engine, registry: TestRegistry, tiny: str, names: Callable[[str], str]
) -> None:
    name = names(f"{registry.host}/test/refused")
    engine.tag(tiny, name)
    for credentials in (None, RegistryCredentials(registry.user, Secret("not-the-password"))):
        with pytest.raises(RegistryAuthError) as caught:
            engine.push(name, credentials, lambda event: None)
        assert "not-the-password" not in str(caught.value)
        assert caught.value.subject == name


def test_a_push_to_nowhere(engine: Engine, tiny: str, names: Callable[[str], str]) -> None:
    name = names("127.0.0.1:1/test/nowhere")
    engine.tag(tiny, name)
    with pytest.raises(RegistryUnavailable):
        engine.push(name, None, lambda event: None)


def test_a_push_of_nothing(engine: Engine, registry: TestRegistry) -> None:
    with pytest.raises(ImageNotFound):
        engine.push(
            f"{registry.host}/test/nothing:1", registry.for_registry(registry.host), lambda event: None
        )
