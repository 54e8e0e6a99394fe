"""OCI layouts in folders: what the standard says of them, and what is noticed of broken ones."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelbake.errors import DiskFull, LayoutError, ReadBackMismatch, RegistryError, WrongBytes
from modelbake.manifest import OCI_MANIFEST, Descriptor, Manifest, digest_of
from modelbake.stream.flow import TAR
from modelbake.stream.layout import LayoutRepository
from modelbake.stream.repository import LARGEST_DOCUMENT, read_document
from modelbake.stream.weights import OCI_CONFIG, image_manifest
from tests.unit.stream.material import bytes_of, content, flow_of

FILES = {"config.json": b"{}", "model.safetensors": content(50_000)}


@pytest.fixture
def layout(tmp_path: Path) -> LayoutRepository:
    return LayoutRepository.create(tmp_path / "out")


def put_image(layout: LayoutRepository, tag: str = "1.0.0", config: bytes = b'{"os":"linux"}') -> Manifest:
    flow = flow_of(FILES)
    layout.upload(flow)
    layout.put(config, OCI_CONFIG)
    layer = {"mediaType": TAR, "digest": flow.digest, "size": flow.sent}
    manifest = image_manifest(config, [layer], {})
    layout.put_manifest(tag, manifest)
    return manifest


def blob_file(layout: LayoutRepository, digest: str) -> Path:
    return layout.folder / "blobs" / "sha256" / digest.removeprefix("sha256:")


def leftovers(layout: LayoutRepository) -> list[Path]:
    return list(layout.folder.rglob(".new-*"))


class TestStandard:
    def test_a_new_layout(self, layout: LayoutRepository) -> None:
        assert json.loads((layout.folder / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
        assert (layout.folder / "blobs" / "sha256").is_dir()
        assert layout.name == f"oci:{layout.folder}"
        assert layout.tags() == [] and layout.manifest("1.0.0") is None

    def test_an_image_in_it(self, layout: LayoutRepository) -> None:
        manifest = put_image(layout)
        assert json.loads((layout.folder / "index.json").read_bytes()) == {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [
                {
                    "mediaType": OCI_MANIFEST,
                    "digest": manifest.digest,
                    "size": len(manifest.body),
                    "annotations": {"org.opencontainers.image.ref.name": "1.0.0"},
                }
            ],
        }
        files = {
            path.relative_to(layout.folder).as_posix() for path in layout.folder.rglob("*") if path.is_file()
        }
        hexes = {
            digest.removeprefix("sha256:")
            for digest in (manifest.digest, manifest.config.digest, manifest.layers[0].digest)
        }
        assert files == {"oci-layout", "index.json", *(f"blobs/sha256/{each}" for each in hexes)}
        for each in hexes:
            data = (layout.folder / "blobs" / "sha256" / each).read_bytes()
            assert hashlib.sha256(data).hexdigest() == each
        assert blob_file(layout, manifest.layers[0].digest).read_bytes() == bytes_of(FILES)

    def test_others_may_read_it(self, layout: LayoutRepository) -> None:
        put_image(layout)
        modes = {stat.S_IMODE(path.stat().st_mode) for path in layout.folder.rglob("*") if path.is_file()}
        assert modes == {0o644}

    def test_it_is_found_again(self, layout: LayoutRepository) -> None:
        manifest = put_image(layout)
        again = LayoutRepository.open(layout.folder)
        assert again.tags() == ["1.0.0"]
        assert again.manifest("1.0.0") == again.manifest(manifest.digest) == manifest
        assert read_document(again, manifest.config) == b'{"os":"linux"}'
        assert again.has(manifest.layers[0])

    def test_a_name_moves_to_what_was_put_last(self, layout: LayoutRepository) -> None:
        put_image(layout)
        second = put_image(layout, config=b"{}")
        other = put_image(layout, "0.9.0", config=b"{}")
        assert layout.tags() == ["0.9.0", "1.0.0"]
        assert layout.manifest("1.0.0") == second == other
        assert len(json.loads((layout.folder / "index.json").read_bytes())["manifests"]) == 2

    def test_a_second_index_is_none_of_the_standards_business(self, layout: LayoutRepository) -> None:
        memory = LayoutRepository.create(layout.folder, ".modelbake/index.json")
        manifest = put_image(memory, "weights-ab")
        assert memory.tags() == ["weights-ab"] and layout.tags() == []
        assert layout.has(manifest.layers[0]), "blobs are shared"
        assert not (layout.folder / "index.json").exists()

    def test_the_same_images_give_the_same_index(self, tmp_path: Path) -> None:
        made = []
        for order in (("1.0.0", "2.0.0"), ("2.0.0", "1.0.0")):
            layout = LayoutRepository.create(tmp_path / order[0])
            for tag in order:
                put_image(layout, tag)
            made.append((layout.folder / "index.json").read_bytes())
        assert made[0] == made[1]

    def test_an_index_that_others_wrote_is_read(self, layout: LayoutRepository) -> None:
        manifest = put_image(layout)
        index = layout.folder / "index.json"
        entries = json.loads(index.read_bytes())["manifests"]
        del entries[0]["annotations"]
        index.write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
        assert layout.tags() == [] and layout.manifest(manifest.digest) == manifest
        layout.put_manifest("2.0.0", manifest)
        assert layout.tags() == ["2.0.0"]


class TestBlobs:
    def test_what_is_here_is_not_written_again(self, layout: LayoutRepository) -> None:
        blob = layout.put(b"content", OCI_CONFIG)
        assert blob == Descriptor(OCI_CONFIG, digest_of(b"content"), 7)
        before = blob_file(layout, blob.digest).stat()
        layout.put(b"content", OCI_CONFIG)
        assert blob_file(layout, blob.digest).stat().st_ino == before.st_ino

    def test_a_blob_of_another_size_is_not_that_blob(self, layout: LayoutRepository) -> None:
        blob = layout.put(b"content", OCI_CONFIG)
        assert not layout.has(Descriptor(OCI_CONFIG, blob.digest, 8))
        assert not layout.has(Descriptor(OCI_CONFIG, digest_of(b"other"), 7))
        blob_file(layout, blob.digest).write_bytes(b"cont")
        assert not layout.has(blob)
        layout.put(b"content", OCI_CONFIG)
        assert layout.has(blob) and b"".join(layout.read(blob)) == b"content"

    def test_another_layouts_blob_is_brought_once(self, layout: LayoutRepository, tmp_path: Path) -> None:
        other = LayoutRepository.create(tmp_path / "other")
        blob = other.put(content(3_000_000), TAR)
        assert layout.bring(blob, other) == 3_000_000
        assert layout.bring(blob, other) == 0
        assert b"".join(layout.read(blob)) == content(3_000_000)

    def test_nothing_is_stored_of_a_wrong_file(self, layout: LayoutRepository) -> None:
        for compression in ("none", "zstd"):
            served = {**FILES, "model.safetensors": content(50_000, 9)}
            with pytest.raises(WrongBytes):
                layout.upload(flow_of(FILES, served=served, compression=compression))
        assert list((layout.folder / "blobs" / "sha256").iterdir()) == []

    def test_nor_after_ctrl_c(self, layout: LayoutRepository) -> None:
        def interrupt(count: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            layout.upload(flow_of(FILES, on_bytes=interrupt))
        assert list((layout.folder / "blobs" / "sha256").iterdir()) == []

    def test_a_tampered_blob_is_noticed(self, layout: LayoutRepository, tmp_path: Path) -> None:
        manifest = put_image(layout)
        (blob,) = manifest.layers
        data = bytearray(bytes_of(FILES))
        data[1000] ^= 1
        blob_file(layout, blob.digest).write_bytes(data)
        assert layout.has(blob), "its size is right"
        with pytest.raises(ReadBackMismatch, match="other bytes than its digest says"):
            for _ in layout.read(blob):
                pass
        target = LayoutRepository.create(tmp_path / "target")
        with pytest.raises(ReadBackMismatch):
            target.bring(blob, layout)
        assert not target.has(blob) and leftovers(target) == []

    @pytest.mark.parametrize("size", [49_000, 60_000])
    def test_so_is_one_of_another_size(self, layout: LayoutRepository, size: int) -> None:
        (blob,) = put_image(layout).layers
        blob_file(layout, blob.digest).write_bytes(content(size))
        read = 0
        with pytest.raises(ReadBackMismatch):
            for piece in layout.read(blob):
                read += len(piece)
        assert read <= blob.size, "no more is handed on than the blob has"

    def test_a_missing_blob_is_named(self, layout: LayoutRepository) -> None:
        (blob,) = put_image(layout).layers
        blob_file(layout, blob.digest).unlink()
        with pytest.raises(LayoutError, match="the blob is missing") as caught:
            list(layout.read(blob))
        assert blob.digest.removeprefix("sha256:") in caught.value.subject

    def test_a_configuration_of_gigabytes_is_not_read(self, layout: LayoutRepository) -> None:
        huge = Descriptor(OCI_CONFIG, "sha256:" + "a" * 64, LARGEST_DOCUMENT + 1)
        with pytest.raises(RegistryError, match="is not read"):
            read_document(layout, huge)


class TestRefused:
    @pytest.mark.parametrize("name", ["notes.txt", ".git", "index.json", "blobs"])
    def test_a_folder_of_something_else(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_text("mine")
        with pytest.raises(LayoutError, match="something else than an OCI layout"):
            LayoutRepository.create(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [name]

    def test_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(LayoutError, match="cannot be used"):
            LayoutRepository.create(tmp_path / "file")
        with pytest.raises(LayoutError, match="is not an OCI layout"):
            LayoutRepository.open(tmp_path / "file")
        with pytest.raises(LayoutError, match="cannot be used"):
            LayoutRepository.create(tmp_path / "file" / "below")

    def test_a_folder_that_is_none_or_not_there(self, tmp_path: Path) -> None:
        for folder in (tmp_path, tmp_path / "nowhere"):
            with pytest.raises(LayoutError, match="is not an OCI layout") as caught:
                LayoutRepository.open(folder)
            assert "--output oci:DIR" in caught.value.hint
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("marker", ["", "[]", "{}", '{"imageLayoutVersion": "2.0.0"}', "null"])
    def test_a_layout_of_another_version(self, tmp_path: Path, marker: str) -> None:
        (tmp_path / "oci-layout").write_text(marker)
        for opening in (LayoutRepository.open, LayoutRepository.create):
            with pytest.raises(LayoutError, match="another version"):
                opening(tmp_path)

    @pytest.mark.parametrize(
        "index",
        [
            "",
            "[]",
            "{}",
            "null",
            '{"manifests": {}}',
            '{"manifests": [1]}',
            '{"manifests": [{"annotations": 1}]}',
            "[" * 100_000,
        ],
    )
    def test_an_index_that_is_none(self, layout: LayoutRepository, index: str) -> None:
        (layout.folder / "index.json").write_text(index)
        with pytest.raises(LayoutError, match="not the index"):
            layout.tags()
        manifest = image_manifest(b"{}", [], {})
        with pytest.raises(LayoutError, match="not the index"):
            layout.put_manifest("1.0.0", manifest)
        assert (layout.folder / "index.json").read_text() == index, "nothing of it is lost"

    def test_an_index_of_gigabytes(self, layout: LayoutRepository) -> None:
        with (layout.folder / "index.json").open("wb") as file:
            file.truncate(5 << 30)
        with pytest.raises(LayoutError, match="larger than"):
            layout.tags()

    @pytest.mark.parametrize(
        "digest", ["sha256:../../../etc/passwd", "sha512:" + "a" * 128, "", "sha256:" + "A" * 64]
    )
    def test_a_digest_that_leads_elsewhere(self, layout: LayoutRepository, digest: str) -> None:
        index = {"manifests": [{"digest": digest, "mediaType": OCI_MANIFEST, "size": 2}]}
        (layout.folder / "index.json").write_text(json.dumps(index))
        with pytest.raises(LayoutError, match="not a sha256 digest"):
            layout.manifest(digest)
        with pytest.raises(LayoutError, match="not a sha256 digest"):
            layout.has(Descriptor(TAR, digest, 1))

    def test_a_tampered_manifest(self, layout: LayoutRepository) -> None:
        manifest = put_image(layout)
        path = blob_file(layout, manifest.digest)
        path.write_bytes(manifest.body.replace(b"linux", b"minix") + b" ")
        with pytest.raises(LayoutError, match="other bytes than its digest says"):
            layout.manifest("1.0.0")
        path.unlink()
        with pytest.raises(LayoutError, match="the manifest is missing"):
            layout.manifest("1.0.0")

    def test_an_interrupted_write_leaves_the_old_index(
        self, layout: LayoutRepository, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        manifest = put_image(layout)

        def full(self: Path, target: Path) -> Path:
            raise OSError(28, "No space left on device", str(self))

        monkeypatch.setattr(Path, "replace", full)
        with pytest.raises(DiskFull, match=r"the disk is full: [\d,]+ bytes needed"):
            layout.put_manifest("2.0.0", manifest)
        with pytest.raises(DiskFull, match="the disk is full: 4 bytes needed"):
            layout.put(b"more", OCI_CONFIG)
        monkeypatch.undo()
        assert layout.tags() == ["1.0.0"] and leftovers(layout) == []


def test_a_repository_is_read_while_pieces_are_asked_for(layout: LayoutRepository) -> None:
    blob = layout.put(content(3_000_000), TAR)
    pieces: Iterator[bytes] = layout.read(blob)
    assert len(next(pieces)) == 1 << 20, "not all of it at once"
    pieces.close()  # type: ignore[attr-defined]
