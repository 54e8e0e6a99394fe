"""What an image holds, and the bill of materials that is made of it."""

from __future__ import annotations

import io
import json

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from modelbake.errors import RegistryError, ReleaseError
from modelbake.imagetar import UNREADABLE
from modelbake.release.inventory import Inventory, LayerFiles, inventory_of, read_inventory, read_layer
from modelbake.release.sbom import _model, make_sbom
from tests.servers.upload_registry import UploadRegistry
from tests.unit.release.conftest import Open
from tests.unit.release.made import (
    BAKED,
    DIGEST,
    layer,
    metadata,
    put_image,
    put_index,
    usual_layers,
)

LABELS = {
    "org.opencontainers.image.base.name": f"docker.io/library/python:3.11-slim-bookworm@{DIGEST}",
    "org.opencontainers.image.base.digest": DIGEST,
}


def read(content: bytes) -> LayerFiles:
    return read_layer(io.BufferedReader(io.BytesIO(content)))


def usual() -> Inventory:
    config = {"created": "2026-01-02T03:04:05.123456789Z", "config": {"Labels": LABELS}}
    return inventory_of([read(each) for each in usual_layers()], config)


def names(inventory: Inventory) -> list[str]:
    return [f"{each.ecosystem} {each.name} {each.version}" for each in inventory.packages]


class TestInventory:
    def test_packages_are_those_that_a_container_sees(self) -> None:
        found = usual()
        assert names(found) == ["deb libc6 2.36-9+deb12u7", "pypi my-package 1", "pypi torch 2.0+cpu"]
        assert found.distribution == ("debian", "12")
        assert found.baked == BAKED
        alone = inventory_of([read(usual_layers()[0])], {})
        assert "pypi old 0.1" in names(alone), "control: without the layer that takes it away"

    def test_a_layer_is_read_on_only_as_far_as_it_has_no_weights(self) -> None:
        late = {"zz/late-1.dist-info/METADATA": metadata("late", "1")}
        assert read(layer({"models/a.safetensors": bytes(1 << 20), **late})).kept == {}
        assert len(read(layer({"models/config.json": "{}", **late})).kept) == 1, "control: a small file"

    @pytest.mark.parametrize("text", ["", "Name: \nVersion: ", "\0\xff", "Name: a b\nVersion: \x1b[31m"])
    def test_metadata_that_says_nothing_usable(self, text: str) -> None:
        found = inventory_of([LayerFiles({"x/torch-2.0.dist-info/METADATA": text.encode()})], {})
        assert names(found) in (["pypi torch 2.0"], [])

    def test_distroless_images_keep_a_file_for_each_package(self) -> None:
        text = b"Package: tzdata\nVersion: 1\nArchitecture: all\n"
        files = {"var/lib/dpkg/status.d/tzdata": text, "var/lib/dpkg/status.d/tzdata.md5sums": text}
        assert names(inventory_of([LayerFiles(files)], {})) == ["deb tzdata 1"]

    @pytest.mark.parametrize("content", [b"", b"no tar", layer({"a": "b"})[:700], b"\x1f\x8bbroken"])
    def test_what_is_no_layer_is_an_error(self, content: bytes) -> None:
        with pytest.raises(UNREADABLE):
            read(content)

    def test_of_a_registry(self, plain: UploadRegistry, open_repository: Open) -> None:
        repository = open_repository(plain, "ml/minilm")
        image = put_image(repository, "tested", layers=usual_layers(), labels=LABELS)
        found = read_inventory(repository, image)
        assert found.packages == usual().packages and found.labels == LABELS
        assert read_inventory(repository, put_index(repository, "i", image)) == found
        other = put_image(repository, "other", note="other")
        with pytest.raises(ReleaseError, match="several platforms"):
            read_inventory(repository, put_index(repository, "two", image, other))
        broken = put_image(repository, "broken", layers=[b"no layer"])
        with pytest.raises(RegistryError, match="cannot be read"):
            read_inventory(repository, broken)


class TestSbom:
    def test_the_schema_takes_it(self) -> None:
        raw = make_sbom("minilm", "1.0.0", DIGEST, usual()).decode()
        validator = JsonStrictValidator(SchemaVersion.V1_6)
        assert validator.validate_str(raw) is None
        broken = json.loads(raw)
        broken["components"][0]["type"] = "spaceship"
        assert validator.validate_str(json.dumps(broken)) is not None, "control"

    def test_what_it_names(self) -> None:
        document = json.loads(make_sbom("minilm", "1.0.0", DIGEST, usual()))
        assert document["metadata"]["component"]["hashes"] == [{"alg": "SHA-256", "content": "ab" * 32}]
        assert document["metadata"]["timestamp"].startswith("2026-01-02T03:04:05")
        parts = {each["name"]: each for each in document["components"]}
        assert sorted(parts) == ["docker.io/library/python", "libc6", "minilm", "my-package", "torch"]
        assert parts["torch"]["purl"] == "pkg:pypi/torch@2.0%2Bcpu"
        assert parts["torch"]["licenses"] == [{"expression": "BSD-3-Clause"}]
        assert "licenses" not in parts["my-package"], "a text of one's own is not guessed to be a licence"
        assert parts["libc6"]["purl"] == "pkg:deb/debian/libc6@2.36-9%2Bdeb12u7?arch=amd64&distro=debian-12"
        assert parts["docker.io/library/python"]["hashes"][0]["content"] == "ab" * 32
        model = parts["minilm"]
        assert model["type"] == "machine-learning-model" and "licenses" not in model
        assert model["purl"] == f"pkg:huggingface/acme/minilm@{BAKED['commit']}"
        files = {each["name"]: each for each in model["components"]}
        assert files["model.safetensors"]["hashes"] == [{"alg": "SHA-256", "content": "ef" * 32}]
        assert {"name": "modelbake:size", "value": str(2 << 20)} in files["model.safetensors"]["properties"]
        (about,) = [each for each in document["dependencies"] if each.get("dependsOn")]
        assert len(about["dependsOn"]) == 5

    def test_further_sources_are_named(self) -> None:
        added = [{"source": "s3://models/legal", "commit": "ab" * 20, "into": "adapter"}, 5]
        (model,) = _model("chat", "1.0.0", {**BAKED, "added": added})
        said = {each.name: each.value for each in model.properties}
        assert said["modelbake:added"] == f"s3://models/legal@{'ab' * 20} in adapter"
        (model,) = _model("chat", "1.0.0", BAKED)
        assert "modelbake:added" not in {each.name for each in model.properties}

    def test_the_same_image_gives_the_same_bytes(self) -> None:
        first = make_sbom("minilm", "1.0.0", DIGEST, usual())
        assert first == make_sbom("minilm", "1.0.0", DIGEST, usual())
        other = make_sbom("minilm", "1.0.0", "sha256:" + "cd" * 32, usual())
        assert json.loads(other)["serialNumber"] != json.loads(first)["serialNumber"]

    @pytest.mark.parametrize("created", [None, 5, "yesterday", "2026-01-02T03:04:05"])
    def test_an_image_that_says_little(self, created: object) -> None:
        raw = make_sbom("m", "1.0.0", DIGEST, Inventory((), ("", ""), {}, {"created": created}))
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(raw.decode()) is None
        assert "components" not in json.loads(raw)
