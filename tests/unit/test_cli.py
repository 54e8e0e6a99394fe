"""The command line as a process: exit codes, streams, and no traceback whatever is typed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modelbake import cli, errors
from modelbake.cli import VERBS
from modelbake.lock import Lock, LockedFile, LockedModel
from modelbake.lockfile import write_lock
from modelbake.workspace import Workspace

ROOT = Path(__file__).resolve().parent.parent.parent
MODELS = """\
registry: registry.example.com/ml
models:
  minilm:
    version: "1.0.0"
    source: hf://acme/minilm
    runtime: embeddings
"""


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "build.py"), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models.yaml").write_text(MODELS)
    return tmp_path


def test_check_prints_what_is_declared(folder: Path) -> None:
    done = _run(folder, "check")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "minilm 1.0.0 hf://acme/minilm@main runtime=embeddings device=cuda\n"
    document = json.loads(_run(folder, "check", "--json").stdout)
    assert document["models"]["minilm"]["version"] == "1.0.0"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, ["VERB", "--help"]),
        (["biuld"], 2, ["did you mean `build`?"]),
        (["build", "--frobnicate"], 2, ["--frobnicate"]),
        (["build"], 2, ["name at least one model", "--all"]),
        (["build", "minilm", "--all"], 2, ["not both"]),
        (["smoke", "minilim"], 2, ["minilim", "did you mean", "minilm"]),
        (["smoke", "minilm", "--gpus", "0,1"], 2, ["--gpus takes all, a number, device=0,1", '"0,1"']),
        (["smoke", "minilm", "--update-goldens"], 2, ["no check of minilm names a golden", "{cosine: NAME}"]),
        (["smoke", "--all", "--update-goldens"], 2, ["no check of minilm names a golden"]),
        (["publish", "minilm", "--candidate", "--gpus", "all"], 2, ["--candidate tries no image"]),
        (["publish", "minilm", "--candidate", "--untagged"], 2, ["--untagged tests the image"]),
        (["publish", "minilm", "--output", "oci:x", "--untagged"], 2, ["--untagged tests the image"]),
        (["release", "minilm", "--digest", "sha256:1"], 2, ["64 hexadecimal digits", '"sha256:1"']),
        (["release", "minilm"], errors.LockMissing.exit_code, ["build.py lock minilm"]),
        (["prune", "minilm"], 2, ["--keep"]),
        (["prune", "minilm", "--keep", "-1"], 2, ["0 or more, got -1"]),
        (["prune", "minilm", "--keep", "few"], 2, ["--keep", "invalid int value"]),
        (["render", "minilm"], 2, ["--output"]),
        (["lock", "--offline"], 2, ["--check"]),
        (["check", "--file", "absent.yaml"], errors.ConfigError.exit_code, ["absent.yaml", "no such file"]),
        (["check", "--file", "x" * 300], errors.ConfigError.exit_code, ["File name too long"]),
        (["check", "--images", "x" * 300], errors.ConfigError.exit_code, ["File name too long"]),
        (["check", "--log-form", "json"], 2, ["--log-form"]),
        (["check", "--images", "absent"], errors.ConfigError.exit_code, ["absent", "--images"]),
        (["check", "--schema", "absent/x.json"], 2, ["absent/x.json", "cannot write"]),
        (["check", "--schema", "/nope/x"], 2, ["--schema=/nope/x", "cannot write", "hint"]),
        (["render", "minilm", "--output", "c"], errors.LockMissing.exit_code, ["build.py lock minilm"]),
        (["build", "minilm"], errors.LockMissing.exit_code, ["build.py lock minilm"]),
        (["lock", "--check", "--offline"], errors.LockDrift.exit_code, ["1 difference"]),
    ],
)
def test_what_cannot_be_done_is_said_with_its_code(
    folder: Path, arguments: list[str], code: int, words: list[str]
) -> None:
    done = _run(folder, *arguments)
    assert done.returncode == code, done.stderr
    for word in words:
        assert word in done.stderr
    assert done.stderr.startswith("error: ")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(folder: Path, verb: str) -> None:
    done = _run(folder, verb, "--help")
    assert done.returncode == 0
    assert "--log-format" in done.stdout
    assert verb in _run(folder, "--help").stdout


def test_an_error_is_one_json_object_where_asked_for(folder: Path) -> None:
    done = _run(folder, "build", "minilm", "--log-format", "json")
    record = json.loads(done.stderr)
    assert record["event"] == "error"
    assert record["kind"] == "LockMissing"
    assert record["exit_code"] == done.returncode == 12
    assert record["hint"]


def test_global_options_may_stand_on_either_side_of_the_verb(folder: Path) -> None:
    (folder / "models.yaml").rename(folder / "team.yaml")
    before = _run(folder, "--log-format", "json", "--file", "team.yaml", "build", "minilm")
    after = _run(folder, "build", "minilm", "--log-format", "json", "--file", "team.yaml")
    assert before.returncode == after.returncode == errors.LockMissing.exit_code
    assert json.loads(before.stderr)["kind"] == json.loads(after.stderr)["kind"] == "LockMissing"
    both = _run(folder, "--file", "absent.yaml", "check", "--file", "team.yaml")
    assert both.returncode == 0, "what is said last counts"
    assert "absent" in _run(folder, "--images", "absent", "check", "--file", "team.yaml").stderr


def test_a_usage_error_is_json_too(folder: Path) -> None:
    done = _run(folder, "build", "--log-format", "json", "--nonsense")
    assert json.loads(done.stderr)["kind"] == "UsageError"


def test_a_reader_that_goes_away_is_no_error(folder: Path) -> None:
    models = "".join(MODELS.split("models:\n")[1].replace("minilm:", f"m{n}:") for n in range(3000))
    (folder / "models.yaml").write_text(MODELS.split("models:\n")[0] + "models:\n" + models)
    command = f"{sys.executable} {ROOT / 'build.py'} check | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("m0 ")
    assert done.stderr == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_ends_with_130(folder: Path, number: signal.Signals) -> None:
    """It waits for a hub that accepts a connection and never answers."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        hub = f"    hub: http://127.0.0.1:{silent.getsockname()[1]}\n"
        (folder / "models.yaml").write_text(MODELS + hub)
        command = [sys.executable, str(ROOT / "build.py"), "lock"]
        with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as running:
            connection, _ = silent.accept()
            with connection:
                time.sleep(0.2)
                running.send_signal(number)
                _, said = running.communicate(timeout=20)
    assert running.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said
    assert not (folder / "models.lock").exists()


