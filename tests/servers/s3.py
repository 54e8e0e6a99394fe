"""S3, SageMaker and STS as a process: moto's server behind `aws_process`, which checks keys and rights.

    with S3Server(folder) as s3:
        bucket = s3.bucket()
        version = s3.put(bucket, "llama 3/model.safetensors", data)
        environment = s3.environment_for(s3.reader)   # what the toolkit's process needs

Differs from the real service: everything is in memory; one region; addresses are path style; no bucket
policies, no public buckets (rights are the identity's); an `AccessDenied` does not say which policy is
missing; every answer closes its connection; STS names every caller `user/moto`.
"""

from __future__ import annotations

import json
import secrets
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from tests.servers.store_process import ROOT, STORES, StoreProcess

REGION = "eu-central-1"
READ = ("s3:Read", "s3:List", "s3:ListVersions", "sagemaker:Read", "sts:*")


@dataclass(frozen=True)
class AwsKeys:
    """What an SDK signs with. The session's token is empty for a user's own key."""

    key_id: str
    secret: str = field(repr=False)
    token: str = field(default="", repr=False)


class S3Server(StoreProcess):
    """Some identities from the beginning, more by `identity`."""

    name = "s3"
    ready_path = "/moto-api/data.json"

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        super().__init__(folder, host)
        self._identities: dict[str, dict[str, Any]] = {}
        self.owner = self.identity(["*"])
        self.reader = self.identity(READ)
        self.blind = self.identity(["s3:Read"])  # may read objects and not list buckets
        self.unversed = self.identity(["s3:Read", "s3:List"])  # may not list versions
        self.stranger = self.identity([])  # a key that is known, and may do nothing
        self.expired = self.session(READ, seconds=-60)
        self.wrong_secret = AwsKeys(self.reader.key_id, secrets.token_hex(20))  # SignatureDoesNotMatch
        self.unknown = AwsKeys("AKIA" + "UNKNOWN0" * 2, secrets.token_hex(20))  # InvalidAccessKeyId

    def command(self) -> list[str]:
        module = "tests.servers.aws_process"
        return [str(STORES / "bin/python"), "-m", module, self.host, str(self.port), str(self._file)]

    def environment(self) -> Mapping[str, str]:
        return {"PYTHONPATH": str(ROOT)}

    def prepare(self) -> None:
        self._write()

    # --- identities -----------------------------------------------------------------------------

    def identity(self, allow: Sequence[str]) -> AwsKeys:
        """A user's key that may do this, see `aws_process`."""
        return self._identity("AKIA", allow, "", None)

    def session(self, allow: Sequence[str], seconds: float) -> AwsKeys:
        """Keys of a role for so long, as STS gives them. Negative: already ended."""
        return self._identity("ASIA", allow, secrets.token_urlsafe(60), time.time() + seconds)

    def expire(self, keys: AwsKeys) -> None:
        """End a session now."""
        self._identities[keys.key_id]["expires"] = time.time() - 1
        self._write()

    def allow(self, keys: AwsKeys, actions: Sequence[str]) -> None:
        """Change what an identity may do."""
        self._identities[keys.key_id]["allow"] = list(actions)
        self._write()

    def _identity(self, prefix: str, allow: Sequence[str], token: str, expires: float | None) -> AwsKeys:
        made = AwsKeys(f"{prefix}{secrets.token_hex(8).upper()}", secrets.token_hex(20), token)
        entry = {"secret": made.secret, "token": token, "expires": expires, "allow": list(allow)}
        self._identities[made.key_id] = entry
        if self.folder.exists():
            self._write()
        return made

    @property
    def _file(self) -> Path:
        return self.folder / "identities.json"

    def _write(self) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(self._identities))
        new.replace(self._file)

    # --- clients --------------------------------------------------------------------------------

    def environment_for(self, keys: AwsKeys | None = None) -> dict[str, str]:
        """The variables of a process that uses the SDK's own chain with these keys, or with none."""
        environment = {
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": str(self.folder / "no-config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(self.folder / "no-credentials"),
        }
        if keys is not None:
            environment |= {"AWS_ACCESS_KEY_ID": keys.key_id, "AWS_SECRET_ACCESS_KEY": keys.secret}
            if keys.token:
                environment["AWS_SESSION_TOKEN"] = keys.token
        return environment

    def client(self, service: str = "s3", keys: AwsKeys | None = None) -> Any:
        """boto3's client, the owner's unless told; it tries once."""
        keys = keys or self.owner
        return boto3.client(
            service,
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=keys.key_id,
            aws_secret_access_key=keys.secret,
            aws_session_token=keys.token or None,
            config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
        )

    # --- content --------------------------------------------------------------------------------

    def bucket(self, versioned: bool = True) -> str:
        """Make a bucket and return its name."""
        name = f"models-{secrets.token_hex(6)}"
        client = self.client()
        client.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
        if versioned:
            client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        return name

    def put(self, bucket: str, key: str, data: bytes, sha256: bool = False) -> str:
        """Put an object, with S3's own SHA-256 if asked; return its version id ("" where there is none)."""
        checked = {"ChecksumAlgorithm": "SHA256"} if sha256 else {}
        answer = self.client().put_object(Bucket=bucket, Key=key, Body=data, **checked)
        return str(answer.get("VersionId", ""))

    def put_parts(self, bucket: str, key: str, parts: Sequence[bytes]) -> str:
        """Put an object in parts (all but the last >= 5 MiB); its ETag is no MD5. Return its version id."""
        client, where = self.client(), {"Bucket": bucket, "Key": key}
        upload = client.create_multipart_upload(**where)["UploadId"]
        done = []
        for number, part in enumerate(parts, 1):
            answer = client.upload_part(**where, UploadId=upload, PartNumber=number, Body=part)
            done.append({"ETag": answer["ETag"], "PartNumber": number})
        ended = client.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": done})
        return str(ended.get("VersionId", ""))

    def delete(self, bucket: str, key: str, version: str | None = None) -> None:
        """Delete an object (a marker is left in a versioned bucket), or one version of it for good."""
        self.client().delete_object(Bucket=bucket, Key=key, **({"VersionId": version} if version else {}))

    def list_many(self, bucket: str, prefix: str, count: int) -> None:
        """Let the bucket's listings have these many objects, numbered below `prefix`, instead of its own.

        They are listed only, each with six bytes and the version "v1"; they cannot be read.
        """
        body = json.dumps({"bucket": bucket, "prefix": prefix, "count": count}).encode()
        urllib.request.urlopen(f"{self.endpoint}/moto-api/fill", body, timeout=60).close()  # noqa: S310

    # --- SageMaker ------------------------------------------------------------------------------

    def model_package(
        self, group: str, data_url: str, approval: str = "Approved", image: str = "example.com/serve:1"
    ) -> str:
        """Register a version of a model package whose weights are at `data_url`; return its ARN.

        `approval` is "Approved", "Rejected" or "PendingManualApproval".
        """
        client = self.client("sagemaker")
        known = client.list_model_package_groups(NameContains=group)["ModelPackageGroupSummaryList"]
        if group not in [entry["ModelPackageGroupName"] for entry in known]:
            client.create_model_package_group(ModelPackageGroupName=group)
        made = client.create_model_package(
            ModelPackageGroupName=group,
            ModelApprovalStatus=approval,
            InferenceSpecification={
                "Containers": [{"Image": image, "ModelDataUrl": data_url}],
                "SupportedContentTypes": ["application/json"],
                "SupportedResponseMIMETypes": ["application/json"],
            },
        )
        return str(made["ModelPackageArn"])

    def approve(self, package: str, approval: str = "Approved") -> None:
        """Change a model package's approval."""
        self.client("sagemaker").update_model_package(ModelPackageArn=package, ModelApprovalStatus=approval)
