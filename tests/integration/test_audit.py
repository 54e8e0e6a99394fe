"""Audits of real images: what a later layer deletes is found, in the engine and in the registry.

A small image with everything wrong, and a clean one, both built on purpose by the engine.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelbake.buildkit.solve import build
from modelbake.engine import Engine
from tests.conftest import Tally
from tests.integration.conftest import TestRegistry, tar
from tests.servers.environment import ROOT
from tests.unit.audit.hostile import STACK_GLOBAL
from tests.unit.audit.secrets import SECRETS

pytestmark = pytest.mark.engine

WEIGHTS = b"\x02\0\0\0\0\0\0\0{}"
TOKEN = SECRETS["hugging face"][1]()
CANARY = "correct-horse-" + "battery-staple-42"
CLEAN = """\
FROM {base}
COPY --chmod=0444 model.safetensors /models/
COPY manifest.json /modelbake/
USER 65532:65532
"""
BAD = """\
FROM {base}
COPY token /root/.cache/huggingface/token
COPY canary /app/canary
COPY pickle /models/config.json
COPY --chmod=4755 setuid /usr/bin/helper
RUN ["touch", "/models/extra.py"]
COPY --chmod=0666 model.safetensors /models/
COPY manifest.json /modelbake/
RUN ["rm", "/root/.cache/huggingface/token", "/app/canary", "/models/config.json"]
ENV API_KEY=whatever
LABEL note="{token}"
"""
FOUND = {
    "secret-huggingface",
    "secret-canary",
    "secret-name",
    "pickle-content",
    "setuid",
    "world-writable",
    "root-user",
    "model-code",
    "weights-extra",
    "weights-hidden",
}


@pytest.fixture(scope="module")
def images(engine: Engine, tiny: str) -> Iterator[dict[str, str]]:
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    listed = [{"path": "model.safetensors", "size": len(WEIGHTS), "sha256": sha256}]
    made = {}
    for name, dockerfile in (("clean", CLEAN), ("bad", BAD)):
        context = tar(
            {
                "Dockerfile": dockerfile.format(base=tiny, token=TOKEN),
                "model.safetensors": WEIGHTS,
                "manifest.json": json.dumps({"files": listed}),
                "token": TOKEN,
                "canary": b"\0" * 70_000 + CANARY.encode(),
                "pickle": STACK_GLOBAL,
                "setuid": b"\x7fELF",
            }
        )
        made[name] = f"modelbake-test/audit-{name}:{uuid.uuid4().hex[:12]}"
        build(engine, context, secrets={}, tags=[made[name]], on_event=lambda event: None)
    yield made
    for tag in made.values():
        engine.api.remove_image(tag, force=True)


@pytest.fixture
def audit(engine: Engine, registry: TestRegistry, tmp_path: Path) -> Audit:
    return Audit(engine, registry, tmp_path)


class Audit:
    """Runs `build.py audit` as a user does, who is logged in by the environment."""

    def __init__(self, engine: Engine, registry: TestRegistry, folder: Path) -> None:
        (folder / "canary").write_text(CANARY)
        (folder / "password").write_text(registry.password.reveal())
        self.folder = folder
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "DOCKER_HOST": engine.host,
            "MODELBAKE_REGISTRY": registry.host,
            "MODELBAKE_REGISTRY_USER": registry.user,
            "MODELBAKE_REGISTRY_PASSWORD_FILE": str(folder / "password"),
        }

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "build.py"), "audit", "--canary-file", "canary", *arguments]
        env = self.environment | environment
        done = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        return done


@pytest.mark.promise("audit")
def test_what_is_wrong_in_any_layer_is_found_in_the_engine_and_in_the_registry(
    engine: Engine, registry: TestRegistry, images: dict[str, str], audit: Audit, tally: Tally
) -> None:
    remote = f"{registry.host}/test/audit-bad:{uuid.uuid4().hex[:8]}"
    engine.tag(images["bad"], remote)
    try:
        pushed = engine.push(remote, registry.for_registry(registry.host), lambda event: None)
    finally:
        engine.api.remove_image(remote, noprune=True)
    for arguments in (
        [images["bad"]],
        [remote],
        [f"{remote.rpartition(':')[0]}@{pushed.digest}", "--remote"],
    ):
        done = audit("--json", *arguments)
        assert done.returncode == 71, done.stderr
        findings = json.loads(done.stdout)["findings"]
        assert {each["rule"] for each in findings} >= FOUND
        tally.count(len(FOUND))
        deleted = {each["path"] for each in findings if "a later layer deletes it" in each["message"]}
        assert deleted >= {"root/.cache/huggingface/token", "app/canary", "models/config.json"}
        assert CANARY not in done.stdout + done.stderr
        assert TOKEN not in done.stdout + done.stderr


@pytest.mark.control("audit")
def test_a_clean_image_has_none(images: dict[str, str], audit: Audit) -> None:
    done = audit(images["clean"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 findings" in done.stdout


def test_what_is_nowhere_is_said(registry: TestRegistry, audit: Audit) -> None:
    done = audit(f"{registry.host}/test/nowhere:1")
    assert done.returncode == 46
    assert "the engine does not have it; reading it from its registry" in done.stderr
    assert "there is no such image" in done.stderr
