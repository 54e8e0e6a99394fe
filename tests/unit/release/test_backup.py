"""Backup and restore: the same digests under the same tags, and what is found of a damaged backup."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelbake.errors import BackupError, LayoutError, RegistryError, UsageError
from modelbake.output import Output
from modelbake.referrers import Document, attach, referrers, referrers_tag
from modelbake.release.attachments import attachments
from modelbake.release.backup import Copied, back_up, restore
from modelbake.release.backupfolder import BackupFolder
from modelbake.release.places import folder_of
from modelbake.stream.layout import LayoutRepository
from modelbake.stream.repository import RegistryRepository
from tests.promises import full
from tests.servers.upload_registry import UploadRegistry
from tests.unit.release.conftest import Open
from tests.unit.release.made import layer, put_image, put_index

PATH = "ml/minilm"
REPORT = Document(b'{"fast": true}', "application/vnd.modelbake.report.v1+json", "report.json")
SBOM = Document(b'{"bomFormat": "CycloneDX"}', "application/vnd.cyclonedx+json", "sbom.json")
SHARED = layer({"shared": "by both versions"})


@pytest.fixture
def output() -> Output:
    return Output(stdout=io.StringIO(), stderr=io.StringIO())


@pytest.fixture
def folder(tmp_path: Path) -> BackupFolder:
    return BackupFolder.create(tmp_path / "backup")


@pytest.fixture
def other() -> Iterator[UploadRegistry]:
    """Another registry, without the referrers API."""
    with UploadRegistry() as running:
        yield running


def release(repository: RegistryRepository) -> None:
    """Two versions, aliases, a channel with its record, reports, an SBOM with a signature, a candidate."""
    put_image(repository, "candidate-1", note="never released")
    attach(repository, put_image(repository, "candidate-2", note="no"), REPORT)
    first = put_image(repository, "1.0.0", layers=[SHARED, layer({"a": "1"})], note="1.0.0")
    second = put_image(repository, "1.1.0", layers=[SHARED, layer({"a": "2"})], note="1.1.0")
    put_image(repository, "candidate-3", layers=[SHARED, layer({"a": "2"})], note="1.1.0")
    for tag in ("1.1", "1"):
        repository.put_manifest(tag, second)
    put_index(repository, "production-0001", first, note="who and when")
    repository.put_manifest("production", first)
    attach(repository, first, REPORT)
    sbom = attach(repository, second, SBOM)
    for digest in (first.digest, sbom):
        put_image(repository, f"{referrers_tag(digest)}.sig", note=f"signature of {digest}")


def tags_of(server: UploadRegistry, path: str = PATH) -> dict[str, str]:
    return {
        tag: digest
        for tag, digest in server.repository(path).tags.items()
        if not tag.startswith("candidate-")
    }


def released_tags(server: UploadRegistry) -> dict[str, str]:
    """The tags without candidates and what is about a candidate alone."""
    found = tags_of(server)
    for tag in ("candidate-1", "candidate-2"):
        found.pop(referrers_tag(server.repository(PATH).tags[tag]), None)
    return found


def written(folder: BackupFolder) -> dict[str, bytes]:
    return {
        path.relative_to(folder.folder).as_posix(): path.read_bytes()
        for path in folder.folder.rglob("*")
        if path.is_file()
    }


def done(copied: Copied | None) -> Copied:
    assert copied is not None
    return copied


class TestRoundTrip:
    def test_a_registry_that_was_destroyed(
        self, server: UploadRegistry, open_repository: Open, folder: BackupFolder, output: Output
    ) -> None:
        repository = open_repository(server, PATH)
        release(repository)
        expected = released_tags(server)
        image = repository.manifest("1.1.0")
        assert image is not None
        attached = {each.digest for each in attachments(repository, image)}
        copied = done(back_up("minilm", repository, folder, output))
        assert (copied.tags, copied.blobs > 5) == (len(expected), True)
        server.reset(referrers=server.referrers)

        target = open_repository(server, PATH)
        again = done(restore("minilm", folder, target, output))
        assert (again.tags, again.blobs, again.size) == (copied.tags, copied.blobs, copied.size)
        assert server.repository(PATH).tags == expected
        assert {each.digest for each in attachments(target, image)} == attached and len(attached) == 2
        assert len(referrers(target, image, SBOM.media_type)) == 1
        third = done(restore("minilm", folder, target, output))
        assert (third.blobs, third.size) == (0, 0)
        assert server.repository(PATH).tags == expected

    def test_to_a_registry_that_does_not_list_by_itself(
        self, server: UploadRegistry, other: UploadRegistry, open_repository: Open, folder: BackupFolder,
        output: Output,
    ) -> None:  # fmt: skip
        repository, target = open_repository(server, PATH), open_repository(other, PATH)
        release(repository)
        back_up("minilm", repository, folder, output)
        restore("minilm", folder, target, output)
        for version in ("1.0.0", "1.1.0"):
            image = repository.manifest(version)
            assert image is not None
            there = {each.digest for each in attachments(target, image)}
            assert there == {each.digest for each in attachments(repository, image)} != set()

    def test_between_registries_of_one_host_nothing_is_sent(
        self, plain: UploadRegistry, open_repository: Open, output: Output
    ) -> None:
        repository = open_repository(plain, PATH)
        release(repository)
        copied = done(back_up("minilm", repository, open_repository(plain, "backup/minilm"), output))
        assert (copied.blobs, copied.size) == (0, 0)
        assert tags_of(plain, "backup/minilm") == released_tags(plain)
        back = done(restore("minilm", open_repository(plain, "backup/minilm"), repository, output))
        assert back.tags == copied.tags

    def test_candidates_are_left_out(
        self, plain: UploadRegistry, open_repository: Open, folder: BackupFolder, output: Output
    ) -> None:
        repository = open_repository(plain, PATH)
        release(repository)
        back_up("minilm", repository, folder, output)
        names = folder.tags()
        assert "minilm/1.0.0" in names and not any("candidate" in name for name in names)
        lost = plain.repository(PATH).tags["candidate-1"]
        assert lost.removeprefix("sha256:") not in {Path(name).name for name in written(folder)}

    def test_a_repository_without_releases(
        self, plain: UploadRegistry, open_repository: Open, folder: BackupFolder, output: Output
    ) -> None:
        repository = open_repository(plain, PATH)
        put_image(repository, "candidate-1")
        assert back_up("minilm", repository, folder, output) is None
        assert restore("minilm", folder, repository, output) is None


class TestIncremental:
    def test_only_what_is_new_is_sent(
        self, plain: UploadRegistry, open_repository: Open, folder: BackupFolder, output: Output
    ) -> None:
        repository = open_repository(plain, PATH)
        release(repository)
        back_up("minilm", repository, folder, output)
        before = written(folder)
        again = done(back_up("minilm", repository, folder, output))
        assert (again.blobs, again.size) == (0, 0) and written(folder) == before
        put_image(repository, "1.2.0", layers=[SHARED, layer({"a": "3"})], note="1.2.0")
        assert done(back_up("minilm", repository, folder, output)).blobs == 2

    def test_several_models_in_one_folder(
        self, plain: UploadRegistry, open_repository: Open, folder: BackupFolder, output: Output
    ) -> None:
        for model in ("minilm", "chat"):
            repository = open_repository(plain, f"ml/{model}")
            put_image(repository, "1.0.0", layers=[SHARED], note=model)
            back_up(model, repository, folder, output)
        assert folder.tags() == ["chat/1.0.0", "minilm/1.0.0"]
        plain.reset()
        restore("chat", folder, open_repository(plain, "ml/chat"), output)
        assert plain.repository("ml/chat").tags and not plain.repository("ml/minilm").manifests

    def test_what_moves_is_followed_and_what_never_moves_is_guarded(
        self, plain: UploadRegistry, open_repository: Open, folder: BackupFolder, output: Output
    ) -> None:
        repository = open_repository(plain, PATH)
        release(repository)
        back_up("minilm", repository, folder, output)
        second = repository.manifest("1.1.0")
        assert second is not None
        repository.put_manifest("production", second)
        back_up("minilm", repository, folder, output)
        assert folder.contents("minilm").tags["production"] == second
        before = written(folder)
        for tag in ("1.0.0", "production-0001"):
            kept = plain.repository(PATH).tags[tag]
            repository.put_manifest(tag, second)
            with pytest.raises(BackupError, match=f"{tag} is sha256:.* and here {second.digest}"):
                back_up("minilm", repository, folder, output)
            assert written(folder) == before
            plain.repository(PATH).tags[tag] = kept

    def test_what_was_removed_stays_in_the_backup(
        self, plain: UploadRegistry, open_repository: Open, folder: BackupFolder, output: Output
    ) -> None:
        repository = open_repository(plain, PATH)
        release(repository)
        back_up("minilm", repository, folder, output)
        del plain.repository(PATH).tags["1.0.0"]
        back_up("minilm", repository, folder, output)
        assert "minilm/1.0.0" in folder.tags()

    def test_one_that_ended_early_names_nothing_and_the_next_goes_on(
        self, plain: UploadRegistry, open_repository: Open, folder: BackupFolder, output: Output
    ) -> None:
        repository = open_repository(plain, PATH)
        release(repository)
        plain.trouble("blob", at=4, times=99, status=404)
        with pytest.raises(RegistryError):
            back_up("minilm", repository, folder, output)
        assert folder.tags() == [] and not list(folder.folder.rglob(".new-*"))
        here = sum(name.startswith("blobs/") for name in written(folder))
        plain._troubles.clear()
        copied = done(back_up("minilm", repository, folder, output))
        assert copied.blobs == len(folder.contents("minilm").blobs) - here and here == 3


class TestDamage:
    def test_each_file_of_it_is_missed_or_found_to_be_changed(
        self, plain: UploadRegistry, other: UploadRegistry, open_repository: Open, folder: BackupFolder,
        output: Output,
    ) -> None:  # fmt: skip
        repository, target = open_repository(plain, PATH), open_repository(other, PATH)
        release(repository)
        back_up("minilm", repository, folder, output)
        files = sorted((folder.folder / "blobs/sha256").iterdir())
        assert len(files) > 15
        for number, path in enumerate(files[:: 1 if full() else 2]):
            good = path.read_bytes()
            path.unlink()
            if number % 3:
                path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]) if number % 3 == 1 else good + b"x")
            with pytest.raises(BackupError) as caught:
                restore("minilm", folder, open_repository(other, PATH), output)
            assert path.name in str(caught.value) and "damaged" in caught.value.hint
            assert other.repository(PATH).tags == {} and not other.sessions
            path.write_bytes(good)
            other.reset()
        assert done(restore("minilm", folder, target, output)).tags > 0, "control: it is whole again"

    def test_what_was_removed_because_it_is_damaged_is_copied_again(
        self, plain: UploadRegistry, open_repository: Open, folder: BackupFolder, output: Output
    ) -> None:
        repository = open_repository(plain, PATH)
        release(repository)
        back_up("minilm", repository, folder, output)
        before = written(folder)
        for path in (folder.folder / "blobs/sha256").iterdir():
            path.unlink()
        back_up("minilm", repository, folder, output)
        assert written(folder) == before

    @pytest.mark.parametrize(
        "index",
        ["{", "[]", '{"manifests": [{"annotations": {"io.modelbake.model": "minilm"}}]}'],
    )
    def test_a_broken_index(
        self, plain: UploadRegistry, open_repository: Open, folder: BackupFolder, output: Output, index: str
    ) -> None:
        (folder.folder / "index.json").write_text(index)
        with pytest.raises((BackupError, LayoutError)):
            restore("minilm", folder, open_repository(plain, PATH), output)

    @pytest.mark.parametrize("name", ["io.modelbake.model", "org.opencontainers.image.ref.name"])
    def test_a_name_that_is_no_text(
        self, plain: UploadRegistry, open_repository: Open, folder: BackupFolder, output: Output, name: str
    ) -> None:
        repository = open_repository(plain, PATH)
        put_image(repository, "1.0.0")
        back_up("minilm", repository, folder, output)
        index = folder.folder / "index.json"
        document = json.loads(index.read_bytes())
        document["manifests"][0]["annotations"][name] = ["minilm"]
        index.write_text(json.dumps(document))
        with pytest.raises(BackupError, match="no backup"):
            back_up("minilm", repository, folder, output)
        with pytest.raises(BackupError, match="no backup"):
            restore("minilm", folder, repository, output)

    @pytest.mark.promise("parsers")
    @pytest.mark.parametrize("name", ["index.json", "oci-layout"])
    def test_no_pipe_is_waited_for(
        self, plain: UploadRegistry, open_repository: Open, folder: BackupFolder, output: Output, name: str
    ) -> None:
        (folder.folder / name).unlink(missing_ok=True)
        os.mkfifo(folder.folder / name)
        with pytest.raises(LayoutError, match="not a regular file"):
            restore("minilm", BackupFolder.open(folder.folder), open_repository(plain, PATH), output)

    @pytest.mark.parametrize("tag", ["../../chat/manifests/1.0.0", "1.0.0?x=1", "a b", "sha256:" + "0" * 64])
    def test_a_name_that_is_no_tag_reaches_no_registry(
        self, plain: UploadRegistry, other: UploadRegistry, open_repository: Open, folder: BackupFolder,
        output: Output, tag: str,
    ) -> None:  # fmt: skip
        """It would become a part of an address: of another model's repository, for one."""
        repository = open_repository(plain, PATH)
        put_image(repository, "1.0.0")
        back_up("minilm", repository, folder, output)
        index = folder.folder / "index.json"
        index.write_text(index.read_text().replace("minilm/1.0.0", f"minilm/{tag}"))
        with pytest.raises(BackupError, match="which is no tag"):
            restore("minilm", folder, open_repository(other, PATH), output)
        plain.repository(PATH).tags[tag] = plain.repository(PATH).tags.pop("1.0.0")
        with pytest.raises(RegistryError, match="which is no tag"):  # the same of a backup in a registry
            restore("minilm", repository, open_repository(other, PATH), output)
        assert not other.seen

    def test_a_folder_that_holds_other_images_is_no_backup(
        self, plain: UploadRegistry, open_repository: Open, tmp_path: Path, output: Output
    ) -> None:
        repository = open_repository(plain, PATH)
        image = put_image(repository, "1.0.0")
        LayoutRepository.create(tmp_path / "out").put_manifest("1.0.0", image)
        with pytest.raises(BackupError, match="no backup"):
            back_up("minilm", repository, BackupFolder.open(tmp_path / "out"), output)
        with pytest.raises(LayoutError) as caught:
            BackupFolder.open(tmp_path)
        assert "build.py backup" in caught.value.hint


