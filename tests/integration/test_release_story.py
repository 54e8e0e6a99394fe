"""README's shell lines about releases, run on a registry that is lost in between; `make story` shows them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import second_engine
from tests.integration.world import Services, World
from tests.servers.debian_programs import Programs
from tests.servers.environment import ROOT, run_script, shell_exports
from tests.servers.hub import Hub
from tests.servers.signed_images import PASSWORD, Keys

pytestmark = pytest.mark.engine

NAME, REGISTRY = "chat", "story"
WEIGHTS = {source: bytes([number]) * 3_000_000 for number, source in enumerate(("first", "second", "third"))}
CHANNELS = {
    "staging": {},
    "production": {"require": ["signature", "audit"]},
}
SMOKE = {
    "requests": 2,
    "checks": [{"post": "/sum", "body": {"numbers": [1, 2]}, "expect": {"sum": 3}}],
    "limits": {"max_latency": 3},
}


def told_lines() -> list[str]:
    """README's lines."""
    section = (ROOT / "README.md").read_text().partition("\n## Releases\n")[2].partition("\n## ")[0]
    (block,) = re.findall(r"^```sh\n(.*?)^```$", section, re.M | re.S)
    return str(block).splitlines()


@dataclass
class Story:
    """The folder of a team, an editor that types what is meant to be typed, and what has happened so far."""

    world: World
    program: Path
    keys: Keys
    edited: Path
    digests: dict[str, str] = field(default_factory=dict)

    def will_declare(self, version: str, source: str, **environment: str) -> None:
        """Let the next `$EDITOR models.yaml` write this."""
        models = self.world.folder / "models.yaml"
        before = models.read_text() if models.exists() else ""
        self.declare(version, source, **environment)
        self.edited.write_text(models.read_text())
        models.write_text(before)

    def declare(self, version: str, source: str, **environment: str) -> None:
        self.world.models(
            **{
                NAME: {
                    "version": version,
                    "source": f"hf://acme/{source}",
                    "env": environment,
                    "smoke": SMOKE,
                }
            }
        )
        models = self.world.folder / "models.yaml"
        document = json.loads(models.read_text())
        document |= {"channels": CHANNELS, "signing": {"public_key": "cosign.pub"}}
        models.write_text(json.dumps(document, indent=2))

    def run(self, line: str, **variables: str) -> str:
        """Run a line of README; return what it printed."""
        began = time.monotonic()
        ran = self.world.shell(
            line,
            EDITOR=str(self.edited.with_name("edit")),
            MODELBAKE_COSIGN=str(self.program),
            MODELBAKE_SIGNING_KEY=str(self.keys.private),
            COSIGN_PASSWORD=PASSWORD,
            **variables,
        )
        sys.stdout.write(f"$ {line}\n{ran.out}({time.monotonic() - began:.1f} s)\n")
        assert ran.code == 0, f"{line}\nexit code {ran.code}\n{ran.out}\n{ran.err}"
        return ran.out

    def digest(self, tag: str) -> str:
        """What a tag names, as the registry says."""
        return str(self.world.services.manifest(f"{self.world.namespace}/{NAME}", tag)["digest"])

    def tags(self) -> dict[str, str]:
        """Every tag but candidates', with its digest."""
        return {tag: self.digest(tag) for tag in self.world.tags(NAME) if not tag.startswith("candidate-")}


