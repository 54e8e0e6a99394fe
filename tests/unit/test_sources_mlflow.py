"""What a source of MLflow takes from its environment, and what it makes of what a server answers."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from modelbake.errors import (
    RevisionNotFound,
    SourceAuthError,
    SourceError,
    SourceNotFound,
    SourceUnavailable,
)
from modelbake.locked import LockedFile
from modelbake.sources.mlflow import MlflowStore
from modelbake.sources.mlflow_artifacts import bucket_of, served_path
from modelbake.sources.mlflow_login import authorization, tracking_server
from modelbake.sources.patience import Patience
from tests.servers.web import WebServer

CANARY = "canaryCANARYcanaryCANARY0123"
QUICK = Patience(busy_attempts=2, first_wait=0.01, longest_wait=1, connect=2, read=2, answer=3)


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("mlflow-artifacts:/1/a%20b/artifacts/model", "1/a b/artifacts/model"),
        ("mlflow-artifacts://host:5000/1/x", "1/x"),
        ("https://host:5000/sub/api/2.0/mlflow-artifacts/artifacts/1/x", "1/x"),
        ("mlflow-artifacts://other:5000/1/x", None),
        ("http://host:5000/sub/api/2.0/mlflow-artifacts/artifacts/1/x", None),
        ("https://other/api/2.0/mlflow-artifacts/artifacts/1/x", None),
        ("https://host:5000/files/1/x", None),
        ("s3://bucket/x", None),
    ],
)
def test_what_the_tracking_server_serves(uri: str, path: str | None) -> None:
    assert served_path(uri, "https://host:5000/sub") == path


@pytest.mark.parametrize(
    ("uri", "source"),
    [
        ("s3://bucket/1/model/", "s3://bucket/1/model"),
        ("gs://bucket/1/model", "gs://bucket/1/model"),
        ("abfss://models@account.dfs.core.windows.net/1/model", "az://account/models/1/model"),
        ("wasbs://models@account.blob.core.windows.net/1", "az://account/models/1"),
        ("s3://Not_A_Bucket/1", None),
        ("dbfs:/x", None),
        ("file:///x", None),
        ("/x", None),
        ("models:/m-1", None),
    ],
)
def test_buckets_are_sources_of_their_own_kind(uri: str, source: str | None) -> None:
    assert bucket_of(uri) == source


def test_the_server_is_named_or_found() -> None:
    environ = {"MLFLOW_TRACKING_URI": "https://a.example.com/"}
    assert tracking_server("https://b.example.com", environ, "m") == "https://b.example.com"
    assert tracking_server("", environ, "m") == "https://a.example.com"
    with pytest.raises(SourceError, match="names no MLflow server") as caught:
        tracking_server("", {}, "m")
    assert "endpoint" in caught.value.hint
    for wrong in ("databricks", "sqlite:///x.db", f"https://me:{CANARY}@a.example.com"):
        with pytest.raises(SourceError, match="not the URL") as caught:
            tracking_server("", {"MLFLOW_TRACKING_URI": wrong}, "m")
        assert CANARY not in str(caught.value)


def test_credentials_as_its_own_clients_find_them(tmp_path: Path) -> None:
    def header(**environ: str) -> str:
        given = authorization({"HOME": str(tmp_path), **environ}, "m").get("authorization", "")
        kind, _, value = given.partition(" ")
        return f"Basic {base64.b64decode(value).decode()}" if kind == "Basic" else given

    token = {"MLFLOW_TRACKING_TOKEN": "tok"}
    user = {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "pä%ss"}
    assert header() == ""
    assert header(**token) == "Bearer tok"
    assert header(**user, **token) == "Basic me:pä%ss"
    file = tmp_path / ".mlflow" / "credentials"
    file.parent.mkdir()
    file.write_text("[mlflow]\nmlflow_tracking_username = they\nmlflow_tracking_password = 50%\n")
    assert header(**token) == "Basic they:50%"
    assert header(MLFLOW_TRACKING_USERNAME="me") == "Basic me:50%"
    file.write_text(f"mlflow_tracking_password = {CANARY}\n")
    with pytest.raises(SourceAuthError, match="cannot be read") as caught:
        header()
    assert CANARY not in str(caught.value)


# --- answers ------------------------------------------------------------------------------------------------


def store_of(web: WebServer, which: str = "1", **environ: str) -> MlflowStore:
    known = {"HOME": "/nonexistent", **environ}
    return MlflowStore(f"mlflow:models/pets/{which}", web.url, "m", "m", environ=known, patience=QUICK)


def ask(web: WebServer, action: Callable[[MlflowStore], Any] = lambda store: list(store.listing())) -> Any:
    with closing(store_of(web)) as store:
        return action(store)


def say(web: WebServer, call: str, document: Any) -> None:
    web.files[f"api/2.0/{call}"] = json.dumps(document).encode()


def served(status: str = "READY", uri: str = "mlflow-artifacts:/1") -> WebServer:
    web = WebServer({}, etags="none")
    version = {"version": "1", "creation_timestamp": 5, "status": status}
    say(web, "mlflow/model-versions/get", {"model_version": version})
    say(web, "mlflow/model-versions/get-download-uri", {"artifact_uri": uri})
    listed = {"files": [{"path": "a b.bin", "is_dir": False, "file_size": 3}]}
    say(web, "mlflow-artifacts/artifacts", listed)
    web.files["api/2.0/mlflow-artifacts/artifacts/1/a b.bin"] = b"abc"
    return web


def test_artifacts_are_listed_and_read() -> None:
    with served() as web, closing(store_of(web, MLFLOW_TRACKING_TOKEN=CANARY)) as store:
        (file,) = store.listing()
        assert (file.path, file.size, file.version) == ("a b.bin", 3, "1:5")
        locked = LockedFile(file.path, 3, "", file.version)
        assert b"".join(store.reader(threading.Event()).read(locked)) == b"abc"
        assert {each.authorization for each in web.seen} == {f"Bearer {CANARY}"}
        del web.files["api/2.0/mlflow-artifacts/artifacts/1/a b.bin"]
        with pytest.raises(RevisionNotFound, match=r"no artifact a b\.bin"):
            b"".join(store.reader(threading.Event()).read(locked))


@pytest.mark.parametrize("status", ["PENDING_REGISTRATION", "FAILED_REGISTRATION"])
def test_a_version_that_is_not_ready(status: str) -> None:
    with served(status) as web, pytest.raises(SourceError, match=f"not ready: {status}"):
        ask(web)


@pytest.mark.parametrize("uri", ["/mnt/models", "file:///mnt", "dbfs:/x", "mlflow-artifacts://other/1"])
def test_artifacts_that_are_elsewhere(uri: str) -> None:
    with served(uri=uri) as web, pytest.raises(SourceError, match="cannot be read from here"):
        ask(web)


@pytest.mark.parametrize("name", ["../x", "a/b", "", None, ".."])
def test_a_list_that_leads_astray(name: Any) -> None:
    with served() as web:
        say(web, "mlflow-artifacts/artifacts", {"files": [{"path": name, "is_dir": True}]})
        with pytest.raises(SourceError, match="without a name"):
            ask(web)


def test_a_file_without_a_size_is_empty_only_if_it_is() -> None:
    with served() as web:
        say(web, "mlflow-artifacts/artifacts", {"files": [{"path": "a b.bin"}]})
        assert [file.size for file in ask(web)] == [3]
        web.files["api/2.0/mlflow-artifacts/artifacts/1/a b.bin"] = b""
        assert [file.size for file in ask(web)] == [0]
        del web.files["api/2.0/mlflow-artifacts/artifacts/1/a b.bin"]
        with pytest.raises(SourceError, match=r"how large a b\.bin is \(404\)"):
            ask(web)


@pytest.mark.parametrize("number", ["9" * 5000, "-1", "1.5", "٣"])
def test_numbers_that_are_none(number: str) -> None:
    with served() as web:
        version = {"version": number, "creation_timestamp": 5, "status": "READY"}
        say(web, "mlflow/model-versions/get", {"model_version": version})
        with pytest.raises(SourceError, match="without number or time"):
            ask(web)
    with served() as web:
        listed = {"files": [{"path": "a b.bin", "is_dir": False, "file_size": number}]}
        say(web, "mlflow-artifacts/artifacts", listed)
        assert [file.size for file in ask(web)] == [3], "it is asked for then"


def test_folders_without_end() -> None:
    with served() as web:
        say(web, "mlflow-artifacts/artifacts", {"files": [{"path": "deeper", "is_dir": True}]})
        assert ask(web) == []


def test_a_version_that_has_the_number_of_a_deleted_one() -> None:
    locked = LockedFile("a b.bin", 3, "", "1:4")
    with served() as web:
        with pytest.raises(RevisionNotFound, match="another one has its number"):
            ask(web, lambda store: store.address(locked))
        for edited in ("x", "", "1:5/", "../../1:5"):
            with closing(store_of(web)) as store:
                if edited == "1:5/":
                    assert store.address(LockedFile("a", 1, "", edited))
                    continue
                with pytest.raises(RevisionNotFound, match="was deleted"):
                    store.address(LockedFile("a", 1, "", edited))


@pytest.mark.parametrize(
    ("status", "error", "match"),
    [
        (401, SourceAuthError, "MLFLOW_TRACKING_TOKEN"),
        (403, SourceAuthError, "403"),
        (503, SourceUnavailable, "503"),
        (418, SourceError, "otherwise"),
    ],
)
def test_refusals(status: int, error: type[SourceError], match: str) -> None:
    with served() as web:
        web.refused = [status] * 3
        with pytest.raises(error, match=match):
            ask(web)


def test_servers_that_are_something_else() -> None:
    with WebServer({"api/2.0/mlflow/model-versions/get": b"<html>login</html>"}) as web:
        with pytest.raises(SourceError, match="otherwise than an MLflow tracking server"):
            ask(web)
        with closing(store_of(web, "champion")) as store, pytest.raises(SourceError, match="404"):
            list(store.listing())


def test_nothing_of_that_name() -> None:
    missing = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no"}
    with served() as web:
        web.missing = json.dumps(missing).encode()
        for which in ("champion", "Production"):
            with closing(store_of(web, which)) as store, pytest.raises(SourceNotFound, match="pets"):
                list(store.listing())
        say(web, "mlflow/registered-models/get", {"registered_model": {"name": "pets"}})
        with closing(store_of(web, "champion")) as store, pytest.raises(RevisionNotFound, match="champion"):
            list(store.listing())
