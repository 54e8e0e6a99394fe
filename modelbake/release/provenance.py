"""Where an image comes from: an in-toto statement with SLSA's provenance, of what this run knows. Pure.

It says what the plan says (source, commit, every file's digest, base image, requirements), which toolkit made
it of that, and which job said so. Nothing of it is a secret: no environment, no label, no credential.
By itself it is SLSA level 1, an unsigned statement; whoever signs it makes more of it.

Sources: https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md and
https://slsa.dev/spec/v1.0/provenance.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelbake import __version__
from modelbake.plan import encode_json

if TYPE_CHECKING:
    from modelbake.locked import LockedSource
    from modelbake.plan import BuildPlan

PROVENANCE_TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
# `.invalid` is reserved for ever (RFC 2606): these names are ours and lead nowhere.
BUILD_TYPE = "https://modelbake.invalid/build-types/image/v1"
LOCAL_BUILDER = "https://modelbake.invalid/builders/local"
_ADDRESS = re.compile(r"https?://[A-Za-z0-9.:\[\]-]+(?:/[\x21-\x7e]*)?")  # nobody's password before the host


@dataclass(frozen=True)
class Builder:
    """Who says it: the job's definition, and this very run of it ("" where that has no address)."""

    id: str = LOCAL_BUILDER
    invocation: str = ""


@dataclass(frozen=True)
class Checkout:
    """The repository that models.yaml lies in: its commit, its address ("" where that is not known).

    `changed`: files that git tracks are not those of the commit.
    """

    commit: str
    uri: str = ""
    changed: bool = False


def builder_of(environment: Mapping[str, str]) -> Builder:
    """Return who builds, as the variables of GitHub Actions and GitLab CI say; else somebody's machine."""
    get = environment.get
    builder = Builder()
    if get("GITHUB_ACTIONS") == "true" and get("GITHUB_WORKFLOW_REF"):
        server = get("GITHUB_SERVER_URL", "https://github.com").rstrip("/")
        run = f"{get('GITHUB_REPOSITORY')}/actions/runs/{get('GITHUB_RUN_ID')}"
        builder = Builder(
            f"{server}/{get('GITHUB_WORKFLOW_REF')}",
            f"{server}/{run}/attempts/{get('GITHUB_RUN_ATTEMPT', '1')}",
        )
    elif get("GITLAB_CI") and get("CI_PROJECT_URL"):
        builder = Builder(f"{get('CI_PROJECT_URL')}/-/runners/{get('CI_RUNNER_ID')}", get("CI_JOB_URL", ""))
    if not _ADDRESS.fullmatch(builder.id):
        return Builder()
    return builder if _ADDRESS.fullmatch(builder.invocation) else Builder(builder.id)


def repository_of(environment: Mapping[str, str]) -> str:
    """Return the address of the repository that a CI job runs for, "" where none is named."""
    get = environment.get
    address, ref = "", ""
    if get("GITHUB_ACTIONS") == "true" and get("GITHUB_REPOSITORY"):
        server = get("GITHUB_SERVER_URL", "https://github.com").rstrip("/")
        address, ref = f"{server}/{get('GITHUB_REPOSITORY')}", get("GITHUB_REF", "")
    elif get("GITLAB_CI"):
        address, ref = get("CI_PROJECT_URL", ""), get("CI_COMMIT_REF_NAME", "")
    found = f"{address}@{ref}" if ref else address
    return f"git+{found}" if _ADDRESS.fullmatch(found) else ""


