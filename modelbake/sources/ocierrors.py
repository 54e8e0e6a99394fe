"""What errors of a registry mean where it is a source of weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from modelbake.dockerconfig import Reference
from modelbake.errors import (
    ReadBackMismatch,
    RegistryAuthError,
    RegistryError,
    RegistryUnavailable,
    SourceAuthError,
    SourceError,
    SourceUnavailable,
    WrongBytes,
)
from modelbake.imagetar import UNREADABLE


@contextmanager
def translated(subject: str, reference: Reference) -> Iterator[None]:
    """Make errors of the registry those of a source."""
    try:
        yield
    except RegistryAuthError as error:
        raise SourceAuthError(
            f"{error.message} ({error.subject}); asked were: MODELBAKE_REGISTRY and its user and password if"
            " they are for this registry, then the Docker config's credHelpers, credsStore, auths",
            subject=subject,
            hint=error.hint or f"`docker login {reference.registry}` with an account that may pull",
        ) from error
    except RegistryUnavailable as error:
        raise SourceUnavailable(error.message, subject=subject, hint=error.hint) from error
    except ReadBackMismatch as error:
        raise WrongBytes(error.message, subject=subject, hint=error.hint) from error
    except RegistryError as error:
        raise SourceError(error.message, subject=subject, hint=error.hint) from error
    except UNREADABLE as error:
        raise SourceError(
            f"a layer is no readable tar ({error})", subject=subject, hint="push it anew, and lock again"
        ) from error
