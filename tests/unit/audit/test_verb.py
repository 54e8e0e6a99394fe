"""`build.py audit` as a process, on OCI layouts: exit codes, streams, files, bad arguments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from modelbake.config import ModelSpec
from modelbake.lock import Lock, LockedFile, LockedModel
from modelbake.lockfile import write_lock
from tests.unit.audit.building import WEIGHTS, File, Made, facts
from tests.unit.audit.hostile import STACK_GLOBAL
from tests.unit.test_cli import MODELS, ROOT


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "build.py"), "audit", *arguments]
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "DOCKER_HOST": "unix:///nowhere", **environment}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models.yaml").write_text(MODELS)
    spec = ModelSpec(name="minilm", version="1.0.0", source="hf://acme/minilm", runtime="embeddings")
    files = [LockedFile(path, size, sha256) for path, (size, sha256) in facts(WEIGHTS).items()]
    locked = LockedModel.of(spec, "0123456789" * 4, files)
    write_lock(tmp_path / "models.lock", Lock({"minilm": locked}))
    return tmp_path


def test_a_clean_image_is_0_and_one_line(folder: Path) -> None:
    image = Made.clean().store(folder / "image")
    for reference in ("oci:image", f"oci:image@{image.digest}"):
        done = run(folder, reference)
        assert done.returncode == 0, done.stderr
        assert ": 0 findings in 3 layers, 12 files," in done.stdout
        assert done.stdout.count("\n") == 1


@pytest.mark.promise("audit")
def test_findings_are_71_a_table_and_what_to_do(folder: Path) -> None:
    made = Made.clean()
    made.layers[0]["app/x"] = b"\0" * 7 + STACK_GLOBAL
    made.config["User"] = "root"
    made.store(folder / "image")
    done = run(folder, "oci:image", "--sarif", "audit.sarif")
    assert done.returncode == 71
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["SEVERITY", "RULE", "LAYER", "WHERE", "WHAT"]
    assert lines[1].split()[:4] == ["error", "pickle-content", "1", "app/x"]
    assert any(line.startswith("root-user: `USER 65532:65532`") for line in lines)
    assert "error: oci:image:1.0.0: 2 findings: pickle-content, root-user" in done.stderr
    assert "docs/audit.md" in done.stderr
    assert len(json.loads((folder / "audit.sarif").read_text())["runs"][0]["results"]) == 2
    document = json.loads(run(folder, "oci:image", "--json").stdout)
    assert (document["passed"], len(document["findings"])) == (False, 2)


@pytest.mark.promise("audit")
def test_a_reference_is_compared_with_the_lock_of_the_model_that_is_named(folder: Path) -> None:
    made = Made.clean()
    made.layers[1]["models/config.json"] = File(b'{"model_type": "x"}', 0o444)
    made.layers[2]["modelbake/manifest.json"] = json.dumps(
        {
            "files": [
                {"path": p, "size": s, "sha256": h}
                for p, (s, h) in facts({**WEIGHTS, "config.json": b'{"model_type": "x"}'}).items()
            ]
        }
    ).encode()
    made.store(folder / "image")
    assert run(folder, "oci:image").returncode == 0, "the image agrees with itself"
    done = run(folder, "oci:image", "--model", "minilm")
    assert done.returncode == 71
    assert {line.split()[1] for line in done.stdout.splitlines()[1:3]} == {
        "weights-changed",
        "weights-manifest",
    }


@pytest.mark.promise("audit")
def test_canaries_come_from_files_and_from_this_machines_hub_token(folder: Path) -> None:
    made = Made.clean()
    made.layers[0]["app/x"] = b"..." + made.canary.encode()
    made.store(folder / "image")
    assert run(folder, "oci:image").returncode == 0, "nobody has said that it is a secret"
    (folder / "canary").write_text(made.canary + "\n")
    for arguments, environment in ((["--canary-file", "canary"], {}), ([], {"HF_TOKEN": made.canary})):
        done = run(folder, "oci:image", *arguments, **environment)
        assert done.returncode == 71
        assert "secret-canary" in done.stdout
        assert made.canary not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, ["NAME|REF"]),
        (["minilmm"], 2, ["no model", "did you mean 'minilm'?", "minilmm:latest"]),
        (["minilm", "--remote"], 2, ["--remote goes with a reference"]),
        (["minilm", "--model", "minilm"], 2, ["--model goes with a reference"]),
        (["oci:image", "--model", "x"], 2, ["no model"]),
        (["oci:nowhere"], 69, ["not an OCI layout"]),
        (["oci:image@sha256:" + "0" * 64], 46, ["no such image"]),
        (["oci:image", "--canary-file", "nowhere"], 2, ["cannot read nowhere"]),
        (["oci:image", "--canary-file", "short"], 2, ["no secret of 8 to"]),
        (["oci:image", "--sarif", "no/such/folder"], 2, ["cannot write"]),
        (["a/B:c"], 2, ["not an image reference"]),
        (["minilm"], 14, ["lacks the tokenizer"]),
        (["127.0.0.1:1/ml/minilm:1.0.0"], 61, ["no engine answers; reading it from its registry"]),
        (["127.0.0.1:1/ml/minilm:1.0.0", "--remote"], 61, ["127.0.0.1:1"]),
    ],
)
def test_what_cannot_be_done_is_said(folder: Path, arguments: list[str], code: int, words: list[str]) -> None:
    Made.clean().store(folder / "image")
    (folder / "short").write_text("abc\n")
    done = run(folder, *arguments)
    assert done.returncode == code, done.stderr
    for word in words:
        assert word in done.stderr
    assert done.stdout == "" or "--sarif" in arguments