def make_provenance(
    plan: BuildPlan,
    name: str,
    digest: str,
    *,
    builder: Builder,
    checkout: Checkout | None,
    context: str,
    requirements: Mapping[str, str],
    started: str = "",
    finished: str = "",
) -> bytes:
    """Return the statement, UTF-8 JSON that ends with a newline.

    Args:
        plan: what the image was built of.
        name: what the image is called, `host/path`.
        digest: the image's, `sha256:` and 64 hex digits.
        builder: who says so.
        checkout: where models.yaml is from, None where git does not know.
        context: the digest of the build context, `sha256:` and 64 hex digits.
        requirements: `sha256:` digests of the runtime's pinned requirements, by file name.
        started, finished: when the run began and ended, in RFC 3339; "" where that is not known.
    """
    metadata = {"invocationId": builder.invocation, "startedOn": started, "finishedOn": finished}
    statement = {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": _digest(digest)}],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": _asked(plan),
                "internalParameters": {"verify": plan.spec.verify, "layerOrder": plan.spec.layer_order},
                "resolvedDependencies": _materials(plan, checkout, context, requirements),
            },
            "runDetails": {
                "builder": {"id": builder.id, "version": {"modelbake": __version__}},
                "metadata": {key: text for key, text in metadata.items() if text},
            },
        },
    }
    return encode_json(statement)


def _asked(plan: BuildPlan) -> dict[str, Any]:
    spec = plan.spec
    return {
        "model": spec.name,
        "version": spec.version,
        "source": spec.source,
        "revision": plan.locked.revision,
        "include": list(plan.locked.include),
        "exclude": list(plan.locked.exclude),
        **({"added": [_asked_of(each) for each in plan.locked.added]} if plan.locked.added else {}),
        "convert": spec.convert,
        "runtime": spec.runtime,
        "device": spec.device,
        "base": plan.base,
    }


def _asked_of(source: LockedSource) -> dict[str, Any]:
    return {
        "source": source.source,
        "into": source.into,
        "revision": source.revision,
        "include": list(source.include),
        "exclude": list(source.exclude),
    }


def _of_source(source: LockedSource) -> Iterator[dict[str, Any]]:
    """Yield a source and its files. A store has no commit of git's: its snapshot goes by its own name."""
    place = f"{source.server}/{source.source.removeprefix('hf://')}"
    is_hub = source.kind == "hf"
    yield {
        "name": source.source,
        "uri": f"git+{place}@{source.commit}" if is_hub else source.source,
        "digest": {"gitCommit" if is_hub else "snapshot": source.commit},
        **({"annotations": {"endpoint": source.server}} if source.server and not is_hub else {}),
    }
    for file in source.files:
        path = source.path_there(file)
        yield {
            "name": file.path,
            "uri": f"{place}/resolve/{source.commit}/{path}"
            if is_hub
            else f"{source.source.rstrip('/')}/{path}",
            "digest": {"sha256": file.sha256},
            "annotations": {"size": file.size, **({"version": file.version} if file.version else {})},
        }


def _materials(
    plan: BuildPlan, checkout: Checkout | None, context: str, requirements: Mapping[str, str]
) -> list[dict[str, Any]]:
    locked = plan.locked
    found: list[dict[str, Any]] = [
        {"name": f"lock of {locked.name}", "digest": _digest(locked.digest)},
        *(material for source in locked.sources for material in _of_source(source)),
        {
            "name": "base image",
            "uri": f"docker://{plan.base}",
            "digest": _digest(plan.base.rpartition("@")[2]),
        },
        *(
            {"name": f"{plan.runtime.name}/{name}", "digest": _digest(each)}
            for name, each in requirements.items()
        ),
        {"name": "build context", "digest": _digest(context)},
    ]
    if locked.converted is not None:
        found.append({"name": "converter of pickles", "digest": _digest(locked.converted.converter)})
    if checkout is not None:
        entry: dict[str, Any] = {
            "name": "repository of models.yaml",
            "digest": {"gitCommit": checkout.commit},
        }
        if checkout.uri:
            entry["uri"] = checkout.uri
        if checkout.changed:
            entry["annotations"] = {"changed": True}
        found.append(entry)
    return found


def _digest(digest: str) -> dict[str, str]:
    algorithm, _, value = digest.partition(":")
    return {algorithm: value}
