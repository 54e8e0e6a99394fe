"""What `plan` says, compared with numbers that were worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest

from modelbake.errors import ConfigError
from modelbake.locked import LockedFile
from modelbake.manifest import Manifest, digest_of
from modelbake.plan import BuildPlan
from modelbake.sample import sampled
from modelbake.stream.assembly import RuntimeImage, model_layer_size
from modelbake.stream.forecast import Facts, forecast, in_words
from modelbake.stream.publish import make_image, weights_spec
from modelbake.stream.weights import StoredLayer, media_type_of
from tests.unit.planning import planned
from tests.unit.stream.material import runtime_image

# Two headers (folder, file), the file in blocks of 512 bytes, two empty blocks at the end.
SHARD = 512 + 512 + 67_108_864 + 1024
# A folder, two files (612 bytes fill 2 blocks, 466,247 fill 911), the end.
BUNDLE = 512 + (512 + 1024) + (512 + 466_432) + 1024
WEIGHTS = SHARD + BUNDLE
RUNTIME = 800  # bytes: see `runtime_image`
PLAN_DIGEST = "sha256:" + "5" * 64


def facts_of(
    plan: BuildPlan,
    runtime: RuntimeImage | None,
    *,
    stored: Collection[str] = (),
    previous: tuple[str, Manifest] | None = None,
    host: str = "registry.example.com",
    jobs: int = 8,
) -> Facts:
    return Facts(plan, weights_spec(plan, runtime), runtime, stored, previous, host, jobs)


def image_of(plan: BuildPlan, runtime: RuntimeImage) -> Manifest:
    """Return the manifest of a version, with layers that exist only by name."""
    spec = weights_spec(plan, runtime)
    layers = []
    for group in spec.groups:
        digest = digest_of(f"{group.digest} {spec.compression}".encode())
        size = SHARD if group.size > 10**6 else BUNDLE
        entry = {"mediaType": media_type_of(spec.compression), "digest": digest, "size": size}
        blob = Manifest.of(
            "application/vnd.oci.image.manifest.v1+json", json.dumps({"layers": [entry]}).encode()
        ).layers[0]
        samples = tuple("0" * 64 for _ in sampled(group.files))
        layers.append(StoredLayer(group, blob, digest, samples))
    return make_image(plan, runtime, tuple(layers), PLAN_DIGEST).manifest


def changed(plan: BuildPlan, *paths: str) -> BuildPlan:
    """Return the plan of weights in which some files are others, of the same size."""
    files = tuple(
        LockedFile(file.path, file.size, digest_of(file.path.encode())[7:][::-1])
        if file.path in paths
        else file
        for file in plan.locked.files
    )
    return replace(plan, locked=replace(plan.locked, files=files))


class TestMaxSize:
    def test_what_publish_would_refuse_is_said(self) -> None:
        facts = facts_of(planned(max_size="67 MB"), None)
        told = forecast(facts)
        assert told["too_large"].startswith("the image is at least 67.58 MB unpacked, 575.72 kB more than")
        (line,) = [line for line in in_words(told, "r.io") if "models.yaml" in line]
        assert line.startswith("limit      models.yaml: the image is at least")
        assert forecast(replace(facts, released_is_this=True))["too_large"] is None

    def test_the_runtime_counts_where_its_size_is_known(self) -> None:
        most = "67.576 MB"  # 277 bytes more than the weights
        assert forecast(facts_of(planned(max_size=most), None))["too_large"] is None, "control"
        assert (
            "runtime, compressed" in forecast(facts_of(planned(max_size=most), runtime_image()))["too_large"]
        )


class TestForecast:
    def test_nothing_is_there_yet(self) -> None:
        plan = planned()
        told = forecast(facts_of(plan, None))
        model = model_layer_size(plan)
        assert told["model"] == "minilm" and told["version"] == "1.0.0"
        assert told["repository"] == "registry.example.com/ml/minilm"
        assert told["source"] == "hf://acme/minilm@" + "0123456789" * 4
        assert (told["files"], told["weight_bytes"]) == (3, 612 + 466_247 + 67_108_864)
        assert [(layer["files"], layer["largest_file"], layer["bytes"]) for layer in told["layers"]] == [
            (1, "model.safetensors", SHARD),
            (2, "tokenizer.json", BUNDLE),
        ]
        assert [layer["group"] for layer in told["layers"]] == [group.digest for group in plan.groups]
        assert not any(layer["stored"] for layer in told["layers"])
        assert told["download_bytes"] == 612 + 466_247 + 67_108_864
        assert told["upload_bytes"] == WEIGHTS + model
        assert told["stored_bytes"] == 0
        unknown = ("image_layers", "layer_order", "orders", "previous")
        assert [told[key] for key in unknown] == [None] * 4
        assert told["runtime"] == {
            "name": "embeddings", "stored": False, "layers": None, "bytes": None, "hides_weights": []
        }  # fmt: skip
        assert told["needs"]["disk_bytes"] == 0 and told["needs"]["host_disk_bytes"] is None
        json.dumps(told)

    def test_what_is_stored_is_neither_read_nor_sent(self) -> None:
        plan = planned()
        told = forecast(facts_of(plan, runtime_image(), stored=[plan.groups[0].digest]))
        assert told["download_bytes"] == 612 + 466_247
        assert told["upload_bytes"] == BUNDLE + model_layer_size(plan)
        assert told["stored_bytes"] == SHARD
        assert [layer["stored"] for layer in told["layers"]] == [True, False]
        assert told["image_layers"] == 2 + 2 + 1
        assert told["runtime"]["stored"] and told["runtime"]["bytes"] == RUNTIME
        assert told["needs"]["host_disk_bytes"] == WEIGHTS + RUNTIME

    def test_what_each_order_costs_a_host(self) -> None:
        told = forecast(facts_of(planned(), runtime_image(sizes=(50_000_000, 30_000_000))))
        runtime = 80_000_000
        assert told["layer_order"] == "base-first", "the runtime is heavier"
        assert told["orders"] == {
            "weights-first": {
                "one_model": WEIGHTS + runtime,
                "3_models": 3 * WEIGHTS + 3 * runtime,
                "runtime_patched": runtime,
            },
            "base-first": {
                "one_model": WEIGHTS + runtime,
                "3_models": 3 * WEIGHTS + runtime,
                "runtime_patched": WEIGHTS + runtime,
            },
        }
        assert forecast(facts_of(planned(), runtime_image()))["layer_order"] == "weights-first"

    def test_an_order_that_cannot_be_had(self) -> None:
        runtime = runtime_image(hides=["models"])
        with pytest.raises(ConfigError, match="would hide"):
            forecast(facts_of(planned(layer_order="weights-first"), runtime))
        told = forecast(facts_of(planned(), runtime))
        assert (told["layer_order"], told["runtime"]["hides_weights"]) == ("base-first", ["models"])

    def test_memory_grows_with_jobs_and_not_with_weights(self) -> None:
        needs = [forecast(facts_of(planned(), None, jobs=jobs))["needs"] for jobs in (1, 8)]
        assert needs[1]["memory_bytes"] - needs[0]["memory_bytes"] == 7 * 4 * 2**20
        assert needs[1]["memory_bytes"] <= 150 * 10**6

    def test_files_that_share_a_layer(self) -> None:
        assert forecast(facts_of(planned(), None))["bundled"] == 2, "config.json and tokenizer.json"


class TestLimits:
    @staticmethod
    def limits(size: int, host: str, runtime: RuntimeImage | None = None) -> dict[str, list[str]]:
        plan = planned()
        files = (LockedFile("model.safetensors", size, "ab" * 32),)
        told = forecast(facts_of(replace(plan, locked=replace(plan.locked, files=files)), runtime, host=host))
        return {limit["registry"]: limit["hits"] for limit in told["limits"]}

    def test_registries_that_would_refuse_are_named(self) -> None:
        found = self.limits(10**10, "registry.example.com")
        assert set(found) == {"GitHub Packages (ghcr.io)"}
        assert found["GitHub Packages (ghcr.io)"] == [
            "a layer of 10,000,003,072 bytes, and it takes at most 10,000,000,000"
        ]
        assert set(self.limits(11 * 10**9, "registry.example.com")) == {
            "GitHub Packages (ghcr.io)",
            "Amazon ECR Public",
        }
        assert len(self.limits(300 * 2**30, "registry.example.com")) == 4

    def test_the_one_that_is_used_is_named_in_any_case(self) -> None:
        assert self.limits(1000, "acme.azurecr.io") == {"Azure Container Registry": []}
        assert self.limits(1000, "registry.example.com") == {}

    def test_a_runtimes_layer_counts_too(self) -> None:
        found = self.limits(1000, "ghcr.io", runtime_image(sizes=[11 * 10**9]))
        assert len(found["GitHub Packages (ghcr.io)"]) == 1


class TestUpdate:
    """What a host pulls that has 1.0.0, and takes 1.1.0."""

    @staticmethod
    def repull(
        plan: BuildPlan, runtime: RuntimeImage, before: BuildPlan, runtime_before: RuntimeImage
    ) -> dict[str, Any]:
        previous = ("1.0.0", image_of(before, runtime_before))
        told = forecast(facts_of(plan, runtime, previous=previous))["previous"]
        assert told["version"] == "1.0.0"
        return {key: told[key] for key in ("classic_bytes", "containerd_bytes")}

    @pytest.mark.parametrize("order", ["weights-first", "base-first"])
    def test_only_the_version_changed(self, order: str) -> None:
        before, plan = planned(layer_order=order), planned(layer_order=order, version="1.1.0")
        model = model_layer_size(plan)
        found = self.repull(plan, runtime_image(), before, runtime_image())
        assert found == {"classic_bytes": model, "containerd_bytes": model}

    def test_a_patched_runtime_below_weights_pulls_them_again(self) -> None:
        keys: dict[str, Any] = {"layer_order": "base-first"}
        before, plan = planned(**keys), planned(**keys, version="1.1.0")
        model = model_layer_size(plan)
        patched = runtime_image(sizes=(500, 300, 40))
        assert patched.layers[:2] == runtime_image().layers
        found = self.repull(plan, patched, before, runtime_image())
        assert found == {"classic_bytes": 40 + WEIGHTS + model, "containerd_bytes": 40 + model}

    def test_a_patched_runtime_above_weights_does_not(self) -> None:
        keys: dict[str, Any] = {"layer_order": "weights-first"}
        before, plan = planned(**keys), planned(**keys, version="1.1.0")
        model = model_layer_size(plan)
        patched = runtime_image(sizes=(500, 300, 40))
        found = self.repull(plan, patched, before, runtime_image())
        assert found == {"classic_bytes": 40 + model, "containerd_bytes": 40 + model}

    @pytest.mark.parametrize(
        ("path", "order", "classic", "containerd"),
        [
            ("model.safetensors", "weights-first", WEIGHTS + RUNTIME, SHARD),
            ("config.json", "weights-first", BUNDLE + RUNTIME, BUNDLE),
            ("model.safetensors", "base-first", WEIGHTS, SHARD),
            ("config.json", "base-first", BUNDLE, BUNDLE),
        ],
    )
    def test_a_changed_file(self, path: str, order: str, classic: int, containerd: int) -> None:
        before = planned(layer_order=order)
        plan = changed(planned(layer_order=order, version="1.1.0"), path)
        model = model_layer_size(plan)
        found = self.repull(plan, runtime_image(), before, runtime_image())
        assert found == {"classic_bytes": classic + model, "containerd_bytes": containerd + model}

    def test_another_order(self) -> None:
        before = planned(layer_order="base-first")
        plan = planned(layer_order="weights-first", version="1.1.0")
        model = model_layer_size(plan)
        found = self.repull(plan, runtime_image(), before, runtime_image())
        assert found == {"classic_bytes": WEIGHTS + RUNTIME + model, "containerd_bytes": model}

    def test_another_compression_is_other_layers(self) -> None:
        keys: dict[str, Any] = {"layer_order": "weights-first"}
        plan = planned(**keys, version="1.1.0", compression="zstd")
        model = model_layer_size(plan)
        found = self.repull(plan, runtime_image(), planned(**keys), runtime_image())
        assert found == {"classic_bytes": WEIGHTS + RUNTIME + model, "containerd_bytes": WEIGHTS + model}

    def test_an_image_of_the_docker_lane(self) -> None:
        document = {"layers": [{"digest": "sha256:" + "1" * 64, "size": 1, "annotations": None}]}
        previous = Manifest.of(
            "application/vnd.docker.distribution.manifest.v2+json", json.dumps(document).encode()
        )
        plan = planned(version="1.1.0")
        told = forecast(facts_of(plan, runtime_image(), previous=("1.0.0", previous)))["previous"]
        everything = WEIGHTS + RUNTIME + model_layer_size(plan)
        assert (told["classic_bytes"], told["containerd_bytes"]) == (everything, everything)


class TestWords:
    @staticmethod
    def said(facts: Facts) -> str:
        return "\n".join(in_words(forecast(facts), facts.host))

    def test_of_a_first_version(self) -> None:
        text = self.said(facts_of(planned(), None))
        assert "minilm 1.0.0 -> registry.example.com/ml/minilm" in text
        assert "3 files, 67.6 MB in 2 layers (2 files share a layer)" in text
        assert "to publish" in text and "stored  " not in text
        assert "tokenizer.json and 1 more" in text and "not in the registry yet" in text
        assert "limit" not in text and "order      " not in text
        assert "no disk here, about" in text and "a host's disk" not in text

    def test_of_an_update(self) -> None:
        plan = planned(version="1.1.0")
        previous = ("1.0.0", image_of(planned(), runtime_image()))
        stored = [group.digest for group in plan.groups]
        text = self.said(facts_of(plan, runtime_image(), stored=stored, previous=previous))
        assert "download   0.0 MB" in text and "in the registry already: 67.6 MB" in text
        assert "order      weights-first" in text and "version    " not in text
        assert "one model 67.6 MB, 3 such models 202.7 MB, after a patch of the runtime 0.0 MB" in text
        assert "update     a host with 1.0.0 pulls 0.0 MB (containerd store: 0.0 MB)" in text
        assert "a host's disk 67.6 MB" in text

    def test_of_a_version_that_is_released(self) -> None:
        facts = replace(facts_of(planned(), runtime_image()), released="sha256:" + "12" * 32)
        assert forecast(facts)["released"] == {"digest": "sha256:" + "12" * 32, "is_this": False}
        assert "version    1.0.0 is sha256:121212121212, another image: raise `version`" in self.said(facts)
        ours = replace(facts, released_is_this=True)
        assert "version    1.0.0 is sha256:121212121212, published already" in self.said(ours)

    def test_of_limits(self) -> None:
        plan = planned()
        files = (LockedFile("model.safetensors", 12 * 10**9, "ab" * 32),)
        plan = replace(plan, locked=replace(plan.locked, files=files))
        text = self.said(facts_of(plan, None, host="ghcr.io"))
        assert "limit      GitHub Packages (ghcr.io): a layer of 12,000,003,072 bytes" in text
        assert "<- this registry" in text
        assert "limit      Amazon ECR Public: a layer" in text
        assert "has to be sent with 20.0 MB/s" in text

    def test_of_compressed_layers(self) -> None:
        assert "upload     at most 67.6 MB" in self.said(facts_of(planned(compression="zstd"), None))

    def test_of_a_runtime_that_hides_weights(self) -> None:
        text = self.said(facts_of(planned(), runtime_image(hides=["models", ".wh.x"])))
        assert "weights cannot lie below this runtime: it has .wh.x, models" in text
