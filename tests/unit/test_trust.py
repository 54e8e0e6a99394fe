from __future__ import annotations

import argparse
import ssl
from pathlib import Path

import pytest

from modelbake.errors import UsageError
from modelbake.trust import check_authorities, trust
from modelbake.verbs import build_secrets
from tests.servers.hub_certificate import Certificate, make_certificate


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


def subjects(context: ssl.SSLContext) -> str:
    return str([certificate["subject"] for certificate in context.get_ca_certs()])


def test_a_bundle_is_trusted_besides_the_systems_authorities(
    made: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MODELBAKE_CA_BUNDLE", raising=False)
    alone = trust()
    assert "test authority" not in subjects(alone)
    given = trust(made.authority)
    assert "test authority" in subjects(given)
    assert len(given.get_ca_certs()) == len(alone.get_ca_certs()) + 1
    monkeypatch.setenv("MODELBAKE_CA_BUNDLE", str(made.authority))
    assert "test authority" in subjects(trust())
    assert trust().verify_mode is ssl.CERT_REQUIRED and trust().check_hostname


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("empty", "there is none in it"),
        ("text", "there is none in it"),
        ("cut", "one of them is damaged"),
        ("hole", "one of them is damaged"),
        ("key", "it holds a private key"),
    ],
)
def test_what_is_no_bundle_is_refused(made: Certificate, tmp_path: Path, kind: str, why: str) -> None:
    good = made.authority.read_bytes()
    content = {
        "empty": b"",
        "text": b"not pem \xff",
        "cut": good + good[: len(good) // 2],
        "hole": good[:100] + good[140:],
        "key": good + made.key.read_bytes(),
    }[kind]
    with pytest.raises(UsageError, match=f"cannot be read as certificates .{why}") as raised:
        check_authorities(content, "--ca-bundle=x")
    assert raised.value.subject == "--ca-bundle=x" and "PEM" in raised.value.hint
    (tmp_path / "ca.pem").write_bytes(content)
    with pytest.raises(UsageError, match=why) as raised:
        trust(tmp_path / "ca.pem")
    assert raised.value.subject == f"MODELBAKE_CA_BUNDLE={tmp_path}/ca.pem"


def test_comments_between_certificates_are_fine(made: Certificate) -> None:
    good = made.authority.read_bytes()
    check_authorities("# T\u00fcrkTrust\n".encode() + good + b"\n# again\n" + good, "x")


@pytest.mark.parametrize("option", [True, False])
def test_a_build_is_given_no_bundle_that_is_none(
    made: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: bool
) -> None:
    path = tmp_path / "ca.pem"
    monkeypatch.setenv("MODELBAKE_CA_BUNDLE", "absent" if option else str(path))
    given = argparse.Namespace(ca_bundle=path if option else None, pip_config=None)
    path.write_bytes(b"<html>")
    with pytest.raises(UsageError, match="cannot be read as certificates") as raised:
        build_secrets(given)
    assert raised.value.subject == f"{'--ca-bundle' if option else 'MODELBAKE_CA_BUNDLE'}={path}"
    path.write_bytes(made.authority.read_bytes())
    assert build_secrets(given)["ca_bundle"].reveal_bytes() == path.read_bytes()
