"""SBOM and provenance of real releases, read by other tools; the drill: a registry is lost, and restored."""

from __future__ import annotations

import json
import secrets
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from modelbake.credentials import Secret
from modelbake.dockerconfig import RegistryCredentials
from modelbake.referrers import referrers_tag
from modelbake.registry import Registry
from modelbake.release.attachments import attachments
from modelbake.stream.repository import RegistryRepository
from tests.integration.world import Services, World
from tests.servers.debian_programs import Programs
from tests.servers.environment import run_script, shell_exports
from tests.servers.hub import Hub
from tests.unit.release.made import put_image, put_index

pytestmark = pytest.mark.engine

NAME = "backupdrill"
CONTENT = {"config.json": b'{"kind": "tiny"}\n', "model.safetensors": b"\5" * 3_000_000}
REPORT, AUDIT = "application/vnd.modelbake.report.v1+json", "application/vnd.modelbake.audit.v1+json"
SBOM, PROVENANCE = "application/vnd.cyclonedx+json", "application/vnd.in-toto+json"


@dataclass
class Released:
    """A world with a registry of its own: `tiny` 1.0.0 is released, 1.1.0 published alone."""

    world: World
    oras: Programs
    skopeo: Programs

    @property
    def name(self) -> str:
        return f"{self.world.services.registry}/{self.world.namespace}/tiny"

    def run_oras(self, *arguments: str) -> str:
        config = str(self.world.folder / ".docker/config.json")
        return self.oras.run(
            "oras", *arguments[:1], "--plain-http", "--registry-config", config, *arguments[1:]
        )

    def everything(self) -> dict[str, Any]:
        """The digest of each tag but candidates', and of all that is attached to either version."""
        services = self.world.services
        credentials = RegistryCredentials(services.registry_user, Secret(services.password))
        with Registry(services.registry, credentials) as registry:
            repository = RegistryRepository(registry, f"{self.world.namespace}/tiny")
            tags = {tag: repository.manifest(tag) for tag in registry.tags(repository.path)}
            images = [image for tag in ("1.0.0", "1.1.0") if (image := tags[tag])]
            attached = {each.digest for image in images for each in attachments(repository, image)}
        named = {
            tag: found.digest for tag, found in tags.items() if found and not tag.startswith("candidate-")
        }
        return {"tags": named, "attached": attached}


@pytest.fixture(scope="module")
def released(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Released]:
    token, folder = f"hf_{secrets.token_hex(17)}", tmp_path_factory.mktemp("backup")
    own = services.with_registry(shell_exports("registry", "up", "--name", NAME))
    try:
        with Hub(folder / "hub", {token: None}, host=services.bridge) as hub:
            world = World(own, folder, hub, token)
            world.login(services)
            world.repo("acme/tiny", CONTENT)
            world.models(tiny={"version": "1.0.0"})
            world.run("lock", "publish", "release")
            world.models(tiny={"version": "1.1.0", "env": {"GREETING": "1.1.0"}})
            world.run("publish")
            libraries = ("libgpgme11", "libassuan0", "libgpg-error0", "libdevmapper1.02.1")
            skopeo = Programs.unpack("bookworm", "skopeo", *libraries)
            yield Released(world, Programs.unpack("trixie", "oras"), skopeo)
            world.remove_images()
    finally:
        run_script("registry", "down", "--name", NAME, "--purge")


