"""Adopted weights are a model like any other: built by the docker lane, streamed by the other."""

from __future__ import annotations

import json

import pytest

from tests.integration.world import World

pytestmark = pytest.mark.engine

LOOSE = {
    "config.json": b'{"kind": "tiny"}\n',
    "model-00001-of-00002.safetensors": b"\1" * (1 << 20),
    "model-00002-of-00002.safetensors": b"\2" * (12 << 20),
    "tokenizer/vocab.txt": b"a\nb\n",
}


def test_loose_weights_become_an_image_that_verifies(world: World) -> None:
    for name, content in LOOSE.items():
        place = world.folder / "loose" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    (world.folder / "disk").mkdir()
    world.repo("acme/tiny", LOOSE)
    world.models(tiny={})
    smoke = json.loads((world.folder / "models.yaml").read_text())["models"]["tiny"]["smoke"]
    # An entry has no checks of its own: here the defaults have them.
    document = json.loads((world.folder / "models.yaml").read_text())
    document["defaults"] |= {"runtime": "tiny", "device": "any", "smoke": smoke}
    (world.folder / "models.yaml").write_text(json.dumps(document, indent=2))
    for name, to in (("on-hub", "hf://acme/adopted"), ("on-disk", f"file://{world.folder}/disk/adopted")):
        create = ["--create"] if to.startswith("hf:") else []
        done = world.build_py("adopt", "loose", "--to", to, "--name", name, *create).ok()
        assert len(done.out.splitlines()) == len(LOOSE) and "loose may be deleted now" in done.err
    json.loads((world.folder / "models.yaml").read_text())  # JSON as it was
    assert world.hub.token_leaks() == []
    world.build_py("publish", "on-hub").ok()
    assert world.version_tags("on-hub") == ["1.0.0"]
    world.build_py("build", "on-disk").ok()
