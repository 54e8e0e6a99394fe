"""A plan: everything that a build needs to know, resolved before anything runs. Pure.

The weights are cut into groups; each group becomes one builder stage and one layer of the image. A large
file is a group of its own, so that a changed shard is fetched again alone; small files share one, because
a layer has a price of its own at every pull.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from modelbake.config import Config, ModelSpec
from modelbake.conversion import converted_names, instructions
from modelbake.lock import LockedFile, LockedModel
from modelbake.runtime import Runtime, build_of

MIB = 1024 * 1024
OWN_GROUP_BYTES = 64 * MIB  # from this size on a file is a group of its own
BUNDLE_BYTES = 256 * MIB  # small files are bundled up to this much
# overlay2 stacks 128 layers at most, and the base and the runtime need theirs.
MAX_GROUPS = 80

LABEL_PREFIX = "io.modelbake."
LOCK_LABEL = LABEL_PREFIX + "lock"  # digest of the weights
PLAN_LABEL = LABEL_PREFIX + "plan"  # digest of the context that the image was built of


@dataclass(frozen=True)
class WeightGroup:
    """Files that are fetched, cached and layered together, sorted by path; or `converted`, not fetched."""

    files: tuple[LockedFile, ...]
    converted: bool = False

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def largest(self) -> LockedFile:
        """The file that a person would know the group by."""
        return max(self.files, key=lambda file: file.size)

    @cached_property
    def manifest(self) -> bytes:
        """What the builder stage is keyed by: paths, sizes and digests, not where they come from."""
        return encode_json({"schema": 1, "files": [_file_facts(file) for file in self.files]})

    @cached_property
    def digest(self) -> str:
        """64 hex digits naming this group's content."""
        return hashlib.sha256(self.manifest).hexdigest()


@dataclass(frozen=True)
class ConversionPlan:
    """The pickles of one model, ready to be fetched and converted; nothing here says what they become.

    Attributes:
        base: the image that all of it runs in.
        groups: the files to fetch.
        instructions: what convert.py is told.
        sources: where the files are, as `BuildPlan.sources` says.
    """

    base: str
    groups: tuple[WeightGroup, ...]
    instructions: bytes
    sources: bytes


@dataclass(frozen=True)
class BuildPlan:
    """One model version, ready to be rendered. `conversion` is None where nothing is converted."""

    spec: ModelSpec
    locked: LockedModel
    runtime: Runtime
    base: str
    requirements: str | None
    groups: tuple[WeightGroup, ...]
    repository: str
    labels: Mapping[str, str]
    runtime_env: Mapping[str, str]
    model_env: Mapping[str, str]
    conversion: ConversionPlan | None = None

    @property
    def name(self) -> str:
        """The model's name in models.yaml."""
        return self.spec.name

    @property
    def version(self) -> str:
        """The model's semantic version."""
        return self.spec.version

    @property
    def local_tag(self) -> str:
        """The engine's name for the built image; it names no registry, so nothing pushes it by accident."""
        return f"modelbake/{self.name}:{self.version}"

    def manifest(self) -> bytes:
        """Return the manifest that is baked into the image and verified at every start."""
        return encode_json(
            {
                "schema": 1,
                "model": self.name,
                "version": self.version,
                "source": self.locked.source,
                "commit": self.locked.commit,
                "lock": self.locked.digest,
                "verify": self.spec.verify,
                "files": [_file_facts(file) for file in self.locked.weights],
            }
        )

    def sources(self) -> bytes:
        """Return where the weights are fetched from.

        It reaches the builder as a secret mount: BuildKit leaves secrets out of its cache keys, so a moved
        commit or another mirror with the same bytes fetches nothing again.
        """
        return _encode_sources(self.locked)


