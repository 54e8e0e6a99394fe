"""A runtime and weights become one image: order, documents, what is refused."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from typing import Any

import pytest

from modelbake.errors import ConfigError, RegistryError
from modelbake.manifest import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Descriptor, Manifest, digest_of
from modelbake.sample import SAMPLED_ABOVE
from modelbake.stream.assembly import (
    HIDES_WEIGHTS,
    MOST_LAYERS,
    Order,
    RuntimeImage,
    assemble,
    choose_order,
    model_layer,
    model_layer_size,
    read_runtime,
    runtime_manifest,
)
from modelbake.stream.flow import TAR
from modelbake.stream.weights import EPOCH, OCI_CONFIG, SAMPLES, StoredLayer
from tests.unit.planning import planned
from tests.unit.stream.material import (
    DOCKER_GZIP,
    content,
    docker_manifest,
    group_of,
    runtime_config,
    runtime_image,
    stored,
)

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
PLAN_DIGEST = "sha256:" + "5" * 64
WEIGHTS = (stored({"config.json": b"{}"}), stored({"model.safetensors": content(2000)}))
MODEL = Descriptor(TAR, "sha256:" + "7" * 64, 3072)


def assembled(
    order: Order, runtime: RuntimeImage | None = None, **keys: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return configuration and manifest as documents."""
    config, manifest = assemble(
        planned(**keys), runtime or runtime_image(), WEIGHTS, MODEL, order, PLAN_DIGEST
    )
    assert manifest.config == Descriptor(OCI_CONFIG, digest_of(config), len(config))
    return json.loads(config), manifest.document()


@pytest.mark.parametrize("order", ["weights-first", "base-first"])
def test_layers_diff_ids_and_history_are_in_one_order(order: Order) -> None:
    runtime = runtime_image()
    config, manifest = assembled(order, runtime)
    weights = [(layer.blob.digest, layer.diff_id, layer.created_by) for layer in WEIGHTS]
    below = [
        (layer.digest, diff_id, said)
        for layer, diff_id, said in zip(
            runtime.layers, runtime.diff_ids, ("ADD rootfs", "RUN 1"), strict=True
        )
    ]
    both = weights + below if order == "weights-first" else below + weights
    expected = [*both, (MODEL.digest, MODEL.digest, "modelbake manifest /modelbake/manifest.json")]
    told = [each for each in config["history"] if not each.get("empty_layer")]
    assert [
        (entry["digest"], diff_id, each["created_by"])
        for entry, diff_id, each in zip(manifest["layers"], config["rootfs"]["diff_ids"], told, strict=True)
    ] == expected
    assert len(config["history"]) == len(expected) + 1, "what made no layer is told too"
    assert manifest["annotations"]["io.modelbake.layer-order"] == order
    assert config["rootfs"]["type"] == "layers"


def test_the_runtimes_settings_are_kept_and_the_models_added() -> None:
    config, manifest = assembled("base-first", env={"OMP_NUM_THREADS": "4", "HF_HUB_OFFLINE": "0"})
    assert config["architecture"] == "amd64" and config["os"] == "linux"
    assert config["created"] == "2025-01-31T12:00:00Z", "the runtime's own: rebuilding moves nothing"
    inner = config["config"]
    assert (inner["Cmd"], inner["User"]) == (["serve"], "10001")
    assert inner["Env"] == [
        "PATH=/opt/venv/bin:/usr/bin",
        "HF_HUB_OFFLINE=0",
        "MODELBAKE_MODEL=minilm",
        "MODELBAKE_VERIFY=full",
        "MODELBAKE_VERSION=1.0.0",
        "OMP_NUM_THREADS=4",
    ]
    labels = planned().labels
    assert inner["Labels"] == {"maintainer": "platform", **labels, "io.modelbake.plan": PLAN_DIGEST}
    assert inner["Labels"]["io.modelbake.model"] == "minilm"
    notes = manifest["annotations"]
    assert notes["org.opencontainers.image.base.name"] == planned().base
    assert notes["org.opencontainers.image.base.digest"] == planned().base.rpartition("@")[2]
    assert notes["org.opencontainers.image.title"] == "minilm"
    assert notes["io.modelbake.lock"] == planned().locked.digest


def test_labels_of_a_team_are_labels_and_not_annotations() -> None:
    config, manifest = assembled("base-first", labels={"team": "search"})
    assert config["config"]["Labels"]["team"] == "search"
    assert "team" not in manifest["annotations"]


