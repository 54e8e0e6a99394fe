"""What registries refuse: the size of a layer and the number of layers. Pure.

Sources: the service quotas of Amazon ECR and ECR Public, GitHub's "Working with the container registry",
Azure Container Registry's service tiers.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

_MIB, _GIB = 1 << 20, 1 << 30


@dataclass(frozen=True)
class RegistryLimits:
    """One kind of registry: `hosts` it has, the largest layer in bytes, the most layers, time for a layer."""

    name: str
    hosts: tuple[str, ...]
    layer_bytes: int
    layers: int | None = None
    upload_seconds: int | None = None

    def serves(self, host: str) -> bool:
        """Tell whether a host[:port] is one of this kind."""
        name = host.partition(":")[0].lower()
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.hosts)

    def hits(self, sizes: Sequence[int]) -> list[str]:
        """Return what of layers of these sizes (bytes) it would refuse, one text a limit."""
        found = []
        if (largest := max(sizes, default=0)) > self.layer_bytes:
            found.append(f"a layer of {largest:,} bytes, and it takes at most {self.layer_bytes:,}")
        if self.layers is not None and len(sizes) > self.layers:
            found.append(f"{len(sizes)} layers, and it takes at most {self.layers}")
        return found

    def slowest(self, sizes: Sequence[int]) -> float | None:
        """Return the bytes a second that the largest layer has to be sent with, None where it has time."""
        return max(sizes, default=0) / self.upload_seconds if self.upload_seconds else None


KNOWN = (
    RegistryLimits(
        "Amazon ECR",
        ("*.dkr.ecr.*.amazonaws.com*", "*.dkr.ecr-fips.*.amazonaws.com*"),
        52_000 * _MIB,
        layers=127,
    ),
    RegistryLimits("Amazon ECR Public", ("public.ecr.aws",), 10_000 * _MIB, layers=127),
    RegistryLimits("GitHub Packages (ghcr.io)", ("ghcr.io",), 10 * 10**9, upload_seconds=600),
    RegistryLimits("Azure Container Registry", ("*.azurecr.io",), 200 * _GIB),
)


def limits_of(host: str) -> RegistryLimits | None:
    """Return what is known of the registry at a host, None for others, which have no limits known here."""
    return next((limits for limits in KNOWN if limits.serves(host)), None)
