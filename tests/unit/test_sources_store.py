"""What `lock` makes of a store, and what reads its files: a folder, and a store made for a fault."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from modelbake.config import ModelSpec, SourceSpec
from modelbake.errors import (
    NoMatchingFiles,
    SourceAuthError,
    SourceError,
    SourceNotFound,
    UsageError,
    WrongBytes,
)
from modelbake.lock import Lock
from modelbake.locked import LockedFile, LockedSource
from modelbake.sources import compare_all, kinds, reader_for, resolve_all, source_for
from modelbake.sources.facts import snapshot
from modelbake.sources.selecting import MOST_FILES
from modelbake.sources.store import StoredFile
from modelbake.sources.storesource import StoreSource

FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights" * 1000,
    "sub/a file.txt": b"",
    ".git/config": b"x",
}


def spec(folder: Path, **keys: Any) -> ModelSpec:
    wanted = {"name": "m", "version": "1.0.0", "runtime": "r", "source": f"file://{folder}", **keys}
    return ModelSpec(**wanted)


def fill(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


class TestFolder:
    def test_it_is_locked_and_read(self, tmp_path: Path) -> None:
        model = spec(fill(tmp_path))
        (resolved,) = resolve_all([model], Lock(), None)
        facts = {file.path: (file.size, file.sha256, file.version) for file in resolved.locked.files}
        assert facts == {
            path: (len(data), sha := hashlib.sha256(data).hexdigest(), f"sha256:{sha}")
            for path, data in FILES.items()
            if not path.startswith(".git")
        }
        assert resolved.configuration == b"{}"
        reader = reader_for(resolved.locked, None, threading.Event())
        for file in resolved.locked.files:
            assert b"".join(reader.read(file)) == FILES[file.path]
            if file.size:
                assert b"".join(reader.read(file, 1)) == FILES[file.path][1:]

    def test_files_of_several_sources_are_read_from_theirs(self, tmp_path: Path) -> None:
        base, other = fill(tmp_path / "a"), fill(tmp_path / "b", {"config.json": b"adapter"})
        model = spec(base, add=({"source": f"file://{other}", "into": "deep/adapter"},))
        (resolved,) = resolve_all([model], Lock(), None)
        reader = reader_for(resolved.locked, None, threading.Event())
        read = {file.path: b"".join(reader.read(file)) for file in resolved.locked.files}
        assert read["deep/adapter/config.json"] == b"adapter" and read["config.json"] == b"{}"
        assert "deep/adapter/config.json" in resolved.upstream
        assert compare_all([model], Lock({"m": resolved.locked}), None).heads == {
            "m": [each.commit for each in resolved.locked.sources]
        }

    def test_two_sources_with_one_path(self, tmp_path: Path) -> None:
        base = fill(tmp_path / "a", {"adapter/x": b"1"})
        model = spec(
            base, add=({"source": f"file://{fill(tmp_path / 'b', {'x': b'2'})}", "into": "adapter"},)
        )
        with pytest.raises(SourceError, match="come from two sources"):
            resolve_all([model], Lock(), None)

    def test_what_was_changed_is_not_read_as_what_it_was(self, tmp_path: Path) -> None:
        model = spec(fill(tmp_path))
        (resolved,) = resolve_all([model], Lock(), None)
        reader = reader_for(resolved.locked, None, threading.Event())
        file = next(file for file in resolved.locked.files if file.size)
        (tmp_path / file.path).write_bytes(b"longer than it was")
        with pytest.raises(WrongBytes, match="18 bytes instead of the 2"):
            list(reader.read(file))
        (tmp_path / file.path).unlink()
        with pytest.raises(SourceNotFound, match="No such file"):
            list(reader.read(file))

    def test_bad_folders(self, tmp_path: Path) -> None:
        with pytest.raises(SourceNotFound, match="no such folder"):
            resolve_all([spec(tmp_path / "none")], Lock(), None)
        (tmp_path / "one").write_text("x")
        with pytest.raises(SourceNotFound, match="is a file; name the folder"):
            resolve_all([spec(tmp_path / "one")], Lock(), None)
        (tmp_path / "empty").mkdir()
        with pytest.raises(NoMatchingFiles, match="holds no files"):
            resolve_all([spec(tmp_path / "empty")], Lock(), None)
        with pytest.raises(NoMatchingFiles, match="selects none of the source's 1 files"):
            resolve_all([spec(fill(tmp_path / "x", {"a": b""}), include=["b"])], Lock(), None)

    def test_what_is_no_file(self, tmp_path: Path) -> None:
        import os

        fill(tmp_path, {"a": b"1"})
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(SourceError, match="is no regular file"):
            resolve_all([spec(tmp_path)], Lock(), None)
        (tmp_path / "pipe").unlink()
        (tmp_path / "gone").symlink_to("nowhere")
        with pytest.raises(SourceNotFound, match="gone"):
            resolve_all([spec(tmp_path)], Lock(), None)
        (tmp_path / "gone").unlink()
        (tmp_path / "link").symlink_to("a")  # as a hub's cache has them
        (resolved,) = resolve_all([spec(tmp_path)], Lock(), None)
        assert [file.path for file in resolved.locked.files] == ["a", "link"]

    def test_links_to_folders_are_followed(self, tmp_path: Path) -> None:
        shared = fill(tmp_path / "shared", {"vocab.json": b"{}"})
        model = fill(tmp_path / "model", {"a": b"1"})
        (model / "tokenizer").symlink_to(shared, target_is_directory=True)
        (resolved,) = resolve_all([spec(model)], Lock(), None)
        assert [file.path for file in resolved.locked.files] == ["a", "tokenizer/vocab.json"]
        (shared / "back").symlink_to(model, target_is_directory=True)
        with pytest.raises(SourceError, match="tokenizer/back is a link to a folder that it lies in"):
            resolve_all([spec(model)], Lock(), None)

    def test_a_lock_whose_sha256_is_not_that_of_its_version(self, tmp_path: Path) -> None:
        model = spec(fill(tmp_path, {"a": b"1"}))
        (resolved,) = resolve_all([model], Lock(), None)
        (file,) = resolved.locked.files
        assert compare_all([model], Lock({"m": resolved.locked}), None).edits == {"m": []}
        edited = replace(resolved.locked, files=(replace(file, sha256="ab" * 32),))
        (found,) = compare_all([model], Lock({"m": edited}), None).edits["m"]
        assert found == f"a has the sha256 {'ab' * 32} here, and its version says {file.sha256}"


@dataclass
class Shelf:
    """A store that says what a test wants it to say, and serves what it has."""

    listed: list[StoredFile]
    contents: dict[str, bytes]
    subject: str = "m: test"
    read_paths: list[str] = field(default_factory=list)
    attempts: int = 1

    def listing(self) -> Iterator[StoredFile]:
        yield from self.listed

    def reader(self, stop: threading.Event) -> Shelf:
        return self

    def read(self, file: LockedFile, start: int = 0) -> Any:
        self.read_paths.append(file.path)
        content = self.contents[file.path]

        class Once:
            attempts = 1

            def __iter__(self) -> Iterator[bytes]:
                yield content[start:]

        return Once()

    def address(self, file: LockedFile) -> None:
        return None

    def close(self) -> None:
        pass


def stored(path: str, data: bytes, version: str = "1", checksum: tuple[str, str] | None = None) -> StoredFile:
    return StoredFile(path, len(data), version, checksum)


S3 = SourceSpec(name="m", source="s3://bucket/x")


class TestStore:
    def resolve(self, shelf: Shelf, previous: LockedSource | None = None) -> LockedSource:
        return StoreSource(lambda spec: shelf).resolve(S3, previous).locked

    def test_what_is_locked_of_a_version_is_not_read_again(self) -> None:
        shelf = Shelf([stored("a", b"1", "v1"), stored("b", b"22", "v1")], {"a": b"1", "b": b"22"})
        first = self.resolve(shelf)
        assert shelf.read_paths == ["a", "b"]
        assert first.commit == snapshot([("a", 1, "v1"), ("b", 2, "v1")])
        shelf.listed[1] = stored("b", b"33", "v2")
        shelf.contents["b"] = b"33"
        shelf.read_paths.clear()
        second = self.resolve(shelf, first)
        assert shelf.read_paths == ["b"] and second.commit != first.commit
        assert {file.path: file.version for file in second.files} == {"a": "v1", "b": "v2"}
        elsewhere = LockedSource.at(
            S3.model_copy(update={"source": "s3://other/x"}), first.commit, first.files
        )
        shelf.read_paths.clear()
        self.resolve(shelf, elsewhere)
        assert shelf.read_paths == ["a", "b"], "versions are one store's own"

    @pytest.mark.parametrize("algorithm", ["sha256", "sha1", "md5"])
    def test_what_the_store_says_of_the_bytes_is_compared(self, algorithm: str) -> None:
        right = hashlib.new(algorithm, b"data", usedforsecurity=False).hexdigest()
        self.resolve(Shelf([stored("a", b"data", checksum=(algorithm, right))], {"a": b"data"}))
        with pytest.raises(WrongBytes, match=f"bytes whose {algorithm} is"):
            self.resolve(Shelf([stored("a", b"data", checksum=(algorithm, right))], {"a": b"dat\0"}))
        with pytest.raises(WrongBytes, match="5 bytes instead of 4"):
            self.resolve(Shelf([stored("a", b"data")], {"a": b"data!"}))

    def test_other_bytes_at_a_locked_snapshot_are_refused(self) -> None:
        """Whoever edits the lock, or a store that changes what never changes."""
        shelf = Shelf([stored("config.json", b"{}", "v1")], {"config.json": b"{}"})
        first = self.resolve(shelf)
        shelf.contents["config.json"] = b"[]"
        with pytest.raises(WrongBytes, match="at the very same commit"):
            self.resolve(shelf, first)

    def test_a_lock_that_disagrees_with_itself_is_told(self) -> None:
        shelf = Shelf([stored("a", b"1", "v1")], {"a": b"1"})
        first = self.resolve(shelf)
        source = StoreSource(lambda spec: shelf)
        assert source.edits(first) == [] and source.head(S3) == first.commit
        edited = LockedSource.at(S3, first.commit, [LockedFile("a", 1, "ab" * 32, "v0")])
        assert source.edits(edited) == ["the files of s3://bucket/x are not those that its commit names"]

    def test_reach_reads_no_more_than_it_must(self) -> None:
        shelf = Shelf([stored("big", b"1" * 99), stored("small", b"1")], {"big": b"1" * 99, "small": b"1"})
        StoreSource(lambda spec: shelf).reach(S3)
        assert shelf.read_paths == ["small"]

    def test_too_many_files(self) -> None:
        shelf = Shelf([stored(f"{n}", b"") for n in range(MOST_FILES + 1)], {})
        with pytest.raises(SourceError, match="more than 100,000 files"):
            self.resolve(shelf)

    @pytest.mark.parametrize("path", ["../x", "/x", "a//b", "a\\b", "a\nb", "x/.git/y", ""])
    def test_names_that_no_image_can_have(self, path: str) -> None:
        with pytest.raises((SourceError, NoMatchingFiles)):
            self.resolve(Shelf([stored(path, b"1")], {path: b"1"}))


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kinds.STORES, "s3", ("no_such_module", "s3"))
    with pytest.raises(UsageError, match=r"'\.\[s3\]'"):
        source_for("s3", None).head(S3)


def test_a_folder_that_nobody_may_read(tmp_path: Path) -> None:
    from modelbake.sources.files import _translated

    error = _translated(PermissionError(13, "Permission denied", "/x"), "m: file:///x")
    assert isinstance(error, SourceAuthError) and "/x" in error.message
