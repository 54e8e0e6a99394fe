"""A model's repository in a registry of the test's own, and images of a plan in it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from modelbake.credentials import Secret
from modelbake.dockerconfig import RegistryCredentials
from modelbake.manifest import OCI_INDEX, OCI_MANIFEST, Manifest, digest_of
from modelbake.plan import LABEL_PREFIX, LOCK_LABEL, PLAN_LABEL, BuildPlan
from modelbake.registry import Registry
from modelbake.registryreply import Reply
from modelbake.report import Report
from modelbake.stream.repository import RegistryRepository
from tests.servers.upload_registry import PASSWORD, USER, UploadRegistry
from tests.unit.reporting import ASKED, report

PATH = "ml/minilm"
PLAN_DIGEST = "sha256:" + "9" * 64
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"


class Killed(BaseException):
    """The process is gone: nothing of it may go on."""


class MortalRegistry(Registry):
    """A registry whose client dies when its nth request is done (0: never)."""

    dies_at = 0
    count = 0

    def live_until(self, request: int = 0) -> None:
        """Count from here."""
        self.count, self.dies_at = 0, request

    def _count(self) -> None:
        self.count += 1
        if self.count == self.dies_at:
            raise Killed

    def _live(self) -> None:
        if 0 < self.dies_at <= self.count:
            raise Killed  # nothing is cleaned up

    def ask(self, *args: Any, **more: Any) -> Reply:
        self._live()
        reply = super().ask(*args, **more)
        self._count()
        return reply

    def transmit(self, *args: Any, **more: Any) -> Reply:
        self._live()
        reply = super().transmit(*args, **more)
        self._count()
        return reply


def client_of(server: UploadRegistry) -> MortalRegistry:
    """Return a client of the server, to be closed."""
    credentials = RegistryCredentials(USER, Secret(PASSWORD))
    return MortalRegistry(server.host, credentials, timeout=5, sleep=lambda seconds: None)


@contextmanager
def connected(server: UploadRegistry) -> Iterator[RegistryRepository]:
    """Open the model's repository."""
    with client_of(server) as registry:
        yield RegistryRepository(registry, PATH)


def hold_blob(server: UploadRegistry, content: bytes, media_type: str, path: str = PATH) -> dict[str, Any]:
    """Put a blob where it belongs, without a request; return its descriptor."""
    server.repository(path).blobs[digest_of(content)] = content
    return {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}


def hold(server: UploadRegistry, manifest: Manifest, *tags: str, path: str = PATH) -> Manifest:
    """Put a manifest under tags, without a request."""
    held = server.repository(path)
    held.manifests[manifest.digest] = (manifest.media_type, manifest.body)
    held.tags |= dict.fromkeys(tags, manifest.digest)
    return manifest


def hold_index(
    server: UploadRegistry, tag: str, *listed: Manifest, path: str = PATH, **notes: str
) -> Manifest:
    """Put an index of manifests under a tag, without a request."""
    entries = [
        {"mediaType": each.media_type, "digest": each.digest, "size": len(each.body)} for each in listed
    ]
    body = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries, "annotations": notes}
    return hold(server, Manifest.of(OCI_INDEX, json.dumps(body).encode()), tag, path=path)


def labels_of(plan: BuildPlan) -> dict[str, str]:
    """Return what an image of a plan says of itself."""
    return {
        LABEL_PREFIX + "model": plan.name,
        LABEL_PREFIX + "version": plan.version,
        LOCK_LABEL: plan.locked.digest,
        PLAN_LABEL: PLAN_DIGEST,
    }


def hold_image(
    server: UploadRegistry,
    plan: BuildPlan,
    *tags: str,
    marker: str = "",
    layers: tuple[bytes, ...] = (b"a layer",),
    created: str = "2025-01-31T12:00:00Z",
    path: str = PATH,
    labels: Mapping[str, str] = MappingProxyType({}),
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> Manifest:
    """Put an image of a plan under tags, without a request; `marker` makes it one of its own.

    `labels`: replace those that it has by the plan; `settings`: are in its configuration besides.
    """
    config = {
        "created": created,
        "config": {**settings, "Labels": {**labels_of(plan), **labels}},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(each) for each in layers]},
        "marker": marker,
    }
    body = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": hold_blob(server, json.dumps(config).encode(), CONFIG, path),
        "layers": [hold_blob(server, each, LAYER, path) for each in layers],
    }
    return hold(server, Manifest.of(OCI_MANIFEST, json.dumps(body).encode()), *tags, path=path)


def report_of(plan: BuildPlan, manifest: Manifest, **changes: Any) -> Report:
    """Return a passing report about an image."""
    facts = {"model": plan.name, "version": plan.version, "image_id": manifest.config.digest, "asked": ASKED}
    return report(**{**facts, **changes})


def tags_of(server: UploadRegistry, path: str = PATH) -> dict[str, str]:
    """Return what the version tags and the aliases name, and nothing else."""
    tags = server.repository(path).tags.items()
    return {tag: digest for tag, digest in tags if not tag.startswith(("candidate-", "sha256-"))}


def snapshot(server: UploadRegistry) -> Any:
    """Return all that the registry holds, to be put back by `restore`."""
    return copy.deepcopy(server.repositories)


def restore(server: UploadRegistry, state: Any) -> None:
    """Let the registry hold what it held."""
    server.repositories = copy.deepcopy(state)
