from __future__ import annotations

import pytest

from modelbake.stream.limits import KNOWN, limits_of

MIB = 1 << 20


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("123456789012.dkr.ecr.eu-central-1.amazonaws.com", "Amazon ECR"),
        ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", "Amazon ECR"),
        ("123456789012.dkr.ecr-fips.us-east-1.amazonaws.com", "Amazon ECR"),
        ("public.ecr.aws", "Amazon ECR Public"),
        ("ghcr.io", "GitHub Packages (ghcr.io)"),
        ("GHCR.io:443", "GitHub Packages (ghcr.io)"),
        ("acme.azurecr.io", "Azure Container Registry"),
        ("registry.example.com", None),
        ("ghcr.io.example.com", None),
        ("notghcr.io", None),
        ("127.0.0.1:5000", None),
        ("[::1]:5000", None),
    ],
)
def test_a_registry_is_known_by_its_host(host: str, name: str | None) -> None:
    found = limits_of(host)
    assert (found.name if found else None) == name


@pytest.mark.parametrize(
    ("host", "largest"),
    [
        ("1.dkr.ecr.eu-west-1.amazonaws.com", 54_525_952_000),  # 52,000 MiB
        ("public.ecr.aws", 10_485_760_000),  # 10,000 MiB
        ("ghcr.io", 10_000_000_000),
        ("a.azurecr.io", 214_748_364_800),  # 200 GiB
    ],
)
def test_the_largest_layer(host: str, largest: int) -> None:
    limits = limits_of(host)
    assert limits is not None
    assert limits.hits([largest, 1]) == []
    (hit,) = limits.hits([1, largest + 1])
    assert f"{largest + 1:,}" in hit and f"{largest:,}" in hit


def test_the_number_of_layers() -> None:
    ecr = limits_of("1.dkr.ecr.eu-west-1.amazonaws.com")
    assert ecr is not None
    assert ecr.hits([1] * 127) == []
    assert ecr.hits([1] * 128) == ["128 layers, and it takes at most 127"]
    assert len(ecr.hits([60_000 * MIB] * 128)) == 2
    ghcr = limits_of("ghcr.io")
    assert ghcr is not None and ghcr.hits([1] * 1000) == []


def test_what_has_to_be_sent_in_time() -> None:
    ghcr = limits_of("ghcr.io")
    assert ghcr is not None
    assert ghcr.slowest([6_000_000_000, 1]) == 10_000_000  # in the 10 minutes that it gives
    assert [limits.slowest([1]) for limits in KNOWN if limits is not ghcr] == [None] * 3


def test_no_layers_hit_nothing() -> None:
    assert [limits.hits([]) for limits in KNOWN] == [[], [], [], []]
