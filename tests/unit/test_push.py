"""The parts of a push that need neither an engine nor a registry; the rest is in tests/integration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modelbake.engine import LocalImage
from modelbake.errors import ReadBackMismatch, RegistryError, ReportMissing
from modelbake.manifest import OCI_INDEX, OCI_MANIFEST, Manifest, choose_manifest, is_image
from modelbake.push import require_passing_report
from modelbake.report import write_report
from tests.unit.reporting import ASKED, IMAGE_ID, report

OTHER_ID = "sha256:" + "9" * 64
FAILED = {"passed": False, "expected": 1, "actual": 2, "seconds": 0.1}


def image(image_id: str = IMAGE_ID) -> LocalImage:
    return LocalImage(image_id, 1000, {}, ("modelbake/minilm:1.0.0",), "2025-01-31T12:00:00Z")


def manifest(config: str = IMAGE_ID) -> Manifest:
    document = {"config": {"digest": config, "size": 2, "mediaType": "x"}, "layers": []}
    return Manifest.of(OCI_MANIFEST, json.dumps(document).encode())


def index(*platforms: str) -> Manifest:
    entries = [
        {
            "digest": f"sha256:{number:064}",
            "size": 1,
            "mediaType": OCI_MANIFEST,
            "platform": {"os": platform.split("/")[0], "architecture": platform.split("/")[1]},
        }
        for number, platform in enumerate(platforms)
    ]
    return Manifest.of(OCI_INDEX, json.dumps({"manifests": entries}).encode())


def test_a_passing_report_of_this_image_is_enough(tmp_path: Path) -> None:
    write_report(tmp_path, report())
    require_passing_report(tmp_path, "minilm", "1.0.0", image(), ASKED, require_gpu=False)


def test_no_report_is_not_enough(tmp_path: Path) -> None:
    with pytest.raises(ReportMissing, match=r"(?s)no smoke report.*build\.py smoke minilm"):
        require_passing_report(tmp_path, "minilm", "1.0.0", image(), ASKED, require_gpu=False)


def test_a_failed_report_is_not_enough(tmp_path: Path) -> None:
    checks = [{"name": "dimension", **FAILED}, {"name": "speed", **FAILED}]
    write_report(tmp_path, report(passed=False, checks=checks))
    with pytest.raises(ReportMissing, match=r"the smoke run failed \(dimension, speed\)"):
        require_passing_report(tmp_path, "minilm", "1.0.0", image(), ASKED, require_gpu=False)


def test_another_images_report_is_not_enough(tmp_path: Path) -> None:
    write_report(tmp_path, report())
    with pytest.raises(ReportMissing, match="about another image"):
        require_passing_report(tmp_path, "minilm", "1.0.0", image(OTHER_ID), ASKED, require_gpu=False)


def test_a_report_of_other_checks_is_not_enough(tmp_path: Path) -> None:
    write_report(tmp_path, report())
    with pytest.raises(ReportMissing, match="other checks or other goldens"):
        require_passing_report(tmp_path, "minilm", "1.0.0", image(), OTHER_ID, require_gpu=False)


def test_a_cpus_report_is_not_enough_where_a_gpu_is_required(tmp_path: Path) -> None:
    write_report(tmp_path, report())
    with pytest.raises(
        ReportMissing, match=r"(?s)was on a CPU, and models\.yaml says `require_gpu: true`.*DOCKER_HOST"
    ):
        # Also where the checks have changed since: what is missing most is said first.
        require_passing_report(tmp_path, "minilm", "1.0.0", image(), OTHER_ID, require_gpu=True)
    memory = {"torch_peak_bytes": 1, "driver_bytes": 2}
    write_report(tmp_path, report(gpu=True, device="cuda:H100", gpu_memory=memory))
    require_passing_report(tmp_path, "minilm", "1.0.0", image(), ASKED, require_gpu=True)


def test_the_classic_store_names_images_by_their_configuration() -> None:
    assert is_image(manifest(), IMAGE_ID, "classic")
    assert not is_image(manifest(OTHER_ID), IMAGE_ID, "classic")
    assert not is_image(manifest(), manifest().digest, "classic")
    assert not is_image(index("linux/amd64"), IMAGE_ID, "classic")


def test_the_containerd_store_names_images_by_their_manifest() -> None:
    assert is_image(manifest(), manifest().digest, "containerd")
    assert is_image(index("linux/amd64"), index("linux/amd64").digest, "containerd")
    assert not is_image(manifest(), IMAGE_ID, "containerd")


def test_an_index_is_resolved_to_the_engines_platform() -> None:
    assert choose_manifest(index("linux/arm64", "linux/amd64"), "linux/amd64").digest == f"sha256:{1:064}"
    with pytest.raises(ReadBackMismatch, match="no manifest for linux/amd64"):
        choose_manifest(index("linux/arm64", "unknown/unknown"), "linux/amd64")


def test_a_manifest_that_is_none_is_an_error() -> None:
    with pytest.raises(RegistryError, match="has no config"):
        is_image(Manifest.of(OCI_MANIFEST, b"{}"), IMAGE_ID, "classic")
