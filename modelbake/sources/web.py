"""The source `https://host/folder/`: files of a web server, each named in models.yaml with its sha256.

A web server keeps no list and no versions. What identifies bytes there is a strong ETag, which is demanded
when they are read (If-Match). Where there is none, the time of the last change tells that a file was
replaced; where there is none either, only the given sha256 does, with which all that is read is compared in
any case. A file that is replaced is gone: a build of the old lock fails then, as nobody has the old bytes.

Source: RFC 9110, sections 8.8.3 (ETag), 13.1.1 (If-Match), 14 (ranges).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import quote, urlsplit

from modelbake.config import SourceSpec
from modelbake.errors import RevisionNotFound, SourceAuthError, SourceError, SourceNotFound
from modelbake.grammar import STORE_VERSION
from modelbake.parallel import parallel
from modelbake.process import environment
from modelbake.sources.asking import Answer, Asker
from modelbake.sources.kinds import subject_of
from modelbake.sources.netrc import authorization_for, netrc_file
from modelbake.sources.opener import Address
from modelbake.sources.patience import Patience
from modelbake.sources.reading import AddressReader
from modelbake.sources.store import AddressedStore, StoredFile
from modelbake.weightpath import shown

if TYPE_CHECKING:
    from modelbake.locked import LockedFile, LockedSource

_THREADS = 8
_FINAL = (401, 404, 410)  # what HEAD says and GET would say too


def open_store(spec: SourceSpec | LockedSource) -> WebStore:
    """Return the files that a source of models.yaml or of a lock names. Raises SourceError."""
    given = spec.files if isinstance(spec, SourceSpec) else {}
    return WebStore(spec.source, given, subject_of(spec), spec.name)


class WebStore(AddressedStore):
    """Files below one address. `given`: their sha256 by path; empty where only locked files are read."""

    noun = "server"

    def __init__(
        self,
        source: str,
        given: Mapping[str, str],
        subject: str,
        model: str,
        *,
        environ: Mapping[str, str] | None = None,
        patience: Patience | None = None,
    ) -> None:
        super().__init__(subject, source.rstrip("/"))
        self._given = given
        self._model = model
        self._environ = environment() if environ is None else environ
        self._patience = patience
        host = urlsplit(source).hostname or ""
        self._login = authorization_for(host, self._environ, subject)
        self._asker = Asker(self, patience)

    def listing(self) -> Iterator[StoredFile]:
        """Yield the given files as the server has them now."""
        yield from parallel(sorted(self._given), self._stored, _THREADS)

    def address(self, file: LockedFile) -> Address:
        """Return the file's URL, with the credentials and the ETag that has to match."""
        demanded = {"if-match": file.version} if file.version.startswith('"') else {}
        return Address(self._url(file.path), {**self._login, **demanded}, own=True)

    def reader(self, stop: threading.Event) -> AddressReader:
        """See Store."""
        return AddressReader(self, stop=stop, patience=self._patience)

    def refuse(self, file: LockedFile, status: int, headers: Mapping[str, str]) -> NoReturn:
        """Raise what an answer to a request for a file means."""
        self._refuse(file.path, status)

    def _url(self, path: str) -> str:
        return f"{self.server}/{quote(path)}"

    def _stored(self, path: str) -> StoredFile:
        address = Address(self._url(path), self._login, own=True)
        answer = self._asker.ask(address, method="HEAD")
        size = size_of(answer)
        if size is None and answer.status not in _FINAL:
            # Who signs addresses signs them for GET; others do not know HEAD, or a length without a body.
            answer = self._asker.ask(address, {"range": "bytes=0-0"})
            if answer.status == 416:  # an empty file has no first byte
                answer = self._asker.ask(address)
            size = size_of(answer)
        if size is None:
            if answer.status in (200, 206):
                raise SourceError(f"the server does not say how large {shown(path)} is", subject=self.subject)
            self._refuse(path, answer.status)
        sha256 = self._given[path]
        return StoredFile(path, size, _version(answer, sha256), ("sha256", sha256), "models.yaml")

    def _refuse(self, path: str, status: int) -> NoReturn:
        if status in (401, 403):
            place = netrc_file(self._environ)
            known = "with the credentials" if self._login else "and there are no credentials"
            raise SourceAuthError(
                f"the server answers {status} for {shown(path)}, {known} of {place} for this host",
                subject=self.subject,
                hint=f"`machine {urlsplit(self.server).hostname} login USER password PASSWORD` in {place};"
                " reading these files (GET, HEAD) is enough",
            )
        if status in (404, 410):
            raise SourceNotFound(
                f"the server has no file {shown(path)} ({status})",
                subject=self.subject,
                hint="is the name in `files` the one below the address, with upper and lower case?",
            )
        if status == 412:
            raise RevisionNotFound(
                f"{shown(path)} was replaced since it was locked: the server has another ETag for it",
                subject=self.subject,
                hint=f"if the new file is wanted, give its sha256 and run `build.py lock {self._model}`",
            )
        raise SourceError(f"the server answers {status} for {shown(path)}", subject=self.subject)


def _version(answer: Answer, sha256: str) -> str:
    """Return what tells a file from one that replaces it, as far as the server says anything of it."""
    etag, modified = answer.headers.get("etag", ""), answer.headers.get("last-modified", "")
    if etag.startswith('"') and STORE_VERSION.matches(etag):
        return etag
    try:
        return f"modified:{parsedate_to_datetime(modified):%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError):  # none, or no date
        return f"sha256:{sha256}"


def size_of(answer: Answer) -> int | None:
    """Return the bytes of a file as the answer to a request for it, or for its first byte, says them."""
    if "content-encoding" in answer.headers and answer.headers["content-encoding"] != "identity":
        return None
    text = answer.headers.get("content-length", "") if answer.status == 200 else ""
    if answer.status == 206:
        text = answer.headers.get("content-range", "").rpartition("/")[2]
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None
