"""Which authorities TLS servers are checked with: the system's, and those of a network of one's own.

The hub's client and the registry's check alike, and a build is given the same PEM file.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import httpx2

from modelbake.errors import SourceError, UsageError

VARIABLE = "MODELBAKE_CA_BUNDLE"
ENVIRONMENT_HINT = "do SSL_CERT_FILE and SSL_CERT_DIR exist, and are HTTP_PROXY and HTTPS_PROXY URLs?"


def unusable_environment(error: Exception, subject: str) -> SourceError:
    """Return what an error of `trust`, or of a client that takes the environment's proxies, means."""
    return SourceError(
        f"the network settings of the environment cannot be used ({type(error).__name__})",
        subject=subject,
        hint=ENVIRONMENT_HINT,
    )


def trust(ca_bundle: Path | None = None) -> ssl.SSLContext:
    """Return a context that trusts a PEM file besides the system's authorities.

    `ca_bundle` defaults to `$MODELBAKE_CA_BUNDLE`; without either there are the system's alone.

    Raises:
        UsageError: the file cannot be read, or holds anything but certificates.
        OSError: SSL_CERT_FILE or SSL_CERT_DIR of the environment cannot be used.
    """
    context = httpx2.create_ssl_context()
    if ca_bundle is None and (named := os.environ.get(VARIABLE)):
        ca_bundle = Path(named)
    if ca_bundle is not None:
        subject = f"{VARIABLE}={ca_bundle}"
        try:
            content = ca_bundle.read_bytes()
        except OSError as error:
            raise _unusable(error.strerror, subject) from error
        add_authorities(context, content, subject)
    return context


def check_authorities(content: bytes, subject: str) -> None:
    """Raise the UsageError that `trust` raises where the content of a file is not certificates in PEM form.

    `subject` names the file, as whoever gave it knows it.
    """
    add_authorities(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), content, subject)


def add_authorities(context: ssl.SSLContext, content: bytes, subject: str) -> None:
    """Trust certificates in PEM form; raise UsageError where the content is anything else."""
    # OpenSSL refuses such a file, but not such a text; and a key has no business in a build.
    if b"PRIVATE KEY-----" in content:
        raise _unusable("it holds a private key", subject)
    # Comments between certificates need not be ASCII; what Python takes has to be.
    text = content.decode("ascii", "replace").replace("\ufffd", "?")
    try:
        context.load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError) as error:
        why = "one of them is damaged" if "BEGIN CERTIFICATE" in text else "there is none in it"
        raise _unusable(why, subject) from error


def _unusable(why: str | None, subject: str) -> UsageError:
    return UsageError(
        f"cannot be read as certificates ({why})",
        subject=subject,
        hint="name a PEM file: `-----BEGIN CERTIFICATE-----` and so on, one after the other",
    )
