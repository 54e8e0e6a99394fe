"""The addresses of sources: which kinds there are, what each looks like, what to write instead.

hf://organisation/name              a repository of a Hugging Face hub
s3://bucket/prefix                  Amazon S3, or what speaks its API
gs://bucket/prefix                  Google Cloud Storage
az://account/container/prefix       Azure Blob Storage
mlflow:models/NAME/VERSION          a registered model of an MLflow server; or .../ALIAS
sagemaker:arn:aws:sagemaker:...     a model package of Amazon SageMaker
https://host/folder/                files of a web server, named one by one in `files`
oci://registry/repository:tag       an image or artifact of weights; or ...@sha256:DIGEST
file:///folder                      a folder of this machine
"""

from __future__ import annotations

import re

from modelbake.grammar import (
    COMPONENT,
    LABEL,
    LINE_CHARACTER,
    PORT,
    REGISTRY_HOST,
    Grammar,
)
from modelbake.scalars import quoted

# the hub's rule for repository names: 96 characters a part, no '--' or '..', no '.git' at the end
_REPOSITORY_WORD = r"(?!(?:(?!/).)*(?:--|\.\.))[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
# A prefix of object names: parts with something in them, none of them '.' or '..'.
_PREFIX_PART = rf"(?!\.{{1,2}}(?:/|$))(?:(?![\\/]){LINE_CHARACTER})+"
_PREFIX = rf"(?:/{_PREFIX_PART})*/?(?<!\s)"

_PATTERNS = {
    "hf": rf"hf://{_REPOSITORY_WORD}/(?!.*\.git$){_REPOSITORY_WORD}",
    # https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
    "s3": rf"s3://[a-z0-9][a-z0-9.-]{{1,61}}[a-z0-9](?=/|$){_PREFIX}",
    # https://cloud.google.com/storage/docs/buckets#naming
    "gs": rf"gs://[a-z0-9][a-z0-9._-]{{1,220}}[a-z0-9](?=/|$){_PREFIX}",
    # https://learn.microsoft.com/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata
    "az": rf"az://[a-z0-9]{{3,24}}/(?:\$root|[a-z0-9](?:-?[a-z0-9]){{2,62}})(?=/|$){_PREFIX}",
    "mlflow": rf"mlflow:models/(?:(?![/:\\]){LINE_CHARACTER})+/[A-Za-z0-9_][A-Za-z0-9_.-]*",
    # https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_DescribeModelPackage.html
    "sagemaker": r"sagemaker:arn:aws[a-z-]*:sagemaker:[a-z0-9-]{5,20}:[0-9]{12}:model-package"
    r"/[A-Za-z0-9](?:-*[A-Za-z0-9]){0,62}(?:/[0-9]{1,9})?",
    "https": rf"https?://(?!(?:www\.)?(?:huggingface|hf)\.co(?:/|$))(?:{LABEL}(?:\.{LABEL})*|\[[0-9A-Fa-f:.]{{2,45}}\])(?::{PORT})?"
    r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~!$&'()*+,;=:%-]+)*/?",
    "oci": rf"oci://{REGISTRY_HOST}(?:/{COMPONENT})+"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}|@sha256:[0-9a-f]{64})",
    "file": rf"file:///(?:{_PREFIX_PART}/)*{_PREFIX_PART}/?(?<!\s)",
}
KINDS = tuple(_PATTERNS)
_FORMS = {
    "hf": "hf://organisation/name",
    "s3": "s3://bucket/prefix, the bucket of 3 or more lower-case letters",
    "gs": "gs://bucket/prefix, the bucket of 3 or more lower-case letters",
    "az": "az://account/container/prefix",
    "mlflow": "mlflow:models/NAME/VERSION or mlflow:models/NAME/ALIAS",
    "sagemaker": "sagemaker: and the model package's ARN, with its version",
    "https": "https://host/folder/, without a query, and the names in `files`",
    "oci": "oci://registry/repository:tag or oci://registry/repository@sha256:DIGEST",
    "file": "file:/// and the absolute path of a folder",
}


def kind_of(uri: str) -> str:
    """Return the kind of an address that is one: `hf`, `s3`, ..."""
    scheme = uri.partition(":")[0]
    return "https" if scheme == "http" else scheme


def _advise_source(text: str) -> str:
    scheme, separator, rest = text.partition("://")
    if scheme == "hf" and separator:
        if "@" in rest:
            return "the branch, tag or commit goes into `revision`"
        if "/" not in rest:
            return "name the organisation too: hf://organisation/name"
        return ""
    if found := re.fullmatch(
        r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)/?", text, re.ASCII
    ):
        return f"did you mean {quoted('hf://' + found[1])}?"
    kind = kind_of(text)
    if ":" in text and kind in _FORMS:
        return f"write {_FORMS[kind]}"
    if text.startswith("/") and SOURCE.matches(f"file://{text}"):
        return f"did you mean {quoted('file://' + text)}?"
    if not separator:
        return f"did you mean {quoted('hf://' + text)}?" if SOURCE.matches(f"hf://{text}") else ""
    return f"the sources are {', '.join(f'{each}:' for each in _FORMS)}"


SOURCE = Grammar(
    "a source such as hf://organisation/name or s3://bucket/prefix",
    "(?:" + "|".join(_PATTERNS.values()) + ")",
    1024,
    ("hf://sentence-transformers/all-MiniLM-L6-v2", "s3://models/llama/3.2", "file:///srv/models/llama"),
    _advise_source,
)
