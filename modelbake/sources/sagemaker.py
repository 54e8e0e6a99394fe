"""The source `sagemaker:` and the ARN of a model package's version: what somebody has approved.

    describe_model_package --approved--> where its weights are in S3 --> a store of those objects

Weights are a prefix or one object (read as with s3://), or an archive, `model.tar.gz`. Its members have the
version of the archive in S3 with `!gzip` after it, and no address: a build gets them with its context.

A package that waits for its approval is refused, at `lock` and at every later reading, unless the environment
says MODELBAKE_SAGEMAKER_PENDING=1, for an evaluation before the approval. A rejected one is refused always.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from modelbake.errors import SourceError, SourceGatedError, UsageError
from modelbake.sources.aws import client
from modelbake.sources.aws_errors import translated
from modelbake.sources.kinds import subject_of
from modelbake.sources.s3 import S3Store
from modelbake.sources.s3_objects import OneObject, PackedStore
from modelbake.weightpath import shown

if TYPE_CHECKING:
    from modelbake.config import SourceSpec
    from modelbake.locked import LockedSource
    from modelbake.sources.store import Store

PENDING = "MODELBAKE_SAGEMAKER_PENDING"
_RIGHT = "sagemaker:DescribeModelPackage"


def open_store(spec: SourceSpec | LockedSource) -> Store:
    """Return the place of an approved package's weights. Raises SourceError, UsageError."""
    arn, subject = spec.source.removeprefix("sagemaker:"), subject_of(spec)
    region, resource = arn.split(":")[3], arn.split(":")[5]
    if resource.count("/") != 2:
        group = resource.rpartition("/")[2]
        raise SourceError(
            "names no version; the latest one is another tomorrow",
            subject=subject,
            hint=f"`aws sagemaker list-model-packages --region {region} --model-approval-status Approved"
            f" --model-package-group-name {group}` shows the ARNs: .../{group}/VERSION",
        )
    api = client("sagemaker", subject, region=region)
    with translated(subject, rights=_RIGHT):
        package = api.describe_model_package(ModelPackageName=arn)
    require_approved(str(package.get("ModelApprovalStatus", "")), subject)
    return place_of(package, subject)


def require_approved(status: str, subject: str) -> None:
    """Raise SourceGatedError for a package that may not be used, by its approval status."""
    if (said := os.environ.get(PENDING, "")) not in ("", "1"):
        raise UsageError("is neither 1 nor empty", subject=f"{PENDING}={shown(said)}")
    if status == "Approved" or (said and status == "PendingManualApproval"):
        return
    raise SourceGatedError(
        f"is not approved, its status is {shown(status or 'none')}",
        subject=subject,
        hint="have it approved in the model registry"
        + (f"; for an evaluation before that, set {PENDING}=1" if status == "PendingManualApproval" else ""),
    )


def place_of(package: Mapping[str, Any], subject: str) -> Store:
    """Return the store of a package's weights, as SageMaker describes it. Raises SourceError."""
    containers = package.get("InferenceSpecification", {}).get("Containers", [])
    if len(containers) != 1:
        raise _refused(f"has {len(containers)} containers, and not one", subject)
    container = containers[0]
    if container.get("AdditionalModelDataSources"):
        raise _refused("has additional model data sources", subject)
    packed, kind = "Gzip", "S3Object"  # of a ModelDataUrl
    address, registered = container.get("ModelDataUrl", ""), container.get("ModelDataETag", "")
    if data := container.get("ModelDataSource", {}).get("S3DataSource"):
        address, kind, packed = data["S3Uri"], data["S3DataType"], data["CompressionType"]
        registered = data.get("ETag", "")
        if data.get("ManifestS3Uri"):
            raise _refused("lists its weights in a manifest", subject)
    bucket, _, key = address.removeprefix("s3://").partition("/")
    if not address.startswith("s3://") or not bucket:
        raise _refused("has no weights in S3", subject)
    subject = f"{subject} ({shown(address)})"
    if kind == "S3Prefix":
        return S3Store(subject, bucket, key.rstrip("/"))
    folder, _, name = key.rpartition("/")
    if packed == "Gzip":
        return PackedStore(S3Store(subject, bucket, folder), name, registered.strip('"'))
    return OneObject(subject, bucket, folder, name, registered.strip('"'))


def _refused(what: str, subject: str) -> SourceError:
    return SourceError(
        f"{what}: this toolkit reads packages of one container with its weights in S3",
        subject=subject,
        hint="name the weights themselves: s3://bucket/prefix in `source`",
    )