@pytest.fixture
def story(services: Services, tmp_path: Path) -> Iterator[Story]:
    token, folder, editor = f"hf_{secrets.token_hex(17)}", tmp_path / "team", tmp_path / "editor"
    folder.mkdir()
    editor.mkdir()
    (editor / "edit").write_text(f'#!/bin/sh\ncp "{editor}/models.yaml" "$1"\n')
    (editor / "edit").chmod(0o755)
    program = Programs.unpack("trixie", "cosign").root / "usr/bin/cosign"
    own = services.with_registry(shell_exports("registry", "up", "--name", REGISTRY))
    try:
        with Hub(tmp_path / "hub", {token: None}, host=services.bridge) as hub:
            world = World(own, folder, hub, token)
            world.login(services)
            world.secrets.add(PASSWORD)
            for source, weights in WEIGHTS.items():
                world.repo(f"acme/{source}", {"config.json": b"{}\n", "model.safetensors": weights})
            keys = Keys.generate(program, tmp_path / "keys")
            shutil.copy(keys.public, folder / "cosign.pub")
            yield Story(world, program, keys, editor / "models.yaml")
            world.remove_images()
    finally:
        run_script("registry", "down", "--name", REGISTRY, "--purge")


def commit_of(world: World) -> str:
    """The commit that models.lock says."""
    lock: dict[str, Any] = json.loads((world.folder / "models.lock").read_text())
    return str(lock["models"][NAME]["commit"])


@pytest.mark.skipif("MODELBAKE_STORY" not in os.environ, reason="takes two minutes: `make story` runs it")
def test_releases(story: Story) -> None:
    world = story.world
    lines = iter(told_lines())
    story.declare("1.0.0", "first")
    world.build_py("lock", NAME).ok()

    released = story.run(next(lines)).split()[-1]
    assert released.endswith(story.digest("1.0.0"))
    assert story.run(next(lines)).split()[-1] == released
    assert story.digest("production") == story.digest("1") == story.digest("1.0") == story.digest("1.0.0")

    story.will_declare("1.1.0", "second")
    story.run(next(lines))
    held = commit_of(world)
    story.run(next(lines))
    assert story.digest("production") == story.digest("1") == story.digest("1.1.0")

    story.will_declare("1.2.0", "third", TINY_TAKES="3.5")
    story.run(next(lines))
    story.run(next(lines))
    assert not [tag for tag in story.tags() if tag.startswith("1.2")]
    assert world.build_py("release", NAME).code == 66, "no report says that it passed"
    assert world.build_py("promote", NAME, "1.2.0", "--to", "production").code == 73
    assert story.digest("production") == story.digest("1.1.0")

    story.will_declare("1.1.1", "third")
    story.run(next(lines))
    story.run(next(lines))
    assert story.digest("production") == story.digest("1.1") == story.digest("1.1.1")
    story.run(next(lines))
    assert story.digest("production") == story.digest("1.1.0") != story.digest("1.1.1")

    told = story.run(next(lines), COMMIT=held)
    (row,) = (line for line in told.splitlines() if line.startswith(f"{NAME} "))
    assert "1.1.0" in row and "production" in row
    assert "--to 1.0.0" in told, "1.1.1 was rolled back from"

    before = story.tags()
    story.run(next(lines))
    run_script("registry", "down", "--name", REGISTRY)
    shutil.rmtree(world.services.storage)
    run_script("registry", "up", "--name", REGISTRY)
    assert world.tags(NAME) == [], "all of it is lost"
    story.run(next(lines))
    assert story.tags() == before
    told = story.run(next(lines))
    assert re.search(r"^signature\s+ok", told, re.M) and re.search(r"^channel\s+ok", told, re.M)
    assert "rollback" in told
    assert next(lines, None) is None, "every line of README was run"

    # A host that has never seen it: another engine pulls production, and verifies it before it serves.
    image = f"{world.services.registry}/{world.namespace}/{NAME}@{story.digest('production')}"
    elsewhere = second_engine()
    ran = world.docker("run", "--rm", "--read-only", "--network", "none", image, "--verify", host=elsewhere)
    world.docker("image", "rm", "--force", image, host=elsewhere)
    events = [json.loads(line) for line in (ran.out + ran.err).splitlines() if line.startswith("{")]
    assert any(event["event"] == "verified" for event in events), ran
    assert hashlib.sha256(WEIGHTS["second"]).hexdigest() in (
        world.build_py("sbom", NAME, "1.1.0").ok().out
    ), "and these are the weights that 1.1.0 was locked with"