def test_importing_the_command_line_is_cheap() -> None:
    """No library of a verb is loaded before the verb runs: what is imported, not how long it takes."""
    code = "import sys, modelbake.cli; modelbake.cli._parser(); print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    heavy = {"docker", "huggingface_hub", "pydantic", "httpx2", "rich", "jinja2", "yaml"}
    assert heavy & set(loaded.stdout.split()) == set()


@pytest.mark.parametrize(("variable", "verb"), [("HF_TOKEN", "lock"), ("MODELBAKE_INDEX_URL", "build")])
def test_bytes_that_are_no_text_in_a_secret_are_no_traceback(folder: Path, variable: str, verb: str) -> None:
    (folder / "models.yaml").write_text(MODELS + "    hub: http://127.0.0.1:9\n")
    command = [sys.executable, str(ROOT / "build.py"), verb, "minilm"]
    environment = {**os.environb, variable.encode(): b"hf_\xff-canary"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)
    assert done.returncode in {errors.SourceAuthError.exit_code, errors.LockMissing.exit_code}
    assert b"Traceback" not in done.stderr
    assert b"canary" not in done.stderr


def test_a_result_that_cannot_be_written_is_said(folder: Path) -> None:
    command = [sys.executable, str(ROOT / "build.py"), "check"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, cwd=folder, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == errors.UsageError.exit_code
    assert "cannot be written (No space left on device)" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_are_no_traceback(folder: Path, closed: str) -> None:
    command = f"{sys.executable} {ROOT / 'build.py'} check {closed}"
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


def test_locking_at_the_same_time_loses_nothing(tmp_path: Path) -> None:
    """Many processes, each with a model of its own, put them into one lock."""
    program = (
        "import sys; from pathlib import Path; from modelbake.lock import *;"
        "name, path = sys.argv[1], Path(sys.argv[2]);"
        "file = LockedFile('a', 1, '0' * 64);"
        "made = LockedModel(name, 'hf://a/' + name, 'https://h', 'main', 'a' * 40, ('*',), (), (file,));"
        "exec('with exclusively(path): write_lock(path, update_lock(read_lock(path), [made]))')"
    )
    path = tmp_path / "models.lock"
    names = [f"m{number}" for number in range(8)]
    running = [subprocess.Popen([sys.executable, "-c", program, name, str(path)], cwd=ROOT) for name in names]
    assert [each.wait() for each in running] == [0] * len(names)
    assert sorted(json.loads(path.read_text())["models"]) == names


@pytest.mark.parametrize("verb", [["check"], ["build", "m"], ["build", "--all"]])
def test_locked_weights_that_cannot_fit_are_refused_before_an_engine_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: list[str]
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")

    def run(most: str) -> subprocess.CompletedProcess[str]:
        entry = {"version": "1.0.0", "source": "hf://a/b", "runtime": "weights", "max_size": most}
        text = json.dumps({"registry": "r.example.com/ml", "models": {"m": entry}})
        (tmp_path / "models.yaml").write_text(text)
        spec = Workspace(tmp_path / "models.yaml").config.models["m"]
        files = [LockedFile("model.safetensors", 15 * 10**9, "ab" * 32)]
        write_lock(tmp_path / "models.lock", Lock({"m": LockedModel.of(spec, "c" * 40, files)}))
        return _run(tmp_path, *verb)

    refused = run("1 GB")
    assert refused.returncode == errors.ImageTooLarge.exit_code, refused.stderr
    assert "m 1.0.0: the image is at least 15.00 GB unpacked" in refused.stderr
    assert "at least" not in run("16 GB").stderr, "control"


@pytest.mark.parametrize(
    "command",
    [
        ["promote", "a", "1.0.0", "--to", "production"],
        ["rollback", "a", "--channel", "production"],
        ["channels", "a"],
        ["history", "a"],
        ["verify", "a"],
    ],
    ids=lambda command: command[0],
)
def test_what_is_done_to_released_images_needs_no_runtime_here(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rollback must not fail because somebody has moved a folder."""
    models = tmp_path / "models.yaml"
    models.write_text(
        "registry: 127.0.0.1:1/ml\nmodels:\n"
        '  a: {version: "1.0.0", source: hf://acme/a, runtime: ./services/gone}\n'
    )
    assert cli.run([*command, "--file", str(models)]) == 61, "the registry is what is asked"
    assert "services/gone" not in capsys.readouterr().err
    assert cli.run(["check", "--file", str(models)]) == 10, "control"


@pytest.mark.parametrize(("key", "said"), [(None, "cosign.pub cannot be read"), ("no key", "no public key")])
def test_check_reads_the_key_that_signatures_are_verified_with(
    key: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models.yaml"
    models.write_text(
        "registry: 127.0.0.1:1/ml\nsigning: {public_key: cosign.pub}\nmodels:\n"
        '  a: {version: "1.0.0", source: hf://acme/a, runtime: weights}\n'
    )
    if key is not None:
        (tmp_path / "cosign.pub").write_text(key)
    assert cli.run(["check", "--file", str(models)]) == 76
    assert said in capsys.readouterr().err
