"""From a lock to an image: what is read, stored, remembered and put, and what is never done twice."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard

from modelbake.credentials import Secret
from modelbake.dockerconfig import RegistryCredentials
from modelbake.errors import (
    LayoutError,
    ModelbakeError,
    RegistryAuthError,
    RegistryError,
    RegistryLimit,
    RegistryUnavailable,
    SourceUnavailable,
    WrongBytes,
)
from modelbake.locked import LockedFile, LockedModel
from modelbake.manifest import Manifest, digest_of
from modelbake.output import Output
from modelbake.plan import MAX_GROUPS, OWN_GROUP_BYTES, BuildPlan, WeightGroup
from modelbake.registry import Registry
from modelbake.stream.flow import TAR, FileBytes, Reader
from modelbake.stream.layout import LayoutRepository
from modelbake.stream.publish import (
    Image,
    WeightsSpec,
    copy_image,
    ensure_layers,
    has_right_shape,
    make_image,
    put_image,
    recall_layer,
    recall_layers,
    require_room,
    weights_spec,
)
from modelbake.stream.repository import RegistryRepository, Repository
from modelbake.stream.view import TransferView
from modelbake.stream.weights import OCI_CONFIG, StoredLayer, data_image, group_tag
from tests.servers.upload_registry import PASSWORD, USER, Kind, UploadRegistry
from tests.unit.planning import planned
from tests.unit.stream.material import (
    MemoryReader,
    content,
    group_of,
    locked,
    put_runtime,
    runtime_image,
    stored,
)

SMALL = {"config.json": b"{}", "empty.txt": b"", "1_Pooling/config.json": b"[]"}
SHARDS = [{f"model-{number}.safetensors": content(40_000 + number, number)} for number in (1, 2, 3)]
FILES = {path: data for files in (SMALL, *SHARDS) for path, data in files.items()}
PLAN_DIGEST = "sha256:" + "5" * 64


def model_of(contents: Mapping[str, bytes]) -> LockedModel:
    files = locked(contents)
    return LockedModel("minilm", "hf://acme/minilm", "https://hub", "main", "c" * 40, ("*",), (), files)


def spec_of(
    *parts: Mapping[str, bytes], compression: str = "none", architecture: str = "amd64"
) -> WeightsSpec:
    contents = {path: data for files in parts for path, data in files.items()}
    return WeightsSpec(model_of(contents), tuple(map(group_of, parts)), compression, architecture)


SPEC = spec_of(SMALL, *SHARDS)


def plan_of(spec: WeightsSpec, **keys: Any) -> BuildPlan:
    return replace(planned(**keys), locked=spec.locked, groups=spec.groups)


class Run:
    """One run: what was read, what was said."""

    def __init__(self, contents: Mapping[str, bytes] = FILES, log_format: str = "text") -> None:
        self.reader = MemoryReader(contents)
        self.made = 0
        self.stop: threading.Event | None = None
        self.stderr = io.StringIO()
        self.view = TransferView(Output(stdout=io.StringIO(), stderr=self.stderr, log_format=log_format))

    def read_with(self, stop: threading.Event) -> Reader:
        self.made += 1
        self.stop = stop
        return self.reader

    def ensure(
        self, repository: Repository, spec: WeightsSpec = SPEC, **options: Any
    ) -> tuple[StoredLayer, ...]:
        return ensure_layers(spec, repository, self.read_with, self.view, **options)

    @property
    def paths(self) -> list[str]:
        """The files that were read, empty ones left out."""
        return [path for path, _ in self.reader.reads if path != "empty.txt"]


@pytest.fixture
def layout(tmp_path: Path) -> LayoutRepository:
    return LayoutRepository.create(tmp_path / "layout")


class TestEnsureLayers:
    @pytest.mark.parametrize("compression", ["none", "zstd"])
    def test_all_are_stored_and_remembered(self, layout: LayoutRepository, compression: str) -> None:
        spec = replace(SPEC, compression=compression)
        layers = Run().ensure(layout, spec)
        assert layers == tuple(stored(files, compression) for files in (SMALL, *SHARDS))
        assert all(layout.has(layer.blob) for layer in layers)
        assert layout.tags() == sorted([spec.tag, *(group_tag(group, compression) for group in spec.groups)])
        assert recall_layers(layout, spec) == layers
        for layer in layers:
            assert recall_layer(layout, layer.group, compression) == layer

    def test_each_byte_is_read_once(self, layout: LayoutRepository) -> None:
        run = Run()
        run.ensure(layout)
        assert sorted(run.reader.reads) == sorted((path, 0) for path in FILES)
        assert run.made == 1

    def test_the_largest_begin_first(self, layout: LayoutRepository) -> None:
        run = Run()
        run.ensure(layout, jobs=1)
        assert run.paths[:3] == [f"model-{number}.safetensors" for number in (3, 2, 1)]

    def test_several_flow_at_once(self, layout: LayoutRepository) -> None:
        together = threading.Barrier(3, timeout=10)

        class Meeting(MemoryReader):
            def read(self, file: LockedFile, start: int = 0) -> FileBytes:
                if file.path.startswith("model"):
                    together.wait()
                return super().read(file, start)

        run = Run()
        run.reader = Meeting(FILES)
        run.ensure(layout, jobs=4)

    def test_the_second_time_nothing_is_read_or_written(self, layout: LayoutRepository) -> None:
        layers = Run().ensure(layout)
        before = {path: path.stat().st_mtime_ns for path in layout.folder.rglob("*")}
        run = Run({})
        assert run.ensure(layout) == layers
        assert (run.made, run.stderr.getvalue()) == (0, "")
        assert {path: path.stat().st_mtime_ns for path in layout.folder.rglob("*")} == before

    def test_another_model_reads_only_what_is_new(self, layout: LayoutRepository) -> None:
        Run().ensure(layout)
        lora = {"adapter.safetensors": content(9000, 9)}
        run = Run({**FILES, **lora})
        run.ensure(layout, spec_of(SMALL, *SHARDS, lora))
        assert run.paths == ["adapter.safetensors"]
        changed = {"model-2.safetensors": content(40_002, 8)}
        run = Run({**FILES, **changed})
        run.ensure(layout, spec_of(SMALL, SHARDS[0], changed, SHARDS[2]))
        assert run.paths == ["model-2.safetensors"]

    def test_another_architecture_reads_nothing(self, layout: LayoutRepository) -> None:
        layers = Run().ensure(layout)
        run = Run({})
        assert run.ensure(layout, replace(SPEC, architecture="arm64")) == layers
        assert run.made == 0
        manifest = layout.manifest(replace(SPEC, architecture="arm64").tag)
        assert manifest is not None
        config = json.loads(b"".join(layout.read(manifest.config)))
        assert config["architecture"] == "arm64"

    def test_compressed_ones_are_others(self, layout: LayoutRepository) -> None:
        Run().ensure(layout)
        run = Run()
        run.ensure(layout, replace(SPEC, compression="zstd"))
        assert sorted(run.paths) == sorted(path for path in FILES if FILES[path])

    def test_what_another_repository_has_is_taken_from_there(
        self, layout: LayoutRepository, tmp_path: Path
    ) -> None:
        other = LayoutRepository.create(tmp_path / "other")
        Run().ensure(other, spec_of(SMALL, *SHARDS[:2]))
        run = Run()
        layers = run.ensure(layout, others=(LayoutRepository.create(tmp_path / "empty"), other))
        assert run.paths == ["model-3.safetensors"]
        assert all(layout.has(layer.blob) for layer in layers)
        assert Run({}).ensure(layout) == layers

    def test_a_blob_that_is_lost_is_made_again(self, layout: LayoutRepository) -> None:
        layers = Run().ensure(layout)
        lost = layout.folder / "blobs" / "sha256" / layers[2].blob.digest.removeprefix("sha256:")
        lost.unlink()
        run = Run()
        assert run.ensure(layout) == layers
        assert run.paths == ["model-2.safetensors"] and lost.exists()

    def test_a_memory_of_other_weights_is_not_believed(self, layout: LayoutRepository) -> None:
        other = Run({"x": b"x"})
        other.ensure(layout, spec_of({"x": b"x"}))
        manifest = layout.manifest(spec_of({"x": b"x"}).tag)
        assert manifest is not None
        layout.put_manifest(SPEC.tag, manifest)
        layout.put_manifest(group_tag(SPEC.groups[1], "none"), manifest)
        run = Run()
        assert run.ensure(layout)[1] == stored(SHARDS[0])
        assert sorted(run.paths) == sorted(path for path in FILES if FILES[path])


class TestTrouble:
    def test_wrong_bytes_leave_what_is_finished(self, layout: LayoutRepository) -> None:
        damaged = {**FILES, "model-1.safetensors": content(40_001, 77)}
        with pytest.raises(WrongBytes) as caught:
            Run(damaged).ensure(layout, jobs=1)
        assert caught.value.subject == "model-1.safetensors"
        assert layout.tags() == sorted(group_tag(SPEC.groups[number], "none") for number in (2, 3))
        assert not layout.has(stored(SHARDS[0]).blob)
        run = Run()
        layers = run.ensure(layout)
        assert set(run.paths) == {"model-1.safetensors", "config.json", "1_Pooling/config.json"}
        assert layers == tuple(map(stored, (SMALL, *SHARDS)))

    def test_a_wrong_empty_file_is_refused_before_a_byte_moves(self, layout: LayoutRepository) -> None:
        wrong = WeightGroup((LockedFile("empty.txt", 0, "00" * 32),))
        run = Run()
        with pytest.raises(WrongBytes, match="empty file"):
            run.ensure(layout, replace(SPEC, groups=(*SPEC.groups, wrong)))
        assert run.made == 0 and layout.tags() == []

    def test_the_first_error_ends_the_others_and_is_the_one_that_is_told(
        self, layout: LayoutRepository
    ) -> None:
        class Failing(MemoryReader):
            def read(self, file: LockedFile, start: int = 0) -> FileBytes:
                if file.path == "model-3.safetensors":
                    return Broken()
                return Endless() if file.path.startswith("model") else super().read(file, start)

        run = Run()
        run.reader = Failing(FILES)
        started = time.monotonic()
        with pytest.raises(SourceUnavailable, match="the hub is down"):
            run.ensure(layout, jobs=4)
        assert time.monotonic() - started < 20
        assert run.stop is not None and run.stop.is_set()
        assert not any(layout.has(stored(files).blob) for files in SHARDS)
        assert layout.manifest(SPEC.tag) is None and not list(layout.folder.rglob(".new-*"))

    def test_a_disk_that_cannot_be_written_is_said(self, layout: LayoutRepository) -> None:
        (layout.folder / "blobs" / "sha256").rmdir()
        (layout.folder / "blobs" / "sha256").write_text("")
        with pytest.raises(LayoutError, match="cannot be used"):
            Run().ensure(layout)


class Broken:
    attempts = 5

    def __iter__(self) -> Iterator[bytes]:
        time.sleep(0.1)
        raise SourceUnavailable("the hub is down")


class Endless:
    """Bytes that come slowly, for as long as nobody stops it."""

    attempts = 1

    def __iter__(self) -> Iterator[bytes]:
        for _ in range(2000):
            time.sleep(0.005)
            yield b"x"


class TestProgress:
    def test_what_is_said(self, layout: LayoutRepository) -> None:
        run = Run(log_format="json")
        layers = run.ensure(layout)
        records = [json.loads(line) for line in run.stderr.getvalue().splitlines()]
        audits = {record["file"]: record for record in records if record["event"] == "transfer"}
        assert set(audits) == {path for path, data in FILES.items() if data}
        for path, record in audits.items():
            assert record["bytes"] == len(FILES[path]) and record["attempts"] == 1
            assert record["source"] == "hf://acme/minilm@" + "c" * 40
        told = {record["digest"]: record["bytes"] for record in records if record["event"] == "layer_stored"}
        assert told == {layer.blob.digest: layer.blob.size for layer in layers}
        assert records[-1]["event"] == "weights_stored"
        manifest = layout.manifest(SPEC.tag)
        assert manifest is not None and records[-1]["digest"] == manifest.digest

    @pytest.mark.parametrize("finished", [0, 2])
    def test_it_comes_to_the_end_also_where_a_part_was_there(
        self, layout: LayoutRepository, monkeypatch: pytest.MonkeyPatch, finished: int
    ) -> None:
        monkeypatch.setattr("modelbake.stream.view._LINE_EVERY_SECONDS", 0.0)
        if finished:
            Run().ensure(layout, spec_of(*SHARDS[:finished]))
        run = Run(log_format="json")
        run.ensure(layout, jobs=1)
        records = [json.loads(line) for line in run.stderr.getvalue().splitlines()]
        last = [record for record in records if record["event"] == "transfer_progress"][-1]
        assert "100%" in last["message"] and last["message"].endswith(" 0 s left")


class TestSpec:
    def test_a_plan_is_cut_into_its_groups(self) -> None:
        plan = planned()
        spec = weights_spec(plan, runtime_image())
        assert (spec.locked, spec.groups) == (plan.locked, plan.groups)
        assert (spec.compression, spec.architecture) == ("none", "amd64")
        assert weights_spec(plan, None) == spec
        arm = weights_spec(planned(compression="zstd"), runtime_image(architecture="arm64"))
        assert (arm.compression, arm.architecture) == ("zstd", "arm64")
        assert arm.tag == f"weights-zstd-arm64-{spec.tag.removeprefix('weights-')}"

    @pytest.mark.parametrize(
        ("layers", "groups"), [(5, 80), (19, 80), (20, 79), (60, 39), (98, 1), (99, 1), (150, 1)]
    )
    def test_no_more_layers_than_the_runtime_leaves_room_for(self, layers: int, groups: int) -> None:
        files = tuple(LockedFile(f"{number:03}", OWN_GROUP_BYTES, "ab" * 32) for number in range(200))
        plan = replace(planned(), locked=replace(planned().locked, files=files))
        spec = weights_spec(plan, runtime_image(sizes=[1] * layers))
        assert len(spec.groups) == groups
        assert sum(len(group.files) for group in spec.groups) == 200
        assert len(weights_spec(plan, None).groups) == MAX_GROUPS == 80

    def test_a_registry_that_would_refuse_is_told_before(self) -> None:
        require_room(SPEC, "ghcr.io")
        huge = WeightGroup((LockedFile("model.safetensors", 10**10, "ab" * 32),))
        spec = replace(SPEC, groups=(*SPEC.groups, huge))
        require_room(spec, "registry.example.com")
        with pytest.raises(RegistryLimit, match=r"ghcr\.io.*10,000,003,072 bytes") as caught:
            require_room(spec, "ghcr.io")
        assert caught.value.subject == "minilm" and "smaller shards" in caught.value.hint


def merged(repository: Repository, image: Manifest) -> dict[str, tuple[int, bytes]]:
    """Return the files of an image, path -> mode and content: its layers one over the other."""
    tree: dict[str, tuple[int, bytes]] = {}
    for layer in image.layers:
        data = b"".join(repository.read(layer))
        if layer.media_type.endswith("gzip"):
            data = gzip.decompress(data)
        if layer.media_type.endswith("zstd"):
            data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in archive:
                if member.isreg():
                    read = archive.extractfile(member)
                    assert read is not None
                    tree[member.name] = (member.mode, read.read())
    return tree


def make(layout: Repository, spec: WeightsSpec = SPEC, **keys: Any) -> Image:
    """Put a runtime and the weights into a repository, and return the image of them."""
    runtime = put_runtime(layout)
    return make_image(plan_of(spec, **keys), runtime, Run().ensure(layout, spec), PLAN_DIGEST)


class TestImage:
    @pytest.mark.parametrize("order", ["auto", "weights-first", "base-first"])
    @pytest.mark.parametrize("compression", ["none", "zstd"])
    def test_an_image_is_put_whole(
        self, layout: LayoutRepository, tmp_path: Path, order: str, compression: str
    ) -> None:
        spec = replace(SPEC, compression=compression)
        image = make(layout, spec, layer_order=order)
        assert image.order == ("base-first" if order == "base-first" else "weights-first")
        target = LayoutRepository.create(tmp_path / "target")
        sent = put_image(image, target, "1.0.0", runtimes=layout, weights=layout)
        assert target.manifest("1.0.0") == image.manifest
        assert all(target.has(blob) for blob in (image.manifest.config, *image.manifest.layers))
        assert sent == sum(blob.size for blob in (image.manifest.config, *image.manifest.layers))
        tree = merged(target, image.manifest)
        assert {path: tree[path] for path in tree if path.startswith("models/")} == {
            f"models/{path}": (0o444, data) for path, data in FILES.items()
        }
        assert tree["modelbake/manifest.json"] == (0o644, plan_of(spec).manifest())
        assert "usr/lib/0/code.py" in tree

    def test_put_again_it_sends_nothing(self, layout: LayoutRepository, tmp_path: Path) -> None:
        image = make(layout)
        target = LayoutRepository.create(tmp_path / "target")
        put_image(image, target, "1.0.0", runtimes=layout, weights=layout)
        assert put_image(image, target, "1.0.0", runtimes=layout, weights=layout) == 0

    def test_a_layer_that_is_there_twice_is_sent_once(self, layout: LayoutRepository, tmp_path: Path) -> None:
        runtime = put_runtime(layout)
        twice = replace(runtime, layers=(*runtime.layers, runtime.layers[0]))
        twice = replace(
            twice,
            config={
                **runtime.config,
                "rootfs": {"type": "layers", "diff_ids": [*runtime.diff_ids, runtime.diff_ids[0]]},
            },
        )
        image = make_image(plan_of(SPEC), twice, Run().ensure(layout), PLAN_DIGEST)
        target = LayoutRepository.create(tmp_path / "target")
        sent = put_image(image, target, "1.0.0", runtimes=layout, weights=layout)
        blobs = {image.manifest.config, *image.manifest.layers}
        assert sent == sum(blob.size for blob in blobs)

    def test_the_image_is_a_function_of_its_parts(self, layout: LayoutRepository) -> None:
        first = make(layout)
        assert make(layout) == first
        assert make(layout, version="1.0.1").manifest != first.manifest

    def test_it_is_not_listed_before_it_is_whole(self, layout: LayoutRepository, tmp_path: Path) -> None:
        image = make(layout)
        lost = image.weights[1].blob.digest.removeprefix("sha256:")
        (layout.folder / "blobs" / "sha256" / lost).unlink()
        target = LayoutRepository.create(tmp_path / "target")
        with pytest.raises(LayoutError, match="missing"):
            put_image(image, target, "1.0.0", runtimes=layout, weights=layout)
        assert target.tags() == []

    def test_a_copy_is_the_same_image(self, layout: LayoutRepository, tmp_path: Path) -> None:
        image = make(layout)
        put_image(image, layout, "1.0.0", runtimes=layout, weights=layout)
        target = LayoutRepository.create(tmp_path / "target")
        blobs = (image.manifest.config, *image.manifest.layers)
        assert copy_image(image.manifest, layout, target, "1.0.0") == sum(blob.size for blob in blobs)
        assert target.manifest("1.0.0") == image.manifest
        assert copy_image(image.manifest, layout, target, "candidate") == 0
        assert target.tags() == ["1.0.0", "candidate"]
        assert merged(target, image.manifest) == merged(layout, image.manifest)

    def test_a_tampered_blob_is_not_copied(self, layout: LayoutRepository, tmp_path: Path) -> None:
        image = make(layout)
        put_image(image, layout, "1.0.0", runtimes=layout, weights=layout)
        path = layout.folder / "blobs" / "sha256" / image.weights[0].blob.digest.removeprefix("sha256:")
        data = bytearray(path.read_bytes())
        data[700] ^= 1
        path.write_bytes(data)
        target = LayoutRepository.create(tmp_path / "target")
        with pytest.raises(ModelbakeError, match="other bytes"):
            copy_image(image.manifest, layout, target, "1.0.0")
        assert target.tags() == [] and not target.has(image.weights[0].blob)


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[UploadRegistry, Registry]]:
    credentials = RegistryCredentials(USER, Secret(PASSWORD))
    with (
        UploadRegistry() as server,
        Registry(server.host, credentials, timeout=5, sleep=lambda seconds: None) as registry,
    ):
        yield server, registry


@pytest.fixture
def server(running: tuple[UploadRegistry, Registry]) -> UploadRegistry:
    running[0].reset()
    return running[0]


Repositories = Callable[[str], RegistryRepository]


@pytest.fixture
def repository(server: UploadRegistry, running: tuple[UploadRegistry, Registry]) -> Repositories:
    return lambda path: RegistryRepository(running[1], path)


def publish(repository: Callable[[str], RegistryRepository]) -> Image:
    """Put the whole image into a registry, as the lane does, up to its candidate."""
    runtimes, weights, target = map(repository, ("ml/runtimes", "ml/weights", "ml/minilm"))
    runtime = put_runtime(runtimes)
    layers = Run().ensure(weights, jobs=2)
    image = make_image(plan_of(SPEC), runtime, layers, PLAN_DIGEST)
    put_image(image, target, "candidate", runtimes=runtimes, weights=weights, jobs=2)
    return image


# From these requests on, one after the other, everything fails: each step meets each trouble.
STEPS: list[tuple[Kind, int]] = [
    ("open", 1), ("open", 4), ("open", 9), ("patch", 1), ("patch", 5), ("commit", 1), ("commit", 6),
    ("head", 1), ("head", 9), ("put-manifest", 1), ("put-manifest", 2), ("put-manifest", 6),
    ("put-manifest", 7), ("manifest", 1), ("manifest", 4), ("manifest", 12),
]  # fmt: skip


class TestRegistry:
    @pytest.mark.parametrize("mounts", [True, False])
    def test_an_image_is_published(
        self, server: UploadRegistry, repository: Repositories, mounts: bool
    ) -> None:
        server.reset(mounts=mounts)
        image = publish(repository)
        target = repository("ml/minilm")
        assert target.manifest("candidate") == image.manifest
        assert merged(target, image.manifest)["models/config.json"] == (0o444, b"{}")
        assert server.sessions == {}
        weights = sum(layer.blob.size for layer in image.weights)
        assert weights < server.received() < weights * (1.2 if mounts else 2.4)
        server.seen.clear()
        assert publish(repository).manifest == image.manifest
        assert server.received() == 0 and server.count("open") == 0

    def test_a_remembered_layer_that_holds_more_than_its_files_is_not_taken(
        self, server: UploadRegistry, repository: Repositories
    ) -> None:
        image = publish(repository)
        weights = repository("ml/weights")
        for layer in image.weights:
            # A folder of its own choice; the size and the annotations are right.
            good = server.blobs("ml/weights")[layer.blob.digest]
            evil = good.replace(b"models/", b"opt/ab/", 1)
            assert evil != good and len(evil) == len(good)
            forged = StoredLayer(layer.group, weights.put(evil, TAR), digest_of(evil))
            assert has_right_shape(weights, layer) and not has_right_shape(weights, forged)
            config, manifest = data_image((forged,), None, {"architecture": "amd64", "os": "linux"})
            weights.put(config, OCI_CONFIG)
            weights.put_manifest(group_tag(layer.group, "none"), manifest)
        layers = list(image.weights)
        server.repository("ml/weights").tags.pop(SPEC.tag)
        assert [recall_layer(weights, layer.group, "none") for layer in layers] == [None] * len(layers)
        assert publish(repository).manifest == image.manifest, "they are made anew, and remembered rightly"
        assert [recall_layer(weights, layer.group, "none") for layer in layers] == layers

    @pytest.mark.parametrize("status", [401, 403, 429, 500])
    @pytest.mark.parametrize(("kind", "at"), STEPS)
    def test_whatever_fails_there_is_no_false_success(
        self, server: UploadRegistry, repository: Repositories, kind: Kind, at: int, status: int
    ) -> None:
        wanted = RegistryAuthError if status < 429 else RegistryUnavailable
        server.trouble(kind, at=at, times=1000, status=status)
        with pytest.raises(RegistryError) as caught:
            publish(repository)
        assert type(caught.value) is wanted, caught.value
        assert PASSWORD not in str(caught.value)
        if put := server.repository("ml/minilm").tags:  # put, and could not be read back
            assert (kind, list(put)) == ("manifest", ["candidate"])
        for path in ("ml/weights", "ml/runtimes", "ml/minilm"):
            require_whole(server, path)
        assert server.sessions == {}

    @pytest.mark.parametrize(("kind", "at"), STEPS)
    def test_run_again_it_goes_on(
        self, server: UploadRegistry, repository: Repositories, kind: Kind, at: int
    ) -> None:
        server.trouble(kind, at=at, times=1, status=403)
        with pytest.raises(RegistryAuthError):
            publish(repository)
        image = publish(repository)
        assert repository("ml/minilm").manifest("candidate") == image.manifest
        require_whole(server, "ml/minilm")
        assert server.sessions == {}

    @pytest.mark.parametrize("what", [{"status": 429, "retry_after": 2}, {"status": 502}, {"lose": True}])
    @pytest.mark.parametrize("kind", ["open", "patch", "commit", "head", "manifest", "put-manifest"])
    def test_what_passes_is_waited_for(
        self, server: UploadRegistry, repository: Repositories, kind: Kind, what: dict[str, Any]
    ) -> None:
        for at in (1, 4, 6):
            server.trouble(kind, at=at, **what)
        image = publish(repository)
        assert repository("ml/minilm").manifest("candidate") == image.manifest
        assert server.sessions == {}


def require_whole(server: UploadRegistry, path: str) -> None:
    """Every manifest has its blobs, and every blob the bytes of its digest."""
    repository = server.repository(path)
    for digest, data in repository.blobs.items():
        assert digest_of(data) == digest
    for _, body in repository.manifests.values():
        document = json.loads(body)
        for entry in (document["config"], *document["layers"]):
            assert len(repository.blobs[entry["digest"]]) == entry["size"]
