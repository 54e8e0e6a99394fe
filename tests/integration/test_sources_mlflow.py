"""mlflow: sources on MLflow's own tracking server: versions, aliases, stages, rights, and buckets."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from modelbake.config import SourceSpec
from modelbake.errors import RevisionNotFound, SourceAuthError, SourceError, SourceNotFound, WrongBytes
from modelbake.locked import LockedSource
from modelbake.sources.kinds import subject_of
from modelbake.sources.mlflow import MlflowStore
from modelbake.sources.storesource import InnerReader, StoreSource
from tests.servers.mlflow_server import MLflowServer, MLflowUser
from tests.servers.s3 import S3Server

NAME = "pets é +100%"
FILES = {
    "config.json": b"{}",
    "tokenizer/a b+ü.txt": b"odd",
    "empty": b"",
    "m.safetensors": b"\1" * 99_999,
}


class Reading:
    """A user of the tracking server, and a model of it."""

    def __init__(self, server: MLflowServer, user: MLflowUser | None, **environ: str) -> None:
        self.server = server
        self.environ = {"HOME": "/nonexistent", **environ, **server.environment_for(user)}
        self.source = StoreSource(self.open)

    def open(self, spec: SourceSpec | LockedSource) -> MlflowStore:
        return MlflowStore(spec.source, spec.server, subject_of(spec), spec.name, environ=self.environ)

    def spec(self, which: str, name: str = NAME) -> SourceSpec:
        return SourceSpec(name="m", source=f"mlflow:models/{name}/{which}")

    def lock(self, which: str, previous: LockedSource | None = None, name: str = NAME) -> LockedSource:
        return self.source.resolve(self.spec(which, name), previous).locked

    def read(self, locked: LockedSource) -> dict[str, bytes]:
        with closing(self.open(locked)) as store:
            reader = InnerReader(locked, store.reader(threading.Event()))
            found = {}
            for file in locked.files:
                found[file.path] = b"".join(reader.read(file))
                half = file.size // 2
                assert b"".join(reader.read(file, half)) == found[file.path][half:]
            return found


@pytest.fixture
def reading(mlflow_server: MLflowServer) -> Reading:
    return Reading(mlflow_server, mlflow_server.reader)


def sql(server: MLflowServer, statement: str, *values: Any) -> None:
    with closing(sqlite3.connect(server.folder / "mlflow.db")) as database, database:
        database.execute(statement, values)


def test_versions_aliases_and_stages(reading: Reading) -> None:
    server = reading.server
    first = server.register(NAME, FILES)
    second = server.register(NAME, {**FILES, "config.json": b'{"a": 1}'})
    server.alias(NAME, "champion", first)
    by_number, by_alias = reading.lock(first), reading.lock("champion")
    assert by_number.files == by_alias.files
    assert reading.read(by_alias) == FILES
    assert all(file.version.startswith(f"{first}:") for file in by_alias.files)
    reading.source.reach(reading.spec("champion"))
    assert reading.lock("latest").files == reading.lock(second).files
    with pytest.raises(RevisionNotFound, match="no version, alias or stage Staging"):
        reading.lock("Staging")
    server.stage(NAME, first, "Staging")
    assert reading.lock("staging").files == by_number.files
    # The alias moves: what was locked can still be read, and the check says so.
    server.alias(NAME, "champion", second)
    assert reading.source.head(reading.spec("champion")) != by_alias.commit
    assert reading.read(by_alias) == FILES
    assert reading.lock("champion", by_alias).files == reading.lock(second).files
    # A version of a folder that was changed after all: the sha256 shows it.
    server.artifact(NAME, first, "config.json").write_bytes(b"[]")
    assert reading.read(by_alias)["config.json"] == b"[]"  # whoever reads compares
    server.artifact(NAME, first, "config.json").write_bytes(b"longer")
    with pytest.raises(WrongBytes):
        reading.read(by_alias)
    server.artifact(NAME, first, "config.json").unlink()
    with pytest.raises(RevisionNotFound, match=r"config\.json"):
        reading.read(by_alias)
    server.delete_version(NAME, first)
    with pytest.raises(RevisionNotFound, match=f"the locked version {first} .* was deleted"):
        reading.read(by_alias)


def test_what_is_refused(reading: Reading) -> None:
    server, name = reading.server, "refused"
    version = server.register(name, FILES)
    for user, match in ((server.stranger, "403"), (server.wrong, "refused"), (None, "no credentials")):
        other = Reading(server, user)
        with pytest.raises(SourceAuthError, match=match) as caught:
            other.lock(version, name=name)
        assert "MLFLOW_TRACKING_USERNAME" in str(caught.value) or user is server.stranger
        assert user is None or user.password not in str(caught.value)
    with pytest.raises(SourceNotFound, match="no registered model"):
        Reading(server, server.admin).lock("1", name="nobody")
    with pytest.raises(
        SourceAuthError, match="not allowed"
    ) as caught:  # who may read nothing is told nothing
        reading.lock("1", name="nobody")
    assert "a model that does not exist" in caught.value.hint
    with pytest.raises(RevisionNotFound, match="no version"):
        reading.lock("77", name=name)
    locked = reading.lock(version, name=name)
    for status in ("PENDING_REGISTRATION", "FAILED_REGISTRATION"):
        sql(server, "UPDATE model_versions SET status = ? WHERE name = ?", status, name)
        with pytest.raises(SourceError, match=status):
            reading.lock(version, name=name)
    sql(server, "UPDATE model_versions SET status = 'READY', creation_time = 7 WHERE name = ?", name)
    with pytest.raises(RevisionNotFound, match="another one has its number"):
        reading.read(locked)


def test_artifacts_in_a_bucket(
    mlflow_server: MLflowServer, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in s3_server.environment_for(s3_server.reader).items():
        monkeypatch.setenv(name, value)
    bucket, name = s3_server.bucket(), "bucketed"
    for path, content in FILES.items():
        s3_server.put(bucket, f"1/model/{path}", content)
    mlflow_server.ask("registered-models/create", {"name": name})
    asked = {"name": name, "source": f"s3://{bucket}/1/model"}
    version = mlflow_server.ask("model-versions/create", asked)["model_version"]["version"]
    reading = Reading(mlflow_server, mlflow_server.reader, MLFLOW_S3_ENDPOINT_URL=s3_server.endpoint)
    locked = reading.lock(version, name=name)
    assert all(file.version.startswith(f"{version}:") and "/" in file.version for file in locked.files)
    s3_server.put(bucket, "1/model/config.json", b"[1]")  # another version of the object
    assert reading.read(locked) == FILES
    with closing(reading.open(locked)) as store:
        address = store.address(next(file for file in locked.files if file.path == "config.json"))
        assert address is not None
        assert "versionId=" in address.url
        assert "authorization" not in {each.lower() for each in address.headers}, "none of MLflow's"
    assert reading.source.head(reading.spec(version, name)) != locked.commit
