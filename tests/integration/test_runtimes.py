"""Each runtime built by the docker lane, published by the stream lane, and asked in both images."""

from __future__ import annotations

import json

import pytest

from tests.integration.world import World
from tests.servers.environment import ROOT
from tests.servers.tiny_gguf import tiny_gguf

pytestmark = pytest.mark.engine


def test_llamacpp(world: World) -> None:
    world.images = ROOT / "images"
    world.repo("acme/gguf", {"tiny-Q4.gguf": tiny_gguf(), "tiny-Q8.gguf": tiny_gguf(seed=1)})
    ask = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "temperature": 0}
    checks = [
        {
            "post": "/v1/chat/completions",
            "body": ask,
            "expect": {"length(choices[0].message.content)": 8, "usage.completion_tokens": 8},
        }
    ]
    world.models(
        gguf={
            "source": "hf://acme/gguf",
            "include": ["*-Q4.gguf"],
            "runtime": "llamacpp",
            "device": "cpu",
            "smoke": {"requests": 3, "checks": checks},
        }
    )
    world.run("lock", "build", "smoke")
    report = json.loads((world.folder / "reports/gguf/1.0.0.json").read_text())
    assert (report["passed"], report["device"]) == (True, "cpu")
    assert report["load_seconds"] > 0
    world.login(world.services)
    reference = world.run("publish").out.strip()
    manifest = world.services.manifest(f"{world.namespace}/gguf", reference.rpartition("@")[2])
    assert sum(layer["size"] for layer in manifest["layers"]) <= 200e6, "compressed, with base and model"
    assert world.version_tags("gguf") == ["1.0.0"]
