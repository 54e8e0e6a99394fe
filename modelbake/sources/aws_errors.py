"""What the errors of Amazon's SDK mean, of its services and of its chain of credentials."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from botocore import exceptions as sdk
from botocore.parsers import ResponseParserError

from modelbake.errors import RevisionNotFound, SourceAuthError, SourceError, SourceNotFound, SourceUnavailable
from modelbake.trust import VARIABLE
from modelbake.weightpath import shown

CHAIN = "environment, web identity, SSO and profiles of ~/.aws, container, instance metadata"
_CODE = re.compile(r"[A-Za-z0-9.]{1,60}")

_GONE = {"NoSuchKey", "NoSuchVersion", "MethodNotAllowed", "PreconditionFailed", "404", "405", "412"}
_MISSING = {"NoSuchBucket", "ValidationException", "ResourceNotFound", "ResourceNotFoundException"}
_DENIED = {"AccessDenied", "AccessDeniedException", "AllAccessDisabled", "UnauthorizedAccess", "403"}
_WRONG_KEYS = {
    "InvalidAccessKeyId", "SignatureDoesNotMatch", "UnrecognizedClientException", "InvalidClientTokenId",
    "InvalidSignatureException", "AuthFailure", "IncompleteSignature", "MissingAuthenticationToken",
}  # fmt: skip
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired", "RequestExpired"}
_PASSING = {
    "SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "Throttling", "ThrottlingException",
    "OperationAborted", "500", "502", "503", "504",
}  # fmt: skip
_NO_CREDENTIALS = (
    sdk.NoCredentialsError, sdk.PartialCredentialsError, sdk.CredentialRetrievalError,
    sdk.TokenRetrievalError, sdk.NoAuthTokenError, sdk.SSOError, sdk.LoginError, sdk.ProfileNotFound,
    sdk.ConfigParseError, sdk.InvalidConfigError, sdk.RefreshWithMFAUnsupportedError,
    sdk.UnknownCredentialError, sdk.MetadataRetrievalError, sdk.InvalidIMDSEndpointError,
    sdk.MissingDependencyException,
)  # fmt: skip


@contextmanager
def translated(subject: str, *, rights: str) -> Iterator[None]:
    """Raise the SourceError that an SDK's error means. `rights`: the least that the caller has to have."""
    try:
        yield
    except sdk.ClientError as error:
        _raise_refused(error, subject, rights)
    except _NO_CREDENTIALS as error:
        raise SourceAuthError(
            f"there are no usable AWS credentials: {shown(str(error), 200)} (tried: {CHAIN})",
            subject=subject,
            hint="set AWS_PROFILE, `aws sso login`, or give this machine a role" + _needed(rights),
        ) from error
    except sdk.SSLError as error:
        raise SourceUnavailable(
            "the server's certificate is not trusted",
            subject=subject,
            hint=f"if its authority is your own, name a PEM file with it in {VARIABLE}",
        ) from error
    except (sdk.HTTPClientError, sdk.ConnectionError, sdk.ResponseStreamingError) as error:
        raise SourceUnavailable(
            f"the server does not answer ({type(error).__name__})",
            subject=subject,
            hint="is it up, and reachable from here (DNS, firewall, HTTPS_PROXY)? Is the region right?",
        ) from error
    except (ResponseParserError, KeyError) as error:
        raise SourceError(
            f"the server answers something that S3 does not ({type(error).__name__})",
            subject=subject,
            hint="is `endpoint` the address of another service?",
        ) from error
    except (sdk.BotoCoreError, ValueError, OSError) as error:
        raise SourceError(
            f"cannot be asked for: {shown(str(error), 200)}",
            subject=subject,
            hint="look at AWS_* of the environment, and at ~/.aws/config",
        ) from error


def code_of(error: sdk.ClientError) -> str:
    """Return what a service calls its refusal, or its status where it says nothing else."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    return code if _CODE.fullmatch(code) else "an error without a name"


def _raise_refused(error: sdk.ClientError, subject: str, rights: str) -> NoReturn:
    code = code_of(error)
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _GONE:
        raise RevisionNotFound(
            f"the store no longer has what was listed ({code}): deleted or replaced",
            subject=subject,
            hint="restore it; or `build.py lock NAME` takes what is there now",
        ) from error
    if code in _MISSING:
        raise SourceNotFound(
            f"there is no such {'bucket' if code == 'NoSuchBucket' else 'model package'}",
            subject=subject,
            hint="a typing error, or another account, region or endpoint?",
        ) from error
    if code in _EXPIRED:
        raise SourceAuthError(
            f"the AWS credentials have expired ({code})",
            subject=subject,
            hint=f"get new ones: `aws sso login`, or another session (tried: {CHAIN})",
        ) from error
    if code in _WRONG_KEYS:
        raise SourceAuthError(
            f"the AWS credentials are wrong ({code})", subject=subject, hint=f"they are the first of: {CHAIN}"
        ) from error
    if code in _DENIED:
        # Its text names the caller and the right that is missing, and never a key.
        said = shown(str(error.response.get("Error", {}).get("Message", "")), 300)
        raise SourceAuthError(
            f"the AWS credentials may not do this ({code}: {said})",
            subject=subject,
            hint="S3 says so, too, of what does not exist to whoever may not list" + _needed(rights),
        ) from error
    if code == "InvalidObjectState":
        raise SourceError(
            "is archived (Glacier): it cannot be read", subject=subject, hint="restore it in S3 first"
        ) from error
    if code == "RequestTimeTooSkewed":
        raise SourceError("this machine's clock is wrong", subject=subject, hint="set it: NTP") from error
    if code in _PASSING or status >= 500 or status == 429:
        raise SourceUnavailable(f"the service is busy ({code})", subject=subject, hint="try again") from error
    raise SourceError(
        f"the service answers {code}", subject=subject, hint="are the address, region and endpoint right?"
    ) from error


def _needed(rights: str) -> str:
    return f"; needed: {rights}" if rights else ""
