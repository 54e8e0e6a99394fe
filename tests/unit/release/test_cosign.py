"""What the cosign program is given: seen by one in its place, which has the help of some version."""

from __future__ import annotations

import json
import os
import secrets
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from modelbake.credentials import Redactor, Secret
from modelbake.errors import SignatureError, SigningFailed, UsageError
from modelbake.output import Output
from modelbake.process import secrets_withheld
from modelbake.release import cosign
from modelbake.release.entries import SigningEntry
from modelbake.release.signing import Signing
from tests.servers.signed_images import MemoryKey

PASSWORD = f"unlocks-{secrets.token_hex(8)}"
IN_CLOUD, OF_REGISTRY = secrets.token_hex(8), secrets.token_hex(8)
HELP_2 = "    --key='':\n    --tlog-upload=true:\n    -y, --yes=false:\n    --bundle='':\n"
HELP_3 = HELP_2 + "    --new-bundle-format=true:\n    --use-signing-config=true:\n"
SPY = """\
#!{python}
import json, os, pathlib, sys
seen = pathlib.Path({seen!r})
if "--help" in sys.argv:
    print({help!r})
    sys.exit(0)
config = pathlib.Path(os.environ["DOCKER_CONFIG"])
seen.write_text(json.dumps({{
    "arguments": sys.argv[1:], "environment": dict(os.environ), "stdin": sys.stdin.read(),
    "mode": config.stat().st_mode & 0o777,
    "files": {{each.name: each.read_text() for each in config.iterdir()}},
}}))
print("said " + {said!r}, file=sys.stderr)
sys.exit({code})
"""


