"""The repository itself: what git and a hand-run `docker build .` leave out, and that the files agree."""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
WEIGHTS = [
    "bin", "ckpt", "data-00000-of-00001", "dduf", "engine", "ggml", "gguf", "h5", "hdf5", "joblib", "keras",
    "llamafile", "mar", "mlmodel", "model", "msgpack", "nemo", "npy", "npz", "onnx", "onnx.data",
    "onnx_data", "ot", "params", "part", "pb", "pdparams", "pickle", "pkl", "plan", "pt", "pte", "pth",
    "safetensors", "t7", "tflite", "trt",
]  # fmt: skip
SECRETS = [
    ".env", ".env.local", "sub/.env.production", "prod.env", ".envrc", "secret.pem", "tls.key", "hub.token",
    "hf_token", ".hf_token", ".netrc", ".git-credentials", ".pypirc", "id_rsa", "id_ed25519", "htpasswd",
    "pip.conf", ".docker/config.json", ".aws/credentials", ".huggingface/token",
]  # fmt: skip
CACHES = [
    ".venv/bin/python", "venv/x", "env/x", ".tox/x", ".nox/x", "__pycache__/x.pyc", "x.pyc", ".cache/x",
    ".mypy_cache/x", ".pytest_cache/x", ".ruff_cache/x", "build/x", "dist/x.whl", "x.egg-info/PKG-INFO",
    "wandb/x", "mlruns/x", "reports/minilm/1.0.0.json", "context/Dockerfile", ".demo/models.yaml",
    "core.123", "x.log",
]  # fmt: skip
NEVER = [*(f"deep/folder/weights.{suffix}" for suffix in WEIGHTS), *SECRETS, *CACHES]
KEPT = [
    "models.yaml", "models.lock", ".env.example", "images/embeddings/server.py", "build.py",
    "templates/Dockerfile.j2", "modelbake/report.py", "images/embeddings/requirements.cpu.txt",
]  # fmt: skip


def _ignored(paths: list[str]) -> set[str]:
    asked = subprocess.run(
        ["git", "check-ignore", "--no-index", "--stdin"],
        cwd=ROOT, input="\n".join(paths), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert asked.returncode in (0, 1), asked.stderr
    return set(asked.stdout.splitlines())


def test_git_ignores_weights_secrets_and_caches() -> None:
    assert set(NEVER) - _ignored(NEVER) == set()


def test_git_keeps_what_belongs_in_the_repository() -> None:
    assert _ignored(KEPT) == set()


def test_every_pattern_of_gitignore_ignores_something_named_here() -> None:
    lines = (ROOT / ".gitignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith(("#", "!"))]
    verbose = subprocess.run(
        ["git", "check-ignore", "--no-index", "--verbose", "--stdin"],
        cwd=ROOT, input="\n".join(_example(pattern) for pattern in patterns), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert len(verbose.stdout.splitlines()) == len(patterns) > 60


def _example(pattern: str) -> str:
    path = pattern.lstrip("/").replace("[cod]", "c").replace("*", "x")
    path = path.replace("[0-9]", "0")
    return f"{path}file" if path.endswith("/") else path


def test_docker_build_by_hand_sends_nothing_private() -> None:
    """`.dockerignore` excludes all, then names what may travel; weights and env files stay out even there."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "**"
    for path in NEVER:
        assert not _sent(path, lines), path
        suffix = path.rsplit("/", 1)[-1]
        if suffix.startswith(".env") or suffix.rpartition(".")[2] in WEIGHTS:
            assert not _sent(f"images/embeddings/{suffix}", lines), suffix
    assert _sent("images/embeddings/server.py", lines), "control: something does travel"


def _sent(path: str, lines: list[str]) -> bool:
    """Apply `.dockerignore`: the last line that matches the path, or a folder above it, decides."""
    ignored = False
    parents = ["/".join(path.split("/")[: n + 1]) for n in range(path.count("/") + 1)]
    for line in lines:
        pattern = line.removeprefix("!").removeprefix("**/")
        deep = line.removeprefix("!").startswith("**/")
        for candidate in parents:
            name = candidate.rsplit("/", 1)[-1] if deep else candidate
            if pattern == "**" or fnmatch.fnmatchcase(name, pattern.replace("**", "*")):
                ignored = not line.startswith("!")
    return not ignored


def test_no_tracked_file_is_large_or_weights() -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [ROOT / name for name in tracked.stdout.split("\0") if name]
    assert files
    assert [file for file in files if file.exists() and file.stat().st_size > 1024 * 1024] == []
    assert _ignored([str(file.relative_to(ROOT)) for file in files]) == set()


def test_readme_names_every_verb_and_every_runtime() -> None:
    from modelbake.cli import VERBS
    from modelbake.runtime import list_runtimes

    readme = (ROOT / "README.md").read_text()
    for verb in VERBS:
        assert re.search(rf"^\| `{verb}\b", readme, re.M), verb
    for runtime in list_runtimes(ROOT / "images"):
        assert re.search(rf"^\| `{runtime}`", readme, re.M), runtime


def test_the_documented_version_is_one() -> None:
    import tomllib

    from modelbake import __version__

    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == __version__


def test_every_requirements_file_is_pinned_with_hashes() -> None:
    files = sorted([*ROOT.glob("images/*/requirements*.txt"), ROOT / "requirements/dev.txt"])
    assert len(files) >= 4
    for file in files:
        entries = re.findall(r"^[a-z0-9].*?(?=^[a-z0-9]|\Z)", file.read_text(), re.M | re.S)
        for entry in entries:
            assert re.match(r"[\w.\-\[\]]+==\S+", entry), (file, entry)
            assert "--hash=sha256:" in entry, (file, entry)


@pytest.mark.parametrize("name", ["models.schema.json"])
def test_json_documents_parse(name: str) -> None:
    assert json.loads((ROOT / name).read_text())
