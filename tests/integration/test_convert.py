"""Pickles that are converted where the image is built: what they become is locked, and they are not in it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from modelbake.buildkit.solve import build
from modelbake.config import Config, ModelSpec
from modelbake.context import Context
from modelbake.conversion import identity, instructions
from modelbake.converting import convert
from modelbake.credentials import Secret
from modelbake.dockerconfig import RegistryAuth
from modelbake.engine import Engine
from modelbake.errors import BuildFailed, WrongBytes
from modelbake.lock import Conversion, Lock, LockedModel
from modelbake.plan import make_plan, plan_conversion
from modelbake.render import render, render_conversion
from modelbake.runtime import load_runtime
from modelbake.sources import resolve_all
from tests.integration.world import World
from tests.servers.environment import ROOT
from tests.servers.minilm import tiny_llama
from tests.servers.pickled import Call, save

pytestmark = pytest.mark.engine


# Turns the bytes of each file around; it ends where it finds a network, or can write to what was fetched.
STUB = """
import hashlib, json, os, sys
from pathlib import Path

told, pickles, output = map(Path, sys.argv[1:])
if os.listdir("/sys/class/net") != ["lo"]:
    sys.exit("there is a network")
files = []
for source, name in json.loads(told.read_text())["weights"].items():
    (found,) = pickles.glob("*/" + source)
    try:
        found.with_name("more").write_text("")
        sys.exit("pickles can be changed")
    except OSError:
        pass
    path = output / "models" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(found.read_bytes()[::-1])
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    files.append({"path": name, "size": path.stat().st_size, "sha256": sha256})
(output / "converted.json").write_text(json.dumps({"schema": 1, "files": files}))
"""
FILES = {
    "config.json": b"{}",
    "pytorch_model.bin": b"one pickle",
    "2_Dense/pytorch_model.bin": b"another",
    "kept.bin": b"as it is",
}


@dataclass
class Stubbed:
    """The stages of a conversion with a converter that needs no torch."""

    engine: Engine
    world: World
    programs: Path
    spec: ModelSpec
    locked: LockedModel

    @property
    def where(self) -> dict[str, Path]:
        return {"templates": ROOT / "templates", "programs": self.programs}

    def secrets(self, sources: bytes) -> dict[str, Secret]:
        found = {"hf_token": Secret(self.world.token), "sources": Secret(sources)}
        for name in ("ca_bundle", "pip_config"):
            if path := self.world.environment.get(f"MODELBAKE_{name.upper()}"):
                found[name] = Secret(Path(path).read_bytes())
        return found

    def convert(self, context: Context | None = None) -> Conversion:
        runtime = load_runtime(self.world.images, "tiny")
        planned = plan_conversion(self.spec, self.locked, runtime)
        return convert(
            self.engine,
            self.spec,
            self.locked,
            (context or render_conversion(planned, **self.where)).open(),
            converter=identity(self.programs),
            secrets=self.secrets(planned.documents["sources"]),
            registries=RegistryAuth(),
            on_event=lambda event: None,
        )

    def context(self) -> Context:
        runtime = load_runtime(self.world.images, "tiny")
        return render_conversion(plan_conversion(self.spec, self.locked, runtime), **self.where)

    def build(self, converted: Conversion) -> str:
        """Build the image with a conversion that is locked; return its name."""
        config = Config(path=Path("models.yaml"), registry="r.example.com/ml", models={"m": self.spec})
        runtime = load_runtime(self.world.images, "tiny")
        plan = make_plan(config, self.spec, replace(self.locked, converted=converted), runtime)
        name = f"modelbake-test/{self.world.namespace}"
        build(
            self.engine,
            render(plan, **self.where).tar(),
            secrets=self.secrets(plan.documents["sources"]),
            registries=RegistryAuth(),
            target="image",
            tags=[name],
            on_event=lambda event: None,
        )
        return name


@pytest.fixture
def stubbed(engine: Engine, world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stubbed]:
    monkeypatch.setenv("DOCKER_CONFIG", str(world.folder / ".docker"))
    world.login()
    programs = world.folder / "images"
    shutil.copytree(ROOT / "images", programs)
    (programs / "builder/convert.py").write_text(STUB)
    (programs / "builder/requirements.converter.txt").write_text("# nothing\n")
    world.repo("acme/pickled", FILES)
    spec = ModelSpec(
        name="m",
        version="1.0.0",
        source="hf://acme/pickled",
        hub=world.hub.url,
        base=world.services.base,
        runtime="tiny",
        device="any",
        convert="safetensors",
        allow_pickle=("kept.bin",),
    )
    (resolved,) = resolve_all([spec], Lock(), Secret(world.token))
    yield Stubbed(engine, world, programs, spec, resolved.locked)
    assert not engine.names("modelbake/conversion"), "nothing of a conversion stays but the cache"


@pytest.mark.promise("wrong-bytes")
def test_only_the_bytes_that_the_lock_names_are_admitted(stubbed: Stubbed) -> None:
    converted = stubbed.convert()
    assert converted.replaces == ("2_Dense/pytorch_model.bin", "pytorch_model.bin")
    assert [(file.path, file.size) for file in converted.files] == [
        ("2_Dense/model.safetensors", 7),
        ("model.safetensors", 10),
    ]
    name = stubbed.build(converted)
    try:
        listed = ["--entrypoint", "find", name, "/models", "-type", "f", "-printf", "%P %m %T@ %s\\n"]
        assert sorted(stubbed.world.docker("run", "--rm", *listed).ok().out.splitlines()) == [
            "2_Dense/model.safetensors 444 0.0000000000 7",
            "config.json 444 0.0000000000 2",
            "kept.bin 444 0.0000000000 8",
            "model.safetensors 444 0.0000000000 10",
        ]
        ran = stubbed.world.docker("run", "--rm", name, "cat", "/models/model.safetensors").ok().out
        verified, content = ran.splitlines()
        assert (json.loads(verified)["event"], content) == ("verified", "elkcip eno")
    finally:
        stubbed.world.docker("image", "rm", name)

    one, other = converted.files
    wrong = replace(converted, files=(one, replace(other, sha256="0" * 64)))
    with pytest.raises(WrongBytes, match=r"model\.safetensors: the conversion gives 10 bytes") as caught:
        stubbed.build(wrong)
    assert "remove the model from it" in caught.value.hint


def test_a_conversion_has_no_network(stubbed: Stubbed) -> None:
    stubbed.convert()
    context = stubbed.context()
    dockerfile = context.files["Dockerfile"].replace(b"RUN --network=none", b"RUN")
    with pytest.raises(BuildFailed, match="there is a network"):
        stubbed.convert(Context({**context.files, "Dockerfile": dockerfile}))


def pickled_llama(folder: Path) -> dict[str, bytes]:
    """Return the files of a tiny Llama whose weights are a pickle with tied tensors, as older ones are."""
    from safetensors.torch import load_file

    tiny_llama(folder, seed=secrets.randbits(32))  # no earlier run has converted these
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    config = json.loads((folder / "config.json").read_text())
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".safetensors"}
    files["config.json"] = json.dumps({**config, "tie_word_embeddings": True}).encode()
    return {**files, "pytorch_model.bin": save(tensors)}


def converted_here(folder: Path, content: bytes) -> Any:
    """Return what the converter lists with this machine's torch, outside any image."""
    (folder / "pickles/0").mkdir(parents=True)
    (folder / "pickles/0/pytorch_model.bin").write_bytes(content)
    (folder / "convert.json").write_bytes(instructions({"pytorch_model.bin": "model.safetensors"}))
    command = [sys.executable, str(ROOT / "images/builder/convert.py"), "convert.json", "pickles", "out"]
    subprocess.run(command, cwd=folder, check=True)
    return json.loads((folder / "out/converted.json").read_text())["files"]


