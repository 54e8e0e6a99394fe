"""The repository itself: what git and a hand-run `docker build .` leave out, and that the files agree."""

from __future__ import annotations

import functools
import json
import posixpath
import re
import subprocess
from pathlib import Path

import pytest

from tests.promises import PROMISES

ROOT = Path(__file__).resolve().parent.parent.parent
WEIGHTS = [
    "bin", "caffemodel", "ckpt", "data-00000-of-00001", "dduf", "engine", "ggml", "gguf", "h5", "hdf5",
    "joblib", "keras", "llamafile", "mar", "mlmodel", "model", "msgpack", "nemo", "npy", "npz", "onnx",
    "onnx.data", "onnx_data", "ot", "params", "part", "pb", "pdiparams", "pdmodel", "pdparams", "pickle",
    "pkl", "plan", "pt", "pte", "pth", "ptl", "rknn", "safetensors", "t7", "tflite", "torchscript", "trt",
    "weights", "7z", "tar", "tar.bz2", "tar.gz", "tar.xz", "tar.zst", "tgz", "zip",
]  # fmt: skip
SECRETS = [
    ".env", ".env.local", "sub/.env.production", "prod.env", ".envrc", "secret.pem", "tls.key", "hub.token",
    "hf_token", ".hf_token", ".netrc", ".git-credentials", ".pypirc", "id_rsa", "id_ed25519", "htpasswd",
    "pip.conf", ".pip/pip.conf", ".docker/config.json", ".aws/credentials", ".azure/x", ".huggingface/token",
    "tls.crt", "client.p12",
]  # fmt: skip
CACHES = [
    ".venv/bin/python", "venv/x", ".tox/x", ".nox/x", "__pycache__/x.pyc", "x.pyc", ".cache/x",
    ".mypy_cache/x", ".pytest_cache/x", ".ruff_cache/x", "dist/x.whl", "x.egg-info/PKG-INFO",
    "wandb/x", "mlruns/x", "core.123", "x.log", "x.mlpackage/weights",
]  # fmt: skip
NEVER = [*(f"deep/folder/weights.{suffix}" for suffix in WEIGHTS), *SECRETS, *CACHES]
# Ignored in the top folder alone: below images/ these are names that a runtime may have.
NEVER_AT_THE_TOP = [
    "build/x", "env/x", "core", "weights/x", "checkpoints/x", "reports/minilm/1.0.0.json",
    "context/Dockerfile", ".demo/models.yaml",
]  # fmt: skip
RUNTIMES = [f"images/{name}/server.py" for name in ("build", "core", "env", "embeddings", "reports")]
KEPT = [
    "models.yaml", "models.lock", ".env.example", "build.py", "templates/Dockerfile.j2",
    "modelbake/report.py", "images/embeddings/requirements.cpu.txt", "images/embeddings/core.py", *RUNTIMES,
]  # fmt: skip


def _ignored(paths: list[str]) -> set[str]:
    asked = subprocess.run(
        ["git", "check-ignore", "--no-index", "--stdin"],
        cwd=ROOT, input="\n".join(paths), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert asked.returncode in (0, 1), asked.stderr
    return set(asked.stdout.splitlines())


@pytest.mark.promise("commit")
def test_git_ignores_weights_secrets_and_caches() -> None:
    assert set(NEVER) - _ignored(NEVER) == set()
    assert set(NEVER_AT_THE_TOP) - _ignored(NEVER_AT_THE_TOP) == set()
    deep = [f"images/embeddings/{path}" for path in NEVER]
    assert set(deep) - _ignored(deep) == set()


@pytest.mark.control("commit")
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


@pytest.mark.promise("commit")
def test_docker_build_by_hand_sends_nothing_private() -> None:
    """`.dockerignore` excludes all, then names what may travel; what git ignores stays out even there."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "**"
    for path in [*NEVER, *NEVER_AT_THE_TOP]:
        assert not _sent(path, lines), path
    for path in NEVER:
        assert not _sent(f"images/embeddings/{path}", lines), path
        assert not _sent(f"images/{path}", lines), path
        assert not _sent(f"templates/{path}", lines), path
    for path in [*RUNTIMES, "templates/Dockerfile.j2", "images/embeddings/core.py"]:
        assert _sent(path, lines), f"control: {path} does travel"
    assert _sent("images/embeddings/weights.bin", [line for line in lines if line != "**/*.bin"]), "control"


def test_dockerignore_names_all_that_gitignore_ignores_in_every_folder() -> None:
    patterns = [line for line in (ROOT / ".gitignore").read_text().splitlines() if line[:1] not in "#!/"]
    assert len(patterns) > 60
    docker = (ROOT / ".dockerignore").read_text().splitlines()
    assert {f"**/{pattern.rstrip('/')}" for pattern in patterns} - set(docker) == set()


def _sent(path: str, lines: list[str]) -> bool:
    """Apply `.dockerignore`: the last line that matches the path, or a folder above it, decides.

    As MatchesOrParentMatches of https://github.com/moby/patternmatcher does.
    """
    ignored = False
    parents = ["/".join(path.split("/")[: n + 1]) for n in range(path.count("/") + 1)]
    for line in lines:
        pattern = posixpath.normpath(line.removeprefix("!").strip()).lstrip("/")
        if any(_docker_regex(pattern).fullmatch(parent) for parent in parents):
            ignored = not line.startswith("!")
    return not ignored


@functools.cache
def _docker_regex(pattern: str) -> re.Pattern[str]:
    """Return a pattern of `.dockerignore` as the regular expression that patternmatcher makes of it."""
    made, at = "", 0
    while at < len(pattern):
        if pattern.startswith("**", at):
            at += 3 if pattern.startswith("**/", at) else 2
            made += ".*" if at >= len(pattern) else "(.*/)?"
            continue
        character = pattern[at]
        made += {"*": "[^/]*", "?": "[^/]"}.get(character) or (
            f"\\{character}" if character in ".+()|{}$" else character
        )
        at += 1
    return re.compile(made)


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


def test_the_security_document_names_every_promise_in_its_words() -> None:
    rows = (ROOT / "docs/security.md").read_text()
    for key, promise in PROMISES.items():
        assert f"\n| `{key}` | {promise} |" in rows, key


def test_links_of_documents_lead_somewhere() -> None:
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    links = [
        (document, link)
        for document in documents
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text())
        if not link.startswith(("http://", "https://"))
    ]
    assert len(links) > 10
    assert [link for document, link in links if not (document.parent / link).exists()] == []


def test_the_documented_version_is_one() -> None:
    import tomllib

    from modelbake import __version__

    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == __version__


def test_every_requirements_file_is_pinned_with_hashes() -> None:
    ours = [ROOT / "requirements/dev.txt", ROOT / "requirements/stores.txt"]
    files = sorted([*ROOT.glob("images/*/requirements*.txt"), *ours])
    assert len(files) >= 4
    for file in files:
        entries = re.findall(r"^[a-z0-9].*?(?=^[a-z0-9]|\Z)", file.read_text(), re.M | re.S)
        for entry in entries:
            assert re.match(r"[\w.\-\[\]]+==\S+", entry), (file, entry)
            assert "--hash=sha256:" in entry, (file, entry)


@pytest.mark.parametrize("name", ["models.schema.json"])
def test_json_documents_parse(name: str) -> None:
    assert json.loads((ROOT / name).read_text())
