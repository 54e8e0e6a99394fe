"""What the refusals of Azure Blob Storage, of Entra ID and of their libraries mean.

https://learn.microsoft.com/rest/api/storageservices/blob-service-error-codes
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import requests
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ServiceRequestError,
    ServiceResponseError,
)

from modelbake.errors import (
    RevisionNotFound,
    SourceAuthError,
    SourceError,
    SourceNotFound,
    SourceUnavailable,
)
from modelbake.sources.azure_access import CHAIN, Access
from modelbake.weightpath import shown

_READ = "the role Storage Blob Data Reader, or the signature's permissions read and list"
_WRITE = "the role Storage Blob Data Contributor, or the signature's permissions read, list and create"
DELEGATE = "the role Storage Blob Delegator on the whole account, besides Storage Blob Data Reader"
_KEPT = "the store keeps old contents only where the account's versioning is on"


def refusal(status: int, code: str, access: Access, subject: str) -> SourceError | None:
    """Return what an answer for a blob means, None where it may pass or says nothing.

    `code`: the header x-ms-error-code. `subject`: with the blob's path.
    """
    name = subject.partition(":")[0]
    if status in (401, 403) or code == "InvalidAuthenticationInfo":
        return _refused(access, code, subject, _READ)
    if code == "ContainerNotFound":
        return _no_container(subject)
    if status in (404, 412):
        return RevisionNotFound(
            f"there is no such version of it any more: replaced or deleted ({_KEPT})",
            subject=subject,
            hint=f"restore it, or lock what is there now: build.py lock {name}",
        )
    if code == "BlobArchived":
        return SourceError(
            "is in the archive tier", subject=subject, hint="move it to another one, for hours"
        )
    return None


@contextmanager
def translated(access: Access, subject: str, exists: str = "", needed: str = "") -> Iterator[None]:
    """Raise errors of Azure's libraries as SourceError.

    `exists`: the path that may not be there yet. `needed`: the least right, if that is not to read or write.
    """
    needed = needed or (_WRITE if exists else _READ)
    try:
        yield
    except SourceError:
        raise
    except HttpResponseError as error:
        raise _of_answer(error, access, subject, exists, needed) from error
    except (ServiceRequestError, ServiceResponseError, requests.RequestException) as error:
        raise SourceUnavailable(f"cannot be reached ({type(error).__name__})", subject=subject) from error
    except (AzureError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise SourceError(
            f"the server answers something that Azure Blob Storage does not ({type(error).__name__})",
            subject=subject,
            hint="is `endpoint` the address of another service?",
        ) from error
    except OSError as error:
        raise SourceUnavailable(f"cannot be reached ({type(error).__name__})", subject=subject) from error


def _of_answer(
    error: HttpResponseError, access: Access, subject: str, exists: str, needed: str
) -> SourceError:
    status, code = error.status_code or 0, str(getattr(error, "error_code", "") or "")
    if isinstance(error, ClientAuthenticationError) and not hasattr(error, "error_code"):
        # Of Entra ID, whose text tells the chain's whole story; nothing of it but the number of its reason.
        found = re.search(r"AADSTS\d+", str(error))
        return SourceAuthError(
            "no token of Entra ID can be had on this machine" + (f" ({found[0]})" if found else ""),
            subject=subject,
            hint=f"tried: {CHAIN}. It needs {needed}",
        )
    if status in (401, 403) or code == "InvalidAuthenticationInfo":
        return _refused(access, code, subject, needed)
    if status == 404:
        return _no_container(subject)
    if exists and (status == 409 or status == 412):
        return SourceError(
            f"{shown(exists)} is there already, and is not replaced",
            subject=subject,
            hint="upload to another prefix, or delete the blob first",
        )
    if status in (408, 429) or status >= 500:
        return SourceUnavailable(f"the store answers {status}, time and again", subject=subject)
    return SourceError(
        f"the store answers {status}"
        if status
        else "the server answers something else than Azure Blob Storage",
        subject=subject,
        hint="is `endpoint` the address of the account's blob service?",
    )


def _refused(access: Access, code: str, subject: str, needed: str) -> SourceAuthError:
    said = f" ({code})" if re.fullmatch(r"[A-Za-z]{1,60}", code) else ""
    return SourceAuthError(
        f"the right from {access.named} is refused{said}: wrong, ended, or not enough",
        subject=subject,
        hint=f"it needs {needed}. The first of these decides: {CHAIN}",
    )


def _no_container(subject: str) -> SourceNotFound:
    return SourceNotFound("there is no such container", subject=subject, hint="is its name spelled right?")
