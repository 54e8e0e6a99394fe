"""start.py, run as the real program beside a real manifest."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Tally
from tests.promises import cases

START = Path(__file__).parents[3] / "images" / "start" / "start.py"
PROGRAMS = ("start.py", "weight_files.py", "weight_headers.py", "weight_sample.py")
FILES = {
    "config.json": b'{"hidden_size": 384}',
    "model.safetensors": bytes(range(256)) * 10_000,
    "1_Pooling/config.json": b"{}",
    "a/b/c/empty": b"",
}


class Image:
    """The files of an image, as far as start.py is concerned: the program, a manifest and weights."""

    def __init__(self, root: Path) -> None:
        self.program = root / "modelbake" / "start.py"
        self.manifest = root / "modelbake" / "manifest.json"
        self.weights = root / "models"
        self.manifest.parent.mkdir()
        for name in PROGRAMS:
            shutil.copy(START.parent / name, self.program.parent)
        for path, data in FILES.items():
            (self.weights / path).parent.mkdir(parents=True, exist_ok=True)
            (self.weights / path).write_bytes(data)
        self.write([describe(path, data) for path, data in FILES.items()])

    def write(self, files: list[dict[str, Any]], **others: object) -> None:
        document = {"schema": 1, "model": "minilm", "version": "1.2.3", "source": "hf://a/b", "files": files}
        self.manifest.write_text(json.dumps({**document, **others}))

    def command(self, *argv: str) -> list[str]:
        return [sys.executable, str(self.program), *argv]

    def environment(self, **variables: str) -> dict[str, str]:
        return {**os.environ, "MODELBAKE_WEIGHTS": str(self.weights), **variables}

    def run(self, *argv: str, **variables: str) -> tuple[int, list[dict[str, Any]]]:
        """Run the program; return its exit code and its events."""
        done = subprocess.run(
            self.command(*(argv or ("--", sys.executable, "-c", 'print(\'{"event": "served"}\')'))),
            env=self.environment(**variables),
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.stderr == b""
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def describe(path: str, data: bytes) -> dict[str, Any]:
    return {"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def names(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(event["event"], event.get("file", "")) for event in events]


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image(tmp_path)


@pytest.mark.control("start")
def test_right_weights_are_served(image: Image) -> None:
    code, (verified, served) = image.run()
    assert code == 0
    assert served == {"event": "served"}
    assert verified["event"] == "verified"
    assert verified["level"] == "info"
    assert (verified["model"], verified["version"]) == ("minilm", "1.2.3")
    assert (verified["files"], verified["bytes"]) == (4, sum(len(data) for data in FILES.values()))
    assert verified["verify"] == "full" and "files_sampled" not in verified
    assert verified["seconds"] >= 0
    assert verified["gigabytes_per_second"] > 0
    assert verified["time"].endswith("Z")
    assert datetime.fromisoformat(verified["time"]).utcoffset() is not None


def test_the_command_takes_this_very_process(image: Image) -> None:
    """Else the server would not be process 1 of its container, and `docker stop` would not reach it."""
    script = "import json, os, sys; print(json.dumps({'pid': os.getpid(), 'argv': sys.argv[1:]}))"
    with subprocess.Popen(
        image.command(sys.executable, "-c", script, "--", "x y"),
        env=image.environment(),
        stdout=subprocess.PIPE,
    ) as process:
        output = process.communicate(timeout=60)[0]
    assert process.returncode == 0
    assert json.loads(output.splitlines()[1]) == {"pid": process.pid, "argv": ["--", "x y"]}


def test_the_commands_exit_code_is_kept(image: Image) -> None:
    assert image.run(sys.executable, "-c", "raise SystemExit(7)")[0] == 7


@pytest.mark.promise("start")
def test_one_flipped_bit(image: Image) -> None:
    path = image.weights / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[1_234_567] ^= 1
    path.write_bytes(data)
    code, (event,) = image.run()
    assert code == 65
    assert (event["event"], event["file"], event["level"]) == ("mismatch", "model.safetensors", "error")
    assert event["expected"] == "sha256:" + hashlib.sha256(FILES["model.safetensors"]).hexdigest()
    assert event["actual"] == "sha256:" + hashlib.sha256(data).hexdigest()


@pytest.mark.promise("start")
def test_one_random_change_is_found_and_named(image: Image, tmp_path: Path, tally: Tally) -> None:
    some = random.Random(1)
    for number in range(cases(12, 100)):
        path, kind = some.choice(sorted(FILES)), some.choice(("flip", "cut", "grow", "remove", "add", "link"))
        file, whole = image.weights / path, FILES[path]
        at = some.randrange(len(whole)) if whole else 0
        told = path
        if kind == "flip" and whole:
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << some.randrange(8)]) + whole[at + 1 :])
        elif kind == "cut" and whole:
            file.write_bytes(whole[:at])
        elif kind == "remove":
            file.unlink()
        elif kind == "link":
            (tmp_path / f"same-{number}").write_bytes(whole)
            file.unlink()
            file.symlink_to(tmp_path / f"same-{number}")
        elif kind == "add":
            told = f"{path}.{some.randrange(10**6)}"
            (image.weights / told).write_bytes(some.randbytes(some.randrange(9)))
        else:
            file.write_bytes(whole + some.randbytes(some.randrange(1, 9)))
        code, events = image.run()
        assert code == 65, (number, kind, path)
        assert [file for _, file in names(events)] == [told], (number, kind, path)
        tally.count()
        (image.weights / told).unlink(missing_ok=True)
        file.unlink(missing_ok=True)
        file.write_bytes(whole)
    assert image.run()[0] == 0, "control: all of it has been undone"


@pytest.mark.promise("start")
def test_a_wrong_size_is_told_without_hashing(image: Image) -> None:
    (image.weights / "config.json").write_bytes(b"{}")
    code, (event,) = image.run()
    assert code == 65
    assert (event["expected"], event["actual"]) == ("20 bytes", "2 bytes")


def test_all_problems_are_told_together(image: Image) -> None:
    (image.weights / "config.json").unlink()
    (image.weights / "model.safetensors").write_bytes(bytes(2_560_000))
    (image.weights / "1_Pooling" / "pickle.bin").write_bytes(b"x")
    (image.weights / "unexpected" / "folder").mkdir(parents=True)
    (image.weights / "a" / "b" / "c" / "empty").write_bytes(b"no longer")
    code, events = image.run()
    assert code == 65
    assert names(events) == [
        ("extra", "1_Pooling/pickle.bin"),
        ("mismatch", "a/b/c/empty"),
        ("missing", "config.json"),
        ("mismatch", "model.safetensors"),
        ("extra", "unexpected"),
    ]


@pytest.mark.promise("start")
def test_a_link_to_the_right_bytes_is_a_mismatch(image: Image, tmp_path: Path) -> None:
    (image.weights / "model.safetensors").rename(tmp_path / "elsewhere")
    (image.weights / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    code, (event,) = image.run()
    assert code == 65
    assert (event["event"], event["actual"]) == ("mismatch", "symbolic link")


@pytest.mark.promise("start")
def test_a_linked_folder_is_a_mismatch(image: Image, tmp_path: Path) -> None:
    (image.weights / "1_Pooling").rename(tmp_path / "elsewhere")
    (image.weights / "1_Pooling").symlink_to(tmp_path / "elsewhere")
    code, events = image.run()
    assert code == 65
    assert names(events) == [("mismatch", "1_Pooling"), ("missing", "1_Pooling/config.json")]


@pytest.mark.promise("start")
def test_a_linked_weights_folder_is_a_mismatch(image: Image, tmp_path: Path) -> None:
    image.weights.rename(tmp_path / "elsewhere")
    image.weights.symlink_to(tmp_path / "elsewhere")
    assert names(image.run()[1]) == [("mismatch", ".")]


@pytest.mark.promise("start")
def test_a_dangling_extra_link_is_extra(image: Image) -> None:
    (image.weights / "link").symlink_to("nowhere")
    assert names(image.run()[1]) == [("extra", "link")]


def test_a_pipe_does_not_hold_the_program_up(image: Image) -> None:
    (image.weights / "config.json").unlink()
    os.mkfifo(image.weights / "config.json")
    code, (event,) = image.run()
    assert code == 65
    assert event["actual"] == "special file"


@pytest.mark.promise("start")
def test_no_weights_at_all(image: Image) -> None:
    shutil.rmtree(image.weights)
    code, events = image.run()
    assert code == 65
    assert names(events) == [("missing", ".")]


@pytest.mark.promise("start")
def test_a_name_that_is_not_utf8(image: Image) -> None:
    Path(os.fsdecode(os.fsencode(image.weights) + b"/\xff\n")).write_bytes(b"")
    code, events = image.run()
    assert code == 65
    assert names(events) == [("extra", "\udcff\n")]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file(image: Image) -> None:
    (image.weights / "config.json").chmod(0)
    code, (event,) = image.run()
    assert code == 65
    assert event["actual"].startswith("unreadable: ")


HASH = "0" * 64


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "schema 1"),
        ('{"schema": 2, "model": "m", "version": "1", "files": []}', "schema 1"),
        ('{"schema": 1, "version": "1", "files": []}', "model and version"),
        ('{"schema": 1, "model": "m", "version": "1", "files": []}', "at least one file"),
        ('{"schema": 1, "model": "m", "version": "1", "files": [1]}', "files[0]"),
    ],
)
@pytest.mark.promise("start")
def test_a_manifest_that_is_none(image: Image, content: str, words: str) -> None:
    image.manifest.write_text(content)
    code, (event,) = image.run()
    assert code == 66
    assert event["event"] == "manifest_unusable"
    assert words in event["error"]


@pytest.mark.parametrize(
    "entry",
    [
        {"path": "../x"},
        {"path": "/etc/passwd"},
        {"path": "a//b"},
        {"path": "./a"},
        {"path": ""},
        {"path": "a\0"},
        {"path": 3},
        {"size": -1},
        {"size": True},
        {"size": "1"},
        {"sha256": "0" * 63},
        {"sha256": "0" * 64 + "\n"},
        {"sha256": "A" * 64},
        {"sha256": None},
    ],
)
def test_a_manifest_entry_that_is_wrong(image: Image, entry: dict[str, object]) -> None:
    image.write([{"path": "a", "size": 1, "sha256": HASH, **entry}])
    code, (event,) = image.run()
    assert code == 66
    assert event["event"] == "manifest_unusable"


@pytest.mark.parametrize("paths", [("a", "a"), ("a", "a/b")])
def test_manifest_entries_that_contradict(image: Image, paths: tuple[str, str]) -> None:
    image.write([{"path": path, "size": 1, "sha256": HASH} for path in paths])
    assert image.run()[0] == 66


def test_a_manifest_that_is_missing_a_link_or_a_folder(image: Image, tmp_path: Path) -> None:
    image.manifest.rename(tmp_path / "real")
    assert image.run()[0] == 66
    image.manifest.symlink_to(tmp_path / "real")
    assert image.run()[0] == 66
    image.manifest.unlink()
    image.manifest.mkdir()
    assert image.run()[0] == 66


def test_a_command_that_does_not_exist(image: Image) -> None:
    code, (verified, event) = image.run("/nowhere/python", "server.py")
    assert code == 66
    assert verified["event"] == "verified"
    assert event["event"] == "cannot_start"
    assert event["command"] == ["/nowhere/python"]


def test_verification_alone(image: Image) -> None:
    code, (event,) = image.run("--verify")
    assert (code, event["event"]) == (0, "verified")
    next(path for path in image.weights.rglob("*") if path.is_file()).write_bytes(b"other")
    code, events = image.run("--verify")
    assert (code, {event["event"] for event in events}) == (65, {"mismatch"})


def test_no_command(image: Image) -> None:
    code, (event,) = image.run("--")
    assert code == 66
    assert "no command" in event["error"]


def test_nobody_reading_stdout_is_no_traceback(image: Image) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    image.manifest.unlink()
    done = subprocess.run(
        image.command("true"), env=image.environment(), stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (66, b"")


def test_sigterm_ends_a_long_verification(image: Image) -> None:
    """As process 1 it would otherwise be deaf to `docker stop`."""
    with (image.weights / "model.safetensors").open("wb") as stream:
        stream.truncate(64 * 1024**3)
    entry = {"path": "model.safetensors", "size": 64 * 1024**3, "sha256": HASH}
    image.write([describe(path, data) for path, data in FILES.items() if path != entry["path"]] + [entry])
    with subprocess.Popen(image.command("true"), env=image.environment(), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        deadline = time.monotonic() + 30
        while not opened(process.pid, image.weights / "model.safetensors"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 128 + signal.SIGTERM
        assert json.loads(process.stdout.read())["event"] == "stopped"


def opened(process: int, path: Path) -> bool:
    try:
        return any(link.readlink() == path for link in Path(f"/proc/{process}/fd").iterdir())
    except OSError:
        return False


@pytest.mark.parametrize("name", [*PROGRAMS, "probe.py"])
def test_standard_library_of_old_pythons_only(name: str) -> None:
    """These run on whatever Python a base image has."""
    tree = ast.parse((START.parent / name).read_text(), feature_version=(3, 9))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        else:
            continue
        ours = {program.removesuffix(".py") for program in PROGRAMS}
        assert {module.partition(".")[0] for module in modules} <= set(sys.stdlib_module_names) | ours
