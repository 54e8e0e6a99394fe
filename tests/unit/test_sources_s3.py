"""What can be said of S3 and SageMaker without a server; the rest is in tests/integration."""

from __future__ import annotations

import json
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore import exceptions as sdk
from botocore.parsers import ResponseParserError

from modelbake.config import SourceSpec
from modelbake.errors import (
    RevisionNotFound,
    SourceAuthError,
    SourceError,
    SourceGatedError,
    SourceNotFound,
    SourceUnavailable,
    UsageError,
)
from modelbake.locked import LockedFile, LockedModel, LockedSource
from modelbake.sources import require_approved as require_all_approved
from modelbake.sources.aws import client
from modelbake.sources.aws_errors import translated
from modelbake.sources.kinds import open_store
from modelbake.sources.s3 import S3Store, region_of
from modelbake.sources.s3_objects import OneObject, PackedStore
from modelbake.sources.sagemaker import PENDING, place_of, require_approved
from modelbake.trust import VARIABLE
from tests.servers.hub_certificate import make_certificate
from tests.servers.web import WebServer

SECRET = "canaryCANARYcanaryCANARYcanaryCANARYcana"


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Keys that are used with nobody, and no other file or address of credentials."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA0000000000000000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.delenv(VARIABLE, raising=False)
    yield


def refused(code: str, status: int = 400, message: str = "no") -> sdk.ClientError:
    answer: Any = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return sdk.ClientError(answer, "GetObject")


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (refused("NoSuchBucket", 404), SourceNotFound, "bucket"),
        (refused("ValidationException"), SourceNotFound, "model package"),
        (refused("NoSuchVersion", 404), RevisionNotFound, "build.py lock NAME"),
        (refused("PreconditionFailed", 412), RevisionNotFound, "replaced"),
        (refused("AccessDenied", 403, "no identity-based policy"), SourceAuthError, "identity-based policy"),
        (refused("AccessDenied", 403), SourceAuthError, "s3:GetObject"),
        (refused("ExpiredToken"), SourceAuthError, "expired"),
        (refused("SignatureDoesNotMatch", 403, f"canonical {SECRET}"), SourceAuthError, "wrong"),
        (refused("RequestTimeTooSkewed", 403), SourceError, "clock"),
        (refused("InvalidObjectState", 403), SourceError, "Glacier"),
        (refused("SlowDown", 503), SourceUnavailable, "busy"),
        (refused("Whatever", 500), SourceUnavailable, "busy"),
        (refused("PermanentRedirect", 301), SourceError, "PermanentRedirect"),
        (refused(f"<{SECRET}>"), SourceError, "without a name"),
        (sdk.NoCredentialsError(), SourceAuthError, "instance metadata"),
        (sdk.ProfileNotFound(profile="team"), SourceAuthError, "team"),
        (sdk.UnauthorizedSSOTokenError(), SourceAuthError, "aws sso login"),
        (sdk.EndpointConnectionError(endpoint_url="http://x", error="e"), SourceUnavailable, "Connection"),
        (sdk.SSLError(endpoint_url="https://x", error="e"), SourceUnavailable, VARIABLE),
        (sdk.ParamValidationError(report="bucket"), SourceError, "bucket"),
        (ValueError("Invalid endpoint: x"), SourceError, "endpoint"),
        (FileNotFoundError(2, "no such file", "ca.pem"), SourceError, "ca.pem"),
        (ResponseParserError("Unable to parse response"), SourceError, "another service"),
        (KeyError("ETag"), SourceError, "another service"),
    ],
)
def test_errors_of_the_sdk_are_ours(error: Exception, kind: type[SourceError], said: str) -> None:
    with pytest.raises(kind) as caught, translated("llama: s3://b/p", rights="s3:GetObject"):
        raise error
    assert type(caught.value) is kind
    assert said in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.subject == "llama: s3://b/p"


