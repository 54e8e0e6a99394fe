"""Clients of Amazon's services, by boto3's own chain of credentials.

The chain: environment, web identity, SSO and profiles of ~/.aws, container, instance metadata. It is bounded:
a machine without credentials is told so within seconds, whatever the network does with metadata's addresses.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
import weakref
from functools import lru_cache
from pathlib import Path
from ssl import get_default_verify_paths
from typing import Any

import boto3
import botocore.httpsession
import botocore.session
from botocore import exceptions as sdk
from botocore.config import Config

from modelbake.bounded import within
from modelbake.errors import SourceAuthError, SourceError
from modelbake.sources.aws_errors import CHAIN, translated
from modelbake.trust import VARIABLE, check_authorities

_Surroundings = tuple[tuple[str, str], ...]  # variables of the environment that decide what is found
_LONGEST_SEARCH = 20.0  # seconds for all of the chain; each provider has less, most of them 1 or 2
# Their warnings come with tracebacks; our own errors say the same.
for _name in ("botocore", "boto3", "s3transfer", "urllib3.connectionpool"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)
_REMEMBERED = 30.0  # seconds
_FAILED: dict[_Surroundings, tuple[float, Exception]] = {}
_GUARD = threading.Lock()  # a session makes one client at a time


def client(service: str, subject: str, *, endpoint: str = "", region: str = "") -> Any:
    """Return boto3's client of a service, with credentials that were found. It is shared: nobody closes it.

    `endpoint`: a URL in the place of Amazon's own. `region`: "" for the configured one. Raises SourceError.
    """
    with translated(subject, rights=""), _GUARD:
        surroundings = _surroundings()
        session, _ = _sessions(surroundings)
        try:
            _require_credentials(session, surroundings)
        except TimeoutError as error:
            raise SourceAuthError(
                f"AWS credentials were not found within {_LONGEST_SEARCH:.0f} s (tried: {CHAIN})",
                subject=subject,
                hint="does a program of ~/.aws/config wait for a code, or an address not answer?",
            ) from error
        return _client(surroundings, service, endpoint, region)


@lru_cache(maxsize=64)
def _client(surroundings: _Surroundings, service: str, endpoint: str, region: str) -> Any:
    session, maker = _sessions(surroundings)
    own = session.get_scoped_config().get("s3", {})
    style = own.get("addressing_style") if isinstance(own, dict) else None
    return maker.client(
        service,
        endpoint_url=endpoint or None,
        region_name=region or session.get_config_variable("region") or "us-east-1",
        verify=session.get_config_variable("ca_bundle"),
        config=Config(
            connect_timeout=10,
            read_timeout=30,
            retries={"mode": "standard", "total_max_attempts": 4},
            signature_version="s3v4" if service == "s3" else None,
            # What speaks S3's API elsewhere often has one host name, and none of the newer checksums.
            s3={"addressing_style": style or ("path" if endpoint else "auto")},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def _surroundings() -> _Surroundings:
    wanted = (VARIABLE, "HOME", "SSL_CERT_FILE")
    return tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_") or k in wanted))


@lru_cache(maxsize=4)
def _sessions(
    surroundings: _Surroundings,
) -> tuple[botocore.session.Session, boto3.session.Session]:
    """Return one session for all sources, and what makes clients of it.

    A role is assumed once, and not for each of a thousand models.
    """
    session = botocore.session.get_session()
    system = get_default_verify_paths().cafile
    trusted = session.get_config_variable("ca_bundle") or system or botocore.httpsession.where()
    if named := os.environ.get(VARIABLE):
        trusted = _joined(session, Path(trusted), Path(named))
    session.set_config_variable("ca_bundle", str(trusted))
    return session, boto3.session.Session(botocore_session=session)


def _joined(owner: object, usual: Path, own: Path) -> str:
    """Write a file of the usual authorities and of the network's own, for as long as its owner lives."""
    try:
        content = own.read_bytes()
        check_authorities(content, f"{VARIABLE}={own}")
        handle, name = tempfile.mkstemp(prefix="modelbake-", suffix=".pem")
        weakref.finalize(owner, Path(name).unlink, missing_ok=True)
        with os.fdopen(handle, "wb") as file:
            file.write(usual.read_bytes() + b"\n" + content)
    except OSError as error:
        raise SourceError(
            f"the authorities of {VARIABLE} cannot be used ({error.strerror})", subject=str(own)
        ) from error
    return name


def _require_credentials(session: botocore.session.Session, surroundings: _Surroundings) -> None:
    """Have the session find credentials. A thousand models do not wait a thousand times for none."""
    when, failure = _FAILED.get(surroundings, (0.0, None))
    if failure is not None and time.monotonic() - when < _REMEMBERED:
        raise failure
    try:
        within(_LONGEST_SEARCH, lambda: _found(session), late=lambda _: None)
    except Exception as error:
        _FAILED[surroundings] = (time.monotonic(), error)
        raise


def _found(session: botocore.session.Session) -> None:
    credentials = session.get_credentials()
    if credentials is None:
        raise sdk.NoCredentialsError()
    credentials.get_frozen_credentials()  # a role is assumed, a session refreshed, only now
