"""Every way the main job goes wrong: the message names what and what to do, the exit code is its own, and no
tag is left at the registry."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from modelbake import errors
from modelbake.engine import Engine
from tests.integration.world import Ran, World
from tests.servers.engine_proxy import EngineProxy
from tests.servers.environment import ROOT
from tests.servers.hub import Fault
from tests.servers.hub_faults import Kind

pytestmark = pytest.mark.engine


def _failed(ran: Ran, expected: type[errors.ModelbakeError], *words: str) -> None:
    assert ran.code == expected.exit_code, f"{ran.code}\n{ran.out}\n{ran.err}"
    assert ran.out == "", "stdout carries results only, and there is none"
    for word in words:
        assert word in ran.err, f"{word!r} is not said in:\n{ran.err}"


@pytest.fixture
def locked(world: World) -> World:
    """A world whose model is locked, of bytes that no build cache holds."""
    world.repo("acme/tiny", {"config.json": b"{}", "model.safetensors": os.urandom(12 << 20)})
    world.models(tiny={})
    world.run("lock")
    return world


@pytest.mark.parametrize("verb", ["lock", "build"])
def test_a_wrong_token(locked: World, verb: str) -> None:
    ran = locked.build_py(verb, "tiny", HF_TOKEN="hf_wrong")
    _failed(ran, errors.SourceAuthError, "acme/tiny", "HF_TOKEN")
    assert "hf_wrong" not in ran.err
    assert locked.tags() == []


def test_no_token(locked: World) -> None:
    ran = locked.build_py("build", "tiny", HF_TOKEN_PATH=None)
    _failed(ran, errors.SecretMissing, "token", "HF_TOKEN")
    assert locked.build_py("lock", "tiny", HF_TOKEN_PATH=None).code in {
        errors.SourceAuthError.exit_code,
        errors.SourceNotFound.exit_code,
    }
    assert locked.tags() == []


WRONG: list[tuple[Kind, type[errors.ModelbakeError], str]] = [
    ("corrupt", errors.WrongBytes, "sha256"),
    ("extra", errors.WrongBytes, "bytes"),
    ("short", errors.WrongBytes, "bytes"),
    ("truncate", errors.SourceUnavailable, "bytes"),
]


@pytest.mark.parametrize(("kind", "expected", "word"), WRONG)
def test_wrong_bytes(locked: World, kind: Kind, expected: type[errors.ModelbakeError], word: str) -> None:
    locked.hub.faults.add(Fault(kind, "model.safetensors", host="cdn"))
    _failed(locked.build_py("build", "tiny"), expected, "model.safetensors", word)
    assert locked.build_py("smoke", "tiny").code == errors.ImageNotFound.exit_code
    assert locked.build_py("push", "tiny").code == errors.ImageNotFound.exit_code
    assert locked.tags() == []

    locked.hub.faults.clear()
    locked.run("build", "smoke", "push")
    assert locked.version_tags() == ["1.0.0"], "control: without the fault the same goes through"


def _edit_lock(world: World, *, with_digest: bool = True, **changes: Any) -> None:
    """Change the facts of the weights in models.lock, as somebody does by hand."""
    path = world.folder / "models.lock"
    lock = json.loads(path.read_text())
    tiny = lock["models"]["tiny"]
    next(file for file in tiny["files"] if file["path"] == "model.safetensors").update(changes)
    if with_digest:
        lines = "".join(f"{file['sha256']} {file['size']} {file['path']}\n" for file in tiny["files"])
        tiny["digest"] = f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"
    path.write_text(json.dumps(lock, indent=2, sort_keys=True) + "\n")


def test_a_lock_edited_by_hand(locked: World) -> None:
    _edit_lock(locked, with_digest=False, sha256="0" * 64)
    for verb in ("build", "smoke", "push"):
        _failed(locked.build_py(verb, "tiny"), errors.LockError, "models.tiny.digest", "build.py lock tiny")
    # Who corrects the digest, too, gets no further: the bytes are compared where they arrive.
    _edit_lock(locked, sha256="0" * 64)
    _failed(locked.build_py("build", "tiny"), errors.WrongBytes, "model.safetensors", "lock --check")
    checked = locked.build_py("lock", "--check")
    assert checked.code == errors.LockDrift.exit_code
    assert re.match(r"tiny: edited: .*: model\.safetensors has sha256 ", checked.out), checked.out


def test_the_hub_is_down(locked: World) -> None:
    locked.hub.close()
    _failed(locked.build_py("lock", "tiny"), errors.SourceUnavailable, locked.hub.url)
    _failed(locked.build_py("build", "tiny"), errors.SourceUnavailable)
    assert locked.tags() == []


def test_no_engine_answers(locked: World) -> None:
    nowhere = f"unix://{locked.folder}/none.sock"
    for verb in ("build", "smoke", "push"):
        ran = locked.build_py(verb, "tiny", DOCKER_HOST=nowhere)
        _failed(ran, errors.EngineNotFound, nowhere, "scripts/engine")


def test_a_secret_file_that_is_not_there(locked: World) -> None:
    ran = locked.build_py("build", "tiny", "--ca-bundle", "absent.pem")
    _failed(ran, errors.UsageError, "--ca-bundle", "absent.pem")
    _failed(
        locked.build_py("build", "tiny", HF_TOKEN_PATH="absent"), errors.UsageError, "HF_TOKEN_PATH=absent"
    )


@pytest.fixture
def smoked(locked: World) -> World:
    """A world whose model is ready to be pushed."""
    locked.run("build", "smoke")
    return locked


def test_the_registry_is_down(smoked: World) -> None:
    with socket.socket() as taken:  # bound and never listening: a port that refuses
        taken.bind(("127.0.0.1", 0))
        nowhere = f"127.0.0.1:{taken.getsockname()[1]}"
        config = smoked.folder / "models.yaml"
        config.write_text(
            config.read_text().replace(smoked.services.registry + "/" + smoked.namespace, nowhere + "/x")
        )
        _failed(smoked.build_py("push", "tiny"), errors.RegistryUnavailable, nowhere)


def test_a_wrong_registry_password(smoked: World) -> None:
    (smoked.folder / "password").write_text("wrong-password")
    ran = smoked.build_py("push", "tiny", MODELBAKE_REGISTRY_PASSWORD_FILE=str(smoked.folder / "password"))
    _failed(ran, errors.RegistryAuthError, smoked.services.registry)
    assert "wrong-password" not in ran.err
    assert smoked.tags() == []
    ran = smoked.build_py("push", "tiny", MODELBAKE_REGISTRY_USER=None, MODELBAKE_REGISTRY_PASSWORD_FILE=None)
    _failed(ran, errors.RegistryAuthError, smoked.services.registry)
    assert smoked.tags() == []


def test_no_report_no_push(locked: World) -> None:
    locked.run("build")
    _failed(locked.build_py("push", "tiny"), errors.ReportMissing, "build.py smoke tiny")
    locked.run("smoke")
    locked.models(tiny={"env": {"CHANGED": "1"}})
    locked.run("build")
    _failed(locked.build_py("push", "tiny"), errors.ReportMissing, "build.py smoke tiny")
    assert locked.tags() == []


def test_a_failed_check_shows_what_was_expected_and_takes_the_report_back(smoked: World) -> None:
    check = {"name": "adds", "post": "/sum", "body": {"numbers": [1, 2]}, "expect": {"sum": 4}}
    smoked.models(tiny={"smoke": {"requests": 1, "checks": [check]}})
    _failed(smoked.build_py("smoke", "tiny"), errors.SmokeFailed, "adds", "sum", "4", "3")
    _failed(smoked.build_py("push", "tiny"), errors.ReportMissing)
    assert smoked.tags() == []


def test_a_server_that_ends_is_shown_with_its_log(locked: World) -> None:
    locked.models(tiny={"env": {"TINY_FAILS": "1"}})
    locked.run("build")
    ours = ("ps", "--all", "--quiet", "--filter", "label=io.modelbake.smoke")
    before = set(locked.docker(*ours).ok().out.split())  # an engine of other people may have others' runs
    _failed(locked.build_py("smoke", "tiny"), errors.NotReady, "told to fail")
    assert set(locked.docker(*ours).ok().out.split()) <= before


def test_a_model_that_needs_a_gpu_is_not_tested_without_one(locked: World) -> None:
    if json.loads(locked.docker("info", "--format", "{{json .Runtimes}}").ok().out).get("nvidia"):
        pytest.skip("this engine has a GPU")
    locked.models(tiny={"device": "cuda"})
    locked.run("build")
    _failed(locked.build_py("smoke", "tiny"), errors.GpuUnavailable, "device: any")


def test_a_version_tag_never_moves(smoked: World) -> None:
    smoked.run("push")
    first = smoked.services.registry_get(f"{smoked.namespace}/tiny/manifests/1.0.0").content
    smoked.models(tiny={"labels": {"org.example.changed": "yes"}})
    smoked.run("build", "smoke")
    _failed(smoked.build_py("push", "tiny"), errors.TagConflict, "1.0.0")
    assert smoked.services.registry_get(f"{smoked.namespace}/tiny/manifests/1.0.0").content == first


def test_one_models_failure_does_not_stop_the_others(locked: World) -> None:
    locked.repo("acme/bad", {"bad.safetensors": os.urandom(1000)})
    locked.models(bad={"source": "hf://acme/bad"}, tiny={})
    locked.run("lock")
    locked.hub.faults.add(Fault("corrupt", "bad.safetensors"))
    ran = locked.build_py("build", "--all")
    assert ran.code == errors.WrongBytes.exit_code
    assert ran.out.startswith("tiny sha256:")
    assert "1 of 2 models failed: bad" in ran.err


def test_an_index_that_cannot_be_reached(world: World) -> None:
    world.repo("acme/tiny", {"config.json": b"{}"})
    (world.folder / "runtimes/needy").mkdir(parents=True)
    runtime = (world.images / "tiny/runtime.yaml").read_text()
    (world.folder / "runtimes/needy/runtime.yaml").write_text(runtime + "builds: {cuda: requirements.txt}\n")
    (world.folder / "runtimes/needy/server.py").write_bytes((world.images / "tiny/server.py").read_bytes())
    pin = f"idna==3.20 --hash=sha256:{os.urandom(32).hex()}\n"
    (world.folder / "runtimes/needy/requirements.txt").write_text(pin)
    world.images = world.folder / "runtimes"
    world.models(tiny={"runtime": "needy"})
    world.run("lock")
    ran = world.build_py("build", "tiny")
    _failed(ran, errors.BuildFailed, "idna", "do not have the pinned hash")
    nowhere = {
        "MODELBAKE_INDEX_URL": "http://user:s3cret-password@127.0.0.1:9/simple",
        "MODELBAKE_PIP_CONFIG": None,
    }
    ran = world.build_py("build", "tiny", **nowhere)
    _failed(ran, errors.BuildFailed, "cannot be reached", "MODELBAKE_INDEX_URL")
    assert "s3cret-password" not in ran.err


def test_smoke_and_push_want_the_image_of_this_very_models_yaml(smoked: World) -> None:
    smoked.models(tiny={"env": {"OMP_NUM_THREADS": "1"}})
    for verb in ("smoke", "push"):
        _failed(
            smoked.build_py(verb, "tiny"), errors.ImageNotFound, "build.py build tiny", "another models.yaml"
        )
    smoked.run("build")
    _failed(smoked.build_py("push", "tiny"), errors.ReportMissing, "build.py smoke tiny")
    smoked.run("smoke", "push")
    assert smoked.version_tags() == ["1.0.0"], "control: built, tested and pushed as it is now"


def test_a_report_is_about_the_checks_it_ran(smoked: World) -> None:
    check = {"post": "/sum", "body": {"numbers": [2, 2]}, "expect": {"sum": 4}}
    smoked.models(tiny={"smoke": {"requests": 1, "checks": [check]}})
    _failed(smoked.build_py("push", "tiny"), errors.ReportMissing, "other checks")
    assert smoked.tags() == []
    smoked.run("smoke", "push")


@contextmanager
def _waiting_smoke(world: World) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], set[str]]]]:
    """Start `build.py smoke` of a server that takes a minute to get ready; yield it, and what it left."""
    world.models(tiny={"env": {"TINY_WAITS": "60"}})
    world.run("build")
    ours = ("ps", "--all", "--quiet", "--filter", "name=modelbake-tiny")
    before = set(world.docker(*ours).ok().out.split())
    command = [sys.executable, str(ROOT / "build.py"), "smoke", "tiny", "--images", str(world.images)]
    with subprocess.Popen(
        command,
        cwd=world.folder,
        env=world.environment,
        stderr=subprocess.PIPE,
        # Whoever runs these tests may ignore them (nohup, a shell's background); the program inherits that.
        preexec_fn=lambda: [signal.signal(each, signal.SIG_DFL) for each in (signal.SIGHUP, signal.SIGINT)],
    ) as run:
        try:
            yield run, lambda: set(world.docker(*ours).ok().out.split()) - before
        finally:
            run.kill()


@pytest.mark.promise("interrupt")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_smoke_run_that_is_cut_short_leaves_no_container(locked: World, number: signal.Signals) -> None:
    with _waiting_smoke(locked) as (run, containers):
        for _ in range(200):
            if containers():
                break
            time.sleep(0.1)
        assert containers(), "control: there was a container"
        run.send_signal(number)
        _, said = run.communicate(timeout=60)
        assert run.returncode == errors.Interrupted.exit_code, said
        assert containers() == set()


@pytest.mark.promise("interrupt")
@pytest.mark.parametrize("after", [0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 1.5])
def test_ctrl_c_at_any_moment_leaves_nothing(smoked: World, after: float) -> None:
    report = smoked.folder / "reports/tiny/1.0.0.json"
    assert report.exists(), "control: an older report that says that the model passed"
    with _waiting_smoke(smoked) as (run, containers):
        assert run.stderr is not None
        assert b"running tiny 1.0.0" in run.stderr.readline()
        time.sleep(after)
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=60)
        assert run.returncode == errors.Interrupted.exit_code, said
        assert b"Traceback" not in said
        assert containers() == set()
    assert not report.exists()


def test_doctor_finds_what_is_wrong(locked: World) -> None:
    well = locked.build_py("doctor").ok().out
    for subject in ("models.yaml", "engine", "buildkit", "disk", "hub", "base", "registry"):
        assert re.search(rf"^ok\s+{subject}: ", well, re.M), well
    assert locked.services.password not in well

    def to_fix(what: str, **environment: str | None) -> None:
        ran = locked.build_py("doctor", **environment)
        assert ran.code == errors.DoctorFailed.exit_code, ran.out
        assert re.search(rf"^fix\s+{what}: .* -> ", ran.out, re.M), ran.out
        assert len(ran.out.splitlines()) >= 6, "one thing's failure does not hide the others"

    to_fix("hub", HF_TOKEN="hf_wrong")
    to_fix("hub", HF_TOKEN_PATH="absent")
    to_fix("registry", MODELBAKE_REGISTRY_USER="nobody")
    with EngineProxy(locked.services.docker_host, refuse_sessions=True) as proxy:
        ran = locked.build_py("doctor", DOCKER_HOST=f"tcp://127.0.0.1:{proxy.port}", PATH="/usr/bin:/bin")
        assert re.search(r"^(?:fix\s+buildkit: .*buildx|ok\s+buildkit: .*/docker-buildx)", ran.out, re.M), (
            ran.out
        )
    ran = locked.build_py("doctor", DOCKER_HOST="unix:///nowhere.sock")
    assert ran.code == errors.DoctorFailed.exit_code
    assert re.search(r"^fix\s+engine: .*nowhere", ran.out, re.M)


@pytest.mark.promise("disk-full")
def test_a_disk_that_is_too_small_for_the_model(locked: World, engine: Engine) -> None:
    if engine.disk_free() is None:
        pytest.skip("the engine is on another machine: its disk cannot be seen from here")
    _edit_lock(locked, size=10**15)
    locked.hub.reset_log()
    _failed(locked.build_py("build", "tiny"), errors.DiskFull, "GB free", "2000000.0 GB", "docker system df")
    assert locked.hub.requests() == [], "noticed before anything is fetched"
