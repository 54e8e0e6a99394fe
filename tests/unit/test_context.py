from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelbake.context import Context
from modelbake.errors import RenderError, SourceError
from modelbake.locked import LockedFile

FILES = {"Dockerfile": b"FROM scratch\n", "weights/ab/manifest.json": b"{}\n", "app/naïve.py": b""}


def test_the_tar_is_the_same_for_the_same_files_in_any_order() -> None:
    backwards = dict(reversed(FILES.items()))
    assert Context(FILES).tar() == Context(backwards).tar()
    assert Context(FILES).tar() != Context({**FILES, "Dockerfile": b"FROM other\n"}).tar()


def test_the_tar_tells_nothing_of_the_machine_it_was_made_on() -> None:
    with tarfile.open(fileobj=io.BytesIO(Context(FILES).tar())) as archive:
        members = archive.getmembers()
        assert [member.name for member in members] == sorted(FILES)
        for member in members:
            facts = (member.uid, member.gid, member.uname, member.gname, member.mtime, member.mode)
            assert facts == (0, 0, "", "", 0, 0o644)
            extracted = archive.extractfile(member)
            assert extracted is not None
            assert extracted.read() == FILES[member.name]


class Disk:
    """Reads weight files from a mapping, in small pieces, and counts how often each was begun."""

    def __init__(self, contents: dict[str, bytes]) -> None:
        self.contents = contents
        self.begun: list[tuple[str, int]] = []

    def read(self, file: LockedFile, start: int = 0) -> Pieces:
        self.begun.append((file.path, start))
        return Pieces(self.contents[file.path], start)


class Pieces:
    attempts = 1

    def __init__(self, content: bytes, start: int) -> None:
        self.content, self.start = content, start

    def __iter__(self) -> Iterator[bytes]:
        for position in range(self.start, len(self.content), 1000):
            yield self.content[position : position + 1000]


WEIGHTS = {"model.safetensors": bytes(range(256)) * 100, "a/empty": b""}
CARRIED = {f"weights/ab/files/{path}": LockedFile(path, len(data), "") for path, data in WEIGHTS.items()}


class TestCarried:
    def test_weights_are_in_the_tar_as_they_are_read(self) -> None:
        disk = Disk(WEIGHTS)
        opened = Context(FILES, carried=CARRIED).open(disk)
        assert not isinstance(opened, bytes)
        whole = opened.read()
        with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
            found = {member.name: archive.extractfile(member) for member in archive}
            contents = {name: file.read() for name, file in found.items() if file}
        assert contents == FILES | {f"weights/ab/files/{path}": data for path, data in WEIGHTS.items()}
        assert disk.begun == [("model.safetensors", 0)], "an empty file is not even asked for"

    def test_it_is_read_in_pieces_and_again_from_anywhere(self) -> None:
        disk = Disk(WEIGHTS)
        opened = Context(FILES, carried=CARRIED).open(disk)
        assert not isinstance(opened, bytes)
        whole = opened.read()
        disk.begun.clear()
        opened.seek(0)
        assert b"".join(iter(lambda: opened.read(777), b"")) == whole
        assert len(disk.begun) == 1, "one piece after the other is one reading"
        for position in (0, 1, 700, 1536, 5000, len(whole) - 1, len(whole)):
            opened.seek(position)
            assert opened.tell() == position
            assert opened.read() == whole[position:]
        assert opened.read(1) == b""

    def test_without_weights_it_is_bytes(self) -> None:
        assert Context(FILES).open() == Context(FILES).tar()

    def test_an_error_of_the_source_comes_through(self) -> None:
        class Broken(Disk):
            def read(self, file: LockedFile, start: int = 0) -> Pieces:
                raise SourceError("the disk is gone")

        opened = Context(FILES, carried=CARRIED).open(Broken(WEIGHTS))
        assert not isinstance(opened, bytes)
        with pytest.raises(SourceError, match="the disk is gone"):
            opened.read()


def test_writing_again_replaces_what_was_written_before(tmp_path: Path) -> None:
    Context(FILES).write(tmp_path / "c")
    Context({"Dockerfile": b"FROM new\n"}).write(tmp_path / "c")
    assert (tmp_path / "c/Dockerfile").read_bytes() == b"FROM new\n"
    assert not (tmp_path / "c/weights/ab/manifest.json").exists()


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(RenderError, match=r"mine\.txt"):
        Context(FILES).write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RenderError, match="is not a folder"):
        Context(FILES).write(tmp_path / "file")
    with pytest.raises(RenderError, match="cannot write"):
        Context(FILES).write(tmp_path / "file" / "below")


def test_a_file_of_the_same_name_is_not_ours_to_replace(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM mine\n")
    with pytest.raises(RenderError, match="did not write: Dockerfile"):
        Context(FILES).write(tmp_path)
    assert (tmp_path / "Dockerfile").read_text() == "FROM mine\n"


@pytest.mark.parametrize("link", ["Dockerfile", "app"])
def test_nothing_is_written_through_a_link(tmp_path: Path, link: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    Context(FILES).write(tmp_path / "c")
    for file in sorted((tmp_path / "c" / link).glob("*")) or [tmp_path / "c" / link]:
        file.unlink()
    if link == "app":
        (tmp_path / "c/app").rmdir()
    (tmp_path / "c" / link).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RenderError, match=link):
        Context(FILES).write(tmp_path / "c")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_the_umask_does_not_reach_the_image(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        Context({**FILES, "app/pkg/deep.py": b""}).write(tmp_path / "c")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "c").rglob("*") if path.is_dir()} == {0o755}
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "c").rglob("*") if path.is_file()} == {0o644}


def test_an_index_that_is_no_text_lists_nothing(tmp_path: Path) -> None:
    Context(FILES).write(tmp_path)
    (tmp_path / ".context-files").write_bytes(b"\xff")
    with pytest.raises(RenderError, match="did not write"):
        Context(FILES).write(tmp_path)
