"""What an MLflow tracking server says of registered models, by its REST API.

Its own package is not needed for a few questions.

Source: https://mlflow.org/docs/latest/api_reference/rest-api.html
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import urlencode

from modelbake.errors import RevisionNotFound, SourceAuthError, SourceError, SourceNotFound
from modelbake.process import environment
from modelbake.sources.asking import Answer, Asker
from modelbake.sources.mlflow_login import CHAIN, authorization, tracking_server
from modelbake.sources.opener import Address
from modelbake.sources.patience import Patience
from modelbake.sources.store import AddressedStore
from modelbake.weightpath import shown

ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
_NUMBER = re.compile(r"[0-9]{1,18}")
_STAGES = ("staging", "production", "archived", "none")
_MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND")


@dataclass(frozen=True)
class ModelVersion:
    """A version of a registered model. `created`: milliseconds since 1970, by which a number that was given
    anew is told from the first one."""

    number: str
    created: str
    status: str

    @property
    def identity(self) -> str:
        """What no other version of this model is called."""
        return f"{self.number}:{self.created}"


class Tracking(AddressedStore):
    """One tracking server. Every method raises SourceError or a subclass of it."""

    noun = "MLflow server"

    def __init__(
        self, server: str, subject: str, *, environ: Mapping[str, str] | None, patience: Patience | None
    ) -> None:
        known = environment() if environ is None else environ
        found = tracking_server(server, known, subject)
        super().__init__(subject if server else f"{subject} at {found}", found)
        self.login = authorization(known, self.subject)
        self._asker = Asker(self, patience)

    def named(self, name: str, which: str) -> ModelVersion:
        """Return the version that a number, an alias or a stage means now; one that is ready.

        Raises RevisionNotFound where there is none, SourceError for one that is not ready.
        """
        found = self.numbered(name, which) if which.isdecimal() else self._moving(name, which)
        if found is None:
            self._absent(name, which)
        if found.status != "READY":
            raise SourceError(
                f"version {found.number} of {shown(name)} is not ready: {shown(found.status)}",
                subject=self.subject,
                hint="wait until it is registered"
                if found.status.startswith("PENDING")
                else "register it anew: its registration failed",
            )
        return found

    def numbered(self, name: str, number: str) -> ModelVersion | None:
        """Return a version by its number, None where there is none."""
        said = self._ask("mlflow/model-versions/get", {"name": name, "version": number})
        return None if said is None else self._version(said.get("model_version"))

    def artifacts_of(self, name: str, version: ModelVersion) -> str:
        """Return the URI of a version's artifacts."""
        asked = {"name": name, "version": version.number}
        uri = (self._ask("mlflow/model-versions/get-download-uri", asked) or {}).get("artifact_uri")
        if not isinstance(uri, str) or not uri:
            raise SourceError(f"does not say where version {version.number} is", subject=self.subject)
        return uri

    def artifact_list(self, path: str) -> list[Any]:
        """Return what the server lists in a folder of the artifacts that it serves itself."""
        said = self._ask("mlflow-artifacts/artifacts", {"path": path}) or {}
        files = said.get("files", [])
        return files if isinstance(files, list) else []

    def ask(self, address: Address, headers: Mapping[str, str]) -> Answer:
        """Return an answer, whatever its status. See Asker."""
        return self._asker.ask(address, headers)

    def artifact_url(self, quoted: str) -> str:
        """Return the URL of an artifact that the server serves itself."""
        return f"{self.server}{ARTIFACTS}/{quoted}"

    def refuse_access(self, status: int, what: str) -> NoReturn:
        """Raise what 401 and 403 mean."""
        known = "the credentials are refused" if self.login else "there are no credentials"
        right = f"{known} (asked were: {CHAIN})" if status == 401 or not self.login else "not allowed"
        raise SourceAuthError(
            f"the MLflow server answers {status} for {what}: {right}",
            subject=self.subject,
            hint="the permission READ of the registered model, and of the experiment of its artifacts;"
            " a server with rights answers the same for a model that does not exist",
        )

    def _moving(self, name: str, which: str) -> ModelVersion | None:
        said = self._ask("mlflow/registered-models/alias", {"name": name, "alias": which})
        if said is not None:
            return self._version(said.get("model_version"))
        if which.lower() not in _STAGES:
            return None
        said = self._ask(
            "mlflow/registered-models/get-latest-versions", {"name": name, "stages": which.title()}
        )
        listed = (said or {}).get("model_versions", [])
        found = [self._version(each) for each in listed] if isinstance(listed, list) else []
        return max(found, key=lambda each: int(each.number), default=None)

    def _absent(self, name: str, which: str) -> NoReturn:
        if self._ask("mlflow/registered-models/get", {"name": name}) is None:
            raise SourceNotFound(f"has no registered model {shown(name)}", subject=self.subject)
        raise RevisionNotFound(
            f"the registered model {shown(name)} has no version, alias or stage {which}",
            subject=self.subject,
            hint="the server's page of the model shows them",
        )

    def _version(self, said: Any) -> ModelVersion:
        facts = said if isinstance(said, dict) else {}
        number, created = str(facts.get("version", "")), str(facts.get("creation_timestamp", ""))
        if not (_NUMBER.fullmatch(number) and _NUMBER.fullmatch(created)):
            raise self._no_mlflow("a model version without number or time")
        return ModelVersion(number, created, str(facts.get("status", "READY")))

    def _ask(self, call: str, asked: Mapping[str, str]) -> dict[str, Any] | None:
        """Return an answer's JSON object, None where the server has no such thing."""
        address = Address(f"{self.server}/api/2.0/{call}?{urlencode(asked)}", self.login, own=True)
        answer = self._asker.ask(address)
        document = answer.document()
        if answer.status == 200 and (document or answer.body.strip() == b"{}"):
            return document
        if answer.status in (401, 403):
            self.refuse_access(answer.status, call)
        if answer.status in (400, 404) and document.get("error_code") in _MISSING:
            return None
        raise self._no_mlflow(_said(answer))

    def _no_mlflow(self, what: str) -> SourceError:
        return SourceError(
            f"answers otherwise than an MLflow tracking server: {what}",
            subject=self.subject,
            hint="is this the address at which its page is, without #/ and what follows?",
        )


def _said(answer: Answer) -> str:
    document = answer.document()
    words = " ".join(str(document[key]) for key in ("error_code", "message") if document.get(key))
    return f"{answer.status} {shown(words, 200)}".rstrip() if words else str(answer.status)