class TestRestoring:
    def test_a_tag_that_names_something_else_is_left_alone(
        self, plain: UploadRegistry, other: UploadRegistry, open_repository: Open, folder: BackupFolder,
        output: Output,
    ) -> None:  # fmt: skip
        repository, target = open_repository(plain, PATH), open_repository(other, PATH)
        release(repository)
        back_up("minilm", repository, folder, output)
        for tag in ("1.0.0", "production"):
            other.reset()
            theirs = put_image(target, tag, note="theirs")
            writes = other.count("put-manifest"), other.count("open")
            with pytest.raises(BackupError, match=f"{tag} is {theirs.digest}") as caught:
                restore("minilm", folder, target, output)
            assert "nothing was changed" in caught.value.hint
            assert (other.count("put-manifest"), other.count("open")) == writes
            assert other.repository(PATH).tags == {tag: theirs.digest}

    def test_what_was_attached_meanwhile_stays_listed(
        self, plain: UploadRegistry, open_repository: Open, folder: BackupFolder, output: Output
    ) -> None:
        repository = open_repository(plain, PATH)
        release(repository)
        back_up("minilm", repository, folder, output)
        image = repository.manifest("1.0.0")
        assert image is not None
        del plain.repository(PATH).tags[referrers_tag(image.digest)]  # the list was lost, a new one begun
        attach(repository, image, SBOM)
        restore("minilm", folder, open_repository(plain, PATH), output)
        kinds = {each.artifact_type for each in attachments(repository, image) if not each.tag}
        assert kinds == {REPORT.media_type, SBOM.media_type}

    def test_ended_at_any_write_it_goes_on(
        self, plain: UploadRegistry, other: UploadRegistry, open_repository: Open, folder: BackupFolder,
        output: Output,
    ) -> None:  # fmt: skip
        repository = open_repository(plain, PATH)
        release(repository)
        expected = released_tags(plain)
        back_up("minilm", repository, folder, output)
        restore("minilm", folder, open_repository(other, PATH), output)
        writes = other.count("put-manifest")
        for number in range(1, writes + 1, 1 if full() else 4):
            other.reset()
            other.trouble("put-manifest", at=number, times=99, status=403)
            with pytest.raises(RegistryError):
                restore("minilm", folder, open_repository(other, PATH), output)
            there = other.repository(PATH).tags
            assert there.items() <= expected.items()
            assert "production" not in there or "1.0.0" in there
            other._troubles.clear()
            restore("minilm", folder, open_repository(other, PATH), output)
            assert other.repository(PATH).tags == expected