def test_the_same_parts_give_the_same_bytes() -> None:
    made = [
        assemble(planned(), runtime_image(), WEIGHTS, MODEL, order, PLAN_DIGEST)
        for order in ("weights-first", "weights-first", "base-first")
    ]
    assert made[0] == made[1] != made[2]


@pytest.mark.parametrize(
    "keys",
    [
        {"history": None},
        {"history": []},
        {"history": [{"created_by": "one"}]},
        {"history": "text"},
        {"history": ["text", "text"]},
        {"history": [{"empty_layer": True}] * 3},
    ],
)
def test_a_history_that_does_not_fit_is_replaced(keys: dict[str, Any]) -> None:
    config, _ = assembled("weights-first", runtime_image(**keys))
    assert [each["created_by"] for each in config["history"]][2:4] == ["runtime", "runtime"]
    assert len(config["history"]) == 5


@pytest.mark.parametrize("config", [None, {}, {"Env": None, "Labels": None}])
def test_a_runtime_without_settings(config: Any) -> None:
    document, _ = assembled("weights-first", runtime_image(config=config))
    assert document["config"]["Env"] == [
        "MODELBAKE_MODEL=minilm",
        "MODELBAKE_VERIFY=full",
        "MODELBAKE_VERSION=1.0.0",
    ]
    assert document["config"]["Labels"]["io.modelbake.plan"] == PLAN_DIGEST


def test_the_platform_is_the_runtimes() -> None:
    runtime = runtime_image(architecture="arm64", variant="v8")
    assert runtime.platform == {"architecture": "arm64", "os": "linux", "variant": "v8"}
    document, _ = assembled("base-first", runtime)
    assert (document["architecture"], document["variant"]) == ("arm64", "v8")


def test_more_than_100_layers_are_refused() -> None:
    fits = runtime_image(sizes=[1] * (MOST_LAYERS - 3))
    _, manifest = assembled("base-first", fits)
    assert len(manifest["layers"]) == MOST_LAYERS == 100
    with pytest.raises(RegistryError, match="101 layers, and 100 are the most") as caught:
        assembled("base-first", runtime_image(sizes=[1] * (MOST_LAYERS - 2)))
    assert caught.value.subject == "minilm"


class TestOrder:
    @pytest.mark.parametrize(
        ("weights", "runtime", "hides", "order"),
        [
            (1001, 1000, [], "weights-first"),
            (1000, 1000, [], "base-first"),
            (999, 1000, [], "base-first"),
            (10**10, 1000, ["models"], "base-first"),
        ],
    )
    def test_auto_puts_the_heavier_part_at_the_bottom(
        self, weights: int, runtime: int, hides: list[str], order: Order
    ) -> None:
        assert choose_order(planned().spec, weights, runtime, hides) == order

    @pytest.mark.parametrize("order", ["weights-first", "base-first"])
    def test_what_models_yaml_says_is_done(self, order: Order) -> None:
        spec = planned(layer_order=order).spec
        assert choose_order(spec, 1, 10**9, []) == choose_order(spec, 10**9, 1, []) == order

    def test_weights_are_never_put_where_they_would_be_hidden(self) -> None:
        with pytest.raises(ConfigError, match=r"models, \.wh\.models.*would hide") as caught:
            choose_order(planned(layer_order="weights-first").spec, 1, 1, ["models", ".wh.models"])
        assert caught.value.subject == "minilm" and "base-first" in caught.value.hint
        assert choose_order(planned(layer_order="base-first").spec, 9, 1, ["models"]) == "base-first"


