from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from modelbake.credentials import Secret
from modelbake.dockerconfig import (
    Reference,
    RegistryAuth,
    RegistryCredentials,
    registry_key,
    split_reference,
)
from modelbake.errors import RegistryAuthError, UsageError

PASSWORD = "correct-horse-battery"
DIGEST = "sha256:" + "a" * 64


def basic(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def auth(tmp_path: Path, config: object, **environ: str) -> RegistryAuth:
    path = tmp_path / "config.json"
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return RegistryAuth(path, environ={"PATH": os.environ["PATH"]} | environ)


def helper(tmp_path: Path, name: str, body: str) -> str:
    """Write an executable credential helper; return the PATH that finds it."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    program = folder / f"docker-credential-{name}"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def answer(user: str, secret: str, server: str = "") -> str:
    document = {"ServerURL": server, "Username": user, "Secret": secret}
    return f"cat >/dev/null; echo '{json.dumps(document)}'"


@pytest.mark.parametrize(
    ("ref", "expected"),
    [
        ("python", Reference("docker.io", "library/python")),
        ("python:3.11", Reference("docker.io", "library/python", "3.11")),
        ("bitnami/python", Reference("docker.io", "bitnami/python")),
        ("docker.io/python", Reference("docker.io", "library/python")),
        ("index.docker.io/library/python", Reference("docker.io", "library/python")),
        ("localhost/a", Reference("localhost", "a")),
        ("localhost:5000/a/b:1", Reference("localhost:5000", "a/b", "1")),
        ("registry.example.com/ml/minilm:1.0.0", Reference("registry.example.com", "ml/minilm", "1.0.0")),
        (f"r.example/a@{DIGEST}", Reference("r.example", "a", None, DIGEST)),
        (f"r.example:5/a:t@{DIGEST}", Reference("r.example:5", "a", "t", DIGEST)),
        ("[::1]:5000/a:t", Reference("[::1]:5000", "a", "t")),
        ("MyHost/a", Reference("MyHost", "a")),
        ("host:5000/a-b__c.d", Reference("host:5000", "a-b__c.d")),
    ],
)
def test_references_are_split_as_docker_does(ref: str, expected: Reference) -> None:
    assert split_reference(ref) == expected
    assert split_reference(str(expected)) == expected


@pytest.mark.parametrize(
    "ref",
    [
        "",
        " python",
        "python\n",
        "Python",
        "a//b",
        "/a",
        "a/",
        "a:",
        "a:b c",
        "a:-b",
        "a@sha256:zz",
        "a@",
        f"a@{DIGEST}0",
        "r.example/a_-b",
        "r..example/a",
        "-r.example/a",
        "r.example:/a",
        "https://r.example/a",
        "f" * 64,
        "r.example/" + "a" * 256,
        "a:" + "t" * 129,
    ],
)
def test_what_is_not_a_reference_is_refused(ref: str) -> None:
    with pytest.raises(UsageError, match="not an image reference"):
        split_reference(ref)


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("https://index.docker.io/v1/", "docker.io"),
        ("docker.io", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
        ("http://R.Example:5000/v2/", "r.example:5000"),
        ("r.example", "r.example"),
    ],
)
def test_config_keys_mean_hosts(address: str, key: str) -> None:
    assert registry_key(address) == key


@pytest.mark.parametrize("stored", ["r.example:5000", "https://r.example:5000", "http://r.example:5000/v1/"])
def test_auths_are_found_however_the_key_is_written(tmp_path: Path, stored: str) -> None:
    found = auth(tmp_path, {"auths": {stored: basic("me", "a:b:c\x00")}}).for_registry("r.example:5000")
    assert found == RegistryCredentials("me", Secret("a:b:c"))


@pytest.mark.parametrize("host", ["docker.io", "index.docker.io", "registry-1.docker.io"])
def test_docker_hub_is_one_registry_under_its_old_name(tmp_path: Path, host: str) -> None:
    found = auth(tmp_path, {"auths": {"https://index.docker.io/v1/": basic("me", PASSWORD)}}).for_registry(
        host
    )
    assert found == RegistryCredentials("me", Secret(PASSWORD))


def test_the_literal_key_wins_over_others_that_mean_the_same_host(tmp_path: Path) -> None:
    config = {"auths": {"http://r.example/v1/": basic("old", "x"), "r.example": basic("new", "y")}}
    found = auth(tmp_path, config).for_registry("r.example")
    assert found is not None
    assert found.username == "new"


@pytest.mark.parametrize(
    "host",
    [
        "r.example",
        "r.example:5001",
        "evil-r.example:5000",
        "r.example.evil:5000",
        "example:5000",
        "localhost:5000",
        "docker.io",
    ],
)
@pytest.mark.promise("access")
def test_another_registrys_credentials_are_never_returned(tmp_path: Path, host: str) -> None:
    config = {"auths": {"r.example:5000": basic("me", PASSWORD), "q.example": {"identitytoken": "t"}}}
    assert auth(tmp_path, config).for_registry(host) is None


def test_identity_token_and_plain_entries(tmp_path: Path) -> None:
    config = {
        "auths": {
            "a.example": {"identitytoken": "tok"} | basic("me", "ignored"),
            "b.example": {"username": "u", "password": "p"},
            "c.example": {},
        }
    }
    auths = auth(tmp_path, config)
    assert auths.for_registry("a.example") == RegistryCredentials("", Secret(""), Secret("tok"))
    assert auths.for_registry("b.example") == RegistryCredentials("u", Secret("p"))
    assert auths.for_registry("c.example") is None


def test_absent_and_empty_files_hold_nothing(tmp_path: Path) -> None:
    assert RegistryAuth(tmp_path / "none" / "config.json", environ={}).for_registry("r.example") is None
    assert auth(tmp_path, "").for_registry("r.example") is None


def test_docker_config_names_the_folder(tmp_path: Path) -> None:
    auth(tmp_path, {"auths": {"r.example": basic("me", PASSWORD)}})
    found = RegistryAuth(environ={"DOCKER_CONFIG": str(tmp_path)}).for_registry("r.example")
    assert found == RegistryCredentials("me", Secret(PASSWORD))


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (f'{{"auths": {{"r.example": "{PASSWORD}"', "is not JSON"),
        ("[]", "is not a JSON object"),
        ({"auths": []}, "auths is not a JSON object"),
        ({"auths": {"r.example": "x"}}, "not an object of strings"),
        ({"auths": {"r.example": {"auth": 7}}}, "not an object of strings"),
        ({"auths": {"r.example": {"auth": f"%%{PASSWORD}"}}}, "is not base64"),
        (
            {"auths": {"r.example": {"auth": base64.b64encode(PASSWORD.encode()).decode()}}},
            "not base64 of `user:",
        ),
        ({"auths": {"r.example": {"auth": base64.b64encode(b"\xff\xfe:x").decode()}}}, "is not base64 text"),
        ({"credHelpers": {"r.example": "../evil"}}, "not the name of a credential helper"),
        ({"credsStore": ["x"]}, "not the name of a credential helper"),
        ("[" * 100_000, "is not JSON"),
    ],
)
@pytest.mark.promise("token-leak")
def test_a_broken_file_is_named_and_not_quoted(tmp_path: Path, config: object, problem: str) -> None:
    with pytest.raises(RegistryAuthError, match=problem) as caught:
        auth(tmp_path, config).for_registry("r.example")
    assert str(tmp_path / "config.json") in str(caught.value)
    assert PASSWORD not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_helper_is_asked_with_the_server_on_stdin(tmp_path: Path) -> None:
    path = helper(
        tmp_path, "spy", f'cat > {tmp_path}/asked; echo "$@" >> {tmp_path}/asked\n{answer("u", "s")}'
    )
    auths = auth(tmp_path, {"credsStore": "spy"}, PATH=path)
    assert auths.for_registry("r.example:5000") == RegistryCredentials("u", Secret("s"))
    assert (tmp_path / "asked").read_text() == "r.example:5000get\n"
    auths.for_registry("docker.io")
    assert (tmp_path / "asked").read_text() == "https://index.docker.io/v1/get\n"


def test_helpers_come_before_the_store_and_the_store_before_auths(tmp_path: Path) -> None:
    helper(tmp_path, "one", answer("one", "1"))
    path = helper(tmp_path, "all", answer("all", "2"))
    config = {
        "credHelpers": {"a.example": "one"},
        "credsStore": "all",
        "auths": {"a.example": basic("file", "3"), "b.example": basic("file", "3")},
    }
    auths = auth(tmp_path, config, PATH=path)
    assert auths.for_registry("a.example") == RegistryCredentials("one", Secret("1"))
    assert auths.for_registry("b.example") == RegistryCredentials("all", Secret("2"))


def test_a_helper_that_holds_nothing_lets_the_next_answer(tmp_path: Path) -> None:
    path = helper(tmp_path, "none", "cat >/dev/null; echo credentials not found in native keychain; exit 1")
    config = {"credsStore": "none", "auths": {"a.example": basic("file", "3"), "b.example": {}}}
    auths = auth(tmp_path, config, PATH=path)
    assert auths.for_registry("a.example") == RegistryCredentials("file", Secret("3"))
    assert auths.for_registry("b.example") is None


def test_a_helpers_token_user_means_an_identity_token(tmp_path: Path) -> None:
    path = helper(tmp_path, "tok", answer("<token>", "idtoken", "https://r.example"))
    found = auth(tmp_path, {"credsStore": "tok"}, PATH=path).for_registry("r.example")
    assert found == RegistryCredentials("", Secret(""), Secret("idtoken"))


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("echo the vault is sealed; exit 3", "failed with status 3: the vault is sealed"),
        ("echo to stderr >&2; exit 1", "failed with status 1: to stderr"),
        ("echo refused dckr_0123456789abcdefghij; exit 1", r"failed with status 1: refused \*\*\*"),
        ('echo \'{"Secret":"short"}\'; exit 1', "failed with status 1: .what it said is not shown"),
        ("exit 1", "it said nothing"),
        (f"echo {PASSWORD}", "did not answer JSON"),
        (f'echo \'{{"Secret": "{PASSWORD}"}}\'', "did not answer JSON"),
        ("echo '[]'", "did not answer JSON"),
        ('echo \'{"Username": 1, "Secret": 2}\'', "did not answer JSON"),
        (answer("u", PASSWORD, "https://other.example"), "answered for another registry"),
    ],
)
def test_a_failing_helper_is_named(tmp_path: Path, body: str, problem: str) -> None:
    path = helper(tmp_path, "bad", body)
    config = {"credHelpers": {"r.example": "bad"}, "auths": {"r.example": basic("file", "3")}}
    with pytest.raises(RegistryAuthError, match=problem) as caught:
        auth(tmp_path, config, PATH=path).for_registry("r.example")
    assert "docker-credential-bad" in str(caught.value)
    assert PASSWORD not in str(caught.value)


def test_a_missing_helper_is_named(tmp_path: Path) -> None:
    with pytest.raises(RegistryAuthError, match="docker-credential-ecr-login is not on PATH"):
        auth(tmp_path, {"credHelpers": {"r.example": "ecr-login"}}).for_registry("r.example")


def test_a_helper_that_cannot_be_started_is_named(tmp_path: Path) -> None:
    path = helper(tmp_path, "odd", "")
    (tmp_path / "bin" / "docker-credential-odd").write_text("#!/nowhere/interpreter\n")
    with pytest.raises(RegistryAuthError, match="docker-credential-odd cannot be started"):
        auth(tmp_path, {"credsStore": "odd"}, PATH=path).for_registry("r.example")


@pytest.mark.promise("access")
def test_the_environment_wins_for_its_own_registry_only(tmp_path: Path) -> None:
    environ = {
        "MODELBAKE_REGISTRY": "https://r.example:5000/ml",
        "MODELBAKE_REGISTRY_USER": "ci",
        "MODELBAKE_REGISTRY_PASSWORD": PASSWORD,
    }
    config = {"auths": {"r.example:5000": basic("file", "3"), "q.example": basic("file", "3")}}
    auths = auth(tmp_path, config, **environ)
    assert auths.for_registry("r.example:5000") == RegistryCredentials("ci", Secret(PASSWORD))
    assert auths.for_registry("q.example") == RegistryCredentials("file", Secret("3"))
    assert auths.for_registry("r.example") is None


def test_the_password_can_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    environ = {
        "MODELBAKE_REGISTRY": "r.example",
        "MODELBAKE_REGISTRY_USER": "ci",
        "MODELBAKE_REGISTRY_PASSWORD_FILE": str(tmp_path / "password"),
    }
    assert auth(tmp_path, {}, **environ).for_registry("r.example") == RegistryCredentials(
        "ci", Secret(PASSWORD)
    )
    (tmp_path / "password").unlink()
    with pytest.raises(UsageError, match="cannot read the password"):
        auth(tmp_path, {}, **environ).for_registry("r.example")


@pytest.mark.parametrize(
    "environ",
    [
        {"MODELBAKE_REGISTRY_USER": "ci", "MODELBAKE_REGISTRY_PASSWORD": PASSWORD},
        {"MODELBAKE_REGISTRY": "r.example", "MODELBAKE_REGISTRY_USER": "ci"},
        {"MODELBAKE_REGISTRY": "r.example", "MODELBAKE_REGISTRY_PASSWORD": PASSWORD},
        {
            "MODELBAKE_REGISTRY": "r.example",
            "MODELBAKE_REGISTRY_USER": "ci",
            "MODELBAKE_REGISTRY_PASSWORD": PASSWORD,
            "MODELBAKE_REGISTRY_PASSWORD_FILE": "/x",
        },
    ],
)
def test_half_an_environment_is_refused(tmp_path: Path, environ: dict[str, str]) -> None:
    with pytest.raises(UsageError) as caught:
        auth(tmp_path, {}, **environ).for_registry("r.example")
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("host", ["", "a b", "r.example:", "user@r.example"])
def test_what_is_not_a_host_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(UsageError):
        auth(tmp_path, {}).for_registry(host)


def test_credentials_do_not_print_themselves() -> None:
    shown = repr(RegistryCredentials("me", Secret(PASSWORD), Secret("identity-token")))
    assert PASSWORD not in shown
    assert "identity-token" not in shown
