"""Every error a hub can cause, in words that say which repository, which revision, which hub, what to do.

`translate` takes any exception of huggingface_hub, httpx2 or the standard library. Nothing of the original's
text is kept unless it is known to be harmless: a client error may quote a header, and with it the token.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass

import httpx2
from huggingface_hub import errors as hub_errors

from modelbake.errors import (
    RevisionNotFound,
    SourceAuthError,
    SourceError,
    SourceGatedError,
    SourceNotFound,
    SourceUnavailable,
)
from modelbake.weightpath import shown


@dataclass(frozen=True)
class Place:
    """What a conversation is about: the model `name` of models.yaml, the repository and where it lies."""

    name: str
    repo: str
    revision: str
    hub: str
    has_token: bool
    redact: Callable[[str], str]

    @property
    def subject(self) -> str:
        """What every message begins with."""
        return f"{self.name}: hf://{self.repo}@{self.revision} at {self.hub}"


def busy(place: Place, status: int, attempts: int, asked: float | None) -> SourceUnavailable:
    """Return the error for a hub that goes on answering 429 or 5xx."""
    times = "once" if attempts == 1 else f"{attempts} times"
    wait = f" and asks to wait {asked:.0f} s" if asked else ""
    if status == 429:
        advice = "wait, or lock fewer models at a time"
        hint = advice if place.has_token else f"{advice}; with a token (HF_TOKEN) the limit is higher"
        return SourceUnavailable(
            f"the hub limits our requests (429, {times}){wait}", subject=place.subject, hint=hint
        )
    hint = "the hub is overloaded or in maintenance: try again later"
    return SourceUnavailable(
        f"the hub failed (HTTP {status}, {times}){wait}", subject=place.subject, hint=hint
    )


def translate(error: BaseException, place: Place) -> SourceError:
    """Return our error for any exception of a conversation with a hub."""
    if isinstance(error, SourceError):
        return error
    response = getattr(error, "response", None)
    if isinstance(response, httpx2.Response):
        return _of_answer(error, response, place)
    kind, message, hint = _described(error, place)
    return kind(message, subject=place.subject, hint=hint)


def _of_answer(error: BaseException, response: httpx2.Response, place: Place) -> SourceError:
    status, code = response.status_code, response.headers.get("x-error-code", "")
    subject, page = place.subject, f"{place.hub}/{place.repo}"
    if isinstance(error, hub_errors.GatedRepoError) or code == "GatedRepo":
        then = (
            "with the account of your token"
            if place.has_token
            else "and set HF_TOKEN to a token of that account"
        )
        return SourceGatedError(
            f"the repository is gated: its terms have to be accepted first (HTTP {status})",
            subject=subject,
            hint=f"accept them at {page} {then}; approval may take a while",
        )
    if isinstance(error, hub_errors.DisabledRepoError):
        return SourceError("the hub has disabled this repository", subject=subject, hint=f"see {page}")
    if isinstance(error, hub_errors.RevisionNotFoundError) or code == "RevisionNotFound":
        return RevisionNotFound(
            f"the repository has no branch, tag or commit {place.revision!r}",
            subject=subject,
            hint=f"see {page}/tree/main for what there is, then correct `revision` in models.yaml",
        )
    if isinstance(error, hub_errors.EntryNotFoundError) or code == "EntryNotFound":
        return SourceError("the hub lists a file that it does not have", subject=subject, hint="lock again")
    if status == 401:
        return _unauthorized(place)
    if status == 403:
        return SourceAuthError(
            f"the token may not read this repository (HTTP 403{_says(response, place)})",
            subject=subject,
            hint=f"give it read access to {place.repo}, or use another one (HF_TOKEN)",
        )
    if isinstance(error, hub_errors.RepositoryNotFoundError) or status in (404, 410):
        unseen = "is it spelt right, and may the account of HF_TOKEN see it?"
        return SourceNotFound(
            f"the hub has no such repository, or hides it from us (HTTP {status})",
            subject=subject,
            hint=unseen
            if place.has_token
            else "is it spelt right? A private one needs a token: set HF_TOKEN",
        )
    if status == 429 or status == 408 or status >= 500:
        return busy(place, status, 1, None)
    return SourceError(f"the hub refuses (HTTP {status}{_says(response, place)})", subject=subject)


def _unauthorized(place: Place) -> SourceAuthError:
    if place.has_token:
        return SourceAuthError(
            "the hub does not accept the token (HTTP 401)",
            subject=place.subject,
            hint=f"HF_TOKEN is mistyped, expired, revoked or of another hub; see {place.hub}/settings/tokens",
        )
    return SourceAuthError(
        "the repository is private, or does not exist: without a token the hub does not tell (HTTP 401)",
        subject=place.subject,
        hint="set HF_TOKEN to a token that may read it (or `hf auth login`), and check the spelling",
    )


def _described(error: BaseException, place: Place) -> tuple[type[SourceError], str, str]:
    """Return class, message and hint for an error that came without an answer."""
    name = type(error).__name__
    reach = f"is {place.hub} right, and can this machine reach it (proxy, firewall, VPN)?"
    odd = f"is {place.hub} a Hugging Face hub? A proxy or a login page may answer in its place"
    match error:
        case hub_errors.OfflineModeIsEnabled():
            return (
                SourceUnavailable,
                "HF_HUB_OFFLINE is set",
                "unset it to lock, or use `lock --check --offline`",
            )
        case hub_errors.LocalTokenNotFoundError() | hub_errors.OIDCError() | hub_errors.DeviceCodeError():
            return SourceAuthError, f"no token could be had ({name})", "set HF_TOKEN"
        case hub_errors.HFValidationError() | hub_errors.HfUriError():
            return SourceError, "this is not the name of a repository", "write hf://organisation/name"
        case _ if _tls_cause(error):
            hint = (
                "for a company's own CA name its PEM file in MODELBAKE_CA_BUNDLE (or all of them in"
                " SSL_CERT_FILE); http:// needs no certificate"
            )
            return SourceUnavailable, "the hub's certificate is not trusted, or it speaks no TLS", hint
        case httpx2.ProxyError():
            return SourceUnavailable, "the proxy refuses", "see HTTPS_PROXY and NO_PROXY"
        case httpx2.ConnectTimeout() | httpx2.PoolTimeout():
            return SourceUnavailable, "the hub does not answer (timeout on connecting)", reach
        case httpx2.TimeoutException() | TimeoutError():
            return SourceUnavailable, "the hub stopped answering (timeout)", reach
        case httpx2.UnsupportedProtocol() | httpx2.InvalidURL():
            return SourceError, "the hub redirects to an address that is none", odd
        case httpx2.TooManyRedirects():
            return SourceError, "the hub redirects without end", odd
        case httpx2.LocalProtocolError():
            return SourceError, "a request could not be made", "is HF_TOKEN one line of plain characters?"
        case httpx2.ConnectError():
            return SourceUnavailable, f"the hub cannot be reached{_reason(error)}", reach
        case httpx2.TransportError() | ConnectionError() | hub_errors.RevisionResolutionError():
            return SourceUnavailable, f"the connection to the hub broke ({name})", reach
        case hub_errors.EntryNotFoundError():
            return SourceError, "the hub lists a file that it does not have", "lock again"
        case ssl.SSLError() | OSError():
            return SourceUnavailable, f"the hub cannot be reached ({name})", reach
        case _:
            return SourceError, f"the hub's answer is not one of a hub ({name})", odd


def _tls_cause(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _reason(error: BaseException) -> str:
    """Return the operating system's word for it: refused, no such name, no route."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return f" ({cause.strerror})"
        cause = cause.__cause__ or cause.__context__
    return ""


def _says(response: httpx2.Response, place: Place) -> str:
    """Return the hub's own words, which are a stranger's: made printable, cut, and without the token."""
    words = response.headers.get("x-error-message", "")
    return f': "{shown(place.redact(words), 200)}"' if words else ""
