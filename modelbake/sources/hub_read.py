"""Where the locked files of a hub are: what the stream lane flows from.

huggingface_hub and its client follow the hub's own redirects, with the token, to where a file's bytes are.
The token goes to the hub's own origin only: an address elsewhere has none.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urljoin

import httpx2
from huggingface_hub import get_session, hf_hub_url
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # public, but not marked as exported
    build_hf_headers,
    hf_raise_for_status,
)

from modelbake import __version__
from modelbake.credentials import Redactor
from modelbake.errors import SourceError
from modelbake.sources.hub_client import talking
from modelbake.sources.hub_errors import Place
from modelbake.sources.opener import Address, origin_of
from modelbake.sources.patience import Patience
from modelbake.sources.reading import AddressReader
from modelbake.weightpath import shown

if TYPE_CHECKING:
    from modelbake.credentials import Secret
    from modelbake.locked import LockedFile, LockedSource

_MOST_REDIRECTS = 5


class HubReader(AddressReader):
    """Reads the files of one locked repository. Safe to use from any thread; see `AddressReader`."""

    def __init__(
        self,
        locked: LockedSource,
        token: Secret | None,
        *,
        patience: Patience | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        super().__init__(_HubLocator(locked, token), patience=patience, stop=stop)


class _HubLocator:
    noun = "hub"

    def __init__(self, locked: LockedSource, token: Secret | None) -> None:
        self._locked = locked
        self._token = token or None
        self._place = Place(
            name=locked.name,
            repo=locked.source.removeprefix("hf://"),
            revision=locked.commit,
            hub=locked.hub,
            has_token=self._token is not None,
            redact=Redactor([token] if token else []),
        )
        self.subject = self._place.subject
        self.server = locked.hub

    def locate(self, file: LockedFile, patience: Patience, stop: threading.Event) -> Address:
        """Follow the hub's own redirects, with the token, to where the bytes are."""
        path = self._locked.path_there(file)
        url = hf_hub_url(self._place.repo, path, revision=self._locked.commit, endpoint=self.server)
        headers = build_hf_headers(
            token=self._token.reveal() if self._token else False,
            library_name="modelbake",
            library_version=__version__,
        )
        asked = {**headers, "accept-encoding": "identity"}
        with talking(self._place, patience, stop):
            for _ in range(_MOST_REDIRECTS + 1):
                response = get_session().head(url, headers=asked, follow_redirects=False)
                if not response.is_redirect:
                    hf_raise_for_status(response)
                    return Address(url, headers, own=True)
                url = urljoin(url, response.headers["location"])
                if origin_of(url, self) != origin_of(self.server, self):
                    return Address(url)
        raise SourceError("the hub redirects without end", subject=self.subject)

    def refuse(self, file: LockedFile, status: int, headers: Mapping[str, str]) -> NoReturn:
        """Raise what a refusal of the hub means."""
        path = self._locked.path_there(file)
        url = hf_hub_url(self._place.repo, path, revision=self._locked.commit, endpoint=self.server)
        with talking(self._place, Patience()):
            request = httpx2.Request("GET", url)
            hf_raise_for_status(httpx2.Response(status, headers=dict(headers), request=request))
        raise SourceError(
            f"the hub answers {status} for a file", subject=f"{self.subject}: {shown(file.path)}"
        )
