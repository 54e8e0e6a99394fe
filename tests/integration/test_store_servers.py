"""The stores that tests start are real enough: what is written is read back, and what is wrong is refused."""

from __future__ import annotations

import io
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError
from azure.storage.blob import ContainerClient
from botocore.exceptions import ClientError
from google.api_core.exceptions import GoogleAPICallError
from google.auth.exceptions import RefreshError

from tests.servers.azurite_server import ACCOUNT, AzuriteServer
from tests.servers.gcs import GcsServer
from tests.servers.mlflow_server import MLflowRefused, MLflowServer
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


def test_s3_lists_very_many_in_pages(s3_server: S3Server) -> None:
    bucket, client = s3_server.bucket(), s3_server.client(keys=s3_server.reader)
    s3_server.list_many(bucket, "many/ü ", 2500)
    for call, key in (("list_object_versions", "Versions"), ("list_objects_v2", "Contents")):
        pages = list(client.get_paginator(call).paginate(Bucket=bucket, Prefix="many/"))
        assert [len(page[key]) for page in pages] == [1000, 1000, 500]
        assert pages[2][key][-1]["Key"] == "many/ü 002499.bin"


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


# --- Google Cloud Storage ---------------------------------------------------------------------------


def _gcs_status(ask: Callable[[], Any]) -> int:
    with pytest.raises(GoogleAPICallError) as caught:
        ask()
    return int(caught.value.code or 0)


def test_gcs_keeps_generations_and_refuses_what_is_gone(gcs_server: GcsServer) -> None:
    name = gcs_server.bucket()
    with gcs_server.client() as owner, gcs_server.client(gcs_server.reader) as reader:
        written = owner.bucket(name).blob(KEY)
        written.upload_from_string(b"first", checksum="crc32c")  # multipart
        first = written.generation
        large = owner.bucket(name).blob("large", chunk_size=256 << 10)
        large.upload_from_file(io.BytesIO(bytes(600_000)), size=600_000)  # resumable
        assert (large.size, bool(large.md5_hash)) == (600_000, True)
        second = int(gcs_server.put(name, KEY, b"second"))
        gcs_server.put_composed(name, "composed", [b"1", b"2"])
        found = {blob.name: blob for blob in reader.list_blobs(name, page_size=1)}
        assert found[KEY].generation == second
        assert (found["composed"].md5_hash, bool(found["composed"].crc32c)) == (None, True)
        kept = {blob.generation for blob in reader.list_blobs(name, prefix=KEY, versions=True)}
        assert kept == {first, second}
        bucket = reader.bucket(name)
        assert bucket.blob(KEY, generation=first).download_as_bytes(start=1, end=2) == b"ir"
        live = bucket.blob(KEY)
        assert _gcs_status(lambda: live.download_as_bytes(if_generation_match=first)) == 412
        gcs_server.delete(name, KEY, str(first))
        assert _gcs_status(lambda: bucket.blob(KEY, generation=first).download_as_bytes()) == 404
        assert _gcs_status(lambda: list(reader.list_blobs("no-such-bucket"))) == 404
        assert _gcs_status(lambda: live.upload_from_string(b"third")) == 403


def test_gcs_refuses_wrong_keys_and_ended_addresses(gcs_server: GcsServer) -> None:
    name = gcs_server.bucket()
    gcs_server.put(name, KEY, b"content")
    with gcs_server.client(gcs_server.stranger) as stranger, gcs_server.client(gcs_server.wrong) as wrong:
        assert _gcs_status(lambda: list(stranger.list_blobs(name))) == 403
        with pytest.raises(RefreshError, match="invalid_grant"):
            list(wrong.list_blobs(name))
    with gcs_server.client(gcs_server.reader) as reader:
        asked = {"version": "v4", "api_access_endpoint": gcs_server.endpoint}
        address = reader.bucket(name).blob(KEY).generate_signed_url(expiration=3600, **asked)
        short = reader.bucket(name).blob(KEY).generate_signed_url(expiration=1, **asked)
    assert _get(address) == (200, b"content")
    assert _get(address.replace("Expires=3600", "Expires=7200"))[0] == 403
    time.sleep(2.1)
    assert _get(short)[0] == 400  # ExpiredToken, as the service says


# --- Azure ----------------------------------------------------------------------------------------------


def _azure_status(ask: Callable[[], Any]) -> int | None:
    with pytest.raises(HttpResponseError) as caught:
        ask()
    return caught.value.status_code


def _blobs(server: AzuriteServer, name: str, credential: Any = None) -> ContainerClient:
    return server.client(credential).get_container_client(name)


