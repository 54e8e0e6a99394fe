"""Whether an image that is somewhere is that of a plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modelbake.manifest import Manifest
from modelbake.stream.assembly import ORDER
from modelbake.stream.identity import is_of_plan, plan_digest_of
from modelbake.stream.layout import LayoutRepository
from modelbake.stream.weights import OCI_CONFIG, image_manifest
from tests.unit.planning import planned
from tests.unit.stream.material import stored

PLAN = "sha256:" + "5" * 64


@pytest.fixture
def layout(tmp_path: Path) -> LayoutRepository:
    return LayoutRepository.create(tmp_path / "layout", image="registry.example.com/ml/minilm")


def put(layout: LayoutRepository, config: Any, order: str | None = "weights-first", **layer: str) -> Manifest:
    content = json.dumps(config).encode()
    layout.put(content, OCI_CONFIG)
    notes = {ORDER: order} if order else {}
    return image_manifest(content, [stored({"a": b"b"}, **layer).descriptor], notes)


def config_of(plan: str) -> dict[str, Any]:
    return {"config": {"Labels": {"io.modelbake.plan": plan}}}


def test_the_image_of_a_plan(layout: LayoutRepository) -> None:
    manifest = put(layout, config_of(PLAN))
    assert plan_digest_of(layout, manifest) == PLAN
    assert is_of_plan(layout, manifest, planned().spec, PLAN)
    assert is_of_plan(layout, manifest, planned(layer_order="weights-first").spec, PLAN)
    assert not is_of_plan(layout, manifest, planned(layer_order="base-first").spec, PLAN)
    assert not is_of_plan(layout, manifest, planned(compression="zstd").spec, PLAN)
    assert not is_of_plan(layout, manifest, planned().spec, "sha256:" + "6" * 64)
    compressed = put(layout, config_of(PLAN), compression="zstd")
    assert is_of_plan(layout, compressed, planned(compression="zstd").spec, PLAN)
    assert not is_of_plan(layout, compressed, planned().spec, PLAN)


@pytest.mark.parametrize("config", [{}, {"config": None}, {"config": {"Labels": None}}, {"config": []}, []])
def test_an_image_of_somebody_else(layout: LayoutRepository, config: Any) -> None:
    manifest = put(layout, config)
    assert plan_digest_of(layout, manifest) is None
    assert not is_of_plan(layout, manifest, planned().spec, PLAN)


def test_an_image_of_the_docker_lane(layout: LayoutRepository) -> None:
    assert not is_of_plan(layout, put(layout, config_of(PLAN), order=None), planned().spec, PLAN)


def test_an_index_of_several_images(layout: LayoutRepository) -> None:
    document = {"schemaVersion": 2, "manifests": [], "annotations": {ORDER: "weights-first"}}
    index = Manifest.of("application/vnd.oci.image.index.v1+json", json.dumps(document).encode())
    assert not is_of_plan(layout, index, planned().spec, PLAN)
