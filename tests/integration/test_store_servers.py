"""The stores that tests start are real enough: what is written is read back, and what is wrong is refused."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.servers.s3 import READ, S3Server

KEY = "llama 3/modèl +~%&.bin"


# --- S3 -----------------------------------------------------------------------------------------------


def _s3_refusal(ask: Callable[[], Any]) -> tuple[int, str]:
    with pytest.raises(ClientError) as caught:
        ask()
    answer = caught.value.response
    return answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Code"]


def test_s3_keeps_versions_and_refuses_what_is_gone(s3_server: S3Server) -> None:
    bucket, reader = s3_server.bucket(), s3_server.client(keys=s3_server.reader)
    first = s3_server.put(bucket, KEY, b"first", sha256=True)
    second = s3_server.put(bucket, KEY, b"second")
    assert reader.get_object(Bucket=bucket, Key=KEY)["VersionId"] == second
    old = reader.get_object(Bucket=bucket, Key=KEY, VersionId=first, Range="bytes=1-2")
    assert old["Body"].read() == b"ir"
    head = reader.head_object(Bucket=bucket, Key=KEY, VersionId=first, ChecksumMode="ENABLED")
    assert head["ChecksumSHA256"]
    s3_server.put_parts(bucket, "parts", [bytes(5 << 20), b"end"])
    assert reader.head_object(Bucket=bucket, Key="parts")["ETag"].endswith('-2"')
    s3_server.delete(bucket, KEY, first)
    gone = _s3_refusal(lambda: reader.get_object(Bucket=bucket, Key=KEY, VersionId=first))
    assert gone == (404, "NoSuchVersion")
    assert _s3_refusal(lambda: reader.get_object(Bucket=bucket, Key="no")) == (404, "NoSuchKey")
    assert _s3_refusal(lambda: reader.list_objects_v2(Bucket="no-such-bucket")) == (404, "NoSuchBucket")


@pytest.mark.parametrize(
    ("who", "refusal"),
    [
        ("stranger", (403, "AccessDenied")),
        ("blind", (403, "AccessDenied")),
        ("expired", (400, "ExpiredToken")),
        ("wrong_secret", (403, "SignatureDoesNotMatch")),
        ("unknown", (403, "InvalidAccessKeyId")),
    ],
)
def test_s3_refuses_wrong_keys(s3_server: S3Server, who: str, refusal: tuple[int, str]) -> None:
    bucket = s3_server.bucket()
    client = s3_server.client(keys=getattr(s3_server, who))
    assert _s3_refusal(lambda: client.list_object_versions(Bucket=bucket)) == refusal
    assert _s3_refusal(lambda: client.get_object(Bucket=bucket, Key="missing")) == refusal
    s3_server.client(keys=s3_server.reader).list_object_versions(Bucket=bucket)  # control


def test_s3_signed_addresses_end(s3_server: S3Server) -> None:
    bucket, session = s3_server.bucket(), s3_server.session(READ, seconds=3600)
    version = s3_server.put(bucket, KEY, b"content")
    where = {"Bucket": bucket, "Key": KEY, "VersionId": version}
    client = s3_server.client(keys=session)
    address = client.generate_presigned_url("get_object", Params=where, ExpiresIn=3600)
    short = client.generate_presigned_url("get_object", Params=where, ExpiresIn=1)
    assert _get(address) == (200, b"content")
    assert _get(address.replace("X-Amz-Expires=3600", "X-Amz-Expires=7200"))[0] == 403
    time.sleep(2.1)
    assert b"Request has expired" in _get(short)[1]
    s3_server.expire(session)
    assert _get(address)[0] == 400  # ExpiredToken


def _get(address: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:  # noqa: S310
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_sagemaker_keeps_approvals(s3_server: S3Server) -> None:
    package = s3_server.model_package("pets", "s3://models/pets.tar.gz", "PendingManualApproval")
    client = s3_server.client("sagemaker", s3_server.reader)

    def approval() -> str:
        return str(client.describe_model_package(ModelPackageName=package)["ModelApprovalStatus"])

    assert approval() == "PendingManualApproval"
    s3_server.approve(package)
    assert approval() == "Approved"
    missing = _s3_refusal(lambda: client.describe_model_package(ModelPackageName=f"{package}9"))
    assert missing == (400, "ValidationException")
    denied = _s3_refusal(lambda: client.update_model_package(ModelPackageArn=package))
    assert denied == (400, "AccessDeniedException")
    expired = s3_server.client("sagemaker", s3_server.expired)
    assert _s3_refusal(expired.list_model_packages) == (400, "ExpiredTokenException")
