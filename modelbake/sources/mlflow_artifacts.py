"""Where the artifacts of an MLflow model version are: at the tracking server, or in a bucket."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn
from urllib.parse import quote, unquote, urlsplit

from modelbake.errors import RevisionNotFound, SourceError
from modelbake.locked import LockedFile
from modelbake.sources.mlflow_api import ARTIFACTS, Tracking
from modelbake.sources.opener import Address
from modelbake.sources.store import AddressedStore, StoredFile
from modelbake.sources.web import size_of
from modelbake.sourceuri import SOURCE
from modelbake.weightpath import MAX_PARTS, shown

_SIZE = re.compile(r"[0-9]{1,18}")


class ServedArtifacts(AddressedStore):
    """Artifacts that the tracking server serves, below `root`. They have no versions of their own."""

    noun = "MLflow server"

    def __init__(self, tracking: Tracking, root: str, model: str) -> None:
        super().__init__(tracking.subject, tracking.server)
        self._tracking = tracking
        self._root = root
        self._model = model

    def listing(self) -> Iterator[StoredFile]:
        """Yield every file, folder by folder."""
        folders = [""]
        while folders:
            folder = folders.pop()
            for each in self._tracking.artifact_list("/".join(filter(None, (self._root, folder)))):
                name = each.get("path") if isinstance(each, dict) else None
                if not isinstance(name, str) or "/" in name or name in ("", ".", ".."):
                    raise SourceError("lists an artifact without a name", subject=self.subject)
                path = f"{folder}/{name}" if folder else name
                if each.get("is_dir"):
                    if path.count("/") < MAX_PARTS:
                        folders.append(path)
                    continue
                yield StoredFile(path, self._size_of(each, path), "")

    def address(self, file: LockedFile) -> Address:
        """See Store."""
        path = "/".join(filter(None, (self._root, file.path)))
        return Address(self._tracking.artifact_url(quote(path)), self._tracking.login, own=True)

    def _size_of(self, listed: Mapping[str, Any], path: str) -> int:
        """Return the bytes of a file. None are listed of an empty one, and where the store says none."""
        said = str(listed.get("file_size") or "")
        if _SIZE.fullmatch(said):
            return int(said)
        address = self.address(LockedFile(path, 0, ""))
        answer = self._tracking.ask(address, {"range": "bytes=0-0"})
        if answer.status == 416:  # an empty file has no first byte
            return 0
        if (size := size_of(answer)) is None:
            raise SourceError(
                f"the MLflow server does not say how large {shown(path)} is ({answer.status})",
                subject=self.subject,
            )
        return size

    def refuse(self, file: LockedFile, status: int, headers: Mapping[str, str]) -> NoReturn:
        """Raise what an answer to a request for a file means."""
        if status in (401, 403):
            self._tracking.refuse_access(status, shown(file.path))
        if status in (400, 404, 410):
            raise RevisionNotFound(
                f"the MLflow server has no artifact {shown(file.path)} ({status})",
                subject=self.subject,
                hint=f"was it deleted since? `build.py lock {self._model}` takes what is registered now",
            )
        raise SourceError(f"the MLflow server answers {status} for {shown(file.path)}", subject=self.subject)


def served_path(uri: str, server: str) -> str | None:
    """Return where among the artifacts that a tracking server serves a URI is; None where elsewhere."""
    parts, home = urlsplit(uri), urlsplit(server)
    if parts.scheme == "mlflow-artifacts" and parts.netloc in ("", home.netloc):
        return unquote(parts.path.strip("/"))
    if parts.scheme in ("http", "https") and (parts.scheme, parts.netloc) == (home.scheme, home.netloc):
        before, found, path = parts.path.partition(ARTIFACTS)
        return unquote(path.strip("/")) if found and before == home.path else None
    return None


def bucket_of(uri: str) -> str | None:
    """Return the address of a source of the kind that a URI of artifacts means; None for other ones."""
    parts = urlsplit(uri)
    source = uri
    if parts.scheme in ("abfss", "abfs", "wasbs", "wasb"):
        container, _, host = parts.netloc.partition("@")
        source = f"az://{host.partition('.')[0]}/{container}{parts.path}"
    elif parts.scheme not in ("s3", "gs"):
        return None
    source = source.rstrip("/")
    return source if SOURCE.matches(source) else None
