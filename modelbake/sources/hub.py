"""The source `hf://org/name`: a repository of a Hugging Face hub, public or private, by huggingface_hub.

    revision --model_info--> commit --list_repo_tree--> files --include/exclude--> facts

A file in Git LFS has its sha256 in the listing. Of any other the hub knows only git's blob sha1: its bytes
are fetched, counted, compared with that sha1, and hashed. Everything after the first step asks for the
commit, so that a push in the middle changes nothing.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx2
from huggingface_hub import HfApi, RepoFile, get_session, hf_hub_url
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # public, but not marked as exported
    build_hf_headers,
    hf_raise_for_status,
)

from modelbake import __version__
from modelbake.bounded import within
from modelbake.credentials import Redactor, Secret
from modelbake.errors import NoMatchingFiles, RevisionNotFound, SourceAuthError, SourceError, WrongBytes
from modelbake.fitness import CONFIGURATION, LARGEST_CONFIGURATION
from modelbake.lock import LockedFile, LockedSource
from modelbake.parallel import parallel
from modelbake.sources import Resolved
from modelbake.sources.facts import require_same
from modelbake.sources.hub_client import is_worth_retrying, talking
from modelbake.sources.hub_errors import Place
from modelbake.sources.hub_files import ListedFile, check_listed, differences
from modelbake.sources.patience import Patience
from modelbake.sources.selecting import MOST_FILES, is_selected, select_files
from modelbake.weightpath import shown

if TYPE_CHECKING:
    from modelbake.config import SourceSpec
    from modelbake.sources import Audit

_THREADS = 4  # files of one model fetched at the same time
_SLOWEST = 64 * 1024  # bytes a second; a transfer that is slower is given up
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TOKEN = re.compile(r"[!-~]{1,4096}")


class HubSource:
    """Resolves models of Hugging Face hubs. Has no state but the token, so it may be used by many threads.

    The token is the one given here or none: never what huggingface_hub finds on the machine by itself. It is
    sent to the model's own hub only. `audit` is told of every file that was fetched and hashed.
    """

    def __init__(
        self, token: Secret | None, *, patience: Patience | None = None, audit: Audit | None = None
    ) -> None:
        self._token = token or None
        self._audit = audit
        self._redact = Redactor([token] if token else [])
        self._patience = patience or Patience()

    def resolve(self, spec: SourceSpec, previous: LockedSource | None) -> Resolved:
        """Return the facts of every selected file at the commit that the revision points to now.

        Raises:
            SourceError: or a subclass of it, as `hub_errors` and `errors` tell.
            WrongBytes: the hub serves other bytes than it lists, or others than were locked at this commit.
        """
        place, api = self._open(spec)
        commit = self._commit(api, place)
        listed = self._list(api, place, commit)
        chosen = select_files(listed, spec, place.subject)
        unhashed = [file for file in chosen if file.sha256 is None]
        fetched = parallel(unhashed, lambda file: self._hash(api, place, commit, file), _THREADS)
        if not unhashed:
            # A hub lists the files of a gated repository to everyone, but does not hand them out.
            self._ask_for(api, place, commit, chosen[0])
        known = [LockedFile(file.path, file.size, file.sha256) for file in chosen if file.sha256]
        locked = LockedSource.at(spec, commit, [*known, *(file for file, _ in fetched)])
        require_same(previous, locked, place.subject, "the hub")
        configuration = next((content for _, content in fetched if content is not None), None)
        return Resolved(locked, tuple(sorted(file.path for file in listed)), configuration)

    def head(self, spec: SourceSpec) -> str:
        """Return the commit that the revision points to now; a full commit id points to itself."""
        if _COMMIT.fullmatch(spec.revision):
            return spec.revision
        place, api = self._open(spec)
        return self._commit(api, place)

    def edits(self, locked: LockedSource) -> list[str]:
        """Return how the locked files differ from what the hub lists at the locked commit; fetches none."""
        place, api = self._open(locked, locked.commit)
        listed = self._list(api, place, locked.commit)
        try:
            chosen = select_files(listed, locked, place.subject)
        except NoMatchingFiles:
            chosen = []  # then every file of the lock is one too many
        return differences(chosen, [replace(file, path=locked.path_there(file)) for file in locked.files])

    def reach(self, spec: SourceSpec) -> None:
        """Ask the hub for one of the model's files, without taking it: listing is allowed to more people."""
        place, api = self._open(spec)
        commit = self._commit(api, place)
        self._ask_for(
            api, place, commit, select_files(self._list(api, place, commit), spec, place.subject)[0]
        )

    def listed(self, spec: SourceSpec, commit: str) -> list[ListedFile]:
        """Return what a commit has of what include and exclude select; that may be nothing."""
        place, api = self._open(spec)
        return [file for file in self._list(api, place, commit) if is_selected(file.path, spec)]

    def _open(self, spec: SourceSpec | LockedSource, revision: str = "") -> tuple[Place, HfApi]:
        place = Place(
            name=spec.name,
            repo=spec.source.removeprefix("hf://"),
            revision=revision or spec.revision,
            hub=spec.server,
            has_token=self._token is not None,
            redact=self._redact,
        )
        return place, HfApi(
            # Both given outright: else the environment or a file of the machine decides.
            endpoint=place.hub,
            token=self._checked_token(place),
            library_name="modelbake",
            library_version=__version__,
        )

    def _checked_token(self, place: Place) -> str | bool:
        if self._token is None:
            return False
        # What cannot stand in a header would be quoted in the HTTP library's complaint.
        if not _TOKEN.fullmatch(self._token.reveal_bytes().decode("latin-1")):
            raise SourceAuthError(
                "the token holds spaces, line breaks or other characters that no token has",
                subject=place.subject,
                hint="HF_TOKEN is one line of plain letters and digits",
            )
        return self._token.reveal()

    def _commit(self, api: HfApi, place: Place) -> str:
        try:
            with talking(place, self._patience):
                commit: object = api.model_info(place.repo, revision=place.revision).sha
        except RevisionNotFound as error:
            error.hint = self._closest_revision(api, place) or error.hint
            raise
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise SourceError("the hub names no commit for this revision", subject=place.subject)
        return commit

    def _closest_revision(self, api: HfApi, place: Place) -> str:
        try:
            with talking(place, replace(self._patience, busy_attempts=1, silent_attempts=1)):
                refs = api.list_repo_refs(place.repo)
                names = [str(ref.name) for ref in (*refs.branches, *refs.tags)]
        except SourceError:
            return ""  # a hint is not worth another error
        close = difflib.get_close_matches(place.revision, names, n=1)
        there = ", ".join(shown(name, 60) for name in names[:20])
        return (f"did you mean {shown(close[0])!r}? " if close else "") + f"there are: {there}"

    def _list(self, api: HfApi, place: Place, commit: str) -> list[ListedFile]:
        files: list[ListedFile] = []
        with talking(place, self._patience, longest=self._patience.listing):
            for entry in api.list_repo_tree(place.repo, revision=commit, recursive=True):
                if isinstance(entry, RepoFile):
                    files.append(check_listed(entry, place))
                if len(files) > MOST_FILES:
                    raise SourceError(f"holds more than {MOST_FILES:,} files", subject=place.subject)
        return files

    def _ask_for(self, api: HfApi, place: Place, commit: str, file: ListedFile) -> None:
        """Ask for a file without taking it. Raises what fetching it would."""
        url, headers = self._request(api, place, commit, file)
        with talking(place, self._patience):
            hf_raise_for_status(get_session().head(url, headers=headers, follow_redirects=False))

    def _hash(
        self, api: HfApi, place: Place, commit: str, file: ListedFile
    ) -> tuple[LockedFile, bytes | None]:
        """Fetch a file and return its facts; its content too if it is config.json.

        Of any other file never more than a piece is held.
        """
        url, headers = self._request(api, place, commit, file)
        wanted = file.path == CONFIGURATION and file.size <= LARGEST_CONFIGURATION
        kept = bytearray()
        started = time.monotonic()
        with talking(place, self._patience):
            for attempt in range(1, self._patience.silent_attempts + 1):
                try:
                    kept.clear()
                    size, sha256, blob = within(
                        self._patience.answer + file.size / _SLOWEST,
                        lambda: self._digest(url, headers, file.size, kept if wanted else None),
                        late=lambda _: None,
                    )
                    break
                except httpx2.TransportError as error:  # the connection broke in the middle
                    if attempt == self._patience.silent_attempts or not is_worth_retrying(error):
                        raise
                    time.sleep(self._patience.wait(attempt))
        if size != file.size or blob != file.blob:
            what = f"{size:,} bytes" if size != file.size else "another git sha1"
            than = f"{file.size:,}" if size != file.size else "the listed one"
            raise WrongBytes(
                f"{shown(file.path)}: the hub serves {what} instead of {than}",
                subject=place.subject,
                hint="the file was damaged on the way, or by a proxy or mirror: lock again",
            )
        if self._audit:
            self._audit(
                source=f"hf://{place.repo}@{commit}",
                file=file.path,
                bytes=size,
                attempts=attempt,
                sha256=sha256,
                seconds=time.monotonic() - started,
            )
        return LockedFile(file.path, size, sha256), bytes(kept) if wanted else None

    def _digest(
        self, url: str, headers: dict[str, str], expected: int, kept: bytearray | None
    ) -> tuple[int, str, str]:
        """Return size, sha256 and git blob sha1 of what a URL serves; stop reading what is too long.

        The content is put into `kept` if that is given.
        """
        size = 0
        sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % expected, usedforsecurity=False)
        deadline = time.monotonic() + self._patience.answer + expected / _SLOWEST
        with get_session().stream("GET", url, headers=headers) as response:
            hf_raise_for_status(response)
            for piece in response.iter_bytes():
                size += len(piece)
                sha256.update(piece)
                blob.update(piece)
                if kept is not None:
                    kept += piece
                if size > expected:
                    break
                if time.monotonic() > deadline:
                    raise TimeoutError  # not one of httpx2, so it is not tried again
        return size, sha256.hexdigest(), blob.hexdigest()

    def _request(self, api: HfApi, place: Place, commit: str, file: ListedFile) -> tuple[str, dict[str, str]]:
        url = hf_hub_url(place.repo, file.path, revision=commit, endpoint=place.hub)
        headers = build_hf_headers(
            token=api.token, library_name=api.library_name, library_version=api.library_version
        )
        return url, {**headers, "accept-encoding": "identity"}