def make_plan(config: Config, spec: ModelSpec, locked: LockedModel, runtime: Runtime) -> BuildPlan:
    """Resolve one model to a plan. `runtime` has been checked to offer the model's device."""
    base = spec.base or runtime.base
    labels = {
        **spec.labels,
        "org.opencontainers.image.title": spec.name,
        "org.opencontainers.image.version": spec.version,
        "org.opencontainers.image.base.name": base,
        "org.opencontainers.image.base.digest": base.rpartition("@")[2],
        LABEL_PREFIX + "model": spec.name,
        LABEL_PREFIX + "version": spec.version,
        LABEL_PREFIX + "source": locked.source,
        LABEL_PREFIX + "commit": locked.commit,
        LOCK_LABEL: locked.digest,
        LABEL_PREFIX + "runtime": runtime.name,
        LABEL_PREFIX + "device": spec.device,
    }
    # Two sets, because the `runtime` stage names no model: every model of a runtime shares its layers.
    runtime_env = {**runtime.env, "MODELBAKE_WEIGHTS": "/models"}
    if runtime.port is not None:
        runtime_env["MODELBAKE_PORT"] = str(runtime.port)
    model_env = {
        **spec.env,
        "MODELBAKE_MODEL": spec.name,
        # The manifest says the same; here it overrides what a base image may have set.
        "MODELBAKE_VERIFY": spec.verify,
        "MODELBAKE_VERSION": spec.version,
    }
    return BuildPlan(
        spec=spec,
        locked=locked,
        runtime=runtime,
        base=base,
        requirements=runtime.builds.get(build_of(spec)),
        groups=weight_groups(locked),
        repository=f"{config.registry}/{spec.name}",
        labels=dict(sorted(labels.items())),
        runtime_env=dict(sorted(runtime_env.items())),
        model_env=dict(sorted(model_env.items())),
        conversion=plan_conversion(spec, locked, runtime) if spec.convert != "none" else None,
    )


def plan_conversion(spec: ModelSpec, locked: LockedModel, runtime: Runtime) -> ConversionPlan:
    """Resolve how a model's pickles are converted. Whether this was done before does not matter."""
    names = converted_names(spec, [file.path for file in locked.files])
    return ConversionPlan(
        base=spec.base or runtime.base,
        groups=group_files([file for file in locked.files if file.path in names]),
        instructions=instructions(names),
        sources=_encode_sources(locked),
    )


def weight_groups(locked: LockedModel) -> tuple[WeightGroup, ...]:
    """Cut the files of an image into groups, such that no group has both fetched and converted files."""
    if locked.converted is None:
        return group_files(locked.files)
    fetched = group_files(locked.kept, MAX_GROUPS // 2)
    converted = group_files(locked.converted.files, MAX_GROUPS // 2)
    groups = [*fetched, *(replace(group, converted=True) for group in converted)]
    return tuple(sorted(groups, key=lambda group: _stacking(group.files)))


def group_files(files: Sequence[LockedFile], max_groups: int = MAX_GROUPS) -> tuple[WeightGroup, ...]:
    """Cut files into at most `max_groups` groups; the same files give the same groups, in the same order."""
    ordered = sorted(files, key=lambda file: file.path)
    groups = [[file] for file in ordered if file.size >= OWN_GROUP_BYTES]
    bundle: list[LockedFile] = []
    bundled = 0
    for file in ordered:
        if file.size >= OWN_GROUP_BYTES:
            continue
        if bundle and bundled + file.size > BUNDLE_BYTES:
            groups.append(bundle)
            bundle, bundled = [], 0
        bundle.append(file)
        bundled += file.size
    if bundle:
        groups.append(bundle)
    while len(groups) > max_groups:
        # Merging the two lightest costs the least when one of their files changes.
        groups.sort(key=lambda group: (sum(file.size for file in group), group[0].path))
        groups[:2] = [groups[0] + groups[1]]
    sorted_groups = (tuple(sorted(group, key=lambda file: file.path)) for group in groups)
    # Bundles last: small files change most often, and a host pulls anew what lies above a change.
    return tuple(WeightGroup(group) for group in sorted(sorted_groups, key=_stacking))


def _stacking(files: Sequence[LockedFile]) -> tuple[bool, str]:
    """Return what groups are sorted by, bottom first."""
    return len(files) > 1 or files[0].size < OWN_GROUP_BYTES, files[0].path


def encode_json(document: Any) -> bytes:
    """Encode a document so that the same content has the same bytes."""
    return (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _encode_sources(locked: LockedModel) -> bytes:
    return encode_json(
        {
            "schema": 1,
            "kind": "hf",
            "endpoint": locked.hub,
            "repo": locked.source.removeprefix("hf://"),
            "revision": locked.commit,
        }
    )


def _file_facts(file: LockedFile) -> dict[str, Any]:
    return {"path": file.path, "size": file.size, "sha256": file.sha256}
