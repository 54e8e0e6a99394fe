"""A plan: everything that a build needs to know, resolved before anything runs. Pure.

The weights are cut into groups; each group becomes one builder stage and one layer of the image. A large
file is a group of its own, so that a changed shard is fetched again alone; small files share one, because
a layer has a price of its own at every pull.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from modelbake.config import Config, ModelSpec
from modelbake.conversion import converted_names, instructions
from modelbake.lock import LockedFile, LockedModel, LockedSource
from modelbake.runtime import Runtime, build_of

MIB = 1024 * 1024
OWN_GROUP_BYTES = 64 * MIB  # from this size on a file is a group of its own
BUNDLE_BYTES = 256 * MIB  # small files are bundled up to this much
# overlay2 stacks 128 layers at most, and the base and the runtime need theirs.
MAX_GROUPS = 80
_MOST_OF_ADDED = 16  # groups of one further source
# In one build secret, which may have 500 KB; a signed address has up to 2 KB. What is beyond are small files.
MOST_ADDRESSES = 200
_PACKED = re.compile(r"!(?:tar|gzip|zstd)(?:\+[0-9]+)?$")

LABEL_PREFIX = "io.modelbake."
LOCK_LABEL = LABEL_PREFIX + "lock"  # digest of the weights
ADDED_LABEL = LABEL_PREFIX + "added"  # JSON: the further sources, each with its commit
PLAN_LABEL = LABEL_PREFIX + "plan"  # digest of the context that the image was built of


@dataclass(frozen=True)
class WeightGroup:
    """Files of one source that are fetched, cached and layered together, sorted by path.

    `converted`: not fetched. `source`: the number of their source, 0 for the model's own. `carried`: in the
    docker lane they travel with the build context, as no address could be given to a builder.
    """

    files: tuple[LockedFile, ...]
    converted: bool = False
    source: int = 0
    carried: bool = False

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

    @property
    def secret(self) -> str:
        """The id of the build secret that says where the files are."""
        return secret_name(self.source)

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
        documents: as `BuildPlan.documents` says.
    """

    base: str
    groups: tuple[WeightGroup, ...]
    instructions: bytes
    documents: Mapping[str, bytes]


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
    def fetched_groups(self) -> tuple[WeightGroup, ...]:
        """All that is fetched in a build: the groups of the image, and the pickles that are converted."""
        pickles = self.conversion.groups if self.conversion else ()
        return (*(group for group in self.groups if not group.converted), *pickles)

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
                **_added_facts(self.locked),
                "files": [_file_facts(file) for file in self.locked.weights],
            }
        )

    @property
    def documents(self) -> Mapping[str, bytes]:
        """Where the weights of hubs are fetched from, by the name of the secret.

        They reach the builder as secret mounts: BuildKit leaves secrets out of its cache keys, so a moved
        commit or another mirror with the same bytes fetches nothing again. Where a store's files are is not
        known to a plan: their addresses are signed for one build.
        """
        return hub_documents(self.locked)


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
        **({ADDED_LABEL: json.dumps([each.origin for each in locked.added])} if locked.added else {}),
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
        groups=_groups_by_source(locked, [file for file in locked.files if file.path in names], MAX_GROUPS),
        instructions=instructions(names),
        documents=hub_documents(locked),
    )


def weight_groups(locked: LockedModel, most: int = MAX_GROUPS) -> tuple[WeightGroup, ...]:
    """Cut the files of an image into at most `most` groups, bottom first.

    No group has files of two sources, and none has both fetched and converted files. What is added to a model
    lies above its own files.
    """
    if locked.converted is None:
        return _groups_by_source(locked, locked.files, most)
    fetched = _groups_by_source(locked, locked.kept, most // 2)
    converted = group_files(locked.converted.files, most // 2)
    groups = [*fetched, *(replace(group, converted=True) for group in converted)]
    return tuple(sorted(groups, key=lambda group: (group.source, _stacking(group.files))))


def _groups_by_source(locked: LockedModel, files: Iterable[LockedFile], most: int) -> tuple[WeightGroup, ...]:
    wanted = {file.path for file in files}
    sources = locked.sources
    further = min(_MOST_OF_ADDED, max(1, most // 2 // max(1, len(sources) - 1)))
    made: list[WeightGroup] = []
    for number, source in enumerate(sources):
        share = further if number else most - further * (len(sources) - 1)
        own = [file for file in source.files if file.path in wanted]
        groups = group_files(own, max(1, share)) if own else ()
        addressed = 0
        for group in sorted(groups, key=lambda group: group.size, reverse=True):
            addressed += 0 if _is_carried(source, group) else len(group.files)
            carried = _is_carried(source, group) or (source.kind != "hf" and addressed > MOST_ADDRESSES)
            made.append(replace(group, source=number, carried=carried))
    return tuple(sorted(made, key=lambda group: (group.source, _stacking(group.files))))


def _is_carried(source: LockedSource, group: WeightGroup) -> bool:
    """Tell whether a builder cannot fetch a group: of a folder here, or packed in something larger."""
    return source.kind == "file" or any(is_packed(file.version) for file in group.files)


def is_packed(version: str) -> bool:
    """Tell whether a file lies in an archive, which its version says after a `!`."""
    return _PACKED.search(version) is not None


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


def secret_name(source: int) -> str:
    """Return the id of the build secret that says where a source's files are."""
    return f"sources-{source}" if source else "sources"


def hub_documents(locked: LockedModel) -> dict[str, bytes]:
    """Return what a builder is told of each source that is a hub's repository, by the secret's id."""
    return {
        secret_name(number): encode_json(
            {
                "schema": 1,
                "kind": "hf",
                "endpoint": source.hub,
                "repo": source.source.removeprefix("hf://"),
                "revision": source.commit,
                **({"into": source.into} if source.into else {}),
            }
        )
        for number, source in enumerate(locked.sources)
        if source.kind == "hf"
    }


def _added_facts(locked: LockedModel) -> dict[str, Any]:
    if not locked.added:
        return {}
    return {
        "added": [{"source": each.source, "commit": each.commit, "into": each.into} for each in locked.added]
    }


def _file_facts(file: LockedFile) -> dict[str, Any]:
    return {"path": file.path, "size": file.size, "sha256": file.sha256}
