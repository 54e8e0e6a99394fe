"""Why no engine answers, and what to do: of a socket, of TLS, of SSH. Pure, but it looks at files."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

from docker.errors import TLSParameterError

from modelbake.buildkit.failure import START_AN_ENGINE
from modelbake.errors import EngineNotFound
from modelbake.tlshints import tls_problem

_FILES = ("ca.pem", "cert.pem", "key.pem")
_TLS = {
    "untrusted": (
        "its certificate is not of the authority given",
        "ca.pem in DOCKER_CERT_PATH ({folder}) has to be the authority that signed the engine's certificate,"
        " and DOCKER_HOST a name that is in it",
    ),
    "unknown": (
        "it does not take the client certificate",
        "cert.pem and key.pem in DOCKER_CERT_PATH ({folder}) have to be signed by an authority that the"
        " engine knows (its --tlscacert)",
    ),
    "clear": (
        "it speaks no TLS",
        "DOCKER_HOST names another port than that of TLS, or DOCKER_TLS_VERIFY and DOCKER_CERT_PATH have to"
        " be unset",
    ),
}
_TLS_FILES = (
    "check the files in DOCKER_CERT_PATH ({folder}): ca.pem is the engine's authority, cert.pem and key.pem"
    " are a client certificate that it takes"
)
# What paramiko and the SDK say, and what helps against it.
_SSH = (
    (
        "not found in known_hosts",
        "DOCKER_HOST names a host whose key is not in ~/.ssh/known_hosts: connect once with `ssh`, and"
        " compare the key's fingerprint",
    ),
    (
        "does not match",
        "the host of DOCKER_HOST shows another key than ~/.ssh/known_hosts has: find out why before you"
        " change that file",
    ),
    (
        "authenticat",
        "the user in DOCKER_HOST needs a key that the host takes: in an agent (SSH_AUTH_SOCK), in ~/.ssh, or"
        " named in ~/.ssh/config",
    ),
    (
        "Channel closed",
        "the user in DOCKER_HOST has to be able to run `docker system dial-stdio` on that host: try it with"
        " `ssh`",
    ),
    (
        "paramiko",
        "DOCKER_HOST=ssh://... needs the package paramiko beside modelbake's: `pip install paramiko`",
    ),
)


def not_reached(error: BaseException, address: str) -> EngineNotFound:
    """Return the error that says why the engine at an address cannot be reached."""
    reason = _root(error)
    why, hint = _why(reason), START_AN_ENGINE
    if isinstance(reason, PermissionError):
        hint = "add the user to the group `docker`, or point DOCKER_HOST at an engine of its own"
    elif isinstance(reason, TLSParameterError):
        why, hint = _files_missing()
    elif isinstance(reason, ssl.SSLError):
        said, hint = _TLS.get(tls_problem(reason), ("", _TLS_FILES))
        why = f"{said}: {reason}" if said else str(reason)
        hint = hint.format(folder=_certificates())
    elif isinstance(reason, socket.gaierror):
        why, hint = f"the host is not known: {reason.strerror}", "check the name in DOCKER_HOST, and DNS"
    elif address.startswith("ssh://"):
        hint = next((hint for said, hint in _SSH if said.lower() in str(reason).lower()), hint)
        if "does not match" in why:
            why = "the host's key is not the known one"  # both keys say nothing to people
    elif address.startswith("tcp://") and _may_want_tls(error):
        hint = (
            "if the engine speaks TLS, set DOCKER_TLS_VERIFY=1 and DOCKER_CERT_PATH to a folder with"
            f" {', '.join(_FILES)}"
        )
    return EngineNotFound(f"no engine answers: {why}", subject=address, hint=hint)


def _why(reason: BaseException) -> str:
    if isinstance(reason, FileNotFoundError):
        return "the socket does not exist"
    if isinstance(reason, PermissionError):
        return "its socket may not be opened by this user"
    if isinstance(reason, ConnectionRefusedError):
        return "the connection was refused"
    return str(reason) or type(reason).__name__


def _certificates() -> str:
    return os.environ.get("DOCKER_CERT_PATH") or str(Path.home() / ".docker")


def _files_missing() -> tuple[str, str]:
    folder = Path(_certificates())
    missing = [name for name in _FILES if not (folder / name).is_file()]
    return (
        f"{folder} lacks {' and '.join(missing)}"
        if missing
        else f"the files in {folder} are no certificates",
        f"DOCKER_CERT_PATH has to be a folder with {', '.join(_FILES)}; without TLS, unset it and"
        " DOCKER_TLS_VERIFY",
    )


def _may_want_tls(error: BaseException) -> bool:
    """Tell whether something answered that does not speak HTTP in the clear, or says so."""
    return any(
        isinstance(each, ConnectionResetError | BrokenPipeError)
        or "HTTP request to an HTTPS server" in str(each)
        or type(each).__name__ in ("BadStatusLine", "RemoteDisconnected")
        for each in _below(error)
    )


def _root(error: BaseException) -> BaseException:
    """Return the reason at the bottom of the SDK's and the HTTP client's wrapping."""
    return list(_below(error))[-1]


def _below(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    inner: BaseException | None = error
    while inner is not None and id(inner) not in seen:
        yield inner
        seen.add(id(inner))
        inner = _inside(inner)


def _inside(error: BaseException) -> BaseException | None:
    """Return what an error wraps: urllib3 and requests name it in an attribute or an argument only."""
    inner = error.__cause__ or error.__context__
    if isinstance(inner, NameError):  # how the SDK notes that paramiko is missing; it then says so
        return None
    held = (getattr(error, "reason", None), *error.args)
    return inner or next((each for each in held if isinstance(each, BaseException)), None)
