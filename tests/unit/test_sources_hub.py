"""The hub source against real servers: the hub of tests/servers, and one that says whatever a test wants."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import errors as hub_library_errors

from modelbake.config import ModelSpec
from modelbake.credentials import Redactor, Secret
from modelbake.errors import (
    ModelbakeError,
    NoMatchingFiles,
    RevisionNotFound,
    SourceAuthError,
    SourceError,
    SourceGatedError,
    SourceNotFound,
    SourceUnavailable,
    UsageError,
    WrongBytes,
)
from modelbake.lock import Lock, LockedFile, LockedModel, decode_lock, encode_lock
from modelbake.sources import compare_all, resolve_all, source_for
from modelbake.sources.hub import HubSource
from modelbake.sources.hub_errors import Place, translate
from modelbake.sources.hub_read import HubReader
from modelbake.sources.patience import Patience
from tests.servers.hub import Fault, Hub, Repo
from tests.servers.hub_certificate import make_certificate

CANARY = "hf_canaryCANARYcanaryCANARYcanary0123"
POOR = "hf_poorPOORpoorPOORpoorPOORpoor012345"  # known to the hub, but it may read nothing
WRONG = "hf_wrongWRONGwrongWRONGwrongWRONG0123"
NAME = "team/model"
WEIGHTS = bytes(range(256)) * 40
FILES = {
    ".gitattributes": b"*.safetensors filter=lfs\n",
    "README.md": b"# model\n",
    "config.json": b'{"a": 1}',
    "1_Pooling/config.json": b'{"b": 2}',
    "model.safetensors": WEIGHTS,
    "onnx/model.onnx": WEIGHTS * 2,
    "onnx/deep/config.json": b"{}",
    "empty.txt": b"",
}
QUICK = Patience(first_wait=0.01, longest_wait=2, connect=2, read=0.5, answer=3)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    Repo.create(tmp_path / "hub", NAME, FILES)
    with Hub(tmp_path / "hub", tokens={CANARY: None, POOR: []}, page_size=3) as server:
        yield server
        huggingface_hub.close_session()


@pytest.fixture
def repo(hub: Hub) -> Repo:
    return Repo(hub.root, NAME)


def make_spec(hub: str, **changes: Any) -> ModelSpec:
    wanted = {"name": "m", "version": "1.0.0", "source": f"hf://{NAME}", "runtime": "embeddings", **changes}
    return ModelSpec(hub=hub, **wanted)


def resolve(
    hub: str, token: str | None = CANARY, previous: LockedModel | None = None, **changes: Any
) -> LockedModel:
    source = HubSource(Secret(token) if token else None, patience=QUICK)
    spec = make_spec(hub, **changes).sources[0]
    return LockedModel.join([source.resolve(spec, previous and previous.sources[0]).locked])


def refused(hub: str, kind: type[SourceError], token: str | None = CANARY, **changes: Any) -> str:
    """Return the whole text of the error, which is of exactly this class and holds no token."""
    with pytest.raises(SourceError) as raised:
        resolve(hub, token, **changes)
    assert type(raised.value) is kind, raised.value
    text = str(raised.value)
    assert hub.removeprefix("http://") in text and changes.get("revision", "main") in text
    assert raised.value.subject and not any(secret in text for secret in (CANARY, POOR, WRONG))
    assert raised.value.__cause__ is None or not isinstance(raised.value.__cause__, ModelbakeError)
    return text


class TestResolve:
    def test_facts_are_the_files_own(self, hub: Hub, repo: Repo) -> None:
        locked = resolve(hub.url)
        assert locked.commit == repo.head.id
        assert [(file.path, file.size, file.sha256) for file in locked.files] == [
            (path, len(data), hashlib.sha256(data).hexdigest())
            for path, data in sorted(FILES.items())
            if path != ".gitattributes"
        ]
        assert decode_lock(encode_lock(Lock({"m": locked}))).models["m"] == locked

    def test_weights_in_lfs_are_not_fetched_and_nothing_else_is_asked(self, hub: Hub) -> None:
        resolve(hub.url)
        assert not hub.requests(host="cdn") and not hub.requests_for("*.safetensors")
        others = [
            record
            for record in hub.requests()
            if not record.file and not record.path.startswith("/api/models/team/model")
        ]
        assert others == []
        assert all(record.authorization_valid for record in hub.requests()) and not hub.token_leaks()

    @pytest.mark.parametrize(
        ("include", "exclude", "expected"),
        [
            (["*.json"], [], ["1_Pooling/config.json", "config.json", "onnx/deep/config.json"]),
            (["*.json"], ["onnx/"], ["1_Pooling/config.json", "config.json"]),
            (["onnx/"], [], ["onnx/deep/config.json", "onnx/model.onnx"]),
            (["*/config.json"], ["onnx/deep/*"], ["1_Pooling/config.json"]),
            (["config.json", "README.MD"], [], ["config.json"]),
            (["*.safetensors"], [], ["model.safetensors"]),
        ],
    )
    def test_include_and_exclude(
        self, hub: Hub, include: list[str], exclude: list[str], expected: list[str]
    ) -> None:
        locked = resolve(hub.url, include=include, exclude=exclude)
        assert [file.path for file in locked.files] == expected

    def test_a_revision_may_be_a_branch_a_tag_or_a_commit(self, hub: Hub, repo: Repo) -> None:
        first = repo.head.id
        repo.set_tag("v1", first)
        second = repo.commit({"config.json": b"{}"}).id
        repo.commit({"README.md": b"x"}, branch="feature/x")
        assert resolve(hub.url, revision="v1").commit == resolve(hub.url, revision=first).commit == first
        assert resolve(hub.url).commit == second
        assert resolve(hub.url, revision="feature/x").commit == repo.branches["feature/x"]

    def test_all_is_read_at_one_commit_though_somebody_pushes(self, hub: Hub, repo: Repo) -> None:
        hub.faults.add(Fault("delay", "*/tree/*", seconds=0.3, count=1))
        first = repo.head.id

        def push_once_the_listing_is_asked_for() -> None:
            while hub.faults.as_json():
                time.sleep(0.01)
            repo.commit({"config.json": b"changed", "new.json": b"{}"})

        pushed = threading.Thread(target=push_once_the_listing_is_asked_for)
        pushed.start()
        locked = resolve(hub.url)
        pushed.join()
        assert locked.commit == first != repo.head.id
        assert "new.json" not in {file.path for file in locked.files}

    def test_a_large_file_outside_lfs_is_streamed(self, hub: Hub, repo: Repo) -> None:
        repo.commit({"big.json": os.urandom(9_000_000)})
        stored = repo.head.file("big.json")
        assert stored is not None and not stored.lfs
        (locked,) = resolve(hub.url, include=["big.json"]).files
        assert (locked.size, locked.sha256) == (stored.size, stored.sha256)

    def test_what_is_not_locked_is_told_too(self, hub: Hub, repo: Repo) -> None:
        hub.faults.add(Fault("drop", "config.json", offset=3, count=1))
        source = HubSource(Secret(CANARY), patience=QUICK)
        resolved = source.resolve(make_spec(hub.url, include=["*config.json"]).sources[0], None)
        assert set(resolved.upstream) == {file.path for file in repo.head.files}
        assert resolved.configuration == FILES["config.json"], "whole, though the first try broke off"
        weights = source.resolve(make_spec(hub.url, include=["*.safetensors"]).sources[0], None)
        assert weights.configuration is None
        assert weights.upstream == resolved.upstream

    def test_head(self, hub: Hub, repo: Repo) -> None:
        source = source_for("hf", Secret(CANARY))
        assert source.head(make_spec(hub.url).sources[0]) == repo.head.id
        hub.reset_log()
        assert source.head(make_spec(hub.url, revision="f" * 40).sources[0]) == "f" * 40
        assert hub.requests() == []

    def test_a_hub_that_hands_out_no_files_is_not_reached(self, hub: Hub, repo: Repo) -> None:
        source = HubSource(Secret(CANARY), patience=QUICK)
        source.reach(make_spec(hub.url, include=["*.safetensors"]).sources[0])
        (asked,) = hub.requests_for("*.safetensors")
        assert (asked.method, asked.host) == ("HEAD", "hub")
        repo.set_private(False)
        repo.set_gated("manual")
        poor = HubSource(Secret(POOR), patience=QUICK)
        assert poor.head(make_spec(hub.url).sources[0]) == repo.head.id, (
            "control: the listing is for everyone"
        )
        with pytest.raises(SourceGatedError):
            poor.reach(make_spec(hub.url).sources[0])

    def test_every_fetched_file_is_told(self, hub: Hub, repo: Repo) -> None:
        told: list[dict[str, Any]] = []
        hub.faults.add(Fault("drop", "config.json", offset=3, count=1))
        source = HubSource(Secret(CANARY), patience=QUICK, audit=lambda **facts: told.append(facts))
        source.resolve(make_spec(hub.url, include=["*config.json", "*.safetensors"]).sources[0], None)
        assert all(0 < facts.pop("seconds") < 5 for facts in told)
        # Weights in Git LFS are not fetched, hence not among these.
        assert {facts["file"]: facts for facts in told} == {
            path: {
                "source": f"hf://{NAME}@{repo.head.id}",
                "file": path,
                "bytes": len(FILES[path]),
                "attempts": 2 if path == "config.json" else 1,
                "sha256": hashlib.sha256(FILES[path]).hexdigest(),
            }
            for path in ("config.json", "1_Pooling/config.json", "onnx/deep/config.json")
        }

    def test_edits_are_found_at_the_locked_commit(self, hub: Hub, repo: Repo) -> None:
        locked = resolve(hub.url, exclude=["onnx/*"])
        repo.commit({"config.json": b"moved on", "new.json": b"{}"})
        source = HubSource(Secret(CANARY), patience=QUICK)
        hub.reset_log()
        assert source.edits(locked) == []
        assert not [record for record in hub.requests() if record.file], "a listing is enough"

        files = {file.path: file for file in locked.files}
        weights = files.pop("model.safetensors")
        assert source.edits(replace(locked, files=tuple(files.values()))) == [
            "model.safetensors is upstream and not in the lock"
        ]
        edited = (
            replace(weights, sha256="00" * 32),
            replace(files["config.json"], size=9),
            LockedFile("more.bin", 1, "00" * 32),
        )
        texts = source.edits(replace(locked, files=edited, include=("*.bin", "config.json", "*.safetensors")))
        assert texts == [
            "config.json has 8 bytes upstream, 9 in the lock",
            f"model.safetensors has sha256 {weights.sha256} upstream, {'00' * 32} in the lock",
            "more.bin is in the lock and not upstream",
        ]
        assert source.edits(replace(locked, include=("*.bin",), files=edited[2:])) == [
            "more.bin is in the lock and not upstream"
        ]

    def test_a_locked_commit_that_is_gone_is_named(self, hub: Hub) -> None:
        locked = replace(resolve(hub.url), commit="f" * 40)
        with pytest.raises(RevisionNotFound, match=f"commit '{'f' * 40}'"):
            HubSource(Secret(CANARY), patience=QUICK).edits(locked)

    @pytest.mark.promise("wrong-bytes", "lock")
    def test_other_bytes_at_the_locked_commit_are_refused(self, hub: Hub) -> None:
        locked = resolve(hub.url)
        assert resolve(hub.url, previous=locked) == locked
        first, *others = locked.files
        edited = replace(locked, files=(replace(first, sha256="00" * 32), *others))
        with pytest.raises(WrongBytes, match=r"1_Pooling/config\.json.*very same commit"):
            resolve(hub.url, previous=edited)
        assert resolve(hub.url, previous=replace(edited, commit="f" * 40)) == locked


class TestRefusals:
    def test_private_without_a_token(self, hub: Hub) -> None:
        text = refused(hub.url, SourceAuthError, None)
        assert "is private, or does not exist" in text and "HF_TOKEN" in text and NAME in text

    def test_private_with_a_wrong_token(self, hub: Hub) -> None:
        text = refused(hub.url, SourceAuthError, WRONG)
        assert "does not accept the token" in text and "expired" in text

    def test_private_with_a_token_that_may_not_read_it(self, hub: Hub) -> None:
        assert "may the account of HF_TOKEN see it" in refused(hub.url, SourceNotFound, POOR)

    def test_missing(self, hub: Hub) -> None:
        text = refused(hub.url, SourceNotFound, source="hf://team/modle")
        assert "no such repository" in text and "team/modle" in text

    @pytest.mark.parametrize(("token", "advice"), [(None, "set HF_TOKEN"), (POOR, "account of your token")])
    @pytest.mark.parametrize("include", ["*.json", "*.safetensors"])
    def test_gated(self, hub: Hub, repo: Repo, token: str | None, advice: str, include: str) -> None:
        # A hub lists a gated repository to everyone: with LFS files alone nothing else would tell.
        repo.set_private(False)
        repo.set_gated("manual")
        text = refused(hub.url, SourceGatedError, token, include=[include])
        assert f"{hub.url}/{NAME}" in text and advice in text
        assert not hub.requests(host="cdn")

    def test_no_such_revision(self, hub: Hub, repo: Repo) -> None:
        repo.set_tag("v1.0", repo.head.id)
        text = refused(hub.url, RevisionNotFound, revision="v1.O")
        assert "no branch, tag or commit 'v1.O'" in text and "did you mean 'v1.0'?" in text and "main" in text
        assert "no branch, tag or commit" in refused(hub.url, RevisionNotFound, revision="f" * 40)

    def test_no_match(self, hub: Hub) -> None:
        text = refused(hub.url, NoMatchingFiles, include=["model.safetensor"])
        assert "selects none of the repository's 7 files" in text
        assert "did you mean model.safetensors?" in text and "1_Pooling/config.json" in text
        assert ".gitattributes" not in text
        text = refused(hub.url, NoMatchingFiles, include=["*.json"], exclude=["*"])
        assert "leaves out all 3 files that include selects" in text
        assert "selects none" in refused(hub.url, NoMatchingFiles, include=[".gitattributes"])

    @pytest.mark.promise("hub-names")
    @pytest.mark.parametrize(
        "name", ["../x.json", "a/../../x.json", "/x.json", "a\nb.json", ".GIT/x.json", "a\\b.json"]
    )
    def test_hostile_names(self, script: Script, name: str) -> None:
        # The escape sequence would be let loose on the terminal, the `..` on the disk.
        script.tree = [entry(name)]
        text = refused(script.url, SourceError, include=["*.json"])
        assert "the file name" in text and "\n" not in text.split("\n  hint")[0]
        assert not [request for request in script.seen if "/resolve/" in request.path]

    @pytest.mark.promise("hub-names")
    def test_names_that_cannot_both_exist(self, script: Script) -> None:
        script.tree = [entry("A.json"), entry("a.json")]
        assert "'A.json' and 'a.json' cannot both exist" in refused(script.url, SourceError)

    @pytest.mark.promise("hub-names")
    def test_hostile_names_that_are_not_taken_do_no_harm(self, script: Script) -> None:
        script.tree = [entry("../x.bin"), entry("a\x1b[2J.bin"), entry("ok.json")]
        assert [file.path for file in resolve(script.url, include=["*.json"]).files] == ["ok.json"]
        assert "\x1b" not in refused(script.url, NoMatchingFiles, include=["*.md"])

    @pytest.mark.parametrize(
        "changes",
        [
            {"oid": "xyz"},
            {"oid": None},
            {"size": -1},
            {"size": "2"},
            {"size": True},
            {"path": 1},
            {"path": None},
            {"lfs": {"oid": "ab", "size": 2, "pointerSize": 1}},
            {"lfs": {"oid": "ab" * 32, "size": 3, "pointerSize": 1}},
            {"lfs": 7},
        ],
    )
    def test_a_listing_that_is_garbled(self, script: Script, changes: dict[str, Any]) -> None:
        script.tree = [{**entry("config.json"), **changes}]
        refused(script.url, SourceError)

    @pytest.mark.parametrize(
        "body", [b"", b"[]", b"null", b"{}", b'{"id": 1, "sha": "main"}', b"<html>", b"\xff"]
    )
    def test_an_answer_that_is_not_a_hubs(self, script: Script, body: bytes) -> None:
        script.say("/api/models/", Says(body=body))
        refused(script.url, SourceError)

    @pytest.mark.parametrize(
        ("status", "kind"),
        [(400, SourceError), (403, SourceAuthError), (404, SourceNotFound), (410, SourceNotFound),
         (418, SourceError), (451, SourceError), (304, SourceError)],
    )  # fmt: skip
    def test_other_statuses(self, script: Script, status: int, kind: type[SourceError]) -> None:
        said = {"X-Error-Message": f"no \x1b[31m for {CANARY}".replace("\x1b", "?")}
        script.say("/api/models/", Says(status, said, f'{{"error": "no {CANARY}"}}'.encode()))
        refused(script.url, kind)


class TestTrouble:
    def test_down(self) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        started = time.monotonic()
        text = refused(url, SourceUnavailable)
        assert "cannot be reached (Connection refused)" in text and "proxy, firewall" in text
        assert time.monotonic() - started < 20

    def test_no_such_host(self) -> None:
        assert "cannot be reached" in refused("http://hub.invalid", SourceUnavailable)

    def test_closing_every_connection(self, hub: Hub) -> None:
        hub.faults.add(Fault("down"))
        assert "connection to the hub broke" in refused(hub.url, SourceUnavailable)

    @pytest.mark.promise("hub-hang")
    def test_accepting_but_never_answering(self, hub: Hub) -> None:
        hub.faults.add(Fault("delay", seconds=30))
        started = time.monotonic()
        assert "stopped answering (timeout)" in refused(hub.url, SourceUnavailable)
        assert time.monotonic() - started < 20
        hub.faults.clear()

    @pytest.mark.promise("hub-hang")
    def test_an_answer_that_drips_for_ever(self, script: Script) -> None:
        script.say("/api/models/", Says(drip=0.1))
        started = time.monotonic()
        text = refused(script.url, SourceUnavailable, revision="main")
        assert "timeout" in text and time.monotonic() - started < 6 * QUICK.answer

    @pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
    def test_busy_for_a_while_is_waited_for(self, hub: Hub, status: int) -> None:
        hub.faults.add(Fault("status", "*/revision/*", status=status, count=3))
        hub.faults.add(Fault("status", "*/tree/*", status=status, count=2))
        hub.faults.add(Fault("status", "config.json", status=status, count=4))
        assert resolve(hub.url)

    def test_retry_after_is_heeded(self, hub: Hub) -> None:
        hub.faults.add(Fault("status", "*/revision/*", status=429, retry_after=1, count=1))
        started = time.monotonic()
        resolve(hub.url)
        assert time.monotonic() - started >= 1

    @pytest.mark.promise("hub-hang")
    def test_busy_for_ever_is_given_up(self, hub: Hub) -> None:
        hub.faults.add(Fault("status", status=503))
        assert "HTTP 503, 5 times" in refused(hub.url, SourceUnavailable)
        assert len(hub.requests()) == QUICK.busy_attempts

    @pytest.mark.promise("hub-hang")
    def test_an_hours_wait_is_not_waited_for(self, hub: Hub) -> None:
        hub.faults.add(Fault("status", status=429, retry_after=3600))
        text = refused(hub.url, SourceUnavailable)
        assert "limits our requests" in text and "asks to wait 3600 s" in text
        assert len(hub.requests()) == 1

    def test_a_rate_limit_in_the_hubs_own_header(self, script: Script) -> None:
        script.say("/api/models/", Says(429, {"RateLimit": '"api";r=0;t=300'}))
        assert "asks to wait 300 s" in refused(script.url, SourceUnavailable)

    def test_connections_that_break_in_the_middle_are_retried(self, hub: Hub) -> None:
        hub.faults.add(Fault("drop", "config.json", offset=3, count=2))
        hub.faults.add(Fault("truncate", "README.md", count=1))
        assert resolve(hub.url)
        hub.faults.add(Fault("drop", "config.json", offset=3))
        assert "broke" in refused(hub.url, SourceUnavailable)

    @pytest.mark.promise("wrong-bytes")
    @pytest.mark.parametrize("kind", ["corrupt", "short", "extra", "html"])
    def test_wrong_bytes_are_found(self, hub: Hub, kind: Any) -> None:
        hub.faults.add(Fault(kind, "config.json"))
        text = refused(hub.url, WrongBytes, include=["config.json"])
        assert "config.json: the hub serves" in text

    @pytest.mark.promise("wrong-bytes", "hub-hang")
    def test_a_file_without_end_is_not_read_to_its_end(self, script: Script) -> None:
        script.tree = [entry("config.json")]
        script.say("/resolve/", Says(drip=0.0))
        assert "instead of 2" in refused(script.url, WrongBytes)

    def test_a_login_page_instead_of_the_hub(self, hub: Hub) -> None:
        hub.faults.add(Fault("html"))
        assert "A proxy or a login page" in refused(hub.url, SourceError)

    @pytest.mark.promise("hub-hang")
    def test_redirects_without_end(self, hub: Hub) -> None:
        hub.faults.add(Fault("loop"))
        assert "redirects without end" in refused(hub.url, SourceError)

    def test_a_redirect_to_nowhere(self, script: Script) -> None:
        script.say("/api/models/", Says(302, {"Location": "ftp://x/y"}))
        refused(script.url, SourceError)
        script.say("/api/models/", Says(302, {"Location": "http://[::bad/"}))
        refused(script.url, SourceUnavailable)

    def test_plain_http_behind_https(self, hub: Hub) -> None:
        url = hub.url.replace("http://", "https://")
        text = refused(url, SourceUnavailable)
        assert "certificate is not trusted, or it speaks no TLS" in text and "SSL_CERT_FILE" in text
        assert "MODELBAKE_CA_BUNDLE" in text

    def test_an_authority_of_ones_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """For the hub's API, for small files, and for the bytes that the stream lane reads."""
        made = make_certificate(tmp_path / "tls")
        Repo.create(tmp_path / "hub", NAME, FILES)
        with Hub(tmp_path / "hub", tokens={CANARY: None}, cert=made.cert, key=made.key) as hub:
            huggingface_hub.close_session()
            refused(hub.url, SourceUnavailable)
            huggingface_hub.close_session()
            monkeypatch.setenv("MODELBAKE_CA_BUNDLE", str(made.authority))
            locked = resolve(hub.url)
            reader = HubReader(locked, Secret(CANARY), patience=QUICK)
            weights = next(file for file in locked.files if file.path == "model.safetensors")
            assert b"".join(reader.read(weights)) == WEIGHTS
            huggingface_hub.close_session()

    def test_a_ca_bundle_that_is_none(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        huggingface_hub.close_session()
        monkeypatch.setenv("MODELBAKE_CA_BUNDLE", __file__)
        with pytest.raises(UsageError, match="cannot be read as certificates"):
            resolve(hub.url)

    @pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "HTTP_PROXY"])
    def test_network_settings_that_cannot_be_used(
        self, hub: Hub, monkeypatch: pytest.MonkeyPatch, variable: str
    ) -> None:
        huggingface_hub.close_session()
        monkeypatch.setenv(variable, "gopher://user:hunter22@proxy")
        text = refused(hub.url, SourceError)
        assert "network settings" in text and "hunter22" not in text

    def test_offline_mode(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        assert "HF_HUB_OFFLINE is set" in refused(hub.url, SourceUnavailable)
        assert hub.requests() == []


class TestToken:
    @pytest.mark.promise("hub-token")
    def test_it_does_not_follow_a_redirect_to_another_host(self, script: Script, other: Script) -> None:
        script.tree = [entry("config.json")]
        script.say("/resolve/", Says(302, {"Location": f"{other.url}/cdn/config.json?sig=1"}))
        other.say("/cdn/", Says(body=b"{}"))
        assert resolve(script.url).files[0].sha256 == hashlib.sha256(b"{}").hexdigest()
        assert len(other.seen) == 1
        assert "authorization" not in other.seen[0].headers and CANARY not in str(other.seen)
        assert all(request.headers["authorization"] == f"Bearer {CANARY}" for request in script.seen)

    @pytest.mark.promise("hub-token")
    def test_it_does_not_follow_a_listing_to_another_host(self, script: Script, other: Script) -> None:
        script.say("/tree/", Says(headers={"Link": f'<{other.url}/next>; rel="next"'}, body=b"[]"))
        assert "must not see the token" in refused(script.url, SourceError)
        assert other.seen == []

    @pytest.mark.promise("hub-hang")
    def test_a_listing_without_end_ends(self, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("modelbake.sources.hub_client._MAX_REQUESTS", 20)
        script.say(
            "/tree/", Says(headers={"Link": f'<{script.url}/api/models/x/tree/y>; rel="next"'}, body=b"[]")
        )
        assert "more than 20 requests" in refused(script.url, SourceError)

    @pytest.mark.parametrize(
        "token", ["hf_line\nbreak", "hf_spa ce123", "hf_\N{SNOWMAN}snow", "hf_\x00nul123", "\x7fabcdefgh"]
    )
    def test_one_that_fits_in_no_header_is_not_quoted(self, hub: Hub, token: str) -> None:
        text = refused(hub.url, SourceAuthError, token)
        assert token[:8] not in text and token[-6:] not in text and hub.requests() == []

    @pytest.mark.promise("hub-token")
    def test_the_hubs_own_words_do_not_bring_it_to_the_terminal(self, script: Script) -> None:
        """In another process: the library's log goes to the stderr that was there at import."""
        said = {"X-HF-Warning": f"topic; your token {CANARY}", "X-Error-Message": f"bad {CANARY}"}
        script.say("/revision/main", Says(403, said, b"{}"))
        script.say("/revision/v1", Says(503, said, b"{}"))
        program = (
            "import sys; from tests.unit.test_sources_hub import *\n"
            "for revision in ('main', 'v1'):\n"
            "    try: resolve(sys.argv[1], revision=revision)\n"
            "    except SourceError as error: print(error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, script.url], capture_output=True, text=True, timeout=60
        )
        assert (done.stderr, done.returncode) == ("", 0)
        assert 'bad ***"' in done.stdout and "HTTP 503, 5 times" in done.stdout and CANARY not in done.stdout

    def test_nothing_of_the_machine_changes_whom_we_talk_to_and_as_whom(
        self, hub: Hub, other: Script, tmp_path: Path
    ) -> None:
        """Endpoint, token and telemetry of the environment: read at import, hence another process."""
        (tmp_path / "token").write_text(CANARY)
        (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login x password {CANARY}\n")
        program = (
            "import sys; from tests.unit.test_sources_hub import *\n"
            "try: HubSource(None, patience=QUICK).resolve(make_spec(sys.argv[1]).sources[0], None)\n"
            "except SourceAuthError as error: print('refused', error)\n"
            "answer = HubSource(Secret(CANARY)).resolve(make_spec(sys.argv[1]).sources[0], None)\n"
            "print(answer.locked.commit)\n"
        )
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "HF_HOME": str(tmp_path),
            "HF_TOKEN": CANARY,
            "NETRC": str(tmp_path / "netrc"),
            "HF_ENDPOINT": other.url,
            "HF_DEBUG": "1",
            "PYTHONWARNINGS": "error",
        }
        done = subprocess.run(
            [sys.executable, "-c", program, hub.url],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("refused") and done.stdout.endswith(f"{Repo(hub.root, NAME).head.id}\n")
        assert CANARY not in done.stdout + done.stderr
        assert other.seen == []
        first = hub.requests()[0]
        assert first.status == 401 and not first.had_authorization and not first.token_elsewhere
        assert sorted(path.name for path in tmp_path.iterdir()) == ["hub", "netrc", "token"]


def fail(_: LockedModel) -> None:
    raise ZeroDivisionError


class TestMany:
    def test_models_are_resolved_in_parallel_in_order(self, hub: Hub) -> None:
        specs = []
        for number in range(8):
            Repo.create(hub.root, f"team/m{number}", {"config.json": b"%d" % number})
            specs.append(make_spec(hub.url, name=f"m{number}", source=f"hf://team/m{number}"))
        hub.faults.add(Fault("delay", "*/revision/*", seconds=0.8))
        done: list[str] = []
        started = time.monotonic()
        resolved = resolve_all(specs, Lock(), Secret(CANARY), done=lambda model: done.append(model.name))
        locked = [answer.locked for answer in resolved]
        assert time.monotonic() - started < 5, "8 x 0.8 s, one after the other"
        assert [model.name for model in locked] == [spec.name for spec in specs]
        assert sorted(done) == sorted(spec.name for spec in specs)
        lock = Lock({model.name: model for model in locked})
        started = time.monotonic()
        compared = compare_all(specs, lock, Secret(CANARY))
        assert time.monotonic() - started < 5, "8 x 0.8 s, one after the other"
        assert compared.heads == {model.name: [model.commit] for model in locked}
        assert (compared.edits, compared.error) == ({model.name: [] for model in locked}, None)

    def test_every_failure_is_reported(self, hub: Hub) -> None:
        specs = [
            make_spec(hub.url, name="good"),
            make_spec(hub.url, name="gone", source="hf://team/gone"),
            make_spec(hub.url, name="old", revision="v0"),
        ]
        with pytest.raises(SourceError) as raised:
            resolve_all(specs, Lock(), Secret(CANARY))
        good = resolve(hub.url)
        lock = Lock({spec.name: LockedModel.of(spec, good.commit, good.files) for spec in specs})
        compared = compare_all(specs, lock, Secret(CANARY))
        for error in (raised.value, compared.error):
            text = str(error)
            assert type(error) is SourceError and "2 of 3 models" in text
            assert (
                "gone: hf://team/gone@main" in text and f"old: hf://{NAME}@v0" in text and "good" not in text
            )
        assert compared.heads == {"good": [good.commit]}, "what can be known is known all the same"
        assert compared.edits == {"good": []}
        with pytest.raises(SourceNotFound, match="2 of 2"):
            resolve_all([specs[1], specs[1]], Lock(), Secret(CANARY))
        with pytest.raises(RevisionNotFound, match="no branch, tag or commit"):
            resolve_all([specs[0], specs[2]], Lock(), Secret(CANARY))

    def test_a_defect_is_not_swallowed(self, hub: Hub) -> None:
        with pytest.raises(ZeroDivisionError):
            resolve_all([make_spec(hub.url)], Lock(), Secret(CANARY), done=fail)

    def test_ctrl_c_does_not_wait_for_the_hub(self, script: Script) -> None:
        script.say("/api/", Says(drip=0.1))
        program = (
            "import sys; from tests.unit.test_sources_hub import *\n"
            "specs = [make_spec(sys.argv[1], name=f'm{number}') for number in range(20)]\n"
            "try: resolve_all(specs, Lock(), Secret(CANARY))\n"
            "except KeyboardInterrupt: print('interrupted', flush=True)\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", program, script.url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as running:
            deadline = time.monotonic() + 20
            while len(script.seen) < 8 and time.monotonic() < deadline:
                time.sleep(0.05)
            started = time.monotonic()
            running.send_signal(signal.SIGINT)
            printed, complaints = running.communicate(timeout=20)
        assert (printed, complaints, running.returncode) == ("interrupted\n", "", 0)
        assert time.monotonic() - started < 10


PLACE = Place("m", NAME, "main", "http://hub", True, Redactor([Secret(CANARY)]))


def exceptions_of(module: Any) -> list[type[Exception]]:
    found = inspect.getmembers(module, lambda item: inspect.isclass(item) and issubclass(item, Exception))
    return [kind for _, kind in found]


def make_error(kind: type[Exception], status: int = 400) -> Exception:
    """Make an exception whatever its constructor wants; its text holds the canary."""
    response = httpx2.Response(status, request=httpx2.Request("GET", "http://hub/api"))
    for arguments, named in (
        ((CANARY,), {}),
        ((CANARY,), {"response": response}),
        ((CANARY,), {"request": response.request, "response": response}),
        ((CANARY, CANARY), {}),
        ((CANARY, ValueError(CANARY)), {}),
        ((), {}),
    ):
        try:
            return kind(*arguments, **named)
        except (TypeError, AttributeError):
            continue
    made = kind.__new__(kind)
    made.args = (CANARY,)
    return made


class TestTranslation:
    @pytest.mark.parametrize(
        "kind",
        [
            *exceptions_of(hub_library_errors),
            *exceptions_of(httpx2),
            OSError, TimeoutError, ConnectionResetError, socket.gaierror, ssl.SSLError,
            ssl.SSLCertVerificationError, ValueError, KeyError, TypeError, AttributeError, IndexError,
            UnicodeDecodeError, json.JSONDecodeError, RecursionError, MemoryError, EOFError, RuntimeError,
        ],
    )  # fmt: skip
    def test_every_foreign_exception_becomes_ours_and_loses_its_text(self, kind: type[Exception]) -> None:
        for status in (302, 400, 401, 403, 404, 416, 429, 500):
            error = translate(make_error(kind, status), PLACE)
            assert isinstance(error, SourceError)
            assert error.subject == PLACE.subject and error.message and CANARY not in str(error)

    def test_the_list_is_not_empty(self) -> None:
        assert len(exceptions_of(hub_library_errors)) > 50 and len(exceptions_of(httpx2)) > 25

    @pytest.mark.parametrize(
        ("kind", "ours"),
        [
            (httpx2.ConnectTimeout, SourceUnavailable),
            (httpx2.ReadTimeout, SourceUnavailable),
            (httpx2.RemoteProtocolError, SourceUnavailable),
            (httpx2.ProxyError, SourceUnavailable),
            (httpx2.TooManyRedirects, SourceError),
            (httpx2.DecodingError, SourceError),
            (hub_library_errors.GatedRepoError, SourceGatedError),
            (hub_library_errors.RepositoryNotFoundError, SourceNotFound),
            (hub_library_errors.RevisionNotFoundError, RevisionNotFound),
            (hub_library_errors.LocalTokenNotFoundError, SourceAuthError),
            (hub_library_errors.OfflineModeIsEnabled, SourceUnavailable),
            (hub_library_errors.HFValidationError, SourceError),
        ],
    )
    def test_classes(self, kind: type[Exception], ours: type[SourceError]) -> None:
        assert type(translate(make_error(kind), PLACE)) is ours


@dataclass(frozen=True)
class Says:
    """An answer; with `drip`, one byte every so many seconds without end (0: as fast as it goes)."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    drip: float | None = None


@dataclass(frozen=True)
class Seen:
    path: str
    headers: Mapping[str, str]


class Script(ThreadingHTTPServer):
    """Answers what a test tells it to, else as a hub with one commit and the files of `tree`."""

    daemon_threads = False
    block_on_close = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _ScriptHandler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.tree: list[dict[str, Any]] = [entry("config.json")]
        self.seen: list[Seen] = []
        self.stopping = threading.Event()
        self._says: dict[str, Says] = {}

    def say(self, part: str, says: Says) -> None:
        self._says[part] = says

    def answer(self, path: str) -> Says:
        for part, says in self._says.items():
            if part in path:
                return says
        if "/tree/" in path:
            return Says(body=json.dumps(self.tree).encode())
        if "/revision/" in path:
            return Says(body=json.dumps({"id": NAME, "sha": "ab" * 20}).encode())
        return Says(body=b"{}")


class _ScriptHandler(BaseHTTPRequestHandler):
    server: Script

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.seen.append(
            Seen(self.path, {name.lower(): value for name, value in self.headers.items()})
        )
        says = self.server.answer(self.path)
        self.send_response(says.status)
        for name, value in says.headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(says.body)
            while says.drip is not None and not self.server.stopping.is_set():
                self.wfile.write(b" " if says.drip else b" " * 65536)
                time.sleep(says.drip)
        except OSError:
            pass  # the client has had enough

    do_HEAD = do_GET  # noqa: N815 (the base class's name)


def entry(path: str) -> dict[str, Any]:
    """What the tree API says about a file `{}`."""
    return {"type": "file", "path": path, "size": 2, "oid": hashlib.sha1(b"blob 2\0{}").hexdigest()}


def serve() -> Iterator[Script]:
    server = Script()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    huggingface_hub.close_session()
    server.stopping.set()
    server.shutdown()
    server.server_close()
    thread.join()


script: Callable[[], Iterator[Script]] = pytest.fixture(serve, name="script")
other: Callable[[], Iterator[Script]] = pytest.fixture(serve, name="other")
