"""How long `build.py matrix` takes for a thousand models: `python -m bench.matrix [--models N]`.

The bar is 3 s, the start of Python included. It needs git, and nothing else: no engine, no network. Four
cases: all models listed; none changed since the last commit; one changed; a line of the shared start program
changed, which is another image of every model. On a busy machine look at the processor time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BAR = 3.0  # seconds
_RUNTIMES = ("embeddings", "transformers")


def main() -> int:
    """Measure and print a table; 0 whatever the figures are."""
    parser = argparse.ArgumentParser(prog="python -m bench.matrix", description=(__doc__ or "").split(":")[0])
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="modelbake-bench-") as name:
        folder = Path(name)
        for part in ("modelbake", "images", "templates", "build.py"):
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copy(ROOT / part, folder / part)
        models = make_models(options.models)
        write(folder, models)
        _git(folder, "init", "--quiet")
        _git(folder, "add", ".")
        _git(folder, "commit", "--quiet", "--message", "all")
        since = ("--changed-since", "HEAD")
        rows = [
            ("all", _seconds(folder, options.rounds, options.models)),
            ("none changed", _seconds(folder, options.rounds, 0, *since)),
        ]
        first = next(iter(models))
        write(folder, {**models, first: {**models[first], "version": "1.0.1"}})
        rows.append(("one changed", _seconds(folder, options.rounds, 1, *since)))
        with (folder / "images/start/start.py").open("a") as file:
            file.write("# changed\n")
        rows.append(("all changed", _seconds(folder, options.rounds, options.models, *since)))
    sys.stdout.write(f"| `build.py matrix` of {options.models:,} models | s | s of processor | bar |\n")
    sys.stdout.write("|---|---|---|---|\n")
    for what, (seconds, processor) in rows:
        met = "met" if seconds <= BAR else "missed"
        sys.stdout.write(f"| {what} | {seconds:.2f} | {processor:.2f} | {BAR:.0f} s, {met} |\n")
    return 0


def make_models(number: int) -> dict[str, dict[str, object]]:
    """Return that many entries of models.yaml."""
    check = {"post": "/v1/embeddings", "body": {"input": "hello"}, "expect": {"length(data)": 1}}
    return {
        f"model-{at:04}": {
            "version": "1.0.0",
            "source": f"hf://acme/model-{at:04}",
            "include": ["*.json", "*.safetensors"],
            "runtime": _RUNTIMES[at % len(_RUNTIMES)],
            "device": "any",
            "smoke": {"checks": [check]},
        }
        for at in range(number)
    }


def write(folder: Path, models: dict[str, dict[str, object]]) -> None:
    """Write models.yaml, and a models.lock as `lock` would: a dozen files a model."""
    from modelbake.config import load_config
    from modelbake.lock import Lock, LockedFile, LockedModel, write_lock

    document = {"registry": "registry.example.com/ml", "models": models}
    (folder / "models.yaml").write_text(json.dumps(document, indent=1))
    shards = [f"model-{at:05}-of-00008.safetensors" for at in range(1, 9)]
    names = (
        "config.json",
        "model.safetensors.index.json",
        "modules.json",
        "tokenizer.json",
        "tokenizer_config.json",
        *shards,
    )
    locked = {}
    for name, spec in load_config(folder / "models.yaml").models.items():
        files = [
            LockedFile(path, 1 << 30 if path.endswith("s") else 4096, _sha256(f"{name}/{path}"))
            for path in names
        ]
        locked[name] = LockedModel.of(spec, _sha256(name)[:40], files)
    write_lock(folder / "models.lock", Lock(locked))


def _seconds(folder: Path, rounds: int, expected: int, *arguments: str) -> tuple[float, float]:
    """Return the seconds of the fastest run, and the fewest seconds of processor time, git's included."""
    command = [sys.executable, "build.py", "matrix", *arguments]
    best, least = float("inf"), float("inf")
    for _ in range(rounds):
        began, used = time.monotonic(), _processor_time()
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        best, least = min(best, time.monotonic() - began), min(least, _processor_time() - used)
        jobs = json.loads(done.stdout)["include"]
        listed = sum(len(job["model"].split()) for job in jobs)
        assert listed == expected, f"{listed} models listed, not {expected}\n{done.stderr[-2000:]}"
    return best, least


def _processor_time() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _git(folder: Path, *arguments: str) -> None:
    who = {
        f"GIT_{role}_{part}": "bench@example.com"
        for role in ("AUTHOR", "COMMITTER")
        for part in ("NAME", "EMAIL")
    }
    none = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    subprocess.run(["git", *arguments], cwd=folder, env={**os.environ, **who, **none}, check=True)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
