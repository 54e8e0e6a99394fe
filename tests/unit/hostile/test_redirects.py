"""A hub that redirects: to nowhere, into the network of whoever asks, in a circle, away with the token."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import httpx2
import huggingface_hub
import pytest

from modelbake.sources import addresses, guard
from tests.servers.hub import Fault, Hub
from tests.unit.hostile.forked import BUILDER
from tests.unit.hostile.readers import (
    NAME,
    READERS,
    TOKEN,
    Case,
    Refused,
    ends,
    fetch,
    outcome,
    require_right,
    sabotaged,
)
from tests.unit.images.test_fetch import Asked, Rogue

FILES = {"config.json": b'{"a": 1}', "vocab.txt": b"word\n" * 100}
METADATA = (
    "http://169.254.169.254/latest/meta-data/",
    "http://[::ffff:169.254.169.254]/",
    "http://0xa9fea9fe/",
    "http://2852039166/",
    "http://169.254.1.1:8080/x",
    "http://[fe80::1]/",
    "http://[fd00:ec2::254]/latest/",
    "http://100.100.100.200/latest/",
    "http://0.0.0.0/",
)
NOWHERE = (
    "file:///etc/passwd",
    "ftp://127.0.0.1/x",
    "gopher://127.0.0.1/x",
    "data:text/plain,x",
    "http://u:p@127.0.0.1/x",
    "http://[",
    "http://",
)
PUBLIC = "http://93.184.215.14"  # a literal address: it is not asked, a proxy of the test answers for it


@pytest.mark.promise("hub-names", "hub-token")
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("target", [*METADATA, *NOWHERE])
def test_a_redirect_that_is_not_followed(hub: Hub, case: Case, reader: str, target: str) -> None:
    hub.faults.add(Fault("redirect", "config.json", location=target))
    with pytest.raises(Refused) as refused:
        ends(lambda: READERS[reader](case), 30)
    assert "u:p" not in str(refused.value)
    if target in METADATA:
        assert "where it must not: " in str(refused.value) and "metadata" in str(refused.value)
    assert not hub.token_leaks()


@pytest.mark.promise("hub-hang")
@pytest.mark.parametrize("reader", READERS)
def test_a_circle(hub: Hub, case: Case, reader: str) -> None:
    hub.faults.add(Fault("loop", "config.json"))
    with pytest.raises(Refused, match="redirect"):
        ends(lambda: READERS[reader](case), 30)
    assert len(hub.requests_for("config.json")) < 20


class Public:
    """A hub with a public address, and something that listens on this machine only.

    The hub is reached by a proxy, so that its address can be any; the other one is reached without.
    """

    def __init__(self, hub: Hub, inner: Rogue, monkeypatch: pytest.MonkeyPatch) -> None:
        def forward(ask: Asked) -> None:
            """Answer as a proxy that finds the test's hub at the public address."""
            target = ask.path.replace(PUBLIC, hub.url, 1)
            headers = {name: value for name, value in ask.headers.items() if name.lower() != "host"}
            answer = httpx2.request(
                ask.command, target, headers=headers, follow_redirects=False, trust_env=False
            )
            kept = {
                name: value.replace(hub.url, PUBLIC)
                for name, value in answer.headers.items()
                if name.lower() not in ("connection", "content-length", "transfer-encoding")
            }
            length = answer.headers.get("content-length", str(len(answer.content)))
            ask.reply(answer.status_code, {**kept, "Content-Length": length}, answer.content)

        self.inner = inner
        self.proxy = Rogue(forward)
        huggingface_hub.close_session()
        for name in ("https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("http_proxy", self.proxy.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")


@pytest.fixture
def public(hub: Hub, case: Case, monkeypatch: pytest.MonkeyPatch) -> Iterator[Public]:
    with Rogue(lambda ask: ask.serve(FILES[ask.path[1:]])) as inner:
        made = Public(hub, inner, monkeypatch)
        with made.proxy:
            case.hub = PUBLIC
            yield made
            huggingface_hub.close_session()


@pytest.mark.promise("hub-names")
@pytest.mark.parametrize("reader", READERS)
def test_from_a_public_hub_no_way_leads_to_this_machine(
    hub: Hub, public: Public, case: Case, reader: str
) -> None:
    assert READERS[reader](case) == case.truth, "control: this hub is read from"
    hub.faults.add(Fault("redirect", "config.json", location=f"{public.inner.url}/config.json"))
    with pytest.raises(Refused, match=r"private address 127\.0\.0\.1, and the hub is a public one"):
        ends(lambda: READERS[reader](case), 30)
    assert public.inner.asked == []


