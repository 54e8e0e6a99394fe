"""Messages and hints name the file and the runtimes that the run was given."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from modelbake.output import Output
from modelbake.wording import USUAL_FILE, wording

ROOT = Path(__file__).resolve().parents[2]
TEXT = "models.lock is not of this models.yaml: run `build.py lock minilm` (by `build.py`)"
MODELS = """\
registry: registry.example.com/ml
models:
  minilm: {version: "1.0.0", source: hf://acme/minilm, runtime: embeddings}
"""


def test_the_usual_run_is_told_as_it_is_written() -> None:
    assert wording(USUAL_FILE, None)(TEXT) == TEXT


def test_a_hint_repeats_the_options() -> None:
    said = wording(Path("team a/models.yml"), Path("$images"))(TEXT)
    assert "`build.py --file 'team a/models.yml' --images '$images' lock minilm`" in said
    assert said.startswith("models.lock is not of this team a/models.yml: ")
    assert said.endswith("(by `build.py`)"), "no command"
    assert wording(USUAL_FILE, Path("own"))(TEXT) == TEXT.replace(
        "build.py lock", "build.py --images own lock"
    )


@pytest.mark.parametrize("path", ["conf/models.yaml", "old-models.yaml", "models.yaml/x", "models.yaml-old"])
def test_the_name_within_another_one_is_left_alone(path: str) -> None:
    text = f"{path}:3:5: key"
    assert wording(Path("team.yaml"), None)(text) == text
    assert wording(Path("team.yaml"), None)("models.yaml: x, models.yaml.") == "team.yaml: x, team.yaml."


def test_results_events_and_hints_pass_it_and_documents_do_not() -> None:
    out, err = io.StringIO(), io.StringIO()
    output = Output(stdout=out, stderr=err, log_format="json")
    output.wording = wording(Path("team.yaml"), None)
    output.result("of models.yaml")
    output.result_json({"file": "models.yaml"})
    output.event("error", "of models.yaml", hint="`build.py lock`", subject="models.yaml")
    assert out.getvalue() == 'of team.yaml\n{\n  "file": "models.yaml"\n}\n'
    record = json.loads(err.getvalue())
    assert (record["message"], record["hint"]) == ("of team.yaml", "`build.py --file team.yaml lock`")
    assert record["subject"] == "models.yaml"


@pytest.mark.parametrize("name", ["team.yaml", "models.yaml"])
def test_a_command_says_how_to_go_on_with_this_very_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(MODELS)
    command = [sys.executable, str(ROOT / "build.py"), "lock", "--check", "--offline", "--file", name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode and "Traceback" not in said
    option = "" if name == "models.yaml" else f"--file {name} "
    assert f"`build.py {option}lock`" in said and f"is in {name}, but not locked" in said