def test_azure_keeps_etags_and_refuses_what_is_replaced(azure_server: AzuriteServer) -> None:
    name = azure_server.container()
    first = azure_server.put(name, KEY, b"first")
    second = azure_server.put(name, KEY, b"second")
    azure_server.put_blocks(name, "blocks", [b"1" * 1000, b"2"])
    with _blobs(azure_server, name) as container:
        found = {blob.name: blob for blob in container.list_blobs()}
        assert f'"{found[KEY].etag}"' == second != first
        assert found[KEY].content_settings.content_md5
        assert found["blocks"].size == 1001
        assert found["blocks"].content_settings.content_md5 is None
        blob = container.get_blob_client(KEY)
        assert blob.download_blob(offset=1, length=2).readall() == b"ec"
        same = MatchConditions.IfNotModified
        assert _azure_status(lambda: blob.download_blob(etag=first, match_condition=same)) == 412
        assert _azure_status(container.get_blob_client("no").download_blob) == 404
        azure_server.delete(name, KEY)
        assert _azure_status(blob.download_blob) == 404
    with _blobs(azure_server, "no-such-container") as container:
        assert _azure_status(lambda: list(container.list_blobs())) == 404


def test_azure_refuses_wrong_keys_and_ended_signatures(azure_server: AzuriteServer) -> None:
    name = azure_server.container()
    wrong = {"account_name": ACCOUNT, "account_key": azure_server.wrong_key}
    for credential in (wrong, azure_server.sas(name, seconds=-60), azure_server.sas("other")):
        with _blobs(azure_server, name, credential) as container:
            # The service answers 403 as well, by another name for a wrong key
            assert _azure_status(lambda client=container: list(client.list_blobs())) == 403  # type: ignore[misc]
    with _blobs(azure_server, name, azure_server.sas(name)) as container:
        assert list(container.list_blobs()) == []
        assert _azure_status(lambda: container.upload_blob("new", b"")) == 403  # it may read only


def test_azure_takes_bearer_tokens_and_their_signatures(azure_tls_server: AzuriteServer) -> None:
    name = azure_tls_server.container()
    azure_tls_server.put(name, KEY, b"content")
    for credential in (azure_tls_server.credential(), azure_tls_server.delegation_sas(name)):
        with _blobs(azure_tls_server, name, credential) as container:
            assert container.download_blob(KEY).readall() == b"content"
    with _blobs(azure_tls_server, name, azure_tls_server.credential(seconds=-60)) as container:
        assert _azure_status(lambda: container.download_blob(KEY)) == 403  # the service: 401


# --- MLflow ---------------------------------------------------------------------------------------------


def _mlflow_status(ask: Callable[[], Any]) -> int:
    with pytest.raises(MLflowRefused) as caught:
        ask()
    return caught.value.status


def test_mlflow_keeps_versions_aliases_and_artifacts(mlflow_server: MLflowServer) -> None:
    model, reader = "pets é", mlflow_server.reader
    first = mlflow_server.register(model, {"weights 1.bin": b"first", "tokenizer/vocab.json": b""})
    second = mlflow_server.register(model, {"weights 1.bin": b"second"})
    mlflow_server.alias(model, "champion", first)
    mlflow_server.stage(model, second, "Production")
    alias = f"registered-models/alias?name={quote(model)}&alias=champion"
    found = mlflow_server.ask(alias, user=reader)["model_version"]
    assert (found["version"], found["current_stage"]) == (first, "None")
    mlflow_server.alias(model, "champion", second)
    found = mlflow_server.ask(alias, user=reader)["model_version"]
    assert (found["version"], found["current_stage"]) == (second, "Production")
    assert mlflow_server.artifact(model, second, "weights 1.bin").read_bytes() == b"second"
    path = found["source"].removeprefix("mlflow-artifacts:/")
    artifacts = "/api/2.0/mlflow-artifacts/artifacts"
    assert b"weights 1.bin" in mlflow_server.request("GET", f"{artifacts}?path={path}", user=reader)
    content = mlflow_server.request("GET", f"{artifacts}/{path}/weights%201.bin", user=reader)
    assert content == b"second"
    for user, status in ((mlflow_server.stranger, 403), (mlflow_server.wrong, 401)):
        assert _mlflow_status(lambda user=user: mlflow_server.ask(alias, user=user)) == status  # type: ignore[misc]
        where = f"{artifacts}/{path}/weights%201.bin"
        asked = lambda user=user: mlflow_server.request("GET", where, user=user)  # noqa: B023, E731
        assert _mlflow_status(asked) == status
    renamed = {"name": model, "new_name": "other"}
    assert _mlflow_status(lambda: mlflow_server.ask("registered-models/rename", renamed, reader)) == 403
    mlflow_server.delete_version(model, first)
    gone = f"model-versions/get?name={quote(model)}&version={first}"
    assert _mlflow_status(lambda: mlflow_server.ask(gone)) == 404