@pytest.mark.control("hub-names")
@pytest.mark.parametrize("reader", READERS)
def test_without_the_rule_it_would(
    hub: Hub, public: Public, case: Case, reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Callable[[Case], dict[str, str]] = READERS[reader]
    if reader == "fetch":
        naive = sabotaged(tmp_path, "hub.py", "if problem := redirect_problem(", "if problem := _nothing(")
        text = (naive.parent / "hub.py").read_text()
        (naive.parent / "hub.py").write_text(text + "\n\ndef _nothing(*args):\n    return None\n")

        def read(case: Case) -> dict[str, str]:
            return fetch(case, naive)

    else:
        monkeypatch.setattr(guard, "redirect_problem", lambda hub, target: None)
    hub.faults.add(Fault("redirect", "config.json", location=f"{public.inner.url}/config.json"))
    require_right(outcome(read, case), case)
    assert public.inner.asked, "control: what listens here was asked"


@pytest.mark.promise("hub-token")
@pytest.mark.parametrize("reader", READERS)
def test_another_host_gets_no_token(hub: Hub, case: Case, reader: str) -> None:
    with Rogue(lambda ask: ask.serve(FILES["config.json"])) as other:
        hub.faults.add(Fault("redirect", "config.json", location=f"{other.url}/config.json"))
        require_right(outcome(READERS[reader], case), case)
        assert other.asked
        require_no_token(other)
    assert any(record.authorization_valid for record in hub.requests()), "control: the hub got it"


@pytest.mark.control("hub-token")
def test_a_client_that_takes_its_token_along_is_found_out(hub: Hub, case: Case) -> None:
    with Rogue(lambda ask: ask.serve(FILES["config.json"])) as other:
        hub.faults.add(Fault("redirect", "config.json", location=f"{other.url}/config.json"))
        url, headers = f"{hub.url}/{NAME}/resolve/main/config.json", {"Authorization": f"Bearer {TOKEN}"}
        answer = httpx2.get(url, headers=headers, follow_redirects=False)
        httpx2.get(answer.headers["location"], headers=headers)
        with pytest.raises(AssertionError, match="the token"):
            require_no_token(other)


def require_no_token(other: Rogue) -> None:
    for ask in other.asked:
        assert TOKEN not in f"{ask.path} {list(ask.headers.items())}", "the token went to another host"


def builders() -> ModuleType:
    """Import the builder stage's own module of the same name."""
    sys.path.insert(0, str(BUILDER))
    try:
        import addresses as found  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(BUILDER))
    module: ModuleType = found
    return module


@pytest.mark.parametrize("module", [addresses, builders()], ids=["host", "builder"])
@pytest.mark.parametrize(
    ("hub", "target", "words"),
    [
        ("1.1.1.1", "8.8.8.8", None),
        ("1.1.1.1", "10.0.0.7", "private"),
        ("1.1.1.1", "127.0.0.1", "private"),
        ("1.1.1.1", "::1", "private"),
        ("10.0.0.1", "10.0.0.7", None),
        ("10.0.0.1", "127.0.0.1", None),
        ("10.0.0.1", "169.254.169.254", "metadata"),
        ("127.0.0.1", "127.0.0.1", None),
        ("127.0.0.1", "8.8.8.8", None),
        ("169.254.9.9", "169.254.9.9", None),
        ("unknown", "127.0.0.1", "private"),
        ("unknown", "unknown.too", None),
        ("1.1.1.1 10.0.0.1", "10.0.0.7", None),
        ("1.1.1.1", "8.8.8.8 127.0.0.1", "private"),
        ("1.1.1.1", "2002:a9fe:a9fe::1", "metadata"),
    ],
)
def test_the_rule(module: ModuleType, hub: str, target: str, words: str | None) -> None:
    """`hub` and `target` stand for names with these addresses."""

    def resolve(host: str) -> list[addresses.Address]:
        if host.startswith("unknown"):
            return []
        return [module._plain(ipaddress.ip_address(each)) for each in host.split()]

    problem = module.redirect_problem(hub, target, resolve)
    assert problem is None if words is None else words in str(problem)


def test_host_and_builder_have_the_same_rule() -> None:
    texts = [Path(str(module.__file__)).read_text() for module in (addresses, builders())]
    host, builder = (text.partition('"""\n\nfrom __future__')[2] for text in texts)
    assert host == builder != ""
