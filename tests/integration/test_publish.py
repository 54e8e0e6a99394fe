"""The stream lane as its users see it: weights go from the hub to the registry, and an image is there."""

from __future__ import annotations

import json
import os
import re

import pytest

from tests.integration.world import TINY, World

pytestmark = pytest.mark.engine


def test_weights_stream_into_a_tested_and_tagged_image(world: World) -> None:
    world.repo("acme/tiny", {**TINY, "unique": os.urandom(64)})
    world.models(tiny={})
    world.run("lock")
    reference = world.run("publish").out.strip()
    assert re.fullmatch(rf"{world.services.registry}/{world.namespace}/tiny@sha256:[0-9a-f]{{64}}", reference)
    assert world.version_tags() == ["1.0.0"]
    report = json.loads((world.folder / "reports/tiny/1.0.0.json").read_text())
    assert report["passed"] is True
    assert not world.hub.token_leaks()
    world.hub.reset_log()
    again = world.run("publish")
    assert again.out.strip() == reference
    assert world.hub.requests() == [], "nothing changed: the hub is not even asked"
    assert "weights-first" in world.build_py("plan", "tiny").ok().out
