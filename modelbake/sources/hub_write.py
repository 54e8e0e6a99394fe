"""Puts files into a repository of a Hugging Face hub: each into its storage, then all of them by one commit.

What was put into the storage stays there until a commit names it, so that a run which was killed goes on with
the file it had come to. The commit names the one that the branch was at when this run began: what somebody
else has pushed meanwhile is neither overwritten nor mixed in. Files go over HTTP by the client that `lock`
reads with, not by the hub's faster protocol (Xet): that one knows neither our authorities nor our redirects.

Source: huggingface_hub's HfApi.preupload_lfs_files and HfApi.create_commit.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any

import huggingface_hub
from huggingface_hub import CommitOperationAdd, HfApi

from modelbake import __version__
from modelbake.credentials import Redactor, Secret
from modelbake.errors import (
    SourceAuthError,
    SourceError,
    SourceNotFound,
    SourceUnavailable,
    UsageError,
    WrongBytes,
)
from modelbake.lock import LockedFile, LockedSource
from modelbake.sources.hub import HubSource
from modelbake.sources.hub_client import talking
from modelbake.sources.hub_errors import Place
from modelbake.sources.hub_read import HubReader
from modelbake.sources.patience import Patience
from modelbake.sources.target import There
from modelbake.weightpath import shown

if TYPE_CHECKING:
    from modelbake.config import SourceSpec

_ATTEMPTS = 3  # of one file; what the hub has already is not sent again
_SLOWEST = 64 * 1024  # bytes a second; an upload that is slower is given up
# A hub keeps files up to 10 MB in git itself, and takes those with the commit; larger ones never.
_LARGEST_INLINE = 16 << 20
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubTarget:
    """A private repository, at one branch. See Target."""

    passes = 2  # huggingface_hub hashes a file before it sends it

    def __init__(
        self,
        spec: SourceSpec,
        token: Secret | None,
        *,
        create: bool,
        patience: Patience | None = None,
    ) -> None:
        if token is None:
            raise SourceAuthError(
                "a hub is only written to with a token", subject=f"{spec.name}: {spec.source}", hint=_RIGHTS
            )
        if _COMMIT.fullmatch(spec.revision):
            raise UsageError("`revision` is a commit, and nothing can be added to one", subject=spec.name)
        self._spec, self._token, self._create = spec, token, create
        self._patience = patience or Patience()
        self._place = Place(
            name=spec.name,
            repo=spec.source.removeprefix("hf://"),
            revision=spec.revision,
            hub=spec.server,
            has_token=True,
            redact=Redactor([token]),
        )
        self.subject = self._place.subject
        self._api = HfApi(
            endpoint=spec.server,
            token=token.reveal(),
            library_name="modelbake",
            library_version=__version__,
        )
        self._head: str | None = None
        self._missing = False
        self._added: list[CommitOperationAdd] = []
        huggingface_hub.constants.HF_HUB_DISABLE_XET = True
        huggingface_hub.utils.disable_progress_bars()  # type: ignore[attr-defined]

    def there(self) -> Mapping[str, There]:
        """See Target. A repository that is public is refused, whatever was asked for."""
        source = HubSource(self._token, patience=self._patience)
        try:
            with talking(self._place, self._patience):
                info = self._api.model_info(self._place.repo, revision=self._spec.revision)
        except SourceNotFound as error:
            if self._create:
                self._missing = True
                return {}
            error.hint += "; --create makes a private one where there is none"
            raise
        if info.private is not True:
            raise SourceError(
                "is public: private weights would be everyone's",
                subject=self.subject,
                hint=f"make it private at {self._place.hub}/{self._place.repo}/settings, or name another one",
            )
        self._head = info.sha
        return {
            each.path: There(
                each.size,
                lambda each=each: each.sha256 or self._read(each.path, each.size),  # type: ignore[misc]
            )
            for each in source.listed(self._spec, str(info.sha))
        }

    def upload(self, path: str, content: IO[bytes], size: int, sha256: str) -> None:
        """See Target. Makes the repository first, where it has to be made."""
        if self._missing:
            self._make()
        given: Any = content.read() if size <= _LARGEST_INLINE else content
        # One try at a time: the HTTP client cannot begin a file from the start again, and we can.
        patience = replace(
            self._patience,
            busy_attempts=1,
            silent_attempts=1,
            read=4 * self._patience.read,
            answer=self._patience.answer + size / _SLOWEST,
        )
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with talking(self._place, patience):
                    added = CommitOperationAdd(path, given)
                    if added.upload_info.sha256.hex() != sha256:
                        raise WrongBytes(f"{shown(path)} was changed meanwhile", subject=self.subject)
                    self._store(added)
                break
            except SourceUnavailable:
                if attempt == _ATTEMPTS:
                    raise
                time.sleep(self._patience.wait(attempt))
                if given is content:
                    content.seek(0)
            except SourceAuthError as error:
                raise _may_not_write(error) from error
        self._added.append(added)

    def finish(self) -> None:
        """Commit what was uploaded. Raises SourceError where somebody else has pushed meanwhile."""
        if not self._added:
            return
        try:
            with talking(self._place, replace(self._patience, answer=10 * self._patience.answer)):
                self._api.create_commit(
                    self._place.repo,
                    self._added,
                    commit_message=f"Add {len(self._added)} files by modelbake adopt",
                    revision=self._spec.revision,
                    parent_commit=self._head,
                )
        except SourceAuthError as error:
            raise _may_not_write(error) from error

    def close(self) -> None:
        """Do nothing: the client is the process's."""

    def _make(self) -> None:
        try:
            with talking(self._place, self._patience):
                self._api.create_repo(self._place.repo, private=True)
                info = self._api.model_info(self._place.repo)
        except SourceAuthError as error:
            raise _may_not_write(error) from error
        if info.private is not True:
            raise SourceError("the hub has made a public repository", subject=self.subject)
        self._head, self._missing = info.sha, False

    def _store(self, added: CommitOperationAdd) -> None:
        """Put a file into the hub's storage, where it goes there. Raises what made it fail.

        huggingface_hub says only that it failed, and what made it so is the cause. That is raised outside of
        any handler: the two would be each other's context otherwise, and whoever follows that has no end.
        """
        failure: BaseException | None = None
        try:
            self._api.preupload_lfs_files(
                self._place.repo, [added], revision=self._spec.revision, free_memory=True
            )
        except RuntimeError as error:
            failure = error.__cause__ or error
        if failure is not None:
            raise failure

    def _read(self, path: str, size: int) -> str:
        """Return the sha256 of a file that the hub does not say one of."""
        locked = LockedSource.at(self._spec, str(self._head), ())
        stop, digest = threading.Event(), hashlib.sha256()
        try:
            for piece in HubReader(locked, self._token, stop=stop).read(LockedFile(path, size, "")):
                digest.update(piece)
        finally:
            stop.set()
        return digest.hexdigest()


_RIGHTS = (
    "HF_TOKEN has to be one that may write to this repository: a fine-grained token with `Write access to"
    " contents` of it (and, for --create, of its organisation)"
)


def _may_not_write(error: SourceAuthError) -> SourceAuthError:
    return SourceAuthError("the token may not write there", subject=error.subject, hint=_RIGHTS)
