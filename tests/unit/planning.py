"""Plans for tests: a model, its lock and a runtime, made in memory."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from modelbake.config import Config, ModelSpec
from modelbake.lock import Conversion, LockedFile, LockedModel
from modelbake.plan import OWN_GROUP_BYTES, BuildPlan, make_plan
from modelbake.runtime import Runtime

DIGEST = "sha256:" + "ab" * 32


def locked_files() -> list[LockedFile]:
    sizes = {"config.json": 612, "tokenizer.json": 466_247, "model.safetensors": OWN_GROUP_BYTES}
    return [LockedFile(path, size, hashlib.sha256(path.encode()).hexdigest()) for path, size in sizes.items()]


def planned(*, directory: Path = Path("images/embeddings"), **keys: Any) -> BuildPlan:
    """Return a plan of `minilm`; `keys` are those of models.yaml."""
    spec = ModelSpec(
        **{
            "name": "minilm",
            "version": "1.0.0",
            "source": "hf://acme/minilm",
            "runtime": "embeddings",
            **keys,
        }
    )
    runtime = Runtime(
        name="embeddings",
        directory=directory,
        description="embeddings over HTTP",
        base=f"docker.io/library/python:3.11-slim-bookworm@{DIGEST}",
        builds={"cuda": "requirements.cuda.txt", "cpu": "requirements.cpu.txt"},
        app=("server.py",),
        command=("/opt/venv/bin/python", "/app/server.py"),
        port=8000,
        health="/health",
        env={"HF_HUB_OFFLINE": "1"},
    )
    config = Config(path=Path("models.yaml"), registry="registry.example.com/ml", models={spec.name: spec})
    return make_plan(config, spec, LockedModel.of(spec, "0123456789" * 4, locked_files()), runtime)


def converting(plan: BuildPlan, **keys: Any) -> BuildPlan:
    """Return a plan of the same model from a pickle, which is converted."""
    spec = plan.spec.model_copy(update={"convert": "safetensors", **keys})
    files = [
        LockedFile("config.json", 612, "ab" * 32),
        LockedFile("pytorch_model.bin", OWN_GROUP_BYTES + 1, "cd" * 32),
    ]
    converted = (LockedFile("model.safetensors", OWN_GROUP_BYTES, "ef" * 32),)
    locked = replace(
        LockedModel.of(spec, plan.locked.commit, files),
        converted=Conversion("sha256:" + "12" * 32, ("pytorch_model.bin",), converted),
    )
    config = Config(path=Path("models.yaml"), registry="registry.example.com/ml", models={spec.name: spec})
    return make_plan(config, spec, locked, plan.runtime)
