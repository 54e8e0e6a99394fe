"""Who asks Google Cloud Storage: Application Default Credentials, and what their refusals mean.

GOOGLE_APPLICATION_CREDENTIALS (the file of a key, of workload identity, of an impersonation), then what
`gcloud auth application-default login` wrote, then the metadata server of Google's own machines. With none of
them requests are anonymous, as public buckets allow; so they are with STORAGE_EMULATOR_HOST.
https://docs.cloud.google.com/docs/authentication/application-default-credentials
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import google.auth
import requests
from google.api_core.exceptions import GoogleAPICallError, RetryError
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import (
    DefaultCredentialsError,
    GoogleAuthError,
    InvalidOperation,
    TransportError,
)
from google.auth.transport.requests import AuthorizedSession, Request
from google.cloud import storage
from google.cloud.storage.exceptions import DataCorruption

from modelbake.errors import SourceAuthError, SourceError, SourceNotFound, SourceUnavailable
from modelbake.sources.clouds import equip
from modelbake.weightpath import shown

READ = "https://www.googleapis.com/auth/devstorage.read_only"
WRITE = "https://www.googleapis.com/auth/devstorage.read_write"
_CHAIN = "GOOGLE_APPLICATION_CREDENTIALS, gcloud's application default credentials, the metadata server"
_RIGHTS = {
    READ: "storage.objects.list and storage.objects.get, as roles/storage.objectViewer has them",
    WRITE: "storage.objects.create, as roles/storage.objectCreator has it",
}
_KEPT_HEADERS = ("authorization", "x-goog-user-project")


class Access:
    """This machine's credentials with one scope, and a client that has them.

    `server`: as models.yaml names it, or "". Raises SourceAuthError for credentials that cannot be used.
    """

    def __init__(self, scope: str, server: str, subject: str) -> None:
        self.scope, self.server = scope, server
        self._one, self._is_new = threading.Lock(), False
        self._session = requests.Session()
        self._request = Request(self._session)
        http = AuthorizedSession(None, auth_request=self._request)  # type: ignore[no-untyped-call]
        equip(self._session, http, subject=subject)
        self.credentials = http.credentials = _credentials(scope, server, self._request, subject)
        options = {"api_endpoint": server} if server else None
        # Listing and reading belong to no project; without a name the library would go and look for one.
        try:
            self.client = storage.Client("-", self.credentials, _http=http, client_options=options)
        except (GoogleAuthError, ValueError, OSError) as error:  # it asks which cloud they are of
            raise _of_credentials(error, subject) from error

    @property
    def is_anonymous(self) -> bool:
        """Whether there are no credentials."""
        return isinstance(self.credentials, AnonymousCredentials)

    def headers(self) -> dict[str, str]:
        """Return what a request has to say; a token that ends soon is renewed. Raises GoogleAuthError."""
        made: dict[str, str] = {}
        with self._one:
            self.credentials.before_request(self._request, "GET", "", made)
        return {name.lower(): value for name, value in made.items() if name.lower() in _KEPT_HEADERS}

    def renew(self) -> None:
        """Have a new token, if that was not asked before. Raises GoogleAuthError."""
        with self._one:
            if not (self.is_anonymous or self._is_new):
                self.credentials.refresh(self._request)
            self._is_new = True

    def close(self) -> None:
        """Let go of connections."""
        self.client.close()
        self._session.close()


def _credentials(scope: str, server: str, request: Request, subject: str) -> Any:
    """Return what this machine has. Raises SourceAuthError where it cannot be used."""
    if not server and os.environ.get("STORAGE_EMULATOR_HOST"):
        return _anonymous()
    try:
        return google.auth.default(scopes=[scope], request=request)[0]
    except DefaultCredentialsError as error:
        named = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
        if not named and "were not found" in str(error):
            return _anonymous()
        raise SourceAuthError(
            "Google's credentials on this machine cannot be used: a file is missing or damaged",
            subject=subject,
            hint=f"tried: {_CHAIN}" + (f"; the first names {shown(named)}" if named else ""),
        ) from error
    except (GoogleAuthError, ValueError, OSError) as error:
        raise _of_credentials(error, subject) from error


def _anonymous() -> AnonymousCredentials:
    return AnonymousCredentials()  # type: ignore[no-untyped-call]


def refused(access: Access, subject: str) -> SourceAuthError:
    """Return the error that 401 and 403 mean."""
    if access.is_anonymous:
        return SourceAuthError(
            "may not be read without credentials, and none were found",
            subject=subject,
            hint=f"tried: {_CHAIN}. They need {_RIGHTS[access.scope]}",
        )
    email = getattr(access.credentials, "service_account_email", "")
    who = f" of {shown(email)}" if isinstance(email, str) and "@" in email else ""
    return SourceAuthError(
        f"the credentials{who} are refused",
        subject=subject,
        hint=f"they need {_RIGHTS[access.scope]}, on this bucket. The first of these decides: {_CHAIN}",
    )


@contextmanager
def translated(access: Access, subject: str, exists: str = "") -> Iterator[None]:
    """Raise errors of Google's libraries as SourceError. `exists`: the path that may not be there yet."""
    try:
        yield
    except SourceError:
        raise
    except InvalidOperation as error:  # its answer to 401, which it would have a new token for
        raise refused(access, subject) from error
    except GoogleAuthError as error:
        raise _of_credentials(error, subject) from error
    except GoogleAPICallError as error:
        raise _of_answer(error, access, subject, exists) from error
    except (DataCorruption, ValueError, TypeError, KeyError, AttributeError) as error:
        raise SourceError(
            f"the server answers something that Google Cloud Storage does not ({type(error).__name__})",
            subject=subject,
            hint="is `endpoint` the address of another service?",
        ) from error
    except (RetryError, requests.RequestException, OSError) as error:
        raise _unreachable(error, subject) from error


def _of_answer(error: GoogleAPICallError, access: Access, subject: str, exists: str) -> SourceError:
    status = int(error.code or 0)
    if status in (401, 403):
        return refused(access, subject)
    if status == 404:
        return SourceNotFound("there is no such bucket", subject=subject, hint="is its name spelled right?")
    if status == 412 and exists:
        return SourceError(
            f"{shown(exists)} is there already, and is not replaced",
            subject=subject,
            hint="upload to another prefix, or delete the object first",
        )
    if status == 429 or status >= 500:
        return SourceUnavailable(f"the store answers {status}, time and again", subject=subject)
    return SourceError(f"the store answers {status}", subject=subject)


def _of_credentials(error: Exception, subject: str) -> SourceError:
    # What the token service says could quote what it was sent.
    if isinstance(error, TransportError | OSError):
        return SourceUnavailable(
            f"Google's token service cannot be reached ({type(error).__name__})", subject=subject
        )
    return SourceAuthError(
        f"Google's token service refuses the credentials of this machine ({type(error).__name__})",
        subject=subject,
        hint=f"was the key deleted, or has the login ended? Tried: {_CHAIN}",
    )


def _unreachable(error: Exception, subject: str) -> SourceUnavailable:
    cause = error.cause if isinstance(error, RetryError) and error.cause else error
    return SourceUnavailable(f"cannot be reached ({type(cause).__name__})", subject=subject)
