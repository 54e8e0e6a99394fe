"""What is remembered of weights: tags, documents, and what is believed of them."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import pytest

from modelbake.locked import LockedModel
from modelbake.manifest import OCI_INDEX, OCI_MANIFEST, Manifest
from modelbake.plan import LABEL_PREFIX
from modelbake.sample import SAMPLED_ABOVE
from modelbake.stream.flow import TAR, TAR_ZSTD
from modelbake.stream.weights import (
    DIFF_ID,
    EPOCH,
    GROUP,
    OCI_CONFIG,
    SAMPLES,
    StoredLayer,
    data_image,
    group_tag,
    image_manifest,
    media_type_of,
    recalled,
    size_without_weights,
    weights_tag,
)
from tests.unit.planning import planned
from tests.unit.stream.material import content, group_of, locked, stored

FIRST = {"config.json": b"{}", "tokenizer.json": b"[]"}
SECOND = {"model.safetensors": content(3000)}
AMD64 = {"architecture": "amd64", "os": "linux"}
TAG = r"[a-z0-9_][a-z0-9._-]{0,127}"


def layers(compression: str = "none") -> tuple[StoredLayer, ...]:
    return stored(FIRST, compression), stored(SECOND, compression)


def model() -> LockedModel:
    return LockedModel("m", "hf://a/b", "https://hub", "main", "c" * 40, (), (), locked({**FIRST, **SECOND}))


class TestTags:
    def test_a_groups_tag_names_its_content(self) -> None:
        group = group_of(FIRST)
        assert group_tag(group, "none") == f"group-{group.digest}"
        assert group_tag(group, "zstd") == f"group-zstd-{group.digest}"
        assert group_tag(group_of(SECOND), "none") != group_tag(group, "none")
        assert len(group_tag(group, "zstd")) <= 128

    def test_a_locks_tag_names_all_of_them(self) -> None:
        groups = [group_of(FIRST), group_of(SECOND)]
        digest = hashlib.sha256(f"{groups[0].digest}\n{groups[1].digest}\n".encode()).hexdigest()
        assert weights_tag(groups, "none", "amd64") == f"weights-{digest}"
        assert weights_tag(groups, "zstd", "amd64") == f"weights-zstd-{digest}"
        assert weights_tag(groups, "none", "arm64") == f"weights-arm64-{digest}"
        assert weights_tag(groups, "zstd", "arm64") == f"weights-zstd-arm64-{digest}"
        assert weights_tag(groups[::-1], "none", "amd64") != f"weights-{digest}"

    def test_the_media_types(self) -> None:
        assert (media_type_of("none"), media_type_of("zstd")) == (TAR, TAR_ZSTD)


class TestDataImage:
    def test_its_configuration_lists_every_file(self) -> None:
        first, second = layers()
        config, manifest = data_image((first, second), model(), AMD64)
        document = json.loads(config)
        assert document[f"{LABEL_PREFIX}weights"] == {
            "schema": 1,
            "files": [
                {
                    "path": file.path,
                    "size": file.size,
                    "sha256": file.sha256,
                    "layer": (second if file.path == "model.safetensors" else first).blob.digest,
                }
                for file in locked({**FIRST, **SECOND})
                if file.path != "model.safetensors"
            ]
            + [
                {
                    "path": "model.safetensors",
                    "size": 3000,
                    "sha256": hashlib.sha256(SECOND["model.safetensors"]).hexdigest(),
                    "layer": second.blob.digest,
                }
            ],
        }
        assert document["architecture"] == "amd64" and document["os"] == "linux"
        assert document["rootfs"] == {"type": "layers", "diff_ids": [first.diff_id, second.diff_id]}
        assert document["created"] == EPOCH
        assert [each["created_by"] for each in document["history"]] == [
            "modelbake weights /models/config.json and 1 more # 4 bytes",
            "modelbake weights /models/model.safetensors # 3,000 bytes",
        ]
        assert manifest.document()["annotations"] == {
            "org.opencontainers.image.title": "weights",
            "org.opencontainers.image.description": "model weights below /models, nothing else",
            "io.modelbake.lock": model().digest,
        }

    def test_its_manifest_is_an_oci_manifest(self) -> None:
        config, manifest = data_image(layers(), None, AMD64)
        document = manifest.document()
        assert manifest.media_type == OCI_MANIFEST
        assert set(document) == {"schemaVersion", "mediaType", "config", "layers"}
        assert document["schemaVersion"] == 2 and document["mediaType"] == OCI_MANIFEST
        assert document["config"] == {
            "mediaType": OCI_CONFIG,
            "digest": f"sha256:{hashlib.sha256(config).hexdigest()}",
            "size": len(config),
        }
        for entry, layer in zip(document["layers"], layers(), strict=True):
            assert entry == {
                "mediaType": TAR,
                "digest": layer.blob.digest,
                "size": layer.blob.size,
                "annotations": {GROUP: layer.group.digest, DIFF_ID: layer.diff_id},
            }

    def test_the_same_layers_give_the_same_bytes(self) -> None:
        made = data_image(layers(), model(), AMD64)
        again = data_image(layers(), model(), dict(reversed(AMD64.items())))
        assert made == again
        assert data_image(layers(), model(), {**AMD64, "architecture": "arm64"})[1] != made[1]


class TestRecalled:
    GROUPS = (group_of(FIRST), group_of(SECOND))

    @pytest.mark.parametrize("compression", ["none", "zstd"])
    def test_what_was_put_is_recalled(self, compression: str) -> None:
        _, manifest = data_image(layers(compression), model(), AMD64)
        assert recalled(manifest, self.GROUPS, compression) == layers(compression)

    def test_another_lock_is_not(self) -> None:
        _, manifest = data_image(layers(), model(), AMD64)
        assert recalled(manifest, self.GROUPS[:1], "none") is None
        assert recalled(manifest, self.GROUPS[::-1], "none") is None
        assert recalled(manifest, (*self.GROUPS, group_of({"x": b""})), "none") is None
        assert recalled(manifest, (group_of({**FIRST, "a": b""}), self.GROUPS[1]), "none") is None

    def test_another_compression_is_not(self) -> None:
        _, plain = data_image(layers(), model(), AMD64)
        _, squeezed = data_image(layers("zstd"), model(), AMD64)
        assert recalled(plain, self.GROUPS, "zstd") is None
        assert recalled(squeezed, self.GROUPS, "none") is None

    @pytest.mark.parametrize(
        "changes",
        [
            {"size": 5},
            {"mediaType": TAR_ZSTD},
            {"annotations": None},
            {"annotations": {}},
            {"annotations": []},
            {"annotations": {GROUP: "00" * 32}},
        ],
    )
    def test_what_cannot_be_that_layer_is_not(self, changes: dict[str, Any]) -> None:
        entry = {**stored(FIRST).descriptor, **changes}
        manifest = image_manifest(b"{}", [entry, stored(SECOND).descriptor], {})
        assert recalled(manifest, self.GROUPS, "none") is None

    def test_the_diff_id_of_a_plain_layer_is_its_digest_whatever_is_written(self) -> None:
        entry = stored(FIRST).descriptor
        entry["annotations"] = {GROUP: self.GROUPS[0].digest, DIFF_ID: "sha256:" + "0" * 64}
        found = recalled(image_manifest(b"{}", [entry], {}), self.GROUPS[:1], "none")
        assert found == (stored(FIRST),)

    @pytest.mark.parametrize("diff_id", [None, 7, "", "sha256:xyz"])
    def test_a_compressed_layer_without_its_diff_id_is_of_no_use(self, diff_id: Any) -> None:
        entry = stored(FIRST, "zstd").descriptor
        entry["annotations"] = {GROUP: self.GROUPS[0].digest, DIFF_ID: diff_id}
        assert recalled(image_manifest(b"{}", [entry], {}), self.GROUPS[:1], "zstd") is None

    @pytest.mark.parametrize(
        "samples", [None, "", "ab" * 31, "ab" * 33, "AB" * 32, f"{'ab' * 32} {'cd' * 32}", 7]
    )
    def test_a_layer_without_the_samples_of_its_large_files_is_made_anew(self, samples: Any) -> None:
        files = {"large.safetensors": bytes(SAMPLED_ABOVE + 1), "config.json": b"{}"}
        (group, layer) = (group_of(files), stored(files))
        assert len(layer.samples) == 1 and layer.sample_by_file.keys() == {group.largest.sha256}
        entry = layer.descriptor
        good = recalled(image_manifest(b"{}", [entry], {}), (group,), "none")
        assert good == (layer,) and good[0].samples == layer.samples, "control"
        entry["annotations"] = {**entry["annotations"], SAMPLES: samples}
        assert recalled(image_manifest(b"{}", [entry], {}), (group,), "none") is None

    def test_an_index_under_the_tag_is_none(self) -> None:
        index = Manifest.of(OCI_INDEX, b'{"schemaVersion": 2, "manifests": []}')
        assert recalled(index, self.GROUPS, "none") is None


def test_a_plans_groups_have_tags_that_a_registry_takes() -> None:
    plan = planned()
    for compression in ("none", "zstd"):
        for group in plan.groups:
            assert re.fullmatch(TAG, group_tag(group, compression))
        assert re.fullmatch(TAG, weights_tag(plan.groups, compression, "arm64"))


@pytest.mark.parametrize("notes", [None, {}, {"other": "x"}, "text"])
def test_what_an_image_has_besides_its_weights_is_added_up(notes: Any) -> None:
    runtime = {"mediaType": TAR, "digest": "sha256:" + "1" * 64, "size": 700}
    runtime |= {} if notes is None else {"annotations": notes}
    entries = [layer.descriptor for layer in layers()]
    assert size_without_weights(image_manifest(b"{}", [runtime, *entries, runtime], {})) == 1400
    assert size_without_weights(image_manifest(b"{}", [runtime], {})) is None