class TestRuntimeImage:
    CONFIG = runtime_config([b"a", b"b"])

    def pushed(self, *types: str) -> Manifest:
        layers = [
            Descriptor(media_type, digest_of(str(number).encode()), 10 + number)
            for number, media_type in enumerate(types)
        ]
        return docker_manifest(self.CONFIG, layers)

    def test_dockers_media_types_become_those_of_the_oci(self) -> None:
        pushed = self.pushed(DOCKER_GZIP, "application/vnd.docker.image.rootfs.diff.tar")
        manifest = runtime_manifest(pushed, self.CONFIG, [], {"a": "b"})
        assert pushed.media_type == DOCKER_MANIFEST and manifest.media_type == OCI_MANIFEST
        assert [layer.media_type for layer in manifest.layers] == [GZIP, TAR]
        assert [(layer.digest, layer.size) for layer in manifest.layers] == [
            (layer.digest, layer.size) for layer in pushed.layers
        ]
        assert manifest.config.media_type == OCI_CONFIG
        assert manifest.config.digest == digest_of(self.CONFIG)
        assert manifest.document()["annotations"] == {"a": "b"}

    @pytest.mark.parametrize("media_type", [TAR, GZIP, f"{TAR}+zstd"])
    def test_those_of_the_oci_stay(self, media_type: str) -> None:
        manifest = runtime_manifest(self.pushed(media_type, GZIP), self.CONFIG, [], {})
        assert manifest.layers[0].media_type == media_type

    @pytest.mark.parametrize(
        "media_type",
        [
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "application/vnd.oci.empty.v1+json",
            "",
        ],
    )
    def test_layers_that_cannot_be_passed_on_are_refused(self, media_type: str) -> None:
        with pytest.raises(RegistryError, match="cannot be passed on"):
            runtime_manifest(self.pushed(GZIP, media_type), self.CONFIG, [], {})

    def test_what_hides_weights_is_written_down_and_read(self) -> None:
        manifest = runtime_manifest(self.pushed(GZIP, GZIP), self.CONFIG, ["models", ".wh.x"], {})
        assert manifest.document()["annotations"] == {HIDES_WEIGHTS: '["models", ".wh.x"]'}
        runtime = read_runtime(manifest, self.CONFIG)
        assert runtime.hides == ("models", ".wh.x")
        assert runtime.size == 21
        assert runtime.diff_ids == [digest_of(b"a"), digest_of(b"b")]
        assert (
            read_runtime(runtime_manifest(self.pushed(GZIP, GZIP), self.CONFIG, [], {}), self.CONFIG).hides
            == ()
        )

    @pytest.mark.parametrize(
        "config",
        [
            b"",
            b"<html>",
            b"[]",
            b"null",
            b"{}",
            b'{"rootfs": {}}',
            b'{"rootfs": null}',
            b'{"rootfs": {"diff_ids": "ab"}}',
            b'{"rootfs": {"diff_ids": ["a"]}}',
            b'{"rootfs": {"diff_ids": ["a", "b"]}, "config": [1]}',
            b"[" * 100_000,
        ],
    )
    def test_what_is_no_configuration_is_refused(self, config: bytes) -> None:
        manifest = runtime_manifest(self.pushed(GZIP, GZIP), self.CONFIG, [], {})
        with pytest.raises(RegistryError, match="not that of an image"):
            read_runtime(manifest, config)

    def test_an_index_is_none(self) -> None:
        with pytest.raises(RegistryError):
            runtime_manifest(Manifest.of(OCI_INDEX, b'{"manifests": []}'), self.CONFIG, [], {})


def test_the_model_layer_holds_the_manifest_that_the_image_checks_at_its_start() -> None:
    plan = planned()
    with tarfile.open(fileobj=io.BytesIO(model_layer(plan, WEIGHTS))) as archive:
        assert archive.getnames() == ["modelbake", "modelbake/manifest.json"]
        read = archive.extractfile("modelbake/manifest.json")
        assert read is not None and read.read() == plan.manifest()
    assert model_layer(plan, WEIGHTS) == model_layer(planned(), WEIGHTS)


def test_the_model_layer_holds_the_samples_of_large_files_and_its_size_is_known_before() -> None:
    plan = planned()
    (large,) = (group for group in plan.groups if group.size > SAMPLED_ABOVE)
    layer = StoredLayer(large, WEIGHTS[0].blob, WEIGHTS[0].diff_id, ("ab" * 32,))
    made = model_layer(plan, (layer, *WEIGHTS))
    path = f"modelbake/samples/{large.largest.sha256}"
    with tarfile.open(fileobj=io.BytesIO(made)) as archive:
        assert archive.getnames() == ["modelbake", "modelbake/samples", "modelbake/manifest.json", path]
        read = archive.extractfile(path)
        assert read is not None and read.read() == b"ab" * 32 + b"\n"
    assert len(made) == model_layer_size(plan)
    assert layer.descriptor["annotations"][SAMPLES] == "ab" * 32
    assert SAMPLES not in WEIGHTS[0].descriptor["annotations"]


def test_weights_are_told_by_their_descriptor() -> None:
    (layer, _) = WEIGHTS
    moved = StoredLayer(group_of({"config.json": b"{}"}), replace(layer.blob), layer.diff_id)
    assert moved == layer and moved.descriptor == layer.descriptor


def test_the_history_begins_at_the_epoch_for_what_we_add() -> None:
    config, _ = assembled("weights-first")
    assert {config["history"][0]["created"], config["history"][-1]["created"]} == {EPOCH}