def test_every_error_of_the_sdk_is_one_of_ours() -> None:
    names = [name for name in vars(sdk) if isinstance(vars(sdk)[name], type)]
    kinds = [vars(sdk)[name] for name in names if issubclass(vars(sdk)[name], sdk.BotoCoreError)]
    assert len(kinds) > 50
    for kind in kinds:
        error = kind.__new__(kind)
        Exception.__init__(error, "text")
        with pytest.raises(SourceError), translated("here", rights=""):
            raise error


class Answering:
    """A client whose bucket says something of its region."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        self._answer = answer

    def head_bucket(self, **_: str) -> Any:
        return self._answer()


def test_the_region_of_a_bucket_is_told_by_refusals_too() -> None:
    headers = {"ResponseMetadata": {"HTTPHeaders": {"x-amz-bucket-region": "eu-west-3"}}}

    def refuse() -> Any:
        raise sdk.ClientError({"Error": {"Code": "403", "Message": ""}, **headers}, "HeadBucket")

    assert region_of(Answering(lambda: headers), "b") == "eu-west-3"
    assert region_of(Answering(refuse), "b") == "eu-west-3"
    assert region_of(Answering(dict), "b") == ""


def test_addresses_demand_a_version_and_hide_themselves() -> None:
    store = open_store(
        SourceSpec(name="m", source="s3://bucket/models/llama 3", server="https://r2.example.com")
    )
    versioned = store.address(LockedFile("a+ü%.bin", 3, "", "V1"))
    plain = store.address(LockedFile("a", 3, "", '"0123"'))
    assert versioned is not None
    assert plain is not None
    assert versioned.url.startswith("https://r2.example.com/bucket/models/llama%203/a%2B%C3%BC%25.bin?")
    assert "versionId=V1" in versioned.url
    assert versioned.headers == {}
    assert plain.headers == {"If-Match": '"0123"'}
    assert "if-match" in plain.url, "it is signed: without it the address is worth nothing"
    assert "Signature" not in repr(versioned)
    assert SECRET not in versioned.url


def test_clients_are_shared_as_long_as_the_surroundings_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    first = client("s3", "here", endpoint="https://a.example.com")
    assert client("s3", "here", endpoint="https://a.example.com") is first
    assert client("s3", "here", endpoint="https://b.example.com") is not first
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x" * 40)
    assert client("s3", "here", endpoint="https://a.example.com") is not first


def test_authorities_of_the_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none.pem"))
    with pytest.raises(SourceError, match="cannot be used"):
        client("s3", "here")
    (tmp_path / "bad.pem").write_text("nothing")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "bad.pem"))
    with pytest.raises(UsageError, match=r"bad\.pem"):
        client("s3", "here")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"<html><p>Log in<br></html>", "busy"),  # to the SDK a page with 200 is an error of the server's
        (
            b"<ListVersionsResult><Version><Key>a/x</Key></Version></ListVersionsResult>",
            "another service",
        ),
    ],
)
def test_an_endpoint_that_is_another_service(answer: bytes, said: str) -> None:
    with WebServer({"bucket": answer}) as web:
        store = open_store(SourceSpec(name="m", source="s3://bucket/a", server=web.url))
        with pytest.raises(SourceError, match=said) as caught:
            list(store.listing())
        assert SECRET not in str(caught.value)


class NoBucket(BaseHTTPRequestHandler):
    """S3 without a bucket."""

    def do_GET(self) -> None:
        body = b"<Error><Code>NoSuchBucket</Code><Message>none</Message></Error>"
        self.send_response(404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_store_behind_an_authority_of_the_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.cert, made.key)
    with ThreadingHTTPServer(("127.0.0.1", 0), NoBucket) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        spec = SourceSpec(name="m", source="s3://bucket/a", server=f"https://127.0.0.1:{server.server_port}")
        monkeypatch.setenv(VARIABLE, str(made.authority))
        with pytest.raises(SourceNotFound):
            list(open_store(spec).listing())
        monkeypatch.delenv(VARIABLE)
        with pytest.raises(SourceUnavailable, match=VARIABLE):
            list(open_store(spec).listing())
        server.shutdown()


def test_a_role_that_nobody_gives_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelbake.sources.aws._LONGEST_SEARCH", 0.3)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/credentials"
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", address)
        for subject in ("here", "there"):
            with pytest.raises(SourceAuthError, match=f"{subject}: .* not found within"):
                client("s3", subject)
        silent.setblocking(False)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()  # it was asked once


# --- SageMaker ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "status", "fine"),
    [
        ("", "Approved", True),
        ("1", "Approved", True),
        ("1", "PendingManualApproval", True),
        ("", "PendingManualApproval", False),
        ("1", "Rejected", False),
        ("", "", False),
    ],
)
def test_approval(monkeypatch: pytest.MonkeyPatch, said: str, status: str, fine: bool) -> None:
    monkeypatch.setenv(PENDING, said)
    if fine:
        require_approved(status, "here")
    else:
        with pytest.raises(SourceGatedError, match="not approved"):
            require_approved(status, "here")


def described(*containers: dict[str, Any]) -> dict[str, Any]:
    return {"InferenceSpecification": {"Containers": list(containers)}}


def source(kind: str, packed: str, uri: str = "s3://bucket/a/b", **more: str) -> dict[str, Any]:
    data = {"S3Uri": uri, "S3DataType": kind, "CompressionType": packed, **more}
    return {"ModelDataSource": {"S3DataSource": data}}


@pytest.mark.parametrize(
    ("container", "kind", "prefix"),
    [
        ({"ModelDataUrl": "s3://bucket/a/model.tar.gz"}, PackedStore, None),
        (source("S3Object", "Gzip"), PackedStore, None),
        (source("S3Object", "None"), OneObject, "a/"),
        (source("S3Prefix", "None", "s3://bucket/a/b/"), S3Store, "a/b/"),
    ],
)
def test_where_a_package_has_its_weights(container: dict[str, Any], kind: type, prefix: str | None) -> None:
    store = place_of(described(container), "here")
    assert type(store) is kind
    assert store.subject.startswith("here (s3://bucket/a/")
    if isinstance(store, S3Store):
        assert store._prefix == prefix


@pytest.mark.parametrize(
    ("package", "said"),
    [
        ({}, "0 containers"),
        (described({}, {}), "2 containers"),
        (described({"Image": "x"}), "no weights in S3"),
        (described({"ModelDataUrl": "https://example.com/model.tar.gz"}), "no weights in S3"),
        (described(source("S3Prefix", "None", ManifestS3Uri="s3://b/m")), "manifest"),
        (described({"AdditionalModelDataSources": [{}]}), "additional"),
    ],
)
def test_packages_of_another_shape(package: dict[str, Any], said: str) -> None:
    with pytest.raises(SourceError, match=said) as caught:
        place_of(package, "here")
    assert "s3://bucket/prefix" in str(caught.value)


class Registry(BaseHTTPRequestHandler):
    """SageMaker's registry with one package, whose status the test sets."""

    status = "Approved"

    def do_POST(self) -> None:
        body = json.dumps({**described(source("S3Prefix", "None")), "ModelApprovalStatus": self.status})
        self.send_response(200)
        self.send_header("content-type", "application/x-amz-json-1.1")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


def test_an_approval_is_asked_for_where_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    arn = "arn:aws:sagemaker:eu-central-1:123456789012:model-package/pets/1"
    spec = SourceSpec(name="m", source=f"sagemaker:{arn}")
    locked = LockedModel.join([LockedSource.at(spec, "0" * 40, [LockedFile("a", 1, "ab" * 32, "V1")])])
    with ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER", f"http://127.0.0.1:{server.server_port}")
        require_all_approved(locked)
        monkeypatch.setattr(Registry, "status", "Rejected")
        with pytest.raises(SourceGatedError, match="Rejected"):
            require_all_approved(locked)
        server.shutdown()
