"""Which remembered layers a container's complaint is about."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from modelbake.containers import ContainerState
from modelbake.locked import LockedFile
from modelbake.manifest import Descriptor, digest_of
from modelbake.plan import OWN_GROUP_BYTES, group_files
from modelbake.probing import shown_log, why_ended
from modelbake.stream.flow import TAR, TAR_ZSTD
from modelbake.stream.proving import wrong_groups
from modelbake.stream.weights import StoredLayer, data_image, group_tag
from tests.unit.planning import planned

LARGE = ("model.safetensors", "onnx/model.safetensors")
SMALL = ("config.json", "sub/tokenizer.json")
FILES = tuple(LockedFile(path, OWN_GROUP_BYTES, "ab" * 32) for path in LARGE) + tuple(
    LockedFile(path, 10, "cd" * 32) for path in SMALL
)


def named(*differences: tuple[str, str], media_type: str = TAR) -> list[str]:
    """Return the largest files of the layers that are named for (file, event)s of a log."""
    plan = planned()
    plan = replace(plan, locked=replace(plan.locked, files=FILES))
    groups = group_files(FILES)
    layers = [
        StoredLayer(group, Descriptor(media_type, digest_of(group.digest.encode()), 5), "sha256:" + "0" * 64)
        for group in groups
    ]
    _, manifest = data_image(layers, None, {"architecture": "amd64", "os": "linux"})
    log = "\n".join(
        json.dumps({"level": "error", "event": event, "file": file, "expected": "e", "actual": "a"})
        for file, event in differences
    )
    message, _ = why_ended(ContainerState(running=False, exit_code=65, oom_killed=False), log)
    tags = {
        group_tag(group, "zstd" if media_type == TAR_ZSTD else "none"): group.largest.path for group in groups
    }
    return [tags[tag] for tag in wrong_groups(plan, manifest, message + shown_log(log))]


@pytest.mark.parametrize("media_type", [TAR, TAR_ZSTD])
def test_the_layer_of_a_wrong_file(media_type: str) -> None:
    assert named(("model.safetensors", "mismatch"), media_type=media_type) == ["model.safetensors"]


def test_a_path_that_ends_like_another() -> None:
    assert named(("onnx/model.safetensors", "mismatch")) == ["onnx/model.safetensors"]


def test_a_missing_file_of_a_bundle() -> None:
    assert named(("sub/tokenizer.json", "missing")) == ["config.json"]


def test_what_no_layer_of_weights_can_bring() -> None:
    assert named(("evil.py", "extra"), ("sub/config.json", "extra")) == []
