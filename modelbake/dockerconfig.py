"""Registry credentials from the Docker configuration, and image references by Docker's rules.

Order, for one registry: the `MODELBAKE_REGISTRY*` environment, `credHelpers`, `credsStore`, `auths`.
An entry is used only for the registry it was stored for: nothing here ever hands one registry's
credentials to another.

Sources: https://docs.docker.com/reference/cli/docker/login/ (config keys, helper protocol),
https://github.com/distribution/reference (grammar of references).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelbake.credentials import Secret
from modelbake.errors import RegistryAuthError, UsageError
from modelbake.process import environment, without_secrets
from modelbake.tokencommand import masked

DOCKER_HUB = "docker.io"
_HUB_KEY = "https://index.docker.io/v1/"  # the name under which Docker stores Docker Hub's credentials
_HUB_HOSTS = {DOCKER_HUB, "index.docker.io", "registry-1.docker.io"}
_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HELPER_SECONDS = 60.0  # helpers may ask a cloud for a token, but a hanging one must not hang a push
_TOKEN_USER = "<token>"  # noqa: S105 - the user name by which a helper says "this is an identity token"
_NOT_FOUND = "credentials not found"  # docker-credential-helpers' own words; not a failure

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:]+\])(?::[0-9]{{1,5}})?")
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_IMAGE_ID = re.compile(r"[0-9a-f]{64}")
_LONGEST_NAME = 255


@dataclass(frozen=True)
class RegistryCredentials:
    """What one registry wants to know: user and password, or an identity token (then both are empty)."""

    username: str
    password: Secret
    identity_token: Secret | None = None

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """What of these must not be shown."""
        return tuple(secret for secret in (self.password, self.identity_token) if secret)


@dataclass(frozen=True)
class Reference:
    """An image reference with Docker's defaults filled in; `tag` and `digest` are None where not written."""

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    @property
    def name(self) -> str:
        """`registry/repository`, without tag or digest."""
        return f"{self.registry}/{self.repository}"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.name}{tag}" + (f"@{self.digest}" if self.digest else "")


def split_reference(ref: str) -> Reference:
    """Split an image reference by Docker's rules: `docker.io` and `library/` are the defaults.

    Raises UsageError where it is not a reference.
    """
    rest, at, digest = ref.partition("@")
    head, slash, tail = rest.rpartition("/")
    last, colon, tag = tail.partition(":")
    name = f"{head}{slash}{last}"
    first, slash, remainder = name.partition("/")
    if slash and (set(first) & set(".:") or first == "localhost" or first != first.lower()):
        registry, repository = first, remainder
    else:
        registry, repository = DOCKER_HUB, name
    if registry == "index.docker.io":
        registry = DOCKER_HUB
    if registry == DOCKER_HUB and "/" not in repository:
        repository = f"library/{repository}"
    problem = None
    if not HOST.fullmatch(registry):
        problem = f"{registry!r} is not a registry host[:port]"
    elif not _REPOSITORY.fullmatch(repository):
        problem = f"{repository!r} is not a repository name (lower case, digits, single separators . _ -)"
    elif len(repository) > _LONGEST_NAME:
        problem = f"the name is longer than {_LONGEST_NAME} characters"
    elif colon and not _TAG.fullmatch(tag):
        problem = f"{tag!r} is not a tag (up to 128 letters, digits, _ . -)"
    elif at and not _DIGEST.fullmatch(digest):
        problem = f"{digest!r} is not a digest (sha256: and 64 hex digits)"
    elif _IMAGE_ID.fullmatch(name):
        problem = "64 hex digits are an image id, not a name"
    if problem:
        raise UsageError(f"not an image reference: {problem}", subject=repr(ref))
    return Reference(registry, repository, tag or None, digest or None)


def registry_key(address: str) -> str:
    """Return the `host[:port]` that a config key, URL or reference prefix means; Docker Hub's names are one.

    A port is part of a registry's name, as it is for Docker: `host` and `host:443` are different registries.
    """
    text = address.strip()
    for scheme in ("https://", "http://"):
        if text.lower().startswith(scheme):
            text = text[len(scheme) :]
    host = text.partition("/")[0].lower()
    return DOCKER_HUB if host in _HUB_HOSTS else host


