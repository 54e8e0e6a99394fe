"""Signatures in a real registry: what `sign` makes plain cosign takes, what cosign makes `verify` takes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from modelbake.manifest import Manifest
from modelbake.referrers import referrers
from modelbake.registry import Registry
from modelbake.release.signatures import signature_tag
from modelbake.release.weightsignature import WEIGHTS_TYPE
from modelbake.stream.repository import RegistryRepository
from tests.integration.conftest import TestRegistry
from tests.integration.world import Ran, World
from tests.servers.debian_programs import Programs
from tests.servers.environment import ROOT
from tests.servers.signed_images import PASSWORD, WEIGHTS, Keys, locked_model, put_image

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def program() -> Path:
    return Programs.unpack("trixie", "cosign").root / "usr/bin/cosign"


@pytest.fixture(scope="module")
def keys(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys.generate(program, tmp_path_factory.mktemp("keys") / "ours")


@pytest.fixture(scope="module")
def others(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys.generate(program, tmp_path_factory.mktemp("keys") / "others")


@dataclass(frozen=True)
class Shop:
    """A world with one version of a small image, and the keys to sign it."""

    world: World
    repository: RegistryRepository
    keys: Keys
    manifest: Manifest

    @property
    def reference(self) -> str:
        return f"{self.repository.name}@{self.manifest.digest}"

    @property
    def config(self) -> Path:
        return self.world.folder / ".docker"

    def run(self, *arguments: str, **environment: str | None) -> Ran:
        given = {
            "MODELBAKE_COSIGN": str(self.keys.program),
            "MODELBAKE_SIGNING_KEY": str(self.keys.private),
            "COSIGN_PASSWORD": PASSWORD,
            **environment,
        }
        return self.world.build_py(*arguments, **given)

    def checks(self, *arguments: str, code: int = 0, **environment: str | None) -> dict[str, str]:
        """Verify; return the result of each check."""
        ran = self.run("verify", *arguments, "--json", **environment)
        assert ran.code == code, ran.err
        return {each["check"]: each["result"] for each in json.loads(ran.out)["checks"]}

    def declare(self, **keys: Any) -> None:
        """Write models.yaml with the keys at its top."""
        path = self.world.folder / "models.yaml"
        path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


@pytest.fixture
def shop(world: World, registry: TestRegistry, keys: Keys) -> Iterator[Shop]:
    world.login()
    world.models(tiny={})
    shutil.copy(keys.public, world.folder / "cosign.pub")
    with Registry(registry.host, registry.for_registry(registry.host)) as connected:
        repository = RegistryRepository(connected, f"{world.namespace}/tiny")
        made = Shop(world, repository, keys, put_image(repository, "1.0.0", locked_model()))
        made.declare(signing={"public_key": "cosign.pub"})
        yield made


def signature_of(shop: Shop) -> dict[str, Any]:
    return shop.world.services.manifest(shop.repository.path, signature_tag(shop.manifest.digest))


def by_one_file(shop: Shop, keys: Keys) -> tuple[int, str]:
    command = [sys.executable, "-S", "-E", str(ROOT / "scripts/verify_image.py"), "--key", str(keys.public)]
    done = subprocess.run(
        [*command, f"{shop.repository.name}:1.0.0"],
        env={"DOCKER_CONFIG": str(shop.config)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout.strip()


def test_cosign_and_model_signing_take_what_sign_makes(shop: Shop, others: Keys, tmp_path: Path) -> None:
    verify = ["verify", "--insecure-ignore-tlog=true", shop.reference]
    unsigned = shop.keys.cosign(*verify, f"--key={shop.keys.public}", config=shop.config, check=False)
    assert unsigned.returncode != 0  # control
    (shop.world.folder / "password").write_text(PASSWORD + "\n")
    named = str(shop.world.folder / "password")
    ran = shop.run("sign", "tiny", COSIGN_PASSWORD=None, MODELBAKE_SIGNING_PASSWORD_FILE=named)
    assert ran.ok().out.strip() == shop.reference
    started = [each for each in shop.world.children() if str(shop.keys.program) in each["command"]]
    assert started
    for secret in (PASSWORD, shop.world.services.password):
        assert secret not in json.dumps(started)
    shop.keys.cosign(*verify, f"--key={shop.keys.public}", config=shop.config)
    other = shop.keys.cosign(*verify, f"--key={others.public}", config=shop.config, check=False)
    assert other.returncode != 0
    # A host that has neither modelbake nor cosign.
    assert by_one_file(shop, shop.keys) == (0, shop.reference)
    assert by_one_file(shop, others) == (1, "")
    before = signature_of(shop)
    assert "is signed by" in shop.run("sign", "tiny", "1.0.0").ok().err
    assert signature_of(shop) == before, "signed twice, it is there once"
    assert len(referrers(shop.repository, shop.manifest, WEIGHTS_TYPE)) == 1
    bundle = shop.world.folder / "weights.sig"
    found = shop.checks("tiny", "--weights-signature", str(bundle))
    assert (found["signature"], found["weights signature"]) == ("ok", "ok")
    models = tmp_path / "models"
    for path, content in WEIGHTS.items():
        (models / path).parent.mkdir(parents=True, exist_ok=True)
        (models / path).write_bytes(content)
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(models)]
    command += ["--signature", str(bundle), "--public_key", str(shop.keys.public)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (models / "model.safetensors").write_bytes(b"\7" * 69_999 + b"\6")
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0  # control


def test_verify_takes_what_plain_cosign_makes_and_needs_no_program(shop: Shop) -> None:
    assert shop.checks("tiny", code=80)["signature"] == "failed"  # control
    sign = ["sign", "--tlog-upload=false", "--yes", f"--key={shop.keys.private}", shop.reference]
    shop.keys.cosign(*sign, config=shop.config)
    assert shop.checks("tiny", MODELBAKE_COSIGN="/nonexistent")["signature"] == "ok"
    # On a host without models.yaml.
    (shop.world.folder / "models.yaml").unlink()
    by_key = shop.checks(shop.reference, "--public-key", str(shop.keys.public))
    assert (by_key["signature"], by_key["weights signature"]) == ("ok", "not checked")
    assert shop.checks(shop.reference)["signature"] == "not checked"


def test_verify_takes_bundles_as_cosign_3_writes_them(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "empty.json").write_text("{}")
    attest = ["attest", "--new-bundle-format", "--tlog-upload=false", "--yes", f"--key={shop.keys.private}"]
    predicate = [f"--predicate={tmp_path / 'empty.json'}", "--type"]
    shop.keys.cosign(*attest, *predicate, "https://example.com/else", shop.reference, config=shop.config)
    assert shop.checks("tiny", code=80)["signature"] == "failed"  # control: that says nothing of a signature
    signed = "https://sigstore.dev/cosign/sign/v1"
    shop.keys.cosign(*attest, *predicate, signed, shop.reference, config=shop.config)
    assert shop.checks("tiny")["signature"] == "ok"


@pytest.mark.promise("signature")
def test_signatures_of_others_and_of_other_images_are_refused(shop: Shop, others: Keys) -> None:
    sign = ["sign", "--tlog-upload=false", "--yes", f"--key={others.private}", shop.reference]
    others.cosign(*sign, config=shop.config)
    ran = shop.run("verify", "tiny")
    assert ran.code == 80
    assert "none of its 1 signatures is by the key" in ran.out
    # Another image's signature by the right key, put where this one's is looked for.
    second = put_image(shop.repository, "2.0.0", locked_model())
    shop.run("sign", "tiny", "2.0.0").ok()
    found = shop.repository.manifest(signature_tag(second.digest))
    assert found is not None
    shop.repository.put_manifest(signature_tag(shop.manifest.digest), found)
    ran = shop.run("verify", "tiny")
    assert ran.code == 80
    assert "about another image" in ran.out
    # A version tag that somebody has put on what is another version is not signed as that.
    shop.repository.put_manifest("3.0.0", shop.manifest)
    refused = shop.run("sign", "tiny", "3.0.0")
    assert refused.code == 72 and "labels say tiny 1.0.0" in refused.err
    assert shop.repository.manifest(signature_tag(shop.manifest.digest)) == found
    # `sign` adds ours to what is there.
    shop.run("sign", "tiny").ok()
    assert shop.checks("tiny")["signature"] == "ok"


def test_a_key_that_is_not_the_public_ones_is_found_before_anything_is_written(
    shop: Shop, others: Keys
) -> None:
    for environment, said in (
        ({"MODELBAKE_SIGNING_KEY": str(others.private)}, "another public key"),
        ({"COSIGN_PASSWORD": f"not {PASSWORD}"}, "is COSIGN_PASSWORD"),
        ({"COSIGN_PASSWORD": None}, "is COSIGN_PASSWORD"),
    ):
        ran = shop.run("sign", "tiny", **environment)
        assert ran.code == 77, ran.err
        assert said in ran.err
    assert shop.world.tags() == ["1.0.0"]
    public = shop.run("sign", "tiny", MODELBAKE_SIGNING_KEY=str(others.public))
    assert public.code == 77
    assert "no private key of cosign's" in public.err
    assert shop.run("sign", "tiny", "9.9.9").code == 73
    shop.declare(signing=None)
    assert "with which key" in shop.run("sign", "tiny").err


def test_a_release_is_signed_and_so_is_what_it_attaches(world: World, keys: Keys, others: Keys) -> None:
    world.login()
    world.repo("acme/tiny", {"config.json": b"{}\n", "model.safetensors": b"\4" * 300_000})
    world.models(tiny={})
    path = world.folder / "models.yaml"
    path.write_text(json.dumps({**json.loads(path.read_text()), "signing": {"public_key": "cosign.pub"}}))
    shutil.copy(keys.public, world.folder / "cosign.pub")
    environment = {
        "MODELBAKE_COSIGN": str(keys.program),
        "MODELBAKE_SIGNING_KEY": str(others.private),
        "COSIGN_PASSWORD": PASSWORD,
    }
    world.run("lock")
    world.build_py("publish", "tiny", "--untagged").ok()
    assert world.build_py("release", "tiny", **environment).code == 77
    assert world.version_tags() == [], "what cannot be signed is not released"
    environment["MODELBAKE_SIGNING_KEY"] = str(keys.private)
    world.build_py("release", "tiny", **environment).ok()
    assert "1.0.0" in world.version_tags()
    found = {
        each["check"]: each
        for each in json.loads(world.build_py("verify", "tiny", "--json").ok().out)["checks"]
    }
    results = {name: each["result"] for name, each in found.items()}
    assert results.pop("base") in ("ok", "note", "not checked")
    assert results == dict.fromkeys(results, "ok")
    for name in ("audit", "sbom", "provenance"):
        assert found[name]["what"].endswith("; signed"), found[name]
    assert "is signed by" in world.build_py("release", "tiny", **environment).ok().err, "again: nothing to do"
