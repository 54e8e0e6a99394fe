"""The source `mlflow:models/NAME/VERSION` (or an alias or stage): a model of an MLflow model registry.

    alias --> version --> where its artifacts are --> the tracking server itself, or a bucket

A bucket is read as a source of its own kind is, with its own credentials and versions. What the tracking
server serves has no versions but the registry's: a model version's artifacts are not to change, and the
sha256 shows if they did. Hence a file's version is that of the model, and the bucket's after a `/`:

    3:1732976400000           served by the tracking server
    3:1732976400000/VERSION   in a bucket
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

from modelbake.config import SourceSpec
from modelbake.errors import RevisionNotFound, SourceError
from modelbake.process import environment
from modelbake.sources.kinds import open_store as open_any
from modelbake.sources.kinds import subject_of
from modelbake.sources.mlflow_api import ModelVersion, Tracking
from modelbake.sources.mlflow_artifacts import ServedArtifacts, bucket_of, served_path
from modelbake.weightpath import shown

if TYPE_CHECKING:
    from modelbake.locked import LockedFile, LockedSource
    from modelbake.sources.opener import Address
    from modelbake.sources.patience import Patience
    from modelbake.sources.store import Store, StoredFile
    from modelbake.stream.flow import FileBytes, Reader

_S3_ENDPOINT = "MLFLOW_S3_ENDPOINT_URL"  # by which MLflow's own clients find another S3


def open_store(spec: SourceSpec | LockedSource) -> MlflowStore:
    """Return the registered model that a source names. Raises SourceError."""
    return MlflowStore(spec.source, spec.server, subject_of(spec), spec.name)


class MlflowStore:
    """A registered model; its artifacts are in other stores, one for each version that is asked for."""

    def __init__(
        self,
        source: str,
        server: str,
        subject: str,
        model: str,
        *,
        environ: Mapping[str, str] | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._environ = environment() if environ is None else environ
        self._tracking = Tracking(server, subject, environ=self._environ, patience=patience)
        self.subject = self._tracking.subject
        self._name, _, self._which = source.removeprefix("mlflow:models/").rpartition("/")
        self._model = model
        self._stores: dict[str, Store] = {}  # by identity of the version
        self._opening = threading.Lock()

    def listing(self) -> Iterator[StoredFile]:
        """Yield the artifacts of the version that is meant now."""
        version = self._tracking.named(self._name, self._which)
        for file in self._store_of(version).listing():
            yield replace(
                file, version=f"{version.identity}/{file.version}" if file.version else version.identity
            )

    def address(self, file: LockedFile) -> Address | None:
        """See Store."""
        store, inner = self.placed(file)
        return store.address(inner)

    def reader(self, stop: threading.Event) -> MlflowReader:
        """See Store."""
        return MlflowReader(self, stop)

    def close(self) -> None:
        """See Store."""
        for store in self._stores.values():
            store.close()

    def placed(self, file: LockedFile) -> tuple[Store, LockedFile]:
        """Return the store that a file is in, and the file as that one calls it.

        Raises RevisionNotFound where the version was deleted since it was locked.
        """
        identity, _, inner = file.version.partition("/")
        with self._opening:
            store = self._stores.get(identity)
        if store is None:
            number = identity.partition(":")[0]
            version = self._tracking.numbered(self._name, number) if number.isdecimal() else None
            if version is None or version.identity != identity:
                anew = "was deleted, and another one has its number" if version else "was deleted"
                raise RevisionNotFound(
                    f"the locked version {shown(number)} of {shown(self._name)} {anew}",
                    subject=self.subject,
                    hint=f"`build.py lock {self._model}` takes what is registered now",
                )
            store = self._store_of(version)
        return store, replace(file, version=inner)

    def _store_of(self, version: ModelVersion) -> Store:
        with self._opening:
            if version.identity not in self._stores:
                uri = self._tracking.artifacts_of(self._name, version)
                self._stores[version.identity] = self._opened(uri)
            return self._stores[version.identity]

    def _opened(self, uri: str) -> Store:
        served = served_path(uri, self._tracking.server)
        if served is not None:
            return ServedArtifacts(self._tracking, served, self._model)
        source = bucket_of(uri)
        if source is None:
            self._unreachable(uri)
        endpoint = self._environ.get(_S3_ENDPOINT, "").rstrip("/") if source.startswith("s3:") else ""
        return open_any(SourceSpec(name=self._model, source=source, server=endpoint))

    def _unreachable(self, uri: str) -> NoReturn:
        parts = urlsplit(uri)
        raise SourceError(
            f"the artifacts are at {shown(f'{parts.scheme}:' if parts.scheme else uri)}..., which cannot be"
            " read from here",
            subject=self.subject,
            hint="have the server serve them (`mlflow server --serve-artifacts`), or keep them in S3, GCS or"
            " Azure; artifacts that another server serves are not asked for with this one's credentials",
        )


class MlflowReader:
    """Reads artifacts, each from the store that its version is in."""

    def __init__(self, store: MlflowStore, stop: threading.Event) -> None:
        self._store = store
        self._stop = stop
        self._readers: dict[int, Reader] = {}  # by id of their store, which the other one keeps
        self._opening = threading.Lock()

    def read(self, file: LockedFile, start: int = 0) -> FileBytes:
        """Return the bytes of a file from `start` on."""
        store, inner = self._store.placed(file)
        with self._opening:
            reader = self._readers.get(id(store))
            if reader is None:
                reader = self._readers[id(store)] = store.reader(self._stop)
        return reader.read(inner, start)
