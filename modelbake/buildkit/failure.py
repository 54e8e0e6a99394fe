"""What the Docker engine says when something goes wrong, as errors of modelbake.

`translate` is for exceptions of the Docker SDK and of the HTTP client below it, `registry_error` for the
texts in which an engine reports that a registry refused it, `build_error` for a failed build.
"""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import requests
import urllib3
from docker import errors as docker_errors

from modelbake.buildkit.progress import Trace, short_name
from modelbake.errors import (
    BuildFailed,
    DiskFull,
    EngineError,
    EngineNotFound,
    EngineTooOld,
    ImageNotFound,
    ModelbakeError,
    NotConvertible,
    RegistryAuthError,
    RegistryUnavailable,
    SecretMissing,
    SourceAuthError,
    SourceGatedError,
    SourceNotFound,
    SourceUnavailable,
    WrongBytes,
)

START_AN_ENGINE = (
    'start Docker, set DOCKER_HOST, or run `eval "$(scripts/engine up)"` for an engine of your own'
)
_FREE_SPACE = "free space where the engine keeps its data: `docker system df`, `docker buildx prune`"

try:  # what the SDK needs for ssh:// hosts, and lets its exceptions through
    from paramiko.ssh_exception import SSHException
except ImportError:
    _SSH: tuple[type[Exception], ...] = ()
else:
    _SSH = (SSHException, EOFError)

FOREIGN: tuple[type[Exception], ...] = (
    *_SSH,
    docker_errors.DockerException,
    docker_errors.StreamParseError,
    requests.exceptions.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
)
"""Every class that a conversation with the engine may raise."""

_CHECK_INDEX = "check MODELBAKE_INDEX_URL, or the file that MODELBAKE_PIP_CONFIG names"
# The programs of images/builder end with one of these codes, and say why in their last line.
_PROGRAM_ERRORS: dict[int, tuple[type[ModelbakeError], str]] = {
    20: (SourceAuthError, "check that HF_TOKEN is valid and may read this repository"),
    21: (SourceGatedError, "accept the terms of the repository on its page, with the account of the token"),
    22: (SourceNotFound, "the locked commit is gone, or the token may not see it: run `build.py lock`"),
    23: (SourceUnavailable, "the build could not reach the source: check its address, proxy and CA bundle"),
    24: (
        WrongBytes,
        "`build.py lock --check` compares models.lock with what the source has; where these agree, the file"
        " was damaged on the way, or by a proxy or mirror",
    ),
    25: (SecretMissing, "set HF_TOKEN, or log in with `hf auth login`"),
    26: (DiskFull, _FREE_SPACE),
    27: (BuildFailed, ""),
    28: (
        NotConvertible,
        "leave the file out with `exclude` if the model does not need it (an optimizer's state, training"
        " arguments), or have its weights saved again as safetensors by who can load it",
    ),
    29: (
        WrongBytes,
        "the pickles are the locked ones, and convert to other bytes than models.lock says: restore it with"
        " git; or remove the model from it, and `build.py lock` has the pickles converted anew",
    ),
    30: (BuildFailed, "the index serves another file than is pinned: ask who runs it, or compile new pins"),
    31: (BuildFailed, _CHECK_INDEX),
    32: (BuildFailed, _CHECK_INDEX),
    33: (BuildFailed, "give the network's own CA with --ca-bundle or MODELBAKE_CA_BUNDLE"),
    34: (DiskFull, _FREE_SPACE),
    35: (BuildFailed, ""),
    36: (BuildFailed, "use a base image with Python 3.11 and its venv module"),
    37: (BuildFailed, _CHECK_INDEX),
}
_ABSENT_SECRET = re.compile(r"secret (\S+): not found")
_LOOPBACK = re.compile(r"\b127\.\d+\.\d+\.\d+\b|\blocalhost\b|\[::1\]")
_OF_THE_BUILD = (
    "in a build, 127.0.0.1 is the build container itself: use `publish`, which reads where it runs, or give"
    " the server an address that the engine's containers reach"
)
_STEP_ENDED = re.compile(r"did not complete successfully: (exit code: \d+|[^\n]+)")
_PROGRAM = re.compile(r"\b(?:admit|convert|fetch|install)\.py\b")
_EXIT_CODE = re.compile(r"exit code: (\d+)")
_NO_SPACE = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)
_BASE_IMAGE = re.compile(r"failed to resolve source metadata for (\S+?): ")
_PULLING = re.compile(
    r"failed to resolve source metadata|failed to do request|failed to authorize|pull access denied"
    r"|unexpected status from \w+ request|failed to fetch (?:oauth|anonymous) token"
    r"|failed to copy: httpReadSeeker"
)
_REFUSED = re.compile(
    r"\b(?:401|403)\b|unauthorized|authentication required|authorization failed|no basic auth"
    r"|access denied|\bdenied\b|forbidden|insufficient_scope|incorrect username|failed to authorize",
    re.IGNORECASE,
)
_OWN_PARTS = re.compile(r"dial unix|containerd\.sock")
_UNREACHABLE = re.compile(
    r"dial tcp|no such host|connection refused|connection reset|i/o timeout|timeout|deadline exceeded"
    r"|\bEOF\b|broken pipe|network is unreachable|no route to host|x509|tls:|server gave HTTP response"
    r"|toomanyrequests|too many requests|\b(?:429|5\d\d) [A-Z]|server error"
    r"|server misbehaving|service unavailable",
    re.IGNORECASE,
)