class TestPlaces:
    def test_a_folder_or_a_path_of_a_registry(self) -> None:
        assert folder_of("oci:some/folder", "--output", "r.example.com/ml") == Path("some/folder")
        assert folder_of("r.example.com/backup", "--output", "r.example.com/ml") is None
        assert folder_of("docker.io/acme", "--output", "r.example.com/ml") is None
        assert folder_of("localhost:5000", "--output", "r.example.com/ml") is None

    @pytest.mark.parametrize(
        "place",
        [
            "oci:",
            "backup",
            "acme/backup",
            "r.example.com/a:1",
            "r.example.com/ml",
            "r.example.com/a/",
            "",
            "a b",
        ],
    )
    def test_anything_else_is_refused(self, place: str) -> None:
        with pytest.raises(UsageError):
            folder_of(place, "--output", "r.example.com/ml")


def test_the_index_is_what_the_standard_says(
    plain: UploadRegistry, open_repository: Open, folder: BackupFolder, output: Output
) -> None:
    repository = open_repository(plain, PATH)
    image = put_image(repository, "1.0.0")
    back_up("minilm", repository, folder, output)
    index = json.loads((folder.folder / "index.json").read_bytes())
    assert index["manifests"] == [
        {
            "mediaType": image.media_type,
            "digest": image.digest,
            "size": len(image.body),
            "annotations": {
                "io.modelbake.model": "minilm",
                "org.opencontainers.image.ref.name": "minilm/1.0.0",
            },
        }
    ]
    shutil.rmtree(folder.folder)
