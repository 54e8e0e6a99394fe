"""The process of `tests.servers.s3.S3Server`: moto's server behind a check of signatures and rights.

Run by the Python of `.venv/stores`, never imported by the toolkit's own. moto takes any key, and its own
check of rights cannot read signed URLs. This front does what the real service does before it looks at a
request: Signature Version 4 in the header or in the query, a session's token and its end, an address's end,
and what an identity may do. https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-authenticating-requests.html

``python -m tests.servers.aws_process HOST PORT IDENTITIES``
The identities are a JSON file, read again whenever it changes:
``{KEY_ID: {"secret": ..., "token": ..., "expires": seconds since 1970 or null, "allow": [action, ...]}}``.
An action is "*", "s3:Read" (an object), "s3:List" (a bucket), "s3:ListVersions" (its versions),
"sagemaker:Read" or "sts:*".
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import io
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote
from xml.sax.saxutils import escape

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import run_simple

from tests.servers.aws_numbered import Numbered

Environ = dict[str, Any]
_SKEW = 15 * 60  # seconds that a request's date may be off
# What each refusal is called: in S3's XML, and in the JSON of the other services.
_JSON_NAMES = {
    "InvalidAccessKeyId": "UnrecognizedClientException",
    "SignatureDoesNotMatch": "InvalidSignatureException",
    "ExpiredToken": "ExpiredTokenException",
    "InvalidToken": "UnrecognizedClientException",
    "AccessDenied": "AccessDeniedException",
    "RequestTimeTooSkewed": "InvalidSignatureException",
}


class Refused(Exception):
    """A request that the service does not look at any further."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Identities:
    """The keys that the test has made."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = -1
        self._known: dict[str, dict[str, Any]] = {}

    def get(self, key_id: str) -> dict[str, Any] | None:
        """The identity of a key, None if there is none."""
        stamp = self._path.stat().st_mtime_ns
        if stamp != self._stamp:
            self._known, self._stamp = json.loads(self._path.read_text()), stamp
        return self._known.get(key_id)


class Front:
    """A WSGI application before moto's."""

    def __init__(self, application: Callable[..., Iterable[bytes]], identities: Identities) -> None:
        self._application = application
        self._identities = identities
        self._numbered: dict[str, Numbered] = {}

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/moto-api/fill":
            asked = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
            self._numbered[asked["bucket"]] = Numbered(**asked)
            return _plain(b"", start_response)
        if environ["PATH_INFO"].startswith("/moto-api"):
            return self._application(environ, start_response)  # what a test asks of moto itself
        try:
            may_hear = self._check(environ)
            bucket = environ["PATH_INFO"].strip("/")
            query = dict(parse_qsl(environ["QUERY_STRING"], keep_blank_values=True))
            if bucket in self._numbered and self._numbered[bucket].answers(query):
                return _plain(self._numbered[bucket].listing(query), start_response)
            return self._application(
                environ, start_response if may_hear else _unknown_is_denied(start_response)
            )
        except Refused as refused:
            return _answer(refused, environ, start_response)

    def _check(self, environ: Environ) -> bool:
        raw_path, _, raw_query = environ["RAW_URI"].partition("?")
        query = parse_qsl(raw_query, keep_blank_values=True)
        given = _from_query(dict(query)) or _from_header(environ)
        if given is None:
            raise Refused(403, "AccessDenied", "Access Denied")  # nobody's request; no bucket here is public
        key_id, date, region, service, _ = given["credential"].split("/", 4)
        identity = self._identities.get(key_id)
        if identity is None:
            raise Refused(
                403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."
            )
        payload = given["payload"]
        if payload is None:
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            environ["wsgi.input"] = io.BytesIO(body)
            payload = hashlib.sha256(body).hexdigest()
        canonical = "\n".join(
            [
                environ["REQUEST_METHOD"],
                raw_path if service == "s3" else quote(raw_path, safe="/-_.~"),
                _canonical_query(query),
                *[f"{name}:{_header(environ, name)}" for name in given["signed"].split(";")],
                "",
                given["signed"],
                payload,
            ]
        )
        scope = f"{date}/{region}/{service}/aws4_request"
        hashed = hashlib.sha256(canonical.encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{given['time']}\n{scope}\n{hashed}"
        key = b"AWS4" + identity["secret"].encode()
        for part in (date, region, service, "aws4_request", text):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        if not hmac.compare_digest(key.hex(), given["signature"]):
            raise Refused(
                403,
                "SignatureDoesNotMatch",
                "The request signature we calculated does not match the signature you provided. "
                "Check your key and signing method.",
            )
        if (given["token"] or "") != identity["token"]:
            raise Refused(400, "InvalidToken", "The provided token is malformed or otherwise invalid.")
        if identity["expires"] is not None and identity["expires"] <= time.time():
            raise Refused(400, "ExpiredToken", "The provided token has expired.")
        _check_time(given)
        return _check_rights(environ, raw_path, service, identity["allow"])


def _plain(body: bytes, start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]


def _unknown_is_denied(start_response: Callable[..., Any]) -> Callable[..., Any]:
    """Whoever may not list a bucket is not told that an object is missing: 403, not 404, as in S3."""

    def start(status: str, *rest: Any) -> Any:
        if status.startswith("404"):
            raise Refused(403, "AccessDenied", "Access Denied")
        return start_response(status, *rest)

    return start


def _from_query(query: Mapping[str, str]) -> dict[str, Any] | None:
    if "X-Amz-Signature" not in query:
        return None
    return {
        "credential": query["X-Amz-Credential"],
        "signed": query["X-Amz-SignedHeaders"],
        "signature": query["X-Amz-Signature"],
        "time": query["X-Amz-Date"],
        "lifetime": int(query["X-Amz-Expires"]),
        "token": query.get("X-Amz-Security-Token"),
        "payload": "UNSIGNED-PAYLOAD",
    }


def _from_header(environ: Environ) -> dict[str, Any] | None:
    scheme, _, rest = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme != "AWS4-HMAC-SHA256":
        return None
    parts = dict(part.strip().split("=", 1) for part in rest.split(","))
    return {
        "credential": parts["Credential"],
        "signed": parts["SignedHeaders"],
        "signature": parts["Signature"],
        "time": environ["HTTP_X_AMZ_DATE"],
        "lifetime": None,
        "token": environ.get("HTTP_X_AMZ_SECURITY_TOKEN"),
        "payload": environ.get("HTTP_X_AMZ_CONTENT_SHA256"),
    }


def _canonical_query(query: Iterable[tuple[str, str]]) -> str:
    pairs = [
        (quote(name, safe="-_.~"), quote(value, safe="-_.~"))
        for name, value in query
        if name != "X-Amz-Signature"
    ]
    return "&".join(f"{name}={value}" for name, value in sorted(pairs))


def _header(environ: Environ, name: str) -> str:
    key = name.upper().replace("-", "_")
    value = environ.get(key if key in {"CONTENT_TYPE", "CONTENT_LENGTH"} else f"HTTP_{key}", "")
    return " ".join(value.split())


def _check_time(given: Mapping[str, Any]) -> None:
    made = datetime.datetime.strptime(given["time"], "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.UTC)
    age = time.time() - made.timestamp()
    if given["lifetime"] is None and abs(age) > _SKEW:
        message = "The difference between the request time and the current time is too large."
        raise Refused(403, "RequestTimeTooSkewed", message)
    if given["lifetime"] is not None and age > given["lifetime"]:
        raise Refused(403, "AccessDenied", "Request has expired")


def _check_rights(environ: Environ, raw_path: str, service: str, allow: list[str]) -> bool:
    """Refuse what the identity may not do. Returns whether it may hear that an object is missing."""
    reads = environ["REQUEST_METHOD"] in {"GET", "HEAD"}
    if service == "s3":
        _, _, key = raw_path.strip("/").partition("/")
        versions = "versions" in environ["RAW_URI"].partition("?")[2].replace("=", "").split("&")
        listing = "s3:ListVersions" if versions else "s3:List"
        action = ("s3:Read" if key else listing) if reads else "s3:Write"
    elif service == "sagemaker":
        name = environ.get("HTTP_X_AMZ_TARGET", "").rpartition(".")[2]
        action = "sagemaker:Read" if name.startswith(("Describe", "List")) else "sagemaker:Write"
    else:
        action = f"{service}:*"
    if not {"*", action} & set(allow):
        raise Refused(403, "AccessDenied", "Access Denied")
    return bool({"*", "s3:List"} & set(allow)) or service != "s3"


def _answer(refused: Refused, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
    # The rest of a body that is not read would be taken for the next request of the connection.
    left = int(environ.get("CONTENT_LENGTH") or 0)
    while left > 0 and (chunk := environ["wsgi.input"].read(min(left, 1 << 16))):
        left -= len(chunk)
    if "HTTP_X_AMZ_TARGET" in environ:
        body = json.dumps({"__type": _JSON_NAMES[refused.code], "message": refused.message})
        status, media_type = 400, "application/x-amz-json-1.1"
    else:
        status, media_type = refused.status, "application/xml"
        body = f"<Error><Code>{refused.code}</Code><Message>{escape(refused.message)}</Message></Error>"
        if environ.get("CONTENT_TYPE", "").startswith("application/x-www-form-urlencoded"):
            body = f"<ErrorResponse>{body}<RequestId>0</RequestId></ErrorResponse>"  # STS
        body = f'<?xml version="1.0" encoding="UTF-8"?>\n{body}'
    data = b"" if environ["REQUEST_METHOD"] == "HEAD" else body.encode()
    headers = [("Content-Type", media_type), ("Content-Length", str(len(data)))]
    start_response(f"{status} Refused", headers)
    return [data]


def main() -> None:
    """Serve until killed."""
    host, port, identities = sys.argv[1:]
    moto = DomainDispatcherApplication(create_backend_app)
    front = Front(moto, Identities(Path(identities)))
    run_simple(host, int(port), front, threaded=True, request_handler=MotoRequestHandler)


if __name__ == "__main__":
    main()