def spy(folder: Path, *, help: str = HELP_2, said: str = "", code: int = 0) -> Path:
    """Put a program into the place of cosign."""
    program = folder / "cosign"
    seen = str(folder / "seen.json")
    program.write_text(SPY.format(python=sys.executable, seen=seen, help=help, said=said, code=code))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def seen(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "seen.json").read_text())
    return found


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cosign._options_of.cache_clear()
    monkeypatch.setenv("MODELBAKE_COSIGN", str(spy(tmp_path)))
    monkeypatch.setenv("COSIGN_PASSWORD", PASSWORD)
    monkeypatch.setenv("HF_TOKEN", "hf_not_for_cosign")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", IN_CLOUD)
    monkeypatch.setenv("MODELBAKE_REGISTRY", "127.0.0.1:5000")
    monkeypatch.setenv("MODELBAKE_REGISTRY_USER", "user")
    monkeypatch.setenv("MODELBAKE_REGISTRY_PASSWORD", OF_REGISTRY)
    for name in ("SSL_CERT_FILE", "MODELBAKE_CA_BUNDLE", "MODELBAKE_INSECURE_REGISTRIES", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MODELBAKE_CERTS_DIR", str(tmp_path))


def found() -> cosign.Cosign:
    return cosign.find_cosign(Redactor())


def test_it_learns_no_more_than_it_needs(tmp_path: Path) -> None:
    with secrets_withheld():
        found().run(["sign", "it"], host="127.0.0.1:5000", password=cosign.key_password())
    told = seen(tmp_path)
    assert told["arguments"][:2] == ["sign", "it"]
    assert "--allow-http-registry=true" in told["arguments"]
    assert told["stdin"] == PASSWORD
    assert told["mode"] == 0o700
    assert list(json.loads(told["files"]["config.json"])["auths"]) == ["127.0.0.1:5000"]
    everything = json.dumps([told["arguments"], told["environment"]])
    for secret in (PASSWORD, "hf_not_for_cosign", IN_CLOUD, OF_REGISTRY):
        assert secret not in everything
    assert not Path(told["environment"]["DOCKER_CONFIG"]).exists()


def test_a_key_in_a_cloud_gets_what_it_is_asked_for_with(tmp_path: Path) -> None:
    found().run(["verify"], cloud=True)
    told = seen(tmp_path)["environment"]
    assert told["AWS_SECRET_ACCESS_KEY"] == IN_CLOUD
    assert "COSIGN_PASSWORD" not in told and "HF_TOKEN" not in told


@pytest.mark.parametrize(("help", "some"), [(HELP_2, False), (HELP_3, True)], ids=["cosign 2", "cosign 3"])
def test_options_are_those_that_the_version_has(tmp_path: Path, help: str, some: bool) -> None:
    spy(tmp_path, help=help)
    wanted = {
        "new-bundle-format": "false",
        "use-signing-config": "false",
        "tlog-upload": "false",
        "yes": "true",
    }
    options = found().options("sign", wanted)
    assert "--tlog-upload=false" in options and "--yes=true" in options
    assert ("--new-bundle-format=false" in options) is some
    assert ("--use-signing-config=false" in options) is some


def test_authorities_are_the_systems_and_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system, ours = tmp_path / "system.pem", tmp_path / "ours.pem"
    system.write_text("system authorities")
    ours.write_text("our authority")
    monkeypatch.setenv("SSL_CERT_FILE", str(system))
    found().run(["verify"])
    assert seen(tmp_path)["environment"]["SSL_CERT_FILE"] == str(system)
    monkeypatch.setenv("MODELBAKE_CA_BUNDLE", str(ours))
    found().run(["verify"])
    assert seen(tmp_path)["files"]["authorities.pem"].split("\n") == ["system authorities", "our authority"]
    host = tmp_path / "registry.example.com"
    host.mkdir()
    (host / "ca.crt").write_text("the registry's authority")
    (host / "client.cert").write_text("certificate")
    (host / "client.key").write_text("key")
    found().run(["verify"], host="registry.example.com")
    told = seen(tmp_path)
    assert told["files"]["registry.pem"].endswith("the registry's authority")
    assert f"--registry-client-cert={host}/client.cert" in told["arguments"]
    assert f"--registry-client-key={host}/client.key" in told["arguments"]
    monkeypatch.setenv("MODELBAKE_CA_BUNDLE", str(tmp_path / "absent.pem"))
    with pytest.raises(UsageError, match="cannot be read"):
        found().run(["verify"])


def test_registries_without_tls_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found().run(["verify"], host="registry.example.com")
    assert not any("http" in each or "insecure" in each for each in seen(tmp_path)["arguments"])
    monkeypatch.setenv("MODELBAKE_INSECURE_REGISTRIES", "registry.example.com")
    found().run(["verify"], host="registry.example.com")
    assert {"--allow-http-registry=true", "--allow-insecure-registry=true"} <= {*seen(tmp_path)["arguments"]}


def test_what_it_says_has_no_secret(tmp_path: Path) -> None:
    spy(tmp_path, said=f"Error: {PASSWORD} is wrong", code=1)
    done = cosign.find_cosign(Redactor([Secret(PASSWORD)])).run(["sign"])
    assert done.returncode == 1
    assert PASSWORD not in done.stderr and "***" in cosign.said(done)


def test_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELBAKE_COSIGN", str(tmp_path / "absent"))
    with pytest.raises(SignatureError, match="is no program") as raised:
        found()
    assert "apt-get install cosign" in raised.value.hint
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF")
    broken.chmod(0o755)
    with pytest.raises(SignatureError, match="cannot be"):
        cosign.Cosign(str(broken), Redactor()).run(["sign"])
    with pytest.raises(SignatureError, match="cannot be"):
        cosign.Cosign(str(broken), Redactor()).options("sign", {"yes": "true"})


def test_the_password_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "password"
    file.write_text("of a file\n")
    monkeypatch.setenv("MODELBAKE_SIGNING_PASSWORD_FILE", str(file))
    assert cosign.key_password() == Secret(PASSWORD)
    monkeypatch.delenv("COSIGN_PASSWORD")
    assert cosign.key_password() == Secret("of a file")
    monkeypatch.setenv("MODELBAKE_SIGNING_PASSWORD_FILE", str(tmp_path / "absent"))
    with pytest.raises(UsageError, match="cannot be read"):
        cosign.key_password()
    monkeypatch.delenv("MODELBAKE_SIGNING_PASSWORD_FILE")
    assert cosign.key_password() is None


def test_whose_signature_counts(tmp_path: Path) -> None:
    by_file = Signing.of(SigningEntry(public_key="keys/cosign.pub"), tmp_path, Output())
    assert by_file.public_key == tmp_path / "keys/cosign.pub"
    in_cloud = Signing.of(SigningEntry(public_key="awskms:///alias/modelbake"), tmp_path, Output())
    assert in_cloud.public_key == "awskms:///alias/modelbake" and in_cloud.key is None
    url = "https://github.com/acme/models/.github/workflows/release.yml@refs/heads/main"
    issuer = "https://token.actions.githubusercontent.com"
    keyless = Signing.of(SigningEntry(identity=url, issuer=issuer, transparency_log=True), tmp_path, Output())
    assert keyless.whose == url and keyless.log
    with pytest.raises(SigningFailed, match="only a key"):
        keyless.signature_of(b"content", "weights")
    assert os.environ["COSIGN_PASSWORD"] == PASSWORD


@pytest.mark.parametrize(
    ("key", "program", "said"),
    [
        (None, "cosign", "no private key is named"),
        ("absent.key", "cosign", "cannot be read"),
        ("plain.key", "cosign", "no private key of cosign's"),
        ("cosign.key", "absent", "is no program"),
        ("cosign.key", "refusing", "COSIGN_PASSWORD"),
    ],
)
def test_what_signing_lacks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str | None, program: str, said: str
) -> None:
    (tmp_path / "plain.key").write_text("-----BEGIN " + "PRIVATE KEY-----")
    (tmp_path / "cosign.key").write_text("-----BEGIN " + "ENCRYPTED SIGSTORE PRIVATE KEY-----")
    (tmp_path / "cosign.pub").write_bytes(MemoryKey.generate().public)
    monkeypatch.delenv("MODELBAKE_SIGNING_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("MODELBAKE_SIGNING_KEY", str(tmp_path / key))
    if program == "refusing":
        spy(tmp_path, said="\nError: decrypt: decryption failed", code=1)
    else:
        monkeypatch.setenv("MODELBAKE_COSIGN", str(tmp_path / program))
    signing = Signing.by_key(str(tmp_path / "cosign.pub"), Output())
    with pytest.raises(SigningFailed) as raised:
        signing.signature_of(b"content", "weights")
    assert said in str(raised.value)
    assert raised.value.hint
