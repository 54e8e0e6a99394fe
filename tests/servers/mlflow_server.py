"""MLflow's own tracking server as a process: registry, artifacts served by it, users with passwords.

    with MLflowServer(folder) as mlflow:
        version = mlflow.register("pets", {"model.safetensors": data, "tokenizer/vocab.json": b"{}"})
        mlflow.alias("pets", "champion", version)
        environment = mlflow.environment_for(mlflow.reader)

It is the real server, not an emulator; only its place differs: SQLite and a folder instead of a database and
a bucket, plain HTTP, its job runner and telemetry off. Its users are those of the basic-auth app (another
proxy may want MLFLOW_TRACKING_TOKEN as a bearer token: this one refuses that).
Artifacts come with ranges and an ETag because a folder holds them; before a bucket they may come without.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.servers.store_process import STORES, StoreProcess

# Making its tables takes the server most of its start: they are kept for the next one.
_TABLES = STORES / "mlflow-tables.db"


@dataclass(frozen=True)
class MLflowUser:
    """A user of the basic-auth app."""

    name: str
    password: str = field(repr=False)

    @property
    def header(self) -> str:
        """The value of the header Authorization."""
        return "Basic " + base64.b64encode(f"{self.name}:{self.password}".encode()).decode()


class MLflowRefused(Exception):
    """An answer other than 200; `status` and `body` say what."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"{status}: {body}")
        self.status, self.body = status, body


class MLflowServer(StoreProcess):
    """An administrator who makes content, a reader, and a user who may read nothing."""

    name = "mlflow"
    ready_path = "/health"

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        super().__init__(folder, host)
        self.admin = MLflowUser("admin", secrets.token_urlsafe(18))
        self.reader = MLflowUser("reader", secrets.token_urlsafe(18))
        self.stranger = MLflowUser("stranger", secrets.token_urlsafe(18))
        self.wrong = MLflowUser("reader", secrets.token_urlsafe(18))
        self.files = folder / "artifacts"  # the server's folder of artifacts
        self._experiment = ""

    def command(self) -> list[str]:
        # What `mlflow server --app-name basic-auth --serve-artifacts ...` starts after loading all of it once
        # already; the variables below are its options.
        return [
            *[str(STORES / "bin/python"), "-m", "uvicorn", "--host", self.host, "--port", str(self.port)],
            *["--factory", "mlflow.server.auth:create_app"],
        ]

    def environment(self) -> Mapping[str, str]:
        return {
            "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{self.folder / 'mlflow.db'}",
            "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
            "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
            "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(self.files),
            "_MLFLOW_SGI_NAME": "uvicorn",
            "MLFLOW_SERVER_ALLOWED_HOSTS": "*",
            "MLFLOW_AUTH_CONFIG_PATH": str(self.folder / "auth.ini"),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": self.admin.password,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }

    def prepare(self) -> None:
        lines = [
            "[mlflow]",
            "default_permission = NO_PERMISSIONS",
            f"database_uri = sqlite:///{self.folder / 'auth.db'}",
            f"admin_username = {self.admin.name}",
            f"admin_password = {self.admin.password}",
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth",
            "auth_cache_ttl_seconds = 600",  # a password is slow to check
        ]
        (self.folder / "auth.ini").write_text("\n".join(lines) + "\n")
        if _TABLES.exists():
            shutil.copyfile(_TABLES, self.folder / "mlflow.db")

    def start(self) -> None:
        first = not (self.folder / "auth.db").exists()
        super().start()
        if not first:
            return
        if not _TABLES.exists():
            self.ask("experiments/get?experiment_id=0")  # it makes the tables when it first needs them
            new = _TABLES.with_suffix(f".{os.getpid()}")
            made = sqlite3.connect(self.folder / "mlflow.db")
            with closing(made), closing(sqlite3.connect(new)) as copy:
                made.backup(copy)
            new.replace(_TABLES)
        for user in (self.reader, self.stranger):
            self.ask("users/create", {"username": user.name, "password": user.password})
        for kind in ("registered_model", "experiment"):
            granted = {"username": self.reader.name, "resource_type": kind, "resource_id": "*"}
            body = json.dumps({**granted, "permission": "READ"}).encode()
            self.request("POST", "/api/3.0/mlflow/users/permissions/grant", body)
        self._experiment = self.ask("experiments/create", {"name": "models"})["experiment_id"]

    def environment_for(self, user: MLflowUser | None) -> dict[str, str]:
        """The variables by which MLflow's clients find the server and log in."""
        found = {"MLFLOW_TRACKING_URI": self.endpoint}
        if user is not None:
            found |= {"MLFLOW_TRACKING_USERNAME": user.name, "MLFLOW_TRACKING_PASSWORD": user.password}
        return found

    # --- content --------------------------------------------------------------------------------

    def register(self, name: str, files: Mapping[str, bytes], folder: str = "model") -> str:
        """Log the files as a run's artifacts and register them as the model's next version; return that."""
        run = self.ask("runs/create", {"experiment_id": self._experiment})["run"]["info"]
        root = run["artifact_uri"].removeprefix("mlflow-artifacts:/")
        for path, data in files.items():
            address = f"/api/2.0/mlflow-artifacts/artifacts/{quote(f'{root}/{folder}/{path}')}"
            self.request("PUT", address, data)
        try:
            self.ask("registered-models/create", {"name": name})
        except MLflowRefused as refused:
            if "RESOURCE_ALREADY_EXISTS" not in refused.body:
                raise
        source = f"{run['artifact_uri']}/{folder}"
        asked = {"name": name, "source": source, "run_id": run["run_id"]}
        return str(self.ask("model-versions/create", asked)["model_version"]["version"])

    def alias(self, name: str, alias: str, version: str) -> None:
        """Let an alias name a version."""
        self.ask("registered-models/alias", {"name": name, "alias": alias, "version": version})

    def stage(self, name: str, version: str, stage: str) -> None:
        """Move a version to None, Staging, Production or Archived."""
        asked = {"name": name, "version": version, "stage": stage, "archive_existing_versions": True}
        self.ask("model-versions/transition-stage", asked)

    def delete_version(self, name: str, version: str) -> None:
        """Delete a version of a model; its artifacts stay."""
        body = json.dumps({"name": name, "version": version}).encode()
        self.request("DELETE", "/api/2.0/mlflow/model-versions/delete", body)

    def artifact(self, name: str, version: str, path: str) -> Path:
        """The file behind an artifact of a version: a test replaces or removes it."""
        query = f"name={quote(name)}&version={quote(version)}"
        found = str(self.ask(f"model-versions/get-download-uri?{query}")["artifact_uri"])
        return self.files / found.removeprefix("mlflow-artifacts:/") / path

    # --- requests -------------------------------------------------------------------------------

    def ask(self, call: str, asked: Mapping[str, Any] | None = None, user: MLflowUser | None = None) -> Any:
        """One call of the REST API, POST if something is given; the administrator asks unless told."""
        body = None if asked is None else json.dumps(asked).encode()
        data = self.request("GET" if body is None else "POST", f"/api/2.0/mlflow/{call}", body, user)
        return json.loads(data or b"{}")

    def request(
        self, method: str, path: str, body: bytes | None = None, user: MLflowUser | None = None
    ) -> bytes:
        """One request. Raises MLflowRefused."""
        headers = {"Authorization": (user or self.admin).header, "Content-Type": "application/json"}
        asked = urllib.request.Request(self.endpoint + path, body, headers, method=method)  # noqa: S310
        try:
            with urllib.request.urlopen(asked, timeout=120) as answer:  # noqa: S310
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                raise MLflowRefused(error.code, error.read().decode()) from None
