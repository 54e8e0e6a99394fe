"""Certificates of single registries, in the folders where Docker keeps them.

    /etc/docker/certs.d/HOST[:PORT]/*.crt             authorities that this registry alone is trusted by
    /etc/docker/certs.d/HOST[:PORT]/NAME.cert, .key   a certificate of ours that this registry alone is shown

Rootless Docker has `~/.config/docker/certs.d`; `MODELBAKE_CERTS_DIR` names another folder instead of both.

Source: https://docs.docker.com/engine/security/certificates/
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from pathlib import Path

from modelbake.errors import UsageError
from modelbake.process import environment
from modelbake.trust import add_authorities, trust

VARIABLE = "MODELBAKE_CERTS_DIR"
_SYSTEM = Path("/etc/docker/certs.d")
_HOST = re.compile(r"[A-Za-z0-9.:\[\]-]+")  # nothing that leads out of the folder


def certificates_of(host: str, environ: Mapping[str, str] | None = None) -> Path | None:
    """Return the folder of certificates for a registry (`host[:port]`), None where there is none.

    Raises UsageError where `MODELBAKE_CERTS_DIR` names no folder.
    """
    env = environment() if environ is None else environ
    if named := env.get(VARIABLE):
        if not Path(named).is_dir():
            raise UsageError("no such folder", subject=f"{VARIABLE}={named}")
        places = [Path(named)]
    else:
        home = env.get("XDG_CONFIG_HOME") or (f"{env['HOME']}/.config" if env.get("HOME") else "")
        places = [_SYSTEM, *([Path(home) / "docker/certs.d"] if home else [])]
    if not _HOST.fullmatch(host) or set(host) <= set("."):
        return None
    return next((place / host for place in places if (place / host).is_dir()), None)


def context_for(folder: Path | None, ca_bundle: Path | None = None) -> ssl.SSLContext:
    """Return what `trust` returns, with the authorities and the client certificate of a folder besides.

    Raises:
        UsageError: a file there is not what its name says, cannot be read, or lacks its other half.
        OSError: as `trust`.
    """
    context = trust(ca_bundle)
    if folder is None:
        return context
    try:
        names = {path.name for path in folder.iterdir()}
        for name in sorted(names):
            if name.endswith(".crt"):
                add_authorities(context, (folder / name).read_bytes(), str(folder / name))
    except OSError as error:
        raise UsageError(f"cannot be read ({error.strerror})", subject=str(error.filename)) from error
    for name in sorted(names):
        stem, dot, kind = name.rpartition(".")
        other = {"cert": "key", "key": "cert"}.get(kind) if dot else None
        if other and f"{stem}.{other}" not in names:
            raise UsageError(
                f"there is no {stem}.{other} beside it",
                subject=str(folder / name),
                hint="a client certificate is NAME.cert and NAME.key; an authority is NAME.crt",
            )
        if kind == "cert" and dot:
            _show(context, folder / name, folder / f"{stem}.key")
    return context


def _show(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    def no_password() -> str:
        raise ValueError("the key has a password, and nobody here could type it")

    try:
        context.load_cert_chain(certificate, key, no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        # OpenSSL's words name no file, and hold nothing of the key.
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"cannot be used as a client certificate with {key.name} ({reason})", subject=str(certificate)
        ) from error
