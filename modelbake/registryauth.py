"""Logging in to a registry: what a 401 asks for, and who is shown the credentials.

They go to the registry itself and to the token service it names, over HTTPS: in clear only to this machine,
and to registries that `MODELBAKE_INSECURE_REGISTRIES` names.

Sources: https://distribution.github.io/distribution/spec/auth/ (token, oauth2), RFC 9110 section 11.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Mapping
from typing import Protocol

import httpx2

from modelbake.credentials import Secret
from modelbake.dockerconfig import HOST, RegistryCredentials, registry_key
from modelbake.errors import RegistryAuthError, RegistryError, UsageError
from modelbake.process import environment
from modelbake.registryreply import Reply, document_of, parse_challenges, said

INSECURE = "MODELBAKE_INSECURE_REGISTRIES"
_LOGIN_HINT = (
    "`docker login {host}`, or set MODELBAKE_REGISTRY, MODELBAKE_REGISTRY_USER and"
    " MODELBAKE_REGISTRY_PASSWORD_FILE"
)


def is_loopback(host: str) -> bool:
    """Tell whether `host[:port]` is this machine, to which Docker and we speak plain HTTP."""
    name = re.sub(r":[0-9]+$", "", host) if not host.endswith("]") else host
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def in_clear(host: str, environ: Mapping[str, str] | None = None) -> bool:
    """Tell whether plain HTTP is spoken to `host[:port]`: it is this machine, or is named by the environment.

    `MODELBAKE_INSECURE_REGISTRIES` holds names as they stand in references, with commas between. It is the
    environment's and not models.yaml's: it says what of this network may be trusted.

    Raises UsageError where it holds anything else.
    """
    env = environment() if environ is None else environ
    named = [word.strip() for word in env.get(INSECURE, "").split(",") if word.strip()]
    for word in named:
        if not HOST.fullmatch(word):
            raise UsageError(
                f"{word!r} is not a registry host[:port]",
                subject=INSECURE,
                hint="names with commas between; no patterns, no networks, no http://",
            )
    return is_loopback(host) or registry_key(host) in {registry_key(word) for word in named}


class Exchange(Protocol):
    """Sends one request and returns its reply."""

    def __call__(
        self, method: str, url: httpx2.URL, headers: Mapping[str, str], content: bytes | None
    ) -> Reply:
        """Raise RegistryUnavailable where there is none."""


class RegistryLogin:
    """The credentials of one registry, and the tokens that they gave. Safe to use from any thread."""

    def __init__(self, host: str, credentials: RegistryCredentials | None, exchange: Exchange) -> None:
        self._host = host
        self._credentials = credentials
        self._exchange = exchange
        self._basic: str | None = None
        self._tokens: dict[str, str] = {}

    def header(self, scope: str) -> dict[str, str]:
        """Return the Authorization header for a request; none before the registry has asked for one."""
        authorization = self._tokens.get(scope) or self._basic
        return {"Authorization": authorization} if authorization else {}

    def has_token(self, scope: str) -> bool:
        """Tell whether a token was given for this scope; tokens expire."""
        return scope in self._tokens

    def require(self, method: str, url: httpx2.URL, reply: Reply) -> None:
        """Raise RegistryAuthError where the registry answered 401 or 403."""
        if reply.status in (401, 403):
            known = (
                "refused the credentials" if self._credentials else "wants credentials, and there are none"
            )
            raise self._refused(f"{known} ({method} {url.path}: {said(reply)})")

    def answer(self, reply: Reply, scope: str, *, plain: bool) -> None:
        """Prepare the header that a 401 asks for; `plain`: the registry is spoken to over HTTP.

        Raises:
            RegistryAuthError: there is no way to log in, or the token service refuses.
        """
        challenges = parse_challenges(", ".join(reply.headers.get_list("WWW-Authenticate")))
        # The old token stays until there is a new one: other threads are sending with it.
        if "bearer" in challenges:
            self._tokens[scope] = self._fetch_token(challenges["bearer"], scope, plain)
        elif "basic" not in challenges:
            raise RegistryAuthError(
                "asks for credentials in no way known here (neither Basic nor Bearer)", subject=self._host
            )
        elif self._credentials and self._credentials.identity_token:
            raise self._refused("asks for a password, but only an identity token is stored for it")
        elif self._credentials:
            self._basic = _basic(self._credentials)

    def _fetch_token(self, challenge: Mapping[str, str], scope: str, plain: bool) -> str:
        try:
            realm = httpx2.URL(challenge.get("realm", ""))
        except httpx2.InvalidURL:
            realm = httpx2.URL("")
        port = "" if realm.port is None else f":{realm.port}"
        host = f"[{realm.host}]" if ":" in realm.host else realm.host
        local = realm.scheme == "http" and plain and bool(host) and in_clear(f"{host}{port}")
        if (realm.scheme != "https" and not local) or not realm.host or realm.userinfo:
            raise RegistryAuthError(
                f"names a token service that no credentials are sent to: {realm.scheme}://{realm.host}",
                subject=self._host,
            )
        reply = self._ask_for_token(realm, challenge.get("service", ""), scope)
        if reply.status in (400, 401, 403):
            what = "the credentials" if self._credentials else "to answer without credentials"
            raise self._refused(f"its token service {realm.host} refused {what} ({said(reply)})")
        document = document_of(reply.body)
        token = document.get("token") or document.get("access_token")
        if reply.status != 200 or not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise RegistryError(
                f"its token service {realm.host} gave no token ({said(reply)})", subject=self._host
            )
        return f"Bearer {token}"

    def _ask_for_token(self, realm: httpx2.URL, service: str, scope: str) -> Reply:
        known = self._credentials
        if known and known.identity_token:
            form = {
                "grant_type": "refresh_token",
                "client_id": "modelbake",
                "refresh_token": known.identity_token.reveal(),
                "scope": scope,
                "service": service,
            }
            body = str(httpx2.QueryParams({key: value for key, value in form.items() if value})).encode()
            return self._exchange("POST", realm, {"Content-Type": "application/x-www-form-urlencoded"}, body)
        # Several scopes are several parameters here, and one with spaces in the form above.
        asked: dict[str, str | list[str]] = {"scope": scope.split()} if scope else {}
        if service:
            asked["service"] = service
        headers = {"Authorization": _basic(known)} if known else {}
        return self._exchange("GET", realm.copy_merge_params(asked), headers, None)

    def _refused(self, problem: str) -> RegistryAuthError:
        return RegistryAuthError(problem, subject=self._host, hint=_LOGIN_HINT.format(host=self._host))


def _basic(credentials: RegistryCredentials) -> str:
    pair = Secret(f"{credentials.username}:{credentials.password.reveal()}")
    return f"Basic {base64.b64encode(pair.reveal_bytes()).decode()}"
