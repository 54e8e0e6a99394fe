"""A registry in memory, with the referrers API and without, and repositories of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from modelbake.credentials import Secret
from modelbake.dockerconfig import RegistryCredentials
from modelbake.registry import Registry
from modelbake.stream.repository import RegistryRepository
from tests.servers.upload_registry import PASSWORD, USER, UploadRegistry

Open = Callable[[UploadRegistry, str], RegistryRepository]


@pytest.fixture(params=[True, False], ids=["with the API", "without"])
def server(request: pytest.FixtureRequest) -> Iterator[UploadRegistry]:
    with UploadRegistry(referrers=request.param) as running:
        yield running


@pytest.fixture
def plain() -> Iterator[UploadRegistry]:
    with UploadRegistry() as running:
        yield running


@pytest.fixture
def open_repository() -> Iterator[Open]:
    opened: list[Registry] = []

    def open_one(server: UploadRegistry, path: str = "ml/minilm") -> RegistryRepository:
        credentials = RegistryCredentials(USER, Secret(PASSWORD))
        opened.append(Registry(server.host, credentials, timeout=5, sleep=lambda seconds: None))
        return RegistryRepository(opened[-1], path)

    yield open_one
    for each in opened:
        each.close()
