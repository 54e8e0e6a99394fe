"""A model's versions and what was measured of each: read from the registry, which has them all.

Reports of this machine stand in for versions that are not released, and are marked so; what the registry says
of a released version is never replaced by a file here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelbake.dockerconfig import RegistryAuth, split_reference
from modelbake.errors import RegistryError, ReportMissing
from modelbake.figures import GPU_MEMORY, LATENCY, LOAD, THROUGHPUT, shown
from modelbake.grammar import VERSION
from modelbake.manifest import Manifest
from modelbake.parallel import parallel
from modelbake.registry import Registry
from modelbake.report import Report, read_report
from modelbake.reportstore import kept_reports
from modelbake.stream.repository import RegistryRepository
from modelbake.tables import table
from modelbake.versiontag import precedence, released_versions

if TYPE_CHECKING:
    from modelbake.output import Output

_AT_ONCE = 8  # versions that the registry is asked about at the same time
_HEADER = ("VERSION", "DIGEST", "SIZE", "LOAD", "THROUGHPUT", "P95", "GPU MEMORY", "DATE", "DEVICE")
_RIGHT = frozenset((2, 3, 4, 5, 6))
_DIGITS = 12  # of a digest


@contextmanager
def opened(registry: str, model: str, output: Output) -> Iterator[RegistryRepository]:
    """Open the repository that a model is released to; `registry` is that of models.yaml."""
    reference = split_reference(f"{registry}/{model}")
    credentials = RegistryAuth().for_registry(reference.registry)
    if credentials is not None:
        for secret in credentials.secrets:
            output.redactor.add(secret)
    with Registry(reference.registry, credentials) as connected:
        yield RegistryRepository(connected, reference.repository)


@dataclass(frozen=True)
class Version:
    """One version. `size`: bytes of the image as a host pulls it, None where that is not known.

    `reports`: the newest of each device, by device. `digest` is None where it is not released.
    """

    version: str
    digest: str | None
    size: int | None
    reports: tuple[Report, ...]

    @property
    def released(self) -> bool:
        """Whether the registry has it under its version tag."""
        return self.digest is not None


def read_history(repository: RegistryRepository, model: str, reports: Path, output: Output) -> list[Version]:
    """Return a model's versions, the newest first.

    Args:
        repository: where the model is released.
        model: its name.
        reports: the folder of this machine's reports.
        output: where what is passed over is named.

    Raises RegistryError and its subclasses.
    """
    tags = released_versions(repository.registry, repository.path)
    released = parallel(tags, lambda tag: read_version(repository, model, tag, output), _AT_ONCE)
    known = {each.version for each in released if each}
    local = [
        Version(report.version, None, None, (report,))
        for report in _local_reports(reports, model, output)
        if report.version not in known
    ]
    found = [*(each for each in released if each), *local]
    return sorted(found, key=lambda each: precedence(each.version), reverse=True)


def read_version(repository: RegistryRepository, model: str, version: str, output: Output) -> Version | None:
    """Return one released version, None where there is no such tag. Raises RegistryError."""
    manifest = repository.manifest(version)
    return None if manifest is None else described(repository, model, version, manifest, output)


def described(
    repository: RegistryRepository, model: str, version: str, manifest: Manifest, output: Output
) -> Version:
    """Return what is known of a version's image, whatever the version's tag names by now.

    Raises RegistryError.
    """
    image = single_image(repository, manifest)
    size = None if image is None else sum(blob.size for blob in (image.config, *image.layers))
    kept = kept_reports(repository, manifest, model, version, output)
    return Version(version, manifest.digest, size, tuple(kept))


def single_image(repository: RegistryRepository, manifest: Manifest) -> Manifest | None:
    """Return the manifest of the one image that a manifest is or lists; None for several platforms."""
    if not manifest.is_index:
        return manifest
    images = [each for each in manifest.manifests if each.platform != "unknown/unknown"]  # attestations
    if len(images) != 1:
        return None
    found = repository.manifest(images[0].digest)
    if found is None:
        raise RegistryError(f"the registry has no manifest {images[0].digest}", subject=repository.name)
    return found


def _local_reports(reports: Path, model: str, output: Output) -> list[Report]:
    found = []
    for path in sorted((reports / model).glob("*.json")):
        if not VERSION.matches(path.stem):
            continue
        try:
            found.append(read_report(reports, model, path.stem))
        except ReportMissing as error:
            output.event("report_unusable", f"passed over: {error}", level="warning", path=str(path))
    return found


def as_document(history: list[Version]) -> list[dict[str, Any]]:
    """Return a history as JSON: sizes in bytes, times in seconds, and each report whole."""
    return [
        {
            "version": each.version,
            "released": each.released,
            "digest": each.digest,
            "pulled_bytes": each.size,
            "reports": [report.model_dump(mode="json", by_alias=True) for report in each.reports],
        }
        for each in history
    ]


def as_table(history: list[Version]) -> list[str]:
    """Return a history as lines for people: one for each version and device."""
    rows = []
    for each in history:
        digest = each.digest.removeprefix("sha256:")[:_DIGITS] if each.digest else "not released"
        start = (each.version, digest, shown(each.size, "bytes"))
        for report in each.reports:
            figures = (figure.shown(figure.of(report)) for figure in (LOAD, THROUGHPUT, LATENCY, GPU_MEMORY))
            passed = "" if report.passed else " (failed)"
            rows.append((*start, *figures, report.started_at[:10], report.device + passed))
        if not each.reports:
            rows.append((*start, "-", "-", "-", "-", "-", "no report"))
    return table(_HEADER, rows, right=_RIGHT)
