"""A runtime's image in the registry: found by what it is made of, or built by an engine once and pushed.

`REGISTRY/runtimes:NAME-KEY`, where KEY is the digest of the rendered context: base, requirements, programs
and settings. All models of a runtime share it; a change of any of these is another image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from modelbake.candidate import push_candidate
from modelbake.dockerconfig import RegistryAuth
from modelbake.errors import ImageNotFound, ReadBackMismatch
from modelbake.manifest import choose_manifest, is_image
from modelbake.plan import LABEL_PREFIX, BuildPlan
from modelbake.stream.assembly import RuntimeImage, read_runtime, runtime_manifest
from modelbake.stream.repository import RegistryRepository, read_document
from modelbake.stream.whiteouts import names_of, over_weights
from modelbake.versiontag import candidate_tag

if TYPE_CHECKING:
    from modelbake.context import Context
    from modelbake.credentials import Secret
    from modelbake.engine import Engine
    from modelbake.output import Output

_TURNS = 5  # of building and pushing, beside others that do the same
_TAG_DIGITS = 32  # of the key's 64


def runtime_tag(name: str, context: Context) -> str:
    """Return the tag of a runtime's image."""
    return f"{name}-{context.digest.removeprefix('sha256:')[:_TAG_DIGITS]}"


def find_runtime(repository: RegistryRepository, name: str, context: Context) -> RuntimeImage | None:
    """Return the runtime's image, None where the registry has none made of this context."""
    manifest = repository.manifest(runtime_tag(name, context))
    if manifest is None:
        return None
    return read_runtime(manifest, read_document(repository, manifest.config))


def build_runtime(
    engine: Engine,
    plan: BuildPlan,
    context: Context,
    repository: RegistryRepository,
    *,
    secrets: Mapping[str, Secret],
    output: Output,
) -> RuntimeImage:
    """Build the runtime, push it, look into its layers, put it under its tag. Nothing stays on the engine.

    Raises what `buildkit.solve.build` and `Engine.push` raise, and RegistryError for a base image whose
    layers cannot be passed on.
    """
    from modelbake.buildkit.solve import build
    from modelbake.buildview import BuildView
    from modelbake.engine_stream import telling

    engine.require_buildkit()
    output.event("runtime_started", f"building the runtime {plan.runtime.name}", runtime=plan.runtime.name)
    registries = RegistryAuth()
    credentials = registries.for_registry(repository.registry.host)
    told = telling(output, "push_progress", "pushed")
    for turn in range(_TURNS):
        with BuildView(output) as view:
            built = build(
                engine,
                context.tar(),
                secrets=secrets,
                registries=registries,
                target="runtime",
                tags=[],
                labels={},
                on_event=view,
            )
        tag = candidate_tag(built.id)
        candidate = f"{repository.name}:{tag}"
        try:
            pushed = push_candidate(
                engine, repository.registry, built.id, repository.path, tag, credentials, told
            )
            break
        except ImageNotFound:
            # Another run has built the same image, pushed it, and taken its only name away: from the cache
            # it is there again at once.
            if turn == _TURNS - 1:
                raise
    found = repository.manifest(pushed.digest)
    if found is None or not is_image(found, built.id, engine.info.store):
        raise ReadBackMismatch(f"the engine pushed {pushed.digest}, and it is not there", subject=candidate)
    if found.is_index:
        entry = choose_manifest(found, f"{engine.info.os}/{engine.info.arch}")
        found = repository.manifest(entry.digest)
        if found is None:
            raise ReadBackMismatch(f"the registry has no manifest {entry.digest}", subject=candidate)
    output.event("runtime_checked", "looking into the runtime's layers for what would hide weights")
    hides = [
        name
        for layer in found.layers
        for name in over_weights(names_of(repository.read(layer), layer.media_type, candidate))
    ]
    # Somebody else may have built it meanwhile. The first one stays: images that have been made of it
    # share its layers, and a second build's could have other digests.
    if (theirs := find_runtime(repository, plan.runtime.name, context)) is not None:
        output.event("runtime_found", f"{repository.name} has this runtime by now: that one is used")
        return theirs
    config = read_document(repository, found.config)
    annotations = {
        "org.opencontainers.image.base.name": plan.base,
        "org.opencontainers.image.base.digest": plan.base.rpartition("@")[2],
        LABEL_PREFIX + "runtime": plan.runtime.name,
    }
    manifest = runtime_manifest(found, config, hides, annotations)
    repository.put(config, "application/octet-stream")
    tag = runtime_tag(plan.runtime.name, context)
    repository.put_manifest(tag, manifest)
    output.event(
        "runtime_pushed",
        f"{repository.name}:{tag} is {manifest.digest}",
        runtime=plan.runtime.name,
        digest=manifest.digest,
    )
    return read_runtime(manifest, config)
