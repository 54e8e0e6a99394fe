"""Who is shown a registry's credentials, and our certificates: that registry alone, and never in clear."""

from __future__ import annotations

import base64
import ipaddress
import json
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelbake.certsd import certificates_of, context_for
from modelbake.errors import RegistryAuthError, RegistryUnavailable, UsageError
from modelbake.registryauth import INSECURE, RegistryLogin, in_clear
from modelbake.registryreply import Reply
from tests.conftest import Tally
from tests.promises import cases
from tests.servers.hub_certificate import Certificate, make_certificate, make_client_certificate
from tests.unit.test_registry import (
    BASIC,
    CHALLENGE,
    ME,
    PASSWORD,
    TOKEN_HOLDER,
    Answer,
    Asked,
    client,
    serving,
)

NAMES = ("registry.test", "other.test")


@pytest.fixture(autouse=True)
def names_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """`*.test` leads here; nothing of this machine's own settings counts."""
    resolve = socket.getaddrinfo

    def to_here(host: str | bytes | None, *args: object, **options: object) -> object:
        known = os.fsdecode(host or "").endswith(".test")
        return resolve("127.0.0.1" if known else host, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", to_here)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name in (INSECURE, "MODELBAKE_CERTS_DIR", "MODELBAKE_CA_BUNDLE", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)


def wants_password(asked: Asked) -> Answer:
    return Answer(200) if asked.headers.get("authorization") == BASIC else Answer(401, headers=CHALLENGE)


def named(address: str, host: str = "registry.test") -> str:
    return address.replace("127.0.0.1", host)


# --- plain HTTP --------------------------------------------------------------------------------------------


@pytest.mark.promise("access")
def test_a_registry_that_speaks_plain_http_is_told_nothing() -> None:
    with (
        serving(wants_password) as server,
        client(named(server.address), ME) as (registry, waits),
        pytest.raises(RegistryUnavailable, match="cannot be reached") as caught,
    ):
        registry.ping()
    assert server.asked == [], "not even a request without credentials"
    assert caught.value.hint.endswith(f"{INSECURE}={named(server.address)}")
    assert waits == [], "trying again would not mend it"


@pytest.mark.control("access")
def test_a_named_one_is_given_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(wants_password) as server:
        monkeypatch.setenv(INSECURE, f"elsewhere.test, {named(server.address).upper()}")
        with client(named(server.address), ME) as (registry, _):
            registry.ping()
    assert [asked.headers.get("authorization") for asked in server.asked] == [None, BASIC]


@pytest.mark.parametrize(
    ("host", "variable", "clear"),
    [
        ("registry.test", "", False),
        ("registry.test", "registry.test", True),
        ("registry.test", " a.test ,registry.test,", True),
        ("registry.test:5000", "registry.test", False),  # another registry, as it is for Docker
        ("registry.test", "registry.test:5000", False),
        ("sub.registry.test", "registry.test", False),
        ("10.0.0.1:5000", "10.0.0.1:5000", True),
        ("127.0.0.1:5000", "", True),
    ],
)
def test_names_are_whole_names(host: str, variable: str, clear: bool) -> None:
    assert in_clear(host, {INSECURE: variable}) is clear


@pytest.mark.parametrize(
    "variable", ["http://registry.test", "10.0.0.0/8", "*.test", "*", "a b", "registry.test/ml"]
)
def test_what_is_no_name_is_refused(variable: str) -> None:
    with pytest.raises(UsageError, match="is not a registry host") as caught:
        in_clear("registry.test", {INSECURE: variable})
    assert caught.value.subject == INSECURE


# --- token services ----------------------------------------------------------------------------------------

_HOSTS = (
    "127.0.0.1", "127.0.0.1:8080", "localhost", "[::1]", "[::1]:99", "127.1", "0x7f000001", "2130706433",
    "127.0.0.1.evil.test", "localhost.evil.test", "evil.test", "evil.test:127", "127.0.0.1@evil.test",
    "u:p@127.0.0.1", "evil.test#@127.0.0.1", "evil.test?@127.0.0.1", r"evil.test\@127.0.0.1", "named.test",
    "named.test:5000", "named.test.evil.test", "\u2460\u2461\u2466.0.0.1", "[::ffff:127.0.0.1]", "[fe80::1]",
    "", "0.0.0.0:1", "169.254.169.254", "metadata.google.internal",
)  # fmt: skip
_SCHEMES = ("http://", "https://", "HTTP://", "http:", "https:", "//", "ftp://", "file://", "", "httpss://")
_REALMS = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(_SCHEMES),
    st.sampled_from(_HOSTS) | st.text(max_size=12),
    st.sampled_from(("/token", "", "/a//b?c=d", "/@evil.test", ":443/x", "\t", " ")),
    st.text(max_size=4),
)


