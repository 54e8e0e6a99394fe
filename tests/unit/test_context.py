from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from modelbake.context import Context
from modelbake.errors import RenderError

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
