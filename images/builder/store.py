"""A store: files at addresses that were signed for this build, each with the headers it takes, if any.

Everything about connections, redirects and retries is as with a hub; what a refusal means is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from events import Code, FetchError
from hub import PASSING, Hub, Location, Retry, wait_of
from manifest import StoreSource


class Store(Hub):
    """Files of one store. Args: as those of `Hub`; there is no token, as each address has its own right."""

    def __init__(self, source: StoreSource, *, ca: Path | None, connect: float, read: float) -> None:
        super().__init__(source, None, ca=ca, connect=connect, read=read)
        self._files = source.files

    @property
    def has_token(self) -> bool:
        """Whether the bytes need more than an address."""
        return any(headers for _, headers in self._files.values())

    def locate(self, path: str) -> Location:
        """Return the address of a file. Raises FetchError where there is none."""
        if path not in self._files:
            raise FetchError(Code.BAD_REQUEST, "the secret `sources` has no address of this file")
        return Location(self._files[path][0], own=True)

    def _own_headers(self, path: str) -> Mapping[str, str]:
        return self._files[path][1]

    def _refusal(self, path: str, status: int, headers: Mapping[str, str]) -> Exception:
        what = f"{self.host} answered {status}"
        if status in PASSING or status >= 500:
            return Retry(what, wait_of(headers))
        if status in {400, 401, 403}:  # S3 answers 400 to a session's token that has expired
            return FetchError(
                Code.TOKEN_REFUSED,
                f"{what} to the address that was signed for this build: it has expired, or the credentials it"
                " was signed with may not read this file",
            )
        if status in {404, 410, 412}:
            return FetchError(
                Code.NOT_FOUND,
                f"{what}: the store no longer has the locked version of this file: deleted or replaced?",
            )
        return FetchError(Code.UNREACHABLE, what)