def test_other_tools_find_and_read_the_documents(released: Released, tmp_path: Path) -> None:
    discovered = json.loads(released.run_oras("discover", "--format", "json", f"{released.name}:1.0.0"))
    listed = discovered.get("referrers") or discovered.get("manifests")
    by_type = {each["artifactType"]: each for each in listed}
    assert set(by_type) == {REPORT, AUDIT, SBOM, PROVENANCE}
    for kind in (SBOM, PROVENANCE):
        released.run_oras("pull", "--output", str(tmp_path), f"{released.name}@{by_type[kind]['digest']}")
    raw = (tmp_path / "tiny-1.0.0.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(raw) is None
    assert raw == released.world.build_py("sbom", "tiny", "1.0.0").ok().out
    parts = {each["name"]: each for each in json.loads(raw)["components"]}
    assert parts["tiny"]["type"] == "machine-learning-model"
    assert {each["name"] for each in parts["tiny"]["components"]} == set(CONTENT)
    assert any(each.get("purl", "").startswith("pkg:deb/debian/") for each in parts.values())

    statement = json.loads((tmp_path / "tiny-1.0.0.provenance.json").read_bytes())
    digest = released.world.services.manifest(f"{released.world.namespace}/tiny", "1.0.0")["digest"]
    assert statement["subject"][0]["digest"] == {"sha256": digest.removeprefix("sha256:")}
    said = released.world.build_py("sbom", "tiny", "1.0.0", "--provenance").ok().out
    assert json.loads(said)["predicate"]["buildDefinition"]["externalParameters"]["version"] == "1.0.0"
    ran = released.world.build_py("sbom", "tiny")
    assert (
        ran.code == 73 and "1.1.0: it has no such document" in ran.err and "build.py release tiny" in ran.err
    )
    assert released.world.build_py("sbom", "tiny", "9.9.9").code == 73


def test_a_second_release_attaches_nothing_twice(released: Released) -> None:
    before = released.everything()
    released.world.models(tiny={"version": "1.0.0"})
    released.world.run("release")
    assert released.everything() == before


def test_the_drill(released: Released, capsys: pytest.CaptureFixture[str]) -> None:
    world = released.world
    services = world.services
    credentials = RegistryCredentials(services.registry_user, Secret(services.password))
    with Registry(services.registry, credentials) as registry:
        repository = RegistryRepository(registry, f"{world.namespace}/tiny")
        first = repository.manifest("1.0.0")
        assert first is not None
        put_index(repository, "production-0001", first, note="who and when")
        repository.put_manifest("production", first)
        put_image(repository, f"{referrers_tag(first.digest)}.sig", note="a signature")
    before = released.everything()
    assert len(before["attached"]) == 6, "four documents and a signature of 1.0.0, a report of 1.1.0"

    backup = json.loads(world.build_py("backup", "tiny", "--output", "oci:kept", "--json").ok().out)["tiny"]
    assert backup["tags"] == len(before["tags"]) and backup["size"] > 3_000_000
    again = json.loads(world.build_py("backup", "--all", "--output", "oci:kept", "--json").ok().out)["tiny"]
    assert (again["blobs"], again["size"]) == (0, 0)
    layout = released.oras.run(
        "oras", "manifest", "fetch", "--oci-layout", "--descriptor", f"{world.folder}/kept:tiny/1.0.0"
    )
    assert json.loads(layout)["digest"] == before["tags"]["1.0.0"]
    inspected = released.skopeo.run("skopeo", "inspect", f"oci:{world.folder}/kept:tiny/1.1.0")
    assert json.loads(inspected)["Digest"] == before["tags"]["1.1.0"]

    run_script("registry", "down", "--name", NAME)
    shutil.rmtree(services.storage)
    run_script("registry", "up", "--name", NAME)
    assert services.tags(f"{world.namespace}/tiny") == []
    restored = json.loads(world.build_py("restore", "tiny", "--from", "oci:kept", "--json").ok().out)["tiny"]
    assert released.everything() == before
    said = f"restored {restored['size']:,} bytes, {restored['tags']} tags in {restored['seconds']} s"
    with capsys.disabled():
        sys.stdout.write(f"\n{said}\n")

    lines = world.build_py("history", "tiny").ok().out.splitlines()
    assert [line.split()[0] for line in lines] == ["VERSION", "1.1.0", "1.0.0"] and "cpu" in lines[1]
    world.models(tiny={"version": "1.2.0", "env": {"GREETING": "1.2.0"}})
    world.run("publish")
    moved = json.loads(world.build_py("backup", "tiny", "--output", "oci:kept", "--json").ok().out)["tiny"]
    assert 0 < moved["size"] < 2_000_000, "its own small layers, and no weights"


def test_bad_input(released: Released) -> None:
    world = released.world
    (world.folder / "full").mkdir(exist_ok=True)
    (world.folder / "full/file").write_text("x")
    for arguments, code, words in (
        (["backup", "tiny", "--output", "kept"], 2, "names no registry"),
        (["backup", "tiny", "--output", f"{world.services.registry}/{world.namespace}"], 2, "itself"),
        (["backup", "tiny", "--output", "oci:full"], 69, "something else than an OCI layout"),
        (["backup", "nobody", "--output", "oci:new"], 2, "nobody"),
        (["restore", "tiny", "--from", "oci:absent"], 69, "build.py backup"),
    ):
        ran = world.build_py(*arguments)
        assert ran.code == code and words in ran.err, ran.err
