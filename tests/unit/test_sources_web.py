"""https:// sources against a real web server: ETags, a password, redirects, refusals, given sha256."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from modelbake.config import SourceSpec
from modelbake.errors import (
    RevisionNotFound,
    SourceAuthError,
    SourceError,
    SourceNotFound,
    SourceUnavailable,
    WrongBytes,
)
from modelbake.locked import LockedFile, LockedSource
from modelbake.sources.kinds import subject_of
from modelbake.sources.patience import Patience
from modelbake.sources.storesource import InnerReader, StoreSource
from modelbake.sources.web import WebStore
from tests.servers.hub_certificate import make_certificate
from tests.servers.web import WebServer

ODD = "a b/größe +100%~.bin"
FILES = {"config.json": b'{"a": 1}', "empty.txt": b"", ODD: b"odd", "model.safetensors": b"\5" * 100_000}
CANARY = "canaryCANARYcanaryCANARY0123"
QUICK = Patience(busy_attempts=2, first_wait=0.01, longest_wait=1, connect=2, read=2, answer=3)


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer({f"m/{path}": data for path, data in FILES.items()}) as server:
        yield server


def spec_of(web: WebServer, **keys: object) -> SourceSpec:
    files = {path: hashlib.sha256(data).hexdigest() for path, data in FILES.items()}
    return SourceSpec.model_validate({"name": "m", "source": f"{web.url}/m/", "files": files, **keys})


def source(**environ: str) -> StoreSource:
    def open_store(spec: SourceSpec | LockedSource) -> WebStore:
        given = spec.files if isinstance(spec, SourceSpec) else {}
        known = {"HOME": "/nonexistent", **environ}
        return WebStore(spec.source, given, subject_of(spec), spec.name, environ=known, patience=QUICK)

    return StoreSource(open_store)


def read(locked: LockedSource, path: str, start: int = 0, **environ: str) -> bytes:
    store = source(**environ)._open(locked)
    file = next(each for each in locked.files if each.path == path)
    return b"".join(InnerReader(locked, store.reader(threading.Event())).read(file, start))


def lock(web: WebServer, previous: LockedSource | None = None, **environ: str) -> LockedSource:
    return source(**environ).resolve(spec_of(web), previous).locked


@pytest.mark.parametrize("etags", ["strong", "weak", "none"])
def test_files_are_locked_and_read_again(web: WebServer, etags: str) -> None:
    web.etags = etags
    resolved = source().resolve(spec_of(web), None)
    assert resolved.configuration == FILES["config.json"]
    by_path = {file.path: file for file in resolved.locked.files}
    for path, data in FILES.items():
        sha256 = hashlib.sha256(data).hexdigest()
        version = web.etag_of(data) if etags == "strong" else f"sha256:{sha256}"
        assert by_path[path] == LockedFile(path, len(data), sha256, version)
        assert read(resolved.locked, path) == data
    assert resolved.locked.kind == "https"  # over http to this machine only
    assert source().head(spec_of(web)) == resolved.locked.commit
    assert source().edits(resolved.locked) == []
    source().reach(spec_of(web))
    web.seen.clear()
    lock(web, resolved.locked)
    assert {each.path for each in web.seen if each.method == "GET"} <= {"/m/config.json"}


def test_where_there_is_no_strong_etag_the_time_of_the_change_tells_what_was_replaced(web: WebServer) -> None:
    web.etags, web.modified = "weak", "Mon, 30 Nov 2026 18:00:00 GMT"
    locked = lock(web)
    assert {file.version for file in locked.files} == {"modified:2026-11-30T18:00:00Z"}
    assert source().head(spec_of(web)) == locked.commit and source().edits(locked) == []
    assert read(locked, "config.json") == FILES["config.json"]
    web.seen.clear()
    assert lock(web, locked) == locked
    assert {each.path for each in web.seen if each.method == "GET"} <= {"/m/config.json"}
    web.modified = "soon"
    assert {file.version[:7] for file in lock(web).files} == {"sha256:"}
    web.files["m/model.safetensors"] = b"x" * len(FILES["model.safetensors"])
    web.modified = "Mon, 30 Nov 2026 18:00:01 GMT"
    assert source().head(spec_of(web)) != locked.commit
    with pytest.raises(WrongBytes, match=r"model\.safetensors: .* and models\.yaml says") as caught:
        lock(web, locked)
    assert "write its sha256" in caught.value.hint


def test_a_server_without_head_or_ranges_will_do(web: WebServer) -> None:
    web.knows_head = False
    locked = lock(web)
    assert [file.size for file in locked.files] == [len(FILES[file.path]) for file in locked.files]
    web.ranges = False
    assert lock(web) == locked
    assert read(locked, "model.safetensors", 99_000) == FILES["model.safetensors"][99_000:]


def test_reading_goes_on_where_it_broke_off(web: WebServer) -> None:
    locked = lock(web)
    web.cuts.append(60_000)
    assert read(locked, "model.safetensors") == FILES["model.safetensors"]
    assert read(locked, "model.safetensors", 50_000) == FILES["model.safetensors"][50_000:]
    assert web.seen[-1].headers["if-match"] == web.etag_of(FILES["model.safetensors"])


def test_other_bytes_than_the_given_sha256(web: WebServer) -> None:
    web.files["m/config.json"] = b'{"a": 2}'
    with pytest.raises(WrongBytes, match=r"config\.json"):
        lock(web)


def test_another_sha256_is_given_of_what_is_locked(web: WebServer) -> None:
    locked = lock(web)
    other = {**spec_of(web).files, "model.safetensors": "0" * 64}
    with pytest.raises(WrongBytes, match=r"model\.safetensors"):
        source().resolve(spec_of(web, files=other), locked)


def test_a_file_replaced_since_the_lock(web: WebServer) -> None:
    locked = lock(web)
    web.files["m/config.json"] = b'{"a": 2}'
    with pytest.raises(RevisionNotFound, match="replaced") as caught:
        read(locked, "config.json")
    assert "build.py lock m" in caught.value.hint
    assert source().head(spec_of(web)) != locked.commit
    del web.files["m/config.json"]
    with pytest.raises(SourceNotFound, match=r"config\.json"):
        read(locked, "config.json")
    with pytest.raises(SourceNotFound, match=r"config\.json"):
        lock(web)


def test_credentials_of_netrc(tmp_path: Path) -> None:
    file = tmp_path / "netrc"
    file.write_text(f"machine 127.0.0.1 login me password {CANARY}\n")
    everything = {f"m/{path}": data for path, data in FILES.items()}
    with WebServer(everything, user=("me", CANARY)) as web:
        locked = lock(web, NETRC=str(file))
        assert read(locked, ODD, NETRC=str(file)) == b"odd"
        (tmp_path / ".netrc").write_text(file.read_text())
        assert lock(web, HOME=str(tmp_path)) == locked
        for text, known in (("wrongpassword", "with the credentials"), ("", "no credentials")):
            file.write_text(f"machine 127.0.0.1 login me password {text}\n" if text else "")
            with pytest.raises(SourceAuthError, match=known) as caught:
                lock(web, NETRC=str(file))
            assert str(file) in str(caught.value)
            assert "wrongpassword" not in str(caught.value)
        file.write_text(f"default login me password {CANARY}\n")
        with pytest.raises(SourceAuthError, match="no credentials"):
            lock(web, NETRC=str(file))
        file.write_text(f"machine 127.0.0.1 pasword {CANARY}\n")
        with pytest.raises(SourceAuthError, match="line") as caught:
            lock(web, NETRC=str(file))
        assert CANARY not in str(caught.value)
        with pytest.raises(SourceAuthError, match="cannot be read"):
            lock(web, NETRC=str(tmp_path))


def test_credentials_stay_with_their_origin(tmp_path: Path, web: WebServer) -> None:
    file = tmp_path / "netrc"
    file.write_text(f"machine 127.0.0.1 login me password {CANARY}\n")
    with WebServer({}, user=("me", CANARY)) as first:
        first.redirects = {"/m/config.json": f"{web.url}/m/config.json"}
        spec = spec_of(first, include=("config.json",))
        spec = spec.model_copy(update={"files": {"config.json": spec.files["config.json"]}})
        locked = source(NETRC=str(file)).resolve(spec, None).locked
        assert read(locked, "config.json", NETRC=str(file)) == FILES["config.json"]
        assert {each.authorization for each in web.seen} == {""}
        assert all(each.authorization for each in first.seen)


def test_redirects_between_http_and_https(
    tmp_path: Path, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_certificate(tmp_path)
    with WebServer(web.files, certificate=made) as secure:
        web.redirects = {"/m/model.safetensors": f"{secure.url}/m/model.safetensors"}
        with pytest.raises(SourceUnavailable, match="SSLError"):
            lock(web)
        monkeypatch.setenv("MODELBAKE_CA_BUNDLE", str(made.authority))
        assert read(lock(web), "model.safetensors") == FILES["model.safetensors"]
        secure.redirects = {"/m/config.json": f"{web.url}/m/config.json"}
        with pytest.raises(SourceError, match="from https to http"):
            lock(secure)


def test_a_redirect_to_a_metadata_service_is_refused(web: WebServer) -> None:
    web.redirects = {"/m/config.json": "http://169.254.169.254/m/config.json"}
    with pytest.raises(SourceError, match="must not"):
        lock(web)


def test_servers_that_are_busy_or_broken(web: WebServer) -> None:
    web.refused = [503]
    lock(web)
    web.refused = [500] * 50
    with pytest.raises(SourceUnavailable, match="500"):
        lock(web)
    web.refused = [418, 418]
    with pytest.raises(SourceError, match="418"):
        source().resolve(spec_of(web).model_copy(update={"files": {"empty.txt": "0" * 64}}), None)


def test_nobody_is_at_the_address() -> None:
    with WebServer({}) as gone:
        spec = spec_of(gone)
    with pytest.raises(SourceUnavailable, match="does not answer"):
        source().resolve(spec.model_copy(update={"files": {"config.json": "0" * 64}}), None)


def test_a_lock_that_was_edited(web: WebServer) -> None:
    locked = lock(web)
    first, *others = locked.files
    edited = replace(locked, files=(replace(first, size=first.size + 1), *others))
    assert source().edits(edited)
    with pytest.raises(WrongBytes):
        read(edited, first.path)
