"""A private certificate authority and a server certificate, for tests of TLS and of corporate CA bundles."""

from __future__ import annotations

import ipaddress
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificate:
    """PEM files: the authority's certificate, the server's certificate and the server's key."""

    authority: Path
    cert: Path
    key: Path


def make_certificate(folder: Path, names: Sequence[str] = ("127.0.0.1", "localhost")) -> Certificate:
    """Make both in `folder`, with the `openssl` program; good for ten days, for these names and addresses."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Certificate(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    authority_key = folder / "ca.key"
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "10"]
    _openssl(
        *["req", "-x509", *new_key, "-keyout", str(authority_key), "-out", str(made.authority)],
        *["-subj", "/CN=test authority", "-addext", "keyUsage=critical,keyCertSign"],
        *["-addext", "basicConstraints=critical,CA:TRUE"],
    )
    _openssl(
        *[
            "req",
            "-x509",
            *new_key,
            "-keyout",
            str(made.key),
            "-out",
            str(made.cert),
            "-subj",
            "/CN=test server",
        ],
        *["-CA", str(made.authority), "-CAkey", str(authority_key), "-addext", "basicConstraints=CA:FALSE"],
        *["-addext", "subjectAltName=" + ",".join(_alternative_name(name) for name in names)],
    )
    return made


def make_client_certificate(made: Certificate, folder: Path, name: str = "client") -> Path:
    """Make `folder`/`name`.cert and .key, as Docker calls them, by the same authority; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    _openssl(
        *["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "10"],
        *["-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.cert"), "-subj", "/CN=ci"],
        *["-CA", str(made.authority), "-CAkey", str(made.authority.with_name("ca.key"))],
        *["-addext", "basicConstraints=CA:FALSE", "-addext", "extendedKeyUsage=clientAuth"],
    )
    return folder


def _alternative_name(name: str) -> str:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return f"DNS:{name}"
    return f"IP:{name}"


def _openssl(*arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"openssl failed: {done.stderr}")
