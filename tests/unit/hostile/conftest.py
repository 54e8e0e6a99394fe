"""A real hub that asks for a token, and what a reader reads of it: the `FILES` of the test's module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from tests.servers.hub import Hub, Repo
from tests.unit.hostile.readers import NAME, TOKEN, Case


@pytest.fixture
def hub(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hub]:
    """A hub with one private repository; without one where the module has no `FILES`."""
    files = getattr(request.module, "FILES", None)
    if files is not None:
        Repo.create(tmp_path / "hub", NAME, files)
    with Hub(tmp_path / "hub", tokens={TOKEN: [NAME]}) as running:
        yield running
        huggingface_hub.close_session()


@pytest.fixture
def case(request: pytest.FixtureRequest, hub: Hub, tmp_path: Path) -> Case:
    """What is to be read of the hub."""
    return Case(hub.url, Repo(hub.root, NAME).head.id, request.module.FILES, tmp_path / "case")
