"""What an incident is about: a commit, a file, a package, a token. Parsed and compared here. Pure.

Each question says what it asks in words that go into a quarantine's reason: a token is never one of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import unquote

from modelbake.errors import UsageError
from modelbake.plan import ADDED_LABEL, LABEL_PREFIX
from modelbake.requirements import normalised

if TYPE_CHECKING:
    from modelbake.credentials import Secret
    from modelbake.locked import LockedFile

_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_SHA256 = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_PACKAGE = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._+-]{0,127})(?:==(?P<version>[A-Za-z0-9][\w.!+:~-]{0,127}))?"
)
_PURL = re.compile(
    r"pkg:(?P<kind>[a-z]+)/(?:(?P<namespace>[^@?#]+)/)?(?P<name>[^/@?#]+)(?:@(?P<version>[^?#]+))?.*"
)
COMMIT_LABEL = LABEL_PREFIX + "commit"


@dataclass(frozen=True)
class CommitQuestion:
    """A commit of a model's source, or of the repository that models.yaml lies in; 7 hex digits or more."""

    commit: str

    @property
    def words(self) -> str:
        """What is asked."""
        return f"commit {self.commit}"

    def in_labels(self, labels: Mapping[str, str]) -> list[str]:
        """Return where an image's labels say that its weights are of it."""
        if labels.get(COMMIT_LABEL, "").startswith(self.commit):
            return ["the weights' commit"]
        return ["an added source's commit"] if f"@{self.commit}" in labels.get(ADDED_LABEL, "") else []

    def in_provenance(self, raw: bytes) -> list[str]:
        """Return what an image's provenance says was of it."""
        try:
            materials: Any = json.loads(raw)["predicate"]["buildDefinition"]["resolvedDependencies"]
            named = [
                str(each.get("name", "a material"))
                for each in materials
                if any(
                    str(each.get("digest", {}).get(name, "")).startswith(self.commit)
                    for name in ("gitCommit", "snapshot")
                )
            ]
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            return []
        return [f"provenance: {name}" for name in named]


@dataclass(frozen=True)
class FileQuestion:
    """A file of the weights, by the sha256 of its bytes: 64 hex digits."""

    sha256: str

    @property
    def words(self) -> str:
        """What is asked."""
        return f"a file of sha256 {self.sha256}"

    def in_files(self, files: Iterable[LockedFile]) -> list[str]:
        """Return the paths of the files that are it."""
        return [f"/models/{file.path}" for file in files if file.sha256 == self.sha256]


@dataclass(frozen=True)
class PackageQuestion:
    """A package of Python or of the distribution; any version of it where `version` is None."""

    name: str
    version: str | None = None

    @property
    def words(self) -> str:
        """What is asked."""
        return f"package {self.name}" + (f"=={self.version}" if self.version else "")

    def matches(self, ecosystem: str, name: str, version: str) -> bool:
        """Tell whether a package is the one; Python's names are compared as an index does."""
        same = normalised(name) == normalised(self.name) if ecosystem == "pypi" else name == self.name
        return same and self.version in (None, version)

    def in_sbom(self, raw: bytes) -> list[str] | None:
        """Return the components of a CycloneDX document that are it; None where it lists no components."""
        try:
            document: Any = json.loads(raw)
            purls = [str(each.get("purl", "")) for each in document["components"]]
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            return None
        found = [match for purl in purls if (match := _PURL.fullmatch(purl))]
        return [
            f"{unquote(each['name'])} {unquote(each['version'] or '')}".strip()
            for each in found
            if self.matches(each["kind"], unquote(each["name"]), unquote(each["version"] or ""))
        ]


@dataclass(frozen=True)
class TokenQuestion:
    """A secret, as it is or encoded (`audit.tokens.Canaries`). `source`: the file that holds it."""

    secret: Secret
    source: str

    @property
    def words(self) -> str:
        """What is asked; nothing of the secret."""
        return f"the secret in {self.source}"


Question: TypeAlias = CommitQuestion | FileQuestion | PackageQuestion | TokenQuestion


def parse_commit(text: str) -> CommitQuestion:
    """Return the question. Raises UsageError for anything but 7 to 64 hexadecimal digits."""
    if not _COMMIT.fullmatch(text.lower()):
        raise UsageError(f"expected 7 to 64 hexadecimal digits, got {text!r}", subject="--commit")
    return CommitQuestion(text.lower())


def parse_file(text: str) -> FileQuestion:
    """Return the question. Raises UsageError for anything but a sha256."""
    found = _SHA256.fullmatch(text.lower())
    if found is None:
        raise UsageError(
            f"expected 64 hexadecimal digits, got {text!r}",
            subject="--file-sha256",
            hint="`sha256sum FILE` says it, and so does models.lock",
        )
    return FileQuestion(found[1])


def parse_package(text: str) -> PackageQuestion:
    """Return the question. Raises UsageError for anything but NAME or NAME==VERSION."""
    found = _PACKAGE.fullmatch(text)
    if found is None:
        raise UsageError(f"expected NAME or NAME==VERSION, got {text!r}", subject="--package")
    return PackageQuestion(found["name"], found["version"])