def may_see_credentials(url: httpx2.URL, *, plain: bool) -> bool:
    """The rule once more, from the address that was asked: HTTPS, or in clear a host it is fine for."""
    if url.scheme == "https":
        return bool(url.host) and not url.userinfo
    if url.scheme != "http" or not plain or url.userinfo:
        return False
    if url.host in ("localhost", "named.test"):
        return url.host == "localhost" or url.port is None
    try:
        return ipaddress.ip_address(url.host).is_loopback
    except ValueError:
        return False


def asked_for_a_token(realm: str, *, plain: bool, identity: bool) -> list[httpx2.URL]:
    """Return the addresses that were sent credentials when a registry's 401 named this realm."""
    seen: list[httpx2.URL] = []

    def exchange(method: str, url: httpx2.URL, headers: Mapping[str, str], content: bytes | None) -> Reply:
        assert headers.get("Authorization") == BASIC or b"identity-token-value" in (content or b"")
        seen.append(url)
        return Reply(200, httpx2.Headers(), b'{"token": "t"}')

    login = RegistryLogin("registry.test", TOKEN_HOLDER if identity else ME, exchange)
    quoted = realm.replace("\\", "\\\\").replace('"', '\\"')
    try:
        said = f'Bearer realm="{quoted}",service="s"'.encode()
        challenge = httpx2.Headers([(b"WWW-Authenticate", said)])
        login.answer(Reply(401, challenge, b""), "repository:a:pull", plain=plain)
    except RegistryAuthError as error:
        assert PASSWORD not in str(error) and "identity-token-value" not in str(error)
    return seen


@pytest.mark.promise("access")
def test_no_realm_draws_credentials_away(monkeypatch: pytest.MonkeyPatch, tally: Tally) -> None:
    monkeypatch.setenv(INSECURE, "named.test")

    @settings(max_examples=cases(150, 3000), deadline=None, suppress_health_check=list(HealthCheck))
    @given(realm=_REALMS, plain=st.booleans(), identity=st.booleans())
    def attack(realm: str, plain: bool, identity: bool) -> None:
        tally.count()
        for url in asked_for_a_token(realm, plain=plain, identity=identity):
            assert may_see_credentials(url, plain=plain), url

    attack()


@pytest.mark.control("access")
def test_realms_that_may_have_them_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(INSECURE, "named.test")
    for identity in (False, True):
        for realm in ("https://auth.test/t", "http://127.0.0.1:1/t", "http://[::1]/t", "http://named.test/t"):
            assert len(asked_for_a_token(realm, plain=True, identity=identity)) == 1, realm
        assert asked_for_a_token("http://127.0.0.1/t", plain=False, identity=identity) == [], (
            "from HTTPS to HTTP"
        )
        assert asked_for_a_token("http://other.test/t", plain=True, identity=identity) == []
    assert not may_see_credentials(httpx2.URL("http://evil.test/t"), plain=True), "the rule can say no"


# --- certificates ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), NAMES)


@pytest.fixture(scope="module")
def ours(made: Certificate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_client_certificate(made, tmp_path_factory.mktemp("ours"))


def wanting_certificates(made: Certificate, mode: ssl.VerifyMode) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.cert, made.key)
    context.load_verify_locations(made.authority)
    context.verify_mode = mode
    return context


