"""The main job, as its three users do it: lock, build, smoke, push; then run what the registry has."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time

import pytest

from tests.integration.world import TINY, World

pytestmark = pytest.mark.engine


def test_a_private_model_becomes_an_image_in_a_private_registry(world: World) -> None:
    world.repo("acme/tiny")
    world.models(tiny={})
    assert world.run("check").out.startswith("tiny 1.0.0 hf://acme/tiny@main")
    world.run("lock")
    lock = json.loads((world.folder / "models.lock").read_text())["models"]["tiny"]
    assert re.fullmatch(r"[0-9a-f]{40}", lock["commit"])
    assert {file["path"]: file["sha256"] for file in lock["files"]} == {
        path: hashlib.sha256(content).hexdigest() for path, content in TINY.items()
    }
    world.build_py("lock", "--check").ok()

    built = world.run("build").out.split()
    assert built[0] == "tiny"
    smoked = world.run("smoke")
    assert smoked.out.split()[1] == "passed"
    report = json.loads((world.folder / "reports/tiny/1.0.0.json").read_text())
    assert report["image_id"] == built[1]
    assert report["passed"] is True
    assert report["gpu"] is False
    assert report["device"] == "cpu", "a CPU run is never reported as a GPU run"

    reference = world.run("push").out.strip()
    assert re.fullmatch(rf"{world.services.registry}/{world.namespace}/tiny@sha256:[0-9a-f]{{64}}", reference)
    assert world.version_tags() == ["1.0.0"]
    stored = world.services.registry_get(f"{world.namespace}/tiny/manifests/1.0.0")
    assert f"sha256:{hashlib.sha256(stored.content).hexdigest()}" == reference.rpartition("@")[2]

    assert world.run("push").out.strip() == reference, "pushing the same again changes nothing"
    assert not world.hub.token_leaks()
    names = world.docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}").ok().out.split()
    assert "modelbake/tiny:1.0.0" in names
    assert not [name for name in names if world.namespace in name], "no candidate tag stays on the engine"


@pytest.mark.promise("start")
def test_the_image_runs_as_production_would_and_refuses_changed_weights(world: World) -> None:
    world.repo("acme/tiny")
    world.models(tiny={"env": {"GREETING": "hello $HOME"}, "verify": "quick"})
    world.run("lock", "build")
    config = json.loads(world.docker("image", "inspect", "modelbake/tiny:1.0.0").ok().out)[0]["Config"]
    assert config["User"] == "65532:65532"
    assert config["Entrypoint"] == ["/opt/venv/bin/python", "/modelbake/start.py"]
    assert {"GREETING=hello $HOME", "MODELBAKE_VERIFY=quick"} <= set(config["Env"])

    find = ["--entrypoint", "find", "modelbake/tiny:1.0.0", "/models", "-printf", "%P %y %m %u:%g %T@\\n"]
    listing = world.docker("run", "--rm", *find).ok().out
    entries = {line.split()[0]: line.split()[1:] for line in listing.splitlines() if line[0] != " "}
    for path in TINY:
        assert entries[path] == ["f", "444", "root:root", "0.0000000000"], path
    assert entries["tokenizer"][:3] == ["d", "555", "root:root"]

    strict = ["run", "--rm", "--read-only", "--cap-drop", "ALL", "--network", "none", "--tmpfs", "/tmp"]
    show = ["modelbake/tiny:1.0.0", "/opt/venv/bin/python", "-c", "print('served')"]
    ran = world.docker(*strict, *show)
    assert ran.code == 0
    assert ran.out.splitlines()[-1] == "served"
    (verified,) = [json.loads(line) for line in ran.out.splitlines()[:-1]]
    assert (verified["event"], verified["verify"]) == ("verified", "quick")
    ran = world.docker(*strict, "--env", "MODELBAKE_VERIFY=off", *show)
    weakened, unverified = [json.loads(line) for line in ran.out.splitlines()[:-1]]
    assert (weakened["event"], weakened["baked"]) == ("verify_weakened", "quick")
    assert (unverified["event"], unverified["level"]) == ("unverified", "warning")
    assert world.docker(*strict, "--env", "MODELBAKE_VERIFY=no", *show).code == 66

    (world.folder / "Dockerfile").write_text(
        "FROM modelbake/tiny:1.0.0\nUSER 0\nRUN printf x > /models/tokenizer/extra.bin && "
        "printf X | dd of=/models/config.json conv=notrunc status=none && rm /models/tokenizer/vocab.txt\n"
        "USER 65532:65532\n"
    )
    world.docker("build", "--quiet", "--tag", "modelbake-test/tampered", str(world.folder))
    ran = world.docker(*strict, "modelbake-test/tampered", *show[1:])
    assert ran.code == 65
    assert "served" not in ran.out
    events = {(json.loads(line)["event"], json.loads(line).get("file")) for line in ran.out.splitlines()}
    assert events >= {
        ("mismatch", "config.json"),
        ("missing", "tokenizer/vocab.txt"),
        ("extra", "tokenizer/extra.bin"),
    }


def test_a_rendered_context_is_built_by_plain_docker(world: World) -> None:
    world.repo("acme/tiny")
    world.models(tiny={})
    world.run("lock")
    assert world.build_py("render", "tiny", "--output", "context").ok().out == "context/Dockerfile\n"
    first = (world.folder / "context/Dockerfile").read_bytes()
    world.build_py("render", "tiny", "--output", "context").ok()
    assert (world.folder / "context/Dockerfile").read_bytes() == first
    folder = world.folder / "context"
    secrets = ["--secret", f"id=sources,src={folder}/sources.json"]
    secrets += ["--secret", f"id=hf_token,src={world.environment['HF_TOKEN_PATH']}"]
    for name in ("ca_bundle", "pip_config"):
        if path := world.environment.get(f"MODELBAKE_{name.upper()}"):
            secrets += ["--secret", f"id={name},src={path}"]
    tag = f"modelbake-test/{world.namespace}"
    world.docker("build", *secrets, "--tag", tag, str(folder)).ok()
    inspected = json.loads(world.docker("image", "inspect", tag).ok().out)[0]
    assert inspected["Config"]["Labels"]["io.modelbake.model"] == "tiny"


def test_what_did_not_change_is_not_fetched_again(world: World) -> None:
    repo = world.repo("acme/tiny", {**TINY, "unique": os.urandom(64)})
    world.models(tiny={})
    world.run("lock", "build")
    assert world.hub.bytes_sent("*.safetensors") > 0 or _was_cached(world)

    world.hub.reset_log()
    started = time.monotonic()
    world.run("build")
    seconds = time.monotonic() - started
    assert world.hub.requests() == [], "nothing changed: the hub is not even asked"
    assert seconds < 30, "generous: the bar of 3 s is of an idle machine"

    world.hub.reset_log()
    repo.commit({"model-00002-of-00002.safetensors": os.urandom(66 << 20)})
    world.run("lock", "build")
    assert world.hub.bytes_sent("model-00001*") == 0, "the unchanged shard comes from the build cache"
    assert world.hub.bytes_sent("model-00002*") >= 66 << 20

    world.hub.reset_log()
    repo.commit({"README.md": b"words alone\n"})
    world.models(tiny={"exclude": ["*.md"]})
    world.run("lock", "build")
    assert world.hub.bytes_sent("*.safetensors") == 0, "another commit with the same bytes fetches nothing"


def _was_cached(world: World) -> bool:
    """The same shards of an earlier test are in the engine's build cache: then nothing is fetched at all."""
    return world.hub.requests_for("*.safetensors", method="GET") == []


def test_a_second_model_is_six_lines(world: World) -> None:
    world.repo("acme/tiny")
    world.repo("acme/other", {"weights.safetensors": b"other", "config.json": b"{}"})
    world.models(tiny={})
    world.run("lock")
    before = json.loads((world.folder / "models.lock").read_text())["models"]["tiny"]
    world.models(tiny={}, other={"source": "hf://acme/other", "version": "0.1.0"})
    check = world.build_py("lock", "--check")
    assert check.code == 13
    assert "other: missing" in check.out
    world.build_py("lock", "other").ok()
    assert json.loads((world.folder / "models.lock").read_text())["models"]["tiny"] == before
    for verb in ("build", "smoke", "push"):
        ran = world.build_py(verb, "other").ok()
    assert f"{world.namespace}/other@sha256:" in ran.out