def auths_entry(host: str, credentials: RegistryCredentials) -> tuple[str, dict[str, str]]:
    """Return key and value of `auths` in a Docker configuration that says these credentials of a registry."""
    key = _HUB_KEY if registry_key(host) == DOCKER_HUB else host
    if credentials.identity_token:
        return key, {"identitytoken": credentials.identity_token.reveal()}
    pair = credentials.username.encode() + b":" + credentials.password.reveal_bytes()
    return key, {"auth": base64.b64encode(pair).decode()}


class RegistryAuth:
    """Finds the credentials of a registry.

    `config_path` is a `config.json`; without it `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`.
    A file that does not exist is an empty one, as it is for Docker.
    """

    def __init__(self, config_path: Path | None = None, *, environ: Mapping[str, str] | None = None) -> None:
        self._environ = environment() if environ is None else environ
        folder = self._environ.get("DOCKER_CONFIG")
        self.config_path = (
            config_path or (Path(folder) if folder else Path.home() / ".docker") / "config.json"
        )

    def for_registry(self, host: str) -> RegistryCredentials | None:
        """Return the credentials for `host` (`host[:port]`), or None where none are stored.

        Raises:
            RegistryAuthError: the config file is unusable, or a credential helper is missing or failed.
            UsageError: the `MODELBAKE_REGISTRY*` variables contradict each other.
        """
        key = registry_key(host)
        if not HOST.fullmatch(key):
            raise UsageError("not a registry host[:port]", subject=repr(host))
        if (found := self._from_environment(key)) is not None:
            return found
        config = self._read()
        helpers = self._section(config, "credHelpers")
        names = [_matching(helpers, key), config.get("credsStore") or None]
        for where, name in zip(("credHelpers", "credsStore"), names, strict=True):
            if name is None:
                continue
            if not isinstance(name, str) or not _HELPER_NAME.fullmatch(name):
                raise self._bad(f"{where}: {name!r} is not the name of a credential helper")
            if (found := self._ask_helper(name, key)) is not None:
                return found
        entry = _matching(self._section(config, "auths"), key)
        return None if entry is None else self._decode(entry, key)

    def _from_environment(self, key: str) -> RegistryCredentials | None:
        user = self._environ.get("MODELBAKE_REGISTRY_USER", "")
        password = self._environ.get("MODELBAKE_REGISTRY_PASSWORD", "")
        file = self._environ.get("MODELBAKE_REGISTRY_PASSWORD_FILE", "")
        registry = self._environ.get("MODELBAKE_REGISTRY", "")
        if not (user or password or file):
            return None
        if not registry:
            raise UsageError(
                "is not set, so the MODELBAKE_REGISTRY_USER and _PASSWORD given belong to no registry",
                subject="MODELBAKE_REGISTRY",
                hint="set it to the host[:port] that they are for",
            )
        if registry_key(registry) != key:
            return None
        if not user or bool(password) == bool(file):
            raise UsageError(
                "give MODELBAKE_REGISTRY_USER and one of MODELBAKE_REGISTRY_PASSWORD and"
                " MODELBAKE_REGISTRY_PASSWORD_FILE",
                subject="MODELBAKE_REGISTRY_USER",
            )
        if file:
            try:
                password = Path(file).read_text(encoding="utf-8").rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(
                    f"cannot read the password ({type(error).__name__})",
                    subject=f"MODELBAKE_REGISTRY_PASSWORD_FILE={file}",
                ) from error
        return RegistryCredentials(user, Secret(password))

    def _bad(self, problem: str) -> RegistryAuthError:
        return RegistryAuthError(
            problem,
            subject=str(self.config_path),
            hint="mend the file, or name another folder in DOCKER_CONFIG",
        )

    def _read(self) -> dict[str, Any]:
        try:
            raw = self.config_path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise self._bad(f"cannot be read ({error.strerror or type(error).__name__})") from error
        try:
            config = json.loads(raw) if raw.strip() else {}
        except (ValueError, RecursionError) as error:
            # The parser's own message can quote the file, which holds passwords: only the place is told.
            place = (
                f" (line {error.lineno}, column {error.colno})"
                if isinstance(error, json.JSONDecodeError)
                else ""
            )
            raise self._bad(f"is not JSON{place}") from None
        if not isinstance(config, dict):
            raise self._bad("is not a JSON object")
        return config

    def _section(self, config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        section = config.get(name)
        if section is None:
            return {}
        if not isinstance(section, dict):
            raise self._bad(f"{name} is not a JSON object")
        return section

    def _decode(self, entry: Any, key: str) -> RegistryCredentials | None:
        if not isinstance(entry, dict) or not all(
            isinstance(entry.get(name, ""), str) for name in ("auth", "username", "password", "identitytoken")
        ):
            raise self._bad(f"auths: the entry for {key} is not an object of strings")
        if entry.get("identitytoken"):
            return RegistryCredentials("", Secret(""), Secret(entry["identitytoken"]))
        username, password = entry.get("username", ""), entry.get("password", "")
        if entry.get("auth"):
            try:
                text = base64.b64decode(entry["auth"], validate=True).decode()
            except (binascii.Error, ValueError):
                raise self._bad(f"auths: the auth of {key} is not base64 text") from None
            username, colon, password = text.rstrip("\x00").partition(":")
            if not colon or not username:
                raise self._bad(f"auths: the auth of {key} is not base64 of `user:password`")
        # Docker Desktop leaves an empty object here beside a credsStore: it holds nothing.
        return RegistryCredentials(username, Secret(password)) if username else None

    def _ask_helper(self, name: str, key: str) -> RegistryCredentials | None:
        program = f"docker-credential-{name}"

        def failed(problem: str) -> RegistryAuthError:
            return RegistryAuthError(
                f"the credential helper {program} {problem}",
                subject=key,
                hint=f"`echo {server} | {program} get` shows it; {self.config_path} names this helper",
            )

        server = _HUB_KEY if key == DOCKER_HUB else key
        path = shutil.which(program, path=self._environ.get("PATH"))
        if path is None:
            raise failed("is not on PATH")
        try:
            done = subprocess.run(
                [path, "get"],
                input=server.encode(),
                capture_output=True,
                timeout=_HELPER_SECONDS,
                check=False,
                env=without_secrets(self._environ),
            )
        except subprocess.TimeoutExpired:
            raise failed(f"did not answer within {_HELPER_SECONDS:.0f} s") from None
        except OSError as error:
            raise failed(f"cannot be started ({error.strerror})") from error
        if done.returncode:
            # Helpers say what is wrong on stdout, by their protocol; some say it on stderr.
            said = (done.stdout.strip() or done.stderr.strip()).decode(errors="replace")
            if _NOT_FOUND in said:
                return None
            if "{" in said:  # an answer after all, and with it the secret
                said = "(what it said is not shown: it may hold the secret)"
            said = masked(said)
            raise failed(f"failed with status {done.returncode}: {said[:300] or '(it said nothing)'}")
        try:
            answer = json.loads(done.stdout)
            username, secret, url = answer["Username"], answer["Secret"], answer.get("ServerURL") or server
            if not (isinstance(username, str) and isinstance(secret, str) and isinstance(url, str)):
                raise TypeError
        except (ValueError, KeyError, TypeError, AttributeError):
            raise failed(
                "did not answer JSON with Username and Secret"
            ) from None  # its output may be the secret
        if registry_key(url) != key:
            raise failed(f"answered for another registry ({registry_key(url)})")
        if username == _TOKEN_USER:
            return RegistryCredentials("", Secret(""), Secret(secret))
        return RegistryCredentials(username, Secret(secret)) if username else None


def _matching(section: Mapping[str, Any], key: str) -> Any:
    """Return the section's entry for a registry: the literal name first, else the first key that means it."""
    for exact in (key, _HUB_KEY if key == DOCKER_HUB else f"https://{key}"):
        if exact in section:
            return section[exact]
    return next((value for name, value in section.items() if registry_key(name) == key), None)