@pytest.mark.skipif(
    not os.environ.get("MODELBAKE_LARGE_TESTS"),
    reason="torch is installed in two stages, which takes minutes: set MODELBAKE_LARGE_TESTS=1",
)
def test_a_pickled_llama_is_served_from_safetensors(world: World) -> None:
    pytest.importorskip("transformers", reason="`make test` installs requirements/reference.txt")
    if not world.services.wheels_cpu:
        pytest.skip("the converter needs PyTorch's CPU build, which this machine has no wheel of")
    world.images = ROOT / "images"
    mark = world.folder / "mark"
    hostile = save(Call(os.mkdir, str(mark)))
    files = pickled_llama(world.folder / "llama")
    world.repo("acme/llama", {**files, "training_args.bin": hostile})
    ask = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "temperature": 0}
    checks = [{"post": "/v1/chat/completions", "body": ask, "expect": {"usage.completion_tokens": 4}}]
    model: dict[str, Any] = {
        "source": "hf://acme/llama",
        "runtime": "transformers",
        "device": "cpu",
        "convert": "safetensors",
        "smoke": {"requests": 2, "checks": checks},
    }
    world.models(llama=model)
    refused = world.build_py("lock")
    assert refused.code == 28
    assert "llama: training_args.bin: loading it would run posix.mkdir" in refused.err
    assert not mark.exists() and not (world.folder / "models.lock").exists()

    world.models(llama={**model, "exclude": ["training_args.bin"]})
    first = world.run("lock")
    lock = (world.folder / "models.lock").read_bytes()
    locked = json.loads(lock)["models"]["llama"]["converted"]
    assert locked["replaces"] == ["pytorch_model.bin"]
    assert [file["path"] for file in locked["files"]] == ["model.safetensors"]
    assert locked["files"] == converted_here(world.folder, files["pytorch_model.bin"])
    again = world.build_py("lock", DOCKER_HOST="unix:///nowhere.sock").ok()
    assert "stays as it is locked" in again.err
    world.build_py("lock", "--check").ok()
    assert (world.folder / "models.lock").read_bytes() == lock

    (world.folder / "models.lock").unlink()
    world.run("lock")
    assert (world.folder / "models.lock").read_bytes() == lock

    built = world.run("build")
    said = "pytorch_model.bin -> model.safetensors"
    assert said not in built.err, "what `lock` has converted is in the engine's cache"
    assert said in first.err, "control: it is said where it is done"
    world.run("smoke")
    listed = world.docker("run", "--rm", "--entrypoint", "find", "modelbake/llama:1.0.0", "/models").ok().out
    assert "/models/model.safetensors" in listed.split()
    assert not [name for name in listed.split() if name.endswith(".bin")]

    shutil.rmtree(world.folder / "context", ignore_errors=True)
    rendered = world.build_py("render", "llama", "--output", "context").ok()
    assert "docker build --secret id=sources" in rendered.err
    folder = world.folder / "context"
    options = ["--secret", f"id=sources,src={folder}/sources.json"]
    options += ["--secret", f"id=hf_token,src={world.environment['HF_TOKEN_PATH']}"]
    for name in ("ca_bundle", "pip_config"):
        if path := world.environment.get(f"MODELBAKE_{name.upper()}"):
            options += ["--secret", f"id={name},src={path}"]
    tag = f"modelbake-test/{world.namespace}"
    world.docker("build", *options, "--tag", tag, str(folder)).ok()
    ids = [world.docker("image", "inspect", "--format", "{{.Id}}", name).ok().out for name in
           (tag, "modelbake/llama:1.0.0")]  # fmt: skip
    world.docker("image", "rm", tag)
    assert ids[0] == ids[1]

    streamed = world.build_py("publish", "llama")
    assert streamed.code == 2 and "use `build`, `smoke` and `push`" in streamed.err