@pytest.fixture
def certs_d(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "certs.d"
    folder.mkdir()
    monkeypatch.setenv("MODELBAKE_CERTS_DIR", str(folder))
    yield folder


def install(made: Certificate, ours: Path, folder: Path) -> None:
    shutil.copytree(ours, folder)
    shutil.copy(made.authority, folder / "ca.crt")


@pytest.mark.promise("access")
def test_a_client_certificate_is_shown_to_its_registry_alone(
    made: Certificate, ours: Path, certs_d: Path
) -> None:
    """The registry asks for one and gets it; the token service and the storage it names ask, and get none."""
    optional = wanting_certificates(made, ssl.CERT_OPTIONAL)

    def registry_says(asked: Asked) -> Answer:
        if asked.headers.get("authorization") != "Bearer t1":
            realm = f'Bearer realm="https://{other}/token"'
            return Answer(401, headers={"WWW-Authenticate": realm})
        return Answer(307, headers={"Location": f"https://{other}/bucket"})

    def other_says(asked: Asked) -> Answer:
        if asked.path.startswith("/token"):
            return Answer(200, json.dumps({"token": "t1"}).encode())
        return Answer(200, headers={"Content-Length": "7"})

    with (
        serving(other_says, tls=optional) as elsewhere,
        serving(registry_says, tls=wanting_certificates(made, ssl.CERT_REQUIRED)) as server,
    ):
        other = named(elsewhere.address, "other.test")
        install(made, ours, certs_d / named(server.address))
        # Its authority is that registry's alone, so that of the other host has to be known otherwise.
        with client(named(server.address), ME, ca_bundle=made.authority) as (registry, _):
            assert registry.blob_size("a", "sha256:" + "0" * 64) == 7
        with (
            client(named(server.address), ME) as (registry, _),
            pytest.raises(RegistryUnavailable, match=r"other\.test"),
        ):
            registry.blob_size("a", "sha256:" + "0" * 64)
    assert all(asked.shown for asked in server.asked), "control: it is shown where it belongs"
    assert [asked.path.partition("?")[0] for asked in elsewhere.asked] == ["/token", "/bucket"]
    assert not any(asked.shown for asked in elsewhere.asked)
    assert elsewhere.asked[0].headers["authorization"] == BASIC
    assert "authorization" not in elsewhere.asked[1].headers


def test_a_registry_that_wants_a_certificate_says_so(made: Certificate, certs_d: Path) -> None:
    required = wanting_certificates(made, ssl.CERT_REQUIRED)
    with (
        serving(lambda asked: Answer(200), tls=required) as server,
        client(named(server.address), ME, ca_bundle=made.authority) as (registry, waits),
        pytest.raises(RegistryUnavailable) as caught,
    ):
        registry.ping()
    assert f"client.cert and client.key in /etc/docker/certs.d/{named(server.address)}" in caught.value.hint
    assert waits == [] and server.asked == []


def test_where_certificates_are_looked_for(tmp_path: Path) -> None:
    (tmp_path / "config/docker/certs.d/registry.test:5000").mkdir(parents=True)
    (tmp_path / "own/registry.test").mkdir(parents=True)
    rootless = {"HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    found = certificates_of("registry.test:5000", rootless)
    assert found == tmp_path / "config/docker/certs.d/registry.test:5000"
    assert certificates_of("registry.test", rootless) is None, "another port, another registry"
    own = {**rootless, "MODELBAKE_CERTS_DIR": str(tmp_path / "own")}
    assert certificates_of("registry.test", own) == tmp_path / "own/registry.test"
    assert certificates_of("registry.test:5000", own) is None, "instead of the others, not besides"
    for host in ("..", ".", "../own/registry.test", "a/../registry.test", ""):
        assert certificates_of(host, own) is None, host
    with pytest.raises(UsageError, match="no such folder"):
        certificates_of("registry.test", {"MODELBAKE_CERTS_DIR": str(tmp_path / "absent")})


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("no key", r"client.cert: there is no client.key beside it"),
        ("no certificate", r"client.key: there is no client.cert beside it"),
        ("another key", r"client.cert: cannot be used as a client certificate with client.key"),
        ("a key with a password", r"client.cert: cannot be used as a client certificate.*has a password"),
        ("no PEM", r"client.cert: cannot be used as a client certificate"),
        ("a key as an authority", r"ca.crt: cannot be read as certificates .it holds a private key"),
        ("a folder as an authority", r"ca.crt: cannot be read .Is a directory"),
    ],
)
def test_halves_and_mistakes_are_named(
    made: Certificate, ours: Path, tmp_path: Path, kind: str, problem: str
) -> None:
    folder = tmp_path / "registry.test"
    install(made, ours, folder)
    assert context_for(folder).get_ca_certs(), "control: it can be used as it is"
    if kind == "no key":
        (folder / "client.key").unlink()
    elif kind == "no certificate":
        (folder / "client.cert").unlink()
    elif kind == "another key":
        shutil.copy(made.key, folder / "client.key")
    elif kind == "a key with a password":
        command = ["openssl", "ec", "-aes256", "-passout", "pass:word", "-in", str(ours / "client.key")]
        subprocess.run([*command, "-out", str(folder / "client.key")], check=True, capture_output=True)
    elif kind == "no PEM":
        (folder / "client.cert").write_text("no certificate")
    elif kind == "a key as an authority":
        shutil.copy(made.key, folder / "ca.crt")
    else:
        (folder / "ca.crt").unlink()
        (folder / "ca.crt").mkdir()
    with pytest.raises(UsageError, match=problem) as caught:
        context_for(folder)
    assert base64.b64encode(b"PRIVATE").decode() not in str(caught.value)
