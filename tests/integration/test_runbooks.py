"""docs/runbooks: each page's own commands are run, in their order, on a real registry and a real engine.

`make nightly` rehearses all pages, in a registry that is theirs to lose; `make test` the two shorter ones.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.world import Services, World
from tests.promises import full
from tests.servers.environment import ROOT, run_script, shell_exports
from tests.servers.hub import Hub

pytestmark = [pytest.mark.engine, pytest.mark.promise("quarantine")]

FOLDER = ROOT / "docs/runbooks"
NAME, REGISTRY = "drilled", "runbooks"
GOOD, POISON = b"\4" * 300_000, b"\6" * 300_000
SHA256 = hashlib.sha256(POISON).hexdigest()
EVERY_PAGE = pytest.mark.skipif(not full(), reason="takes a minute: `make nightly` rehearses it")
_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.M | re.S)
_SECTION = re.compile(r"^## (.*?)\n(.*?)(?=^## |\Z)", re.M | re.S)


def commands(page: str) -> dict[str, str]:
    """The shell blocks of a page by their section, in order."""
    sections = _SECTION.findall((FOLDER / page).read_text())
    return {name: "".join(_BLOCK.findall(text)) for name, text in sections if _BLOCK.search(text)}


@dataclass
class Drill:
    """A model in production, and what happens to it."""

    world: World
    editor: Path

    def declare(self, version: str, source: str) -> None:
        self.world.models(**{NAME: {"version": version, "source": f"hf://acme/{source}"}})

    def release(self, version: str, source: str) -> None:
        """A version that is in production."""
        self.declare(version, source)
        self.world.build_py("lock", NAME).ok()
        self.world.build_py("publish", NAME).ok()
        self.world.build_py("promote", NAME, version, "--to", "production").ok()

    def to_be_written(self, name: str, content: str) -> None:
        """What somebody types into an editor when a page opens it with a file of this name."""
        (self.editor / name).write_text(content)

    def will_declare(self, version: str, source: str) -> None:
        models = self.world.folder / "models.yaml"
        before = models.read_text()
        self.declare(version, source)
        self.to_be_written("models.yaml", models.read_text())
        models.write_text(before)

    def run(self, text: str, **variables: str) -> str:
        """Run the commands of a section; return what they printed."""
        names = {"MODEL": NAME, "CHANNEL": "production", "EDITOR": str(self.editor / "edit"), **variables}
        ran = self.world.shell(text, **names)
        assert ran.code == 0, f"{text}\nexit code {ran.code}\n{ran.out}\n{ran.err}"
        return ran.out

    @property
    def digest(self) -> str:
        """What production names now, as the registry says."""
        return self.digest_of("production")

    def digest_of(self, tag: str) -> str:
        return str(self.world.services.manifest(f"{self.world.namespace}/{NAME}", tag)["digest"])

    def production(self) -> dict[str, Any]:
        listed = json.loads(self.world.build_py("channels", NAME, "--json").ok().out)
        (found,) = (each for each in listed if each["channel"] == "production")
        return dict(found)


@pytest.fixture(scope="module")
def drill(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drill]:
    """Versions 1.0.0, and 1.1.0 which is worse, in production."""
    token, folder = f"hf_{secrets.token_hex(17)}", tmp_path_factory.mktemp("runbooks")
    editor = tmp_path_factory.mktemp("editor")
    (editor / "edit").write_text(f'#!/bin/sh\ncp "{editor}/$(basename "$1")" "$1"\n')
    (editor / "edit").chmod(0o755)
    own = services
    if full():
        own = services.with_registry(shell_exports("registry", "up", "--name", REGISTRY))
    try:
        with Hub(folder / "hub", {token: None}, host=services.bridge) as hub:
            world = World(own, folder, hub, token)
            world.login(services)
            world.repo("acme/good", {"config.json": b"{}\n", "model.safetensors": GOOD})
            world.repo("acme/bad", {"config.json": b"{}\n", "model.safetensors": POISON})
            made = Drill(world, editor)
            made.release("1.0.0", "good")
            made.release("1.1.0", "bad")
            yield made
            world.remove_images()
    finally:
        if full():
            run_script("registry", "down", "--name", REGISTRY, "--purge")


def test_every_page_has_the_same_sections_and_is_rehearsed() -> None:
    rehearsed = {"bad-release.md", "poisoned-model.md", "leaked-token.md", "registry-lost.md"}
    assert {path.name for path in FOLDER.iterdir()} == rehearsed
    for page in rehearsed:
        text = (FOLDER / page).read_text()
        assert "**When:**" in text
        sections = [name for name, _ in _SECTION.findall(text)]
        assert {"First five minutes", "Then", "How to know that it worked", "Afterwards"} <= set(sections)
        given = set(re.findall(r"^\| ((?:`[A-Z0-9_]+`(?:, )?)+) \|", text, re.M))
        named = {word for words in given for word in re.findall(r"`(\w+)`", words)}
        used = set(re.findall(r"\$([A-Z][A-Z0-9_]+)", "".join(commands(page).values())))
        assert used - {"EDITOR"} == named, page
        links = re.findall(r"\]\(([^)#]+)", text)
        assert [link for link in links if not (FOLDER / link).exists()] == []


def test_bad_release(drill: Drill) -> None:
    page = commands("bad-release.md")
    versions = {"BAD": "1.1.0", "GOOD": "1.0.0"}
    drill.run(page["First five minutes"], **versions)  # 1.1.0 is in no quarantine yet: see the next test
    image = (drill.world.folder / ".env").read_text().strip().removeprefix("MODELBAKE_IMAGE=")
    assert image.endswith(drill.digest) and drill.digest == drill.digest_of("1.0.0")
    drill.declare("1.0.0", "good")  # `verify` also compares with the lock, where it is of this version
    drill.world.build_py("lock", NAME).ok()
    told = drill.run(page["How to know that it worked"], **versions)
    assert "1.0.0" in told
    assert "1.1.0" in drill.run(page["Then"], **versions)


def test_poisoned_model(drill: Drill) -> None:
    drill.world.build_py("promote", NAME, "1.1.0", "--to", "production").ok()
    page = commands("poisoned-model.md")
    variables = {"SHA256": SHA256, "FIXED": "1.1.1"}
    told = drill.run(page["First five minutes"], **variables)
    assert "/models/model.safetensors" in told and "--to 1.0.0" in told
    assert drill.production()["current"]["kind"] == "rollback" and drill.digest == drill.digest_of("1.0.0")
    promoted = drill.world.build_py("promote", NAME, "1.1.0", "--to", "production")
    assert promoted.code == 75 and SHA256 in promoted.err
    verified = drill.world.build_py("verify", NAME, "1.1.0")
    assert verified.code == 80 and "in quarantine" in verified.out
    drill.will_declare("1.1.1", "good")
    drill.run(page["Then"], **variables)
    told = drill.run(page["How to know that it worked"], **variables)
    assert drill.digest == drill.digest_of("1.1.1")
    assert SHA256 not in (drill.world.folder / "models.lock").read_text()
    (row,) = (line for line in told.splitlines() if line.startswith(f"{NAME} "))
    assert row.split()[1] == "1.1.0" and "quarantined" in row and "production" not in row


@EVERY_PAGE
def test_leaked_token(drill: Drill, tmp_path: Path) -> None:
    world = drill.world
    leaked = f"internal-{secrets.token_hex(16)}"
    content = {"config.json": b"{}\n", "notes.txt": leaked.encode(), "model.safetensors": GOOD}
    world.repo("acme/leaky", content)
    drill.release("1.2.0", "leaky")
    world.secrets.add(leaked)  # from here on it must be in nothing that is said or written
    page = commands("leaked-token.md")
    variables = {"TOKEN_FILE": str(tmp_path / "token"), "FIXED": "1.2.1"}
    drill.to_be_written("token", leaked + "\n")
    told = drill.run(page["First five minutes"], **variables)
    assert "models/notes.txt" in told and "withdraw the token" in told
    assert drill.digest == drill.digest_of("1.1.1"), "1.1.0 was before, and is in quarantine"
    drill.will_declare("1.2.1", "good")
    drill.run(page["Then"], **variables)
    told = drill.run(page["How to know that it worked"], **variables)
    assert drill.digest == drill.digest_of("1.2.1") and not (tmp_path / "token").exists()
    (row,) = (line for line in told.splitlines() if line.startswith(f"{NAME} "))
    assert row.split()[1] == "1.2.0" and "quarantined" in row and "production" not in row


@EVERY_PAGE
def test_packages_are_found_in_layers_where_there_is_no_sbom(drill: Drill) -> None:
    for package, state in (("libc6", "affected"), ("libc6==0", "clean")):
        asked = drill.world.build_py("incident", "--package", package, NAME, "--json").ok()
        images = json.loads(asked.out)["images"]
        assert len(images) > 1
        assert {(each["state"], each["by"]) for each in images} == {(state, "layers")}


@EVERY_PAGE
def test_registry_lost(drill: Drill, tmp_path: Path) -> None:
    page = commands("registry-lost.md")
    variables = {"BACKUP": str(tmp_path / "kept")}
    drill.run(page["Before it happens"], **variables)
    before = drill.production()
    run_script("registry", "down", "--name", REGISTRY)
    shutil.rmtree(drill.world.services.storage)
    run_script("registry", "up", "--name", REGISTRY)
    assert drill.world.tags(NAME) == []
    drill.run(page["Then"], **variables)
    assert drill.production() == before
    drill.run(page["How to know that it worked"], **variables)
    assert drill.production()["current"]["number"] == before["current"]["number"] + 1
    again = drill.world.build_py("promote", NAME, "1.1.0", "--to", "production")
    assert again.code == 75, "what was in quarantine still is"