class Unsuitable(Exception):
    """One way of building is closed with this engine or on this machine; another may be open.

    Never leaves this package: `solve.build` turns the last one into an EngineError.
    """


@contextmanager
def translating(subject: str) -> Iterator[None]:
    """Turn any foreign exception inside the block into an error of modelbake about `subject`."""
    try:
        yield
    except FOREIGN as error:
        raise translate(error, subject) from error


def translate(error: BaseException, subject: str) -> ModelbakeError:
    """Return the error of modelbake that says what an exception of the SDK or its HTTP client means."""
    text = _text(error)
    if _NO_SPACE.search(text):
        return DiskFull("no space left on the engine's disk", subject=subject, hint=_FREE_SPACE)
    if isinstance(error, docker_errors.ImageNotFound):
        return ImageNotFound(f"the engine has no such image ({text})", subject=subject)
    if isinstance(error, docker_errors.InvalidVersion):
        return EngineTooOld(text, subject=subject, hint="Docker Engine 23.0 or newer is needed")
    if isinstance(error, docker_errors.APIError):
        return EngineError(f"the engine answered {error.status_code or 'an error'}: {text}", subject=subject)
    if isinstance(error, docker_errors.BuildError):
        return BuildFailed(text, subject=subject)
    if isinstance(
        error,
        docker_errors.ContextException
        | docker_errors.ContextNotFound
        | docker_errors.ContextAlreadyExists
        | docker_errors.MissingContextParameter
        | docker_errors.TLSParameterError
        | docker_errors.InvalidConfigFile,
    ):
        return EngineNotFound(
            text, subject=subject, hint="check DOCKER_HOST, DOCKER_TLS_VERIFY, docker contexts"
        )
    if isinstance(error, docker_errors.StreamParseError | requests.exceptions.JSONDecodeError):
        return EngineError(f"the engine's answer cannot be read: {text}", subject=subject)
    if isinstance(error, requests.exceptions.RequestException | urllib3.exceptions.HTTPError):
        return EngineNotFound(f"the engine does not answer: {text}", subject=subject, hint=START_AN_ENGINE)
    if isinstance(error, (OSError, http.client.HTTPException, *_SSH)):
        return EngineNotFound(f"the connection to the engine broke: {text}", subject=subject)
    return EngineError(text, subject=subject)


