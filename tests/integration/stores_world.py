"""The stores as fixtures: each starts when a test first asks for it, where builds reach it too."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.azurite_server import AzuriteServer
from tests.servers.environment import bridge_address
from tests.servers.gcs import GcsServer
from tests.servers.mlflow_server import MLflowServer
from tests.servers.s3 import S3Server


@pytest.fixture(scope="session")
def bridge(engine_host: str) -> str:
    """The address of this machine that build steps reach too."""
    return bridge_address(engine_host)


@pytest.fixture(scope="session")
def s3_server(bridge: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """S3, SageMaker and STS."""
    with S3Server(tmp_path_factory.mktemp("s3"), bridge) as server:
        yield server


@pytest.fixture(scope="session")
def gcs_server(bridge: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcsServer]:
    """Google Cloud Storage and the token service of its accounts."""
    with GcsServer(tmp_path_factory.mktemp("gcs"), bridge) as server:
        yield server


@pytest.fixture(scope="session")
def azure_server(bridge: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzuriteServer]:
    """Azure Blob Storage over plain HTTP: account keys and SAS."""
    with AzuriteServer(tmp_path_factory.mktemp("azure"), bridge) as server:
        yield server


@pytest.fixture(scope="session")
def azure_tls_server(bridge: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzuriteServer]:
    """Azure Blob Storage over TLS, for bearer tokens and user delegation."""
    with AzuriteServer(tmp_path_factory.mktemp("azure-tls"), bridge, tls=True) as server:
        yield server


@pytest.fixture(scope="session")
def mlflow_server(bridge: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    """MLflow's tracking server with users."""
    with MLflowServer(tmp_path_factory.mktemp("mlflow"), bridge) as server:
        yield server
