"""A real embedding model: the registry's image, served on another engine, against the model run directly."""

from __future__ import annotations

import json
import re

import pytest

from tests.integration.conftest import second_engine
from tests.integration.test_run_time import FACTS, STRICT, facts_of, locked_down
from tests.integration.world import World
from tests.servers.environment import ROOT
from tests.servers.minilm import minilm

pytestmark = pytest.mark.engine
TEXTS = ["hello", "The weights are in the image.", "Ein längerer Satz, mit Umlauten: äöü.", "数字 42"]


def test_the_pulled_image_gives_the_models_own_embeddings(world: World) -> None:
    sentence_transformers = pytest.importorskip(
        "sentence_transformers", reason="`make test` installs requirements/reference.txt"
    )
    world.images = ROOT / "images"
    world.repo("acme/minilm", minilm())
    expect = {"length(data[0].embedding)": 384, "data[0].embedding": {"cosine": "hello"}}
    checks = [{"post": "/v1/embeddings", "body": {"input": "hello"}, "expect": expect}]
    world.models(
        minilm={
            "source": "hf://acme/minilm",
            "include": ["*.json", "*.txt", "*.safetensors"],
            "runtime": "embeddings",
            "device": "cpu" if world.services.wheels_cpu else "any",
            "smoke": {"requests": 20, "checks": checks, "limits": {"max_load_seconds": 600}},
        }
    )
    world.run("lock", "build")
    without = world.build_py("smoke", "minilm")
    assert without.code == 54
    assert "golden hello is missing" in without.err and "smoke minilm --update-goldens" in without.err
    updated = world.build_py("smoke", "minilm", "--update-goldens").ok()
    assert "hello: new, a vector of 384 numbers" in updated.err
    report = json.loads((world.folder / "reports/minilm/1.0.0.json").read_text())
    assert report["load_seconds"] > 0
    assert report["throughput_per_second"] > 0
    assert report["gpu_memory"] is None
    reference = world.run("push").out.strip()
    assert re.fullmatch(r"\S+/minilm@sha256:[0-9a-f]{64}", reference)
    _another_golden_does_not_pass(world)

    elsewhere = second_engine()
    world.docker("pull", "--quiet", reference, host=elsewhere).ok()
    request = json.dumps(
        {"port": 8000, "requests": [{"method": "POST", "path": "/v1/embeddings", "body": {"input": TEXTS}}]}
    )
    name = f"modelbake-test-{world.namespace}"
    strict = [*STRICT, "--network", "none"]
    try:
        world.docker("run", "--detach", "--name", name, *strict, reference, host=elsewhere).ok()
        _wait_until_ready(world, name, elsewhere)
        probe = ["exec", name, "/opt/venv/bin/python", "/modelbake/probe.py", request]
        answer = json.loads(world.docker(*probe, host=elsewhere).ok().out)["responses"][0]
        locked_down(facts_of(world.docker("exec", name, "/opt/venv/bin/python", "-c", FACTS, host=elsewhere)))
    finally:
        world.docker("rm", "--force", name, host=elsewhere)
        world.docker("rmi", reference, host=elsewhere)
    assert answer["status"] == 200
    served = [entry["embedding"] for entry in json.loads(answer["body"])["data"]]
    model = sentence_transformers.SentenceTransformer(str(minilm()), device="cpu")
    for text, ours, own in zip(TEXTS, served, model.encode(TEXTS).tolist(), strict=True):
        assert _cosine(ours, own) > 0.9999, text
    assert _cosine(served[0], served[1]) < 0.9, "control: other sentences have other vectors"


def _another_golden_does_not_pass(world: World) -> None:
    file = world.folder / "goldens/minilm.json"
    golden = json.loads(file.read_text())
    golden["goldens"]["hello"]["value"].reverse()
    file.write_text(json.dumps(golden))
    refused = world.build_py("push", "minilm")
    assert refused.code == 66 and "other goldens" in refused.err
    wrong = world.build_py("smoke", "minilm")
    assert wrong.code == 51
    assert 'expected a cosine of at least 0.999 to golden "hello", got' in wrong.err


def _wait_until_ready(world: World, name: str, host: str) -> None:
    health = json.dumps({"port": 8000, "requests": [{"method": "GET", "path": "/health"}]})
    for _ in range(120):
        probe = ["exec", name, "/opt/venv/bin/python", "/modelbake/probe.py", health]
        ran = world.docker(*probe, host=host)
        if ran.code == 0 and json.loads(ran.out)["responses"][0]["status"] == 200:
            return
    raise AssertionError(world.docker("logs", name, host=host).out)


def _cosine(one: list[float], other: list[float]) -> float:
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    norms = [sum(a * a for a in vector) ** 0.5 for vector in (one, other)]
    return float(dot / (norms[0] * norms[1]))