def registry_error(text: str, subject: str) -> RegistryAuthError | RegistryUnavailable | None:
    """Return what an engine's message means, None where it blames neither login nor network.

    An engine whose own containerd has just ended says "connection refused" of that.
    """
    if _OWN_PARTS.search(text):
        return None
    if _REFUSED.search(text):
        return RegistryAuthError(
            f"the registry refused: {text}",
            subject=subject,
            hint="log in with `docker login`, or set MODELBAKE_REGISTRY_USER and MODELBAKE_REGISTRY_PASSWORD",
        )
    if _UNREACHABLE.search(text):
        return RegistryUnavailable(
            f"the registry cannot be reached from the engine: {text}",
            subject=subject,
            hint="check the registry's address, the engine's proxy and its CA certificates",
        )
    return None


def build_error(text: str, trace: Trace) -> ModelbakeError:
    """Return what a failed build means.

    Args:
        text: the engine's message, redacted.
        trace: what happened until then; names the failed step and has its last lines.
    """
    name, error, lines = trace.failed or ("build", "", ())
    name = short_name(name)
    said = f"{text}\n{error}"
    if told := _program_error(name, said, lines):
        return told
    if _NO_SPACE.search("\n".join((said, *lines))):
        return DiskFull("no space left on the engine's disk", subject=name, hint=_FREE_SPACE)
    if ended := _STEP_ENDED.search(said):
        return BuildFailed(_with_lines(f"the step failed ({ended[1]})", lines), subject=name)
    if absent := _ABSENT_SECRET.search(said):
        return SecretMissing(f"the build needs the secret {absent[1]!r}, which was not given", subject=name)
    if _PULLING.search(said):
        return _pull_error(text, name, error or text)
    return BuildFailed(_with_lines(text, lines), subject=name)


def _pull_error(text: str, step: str, said: str) -> ModelbakeError:
    found = _BASE_IMAGE.search(text)
    subject = found[1] if found else step
    if refused := registry_error(said, subject):
        if isinstance(refused, RegistryUnavailable):
            refused.hint += "; `base:` in models.yaml names a base image of another registry"
        return refused
    if "not found" in said:
        return BuildFailed(
            f"the registry has no such base image: {said}", subject=subject, hint="check the model's `base`"
        )
    return BuildFailed(f"the base image cannot be pulled: {said}", subject=subject)


def _program_error(step: str, said: str, lines: Sequence[str]) -> ModelbakeError | None:
    """Find the program's last word; where the log was clipped, its exit code tells as much."""
    for line in reversed(lines):
        if '"error"' not in line:
            continue
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if not isinstance(record, dict) or record.get("event") != "error":
            continue
        code = record.get("code")
        if isinstance(code, int) and code in _PROGRAM_ERRORS:
            cls, hint = _PROGRAM_ERRORS[code]
            message = str(record.get("message", "the step failed"))
            file = record.get("file")
            if isinstance(file, str) and file not in message:
                message = f"{file}: {message}"
            if code == 23 and _LOOPBACK.search(message):
                hint = _OF_THE_BUILD
            return cls(message, subject=step, hint=hint)
    ended = _EXIT_CODE.search(said)
    if ended and _PROGRAM.search(step) and int(ended[1]) in _PROGRAM_ERRORS:
        cls, hint = _PROGRAM_ERRORS[int(ended[1])]
        return cls(_with_lines(f"the step failed with code {ended[1]}", lines), subject=step, hint=hint)
    return None


def _with_lines(message: str, lines: Sequence[str]) -> str:
    shown = [line for line in lines if line.strip()]
    return (
        "\n".join((f"{message}; its last lines:", *(f"    {line}" for line in shown))) if shown else message
    )


def _text(error: BaseException) -> str:
    """Return what an exception says: the engine's own words where it has them, without layers of wrapping."""
    if isinstance(error, docker_errors.APIError):
        explanation = error.explanation
        return str(
            explanation.decode(errors="replace") if isinstance(explanation, bytes) else explanation or error
        )
    if isinstance(error, docker_errors.StreamParseError):
        return str(error.msg)
    if isinstance(error, requests.exceptions.ConnectionError) and error.args:
        reason = getattr(error.args[0], "reason", error.args[0])
        if isinstance(reason, urllib3.exceptions.ProtocolError) and reason.args:
            reason = reason.args[-1]
        return str(reason)
    return str(error) or type(error).__name__
