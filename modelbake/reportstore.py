"""Reports of released versions: kept beside the image in the registry, where every CI job finds them.

A report is attached before the version tag is put, so that no version is released without one. What is read
back is believed only as far as it is bound to the image: by its id, its model and its version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelbake.errors import RegistryAuthError, RegistryError, RegistryUnavailable, ReportMissing
from modelbake.manifest import Manifest
from modelbake.plan import LABEL_PREFIX
from modelbake.referrers import Document, attach, read, referrers
from modelbake.report import LARGEST_REPORT, Report, decode_report, encode_report

if TYPE_CHECKING:
    from modelbake.output import Output
    from modelbake.stream.repository import RegistryRepository

REPORT_TYPE = "application/vnd.modelbake.report.v1+json"


def is_about(report: Report, manifest: Manifest) -> bool:
    """Tell whether a report is about the image of a manifest.

    Engines name an image by its configuration's digest or, with the containerd store, by its manifest's.
    """
    if report.image_id == manifest.digest:
        return True
    return not manifest.is_index and report.image_id == manifest.config.digest


def keep_report(repository: RegistryRepository, manifest: Manifest, report: Report, output: Output) -> str:
    """Attach a passing report to the image that it is about; the same report is there once.

    Returns the digest of its manifest.

    Raises:
        ReportMissing: it is about another image.
        RegistryError and its subclasses: it is not known to be there.
    """
    subject = f"{repository.name}@{manifest.digest}"
    if not is_about(report, manifest):
        raise ReportMissing(f"the smoke report is about another image ({report.image_id})", subject=subject)
    notes = {
        "org.opencontainers.image.created": report.started_at,
        "org.opencontainers.image.version": report.version,
        LABEL_PREFIX + "model": report.model,
        LABEL_PREFIX + "measured-on": report.device,
    }
    name = f"{report.model}-{report.version}-report.json"
    digest = attach(repository, manifest, Document(encode_report(report), REPORT_TYPE, name, notes))
    output.event(
        "report_kept",
        f"the report of {report.model} {report.version} is kept beside the image",
        subject=subject,
        digest=digest,
        device=report.device,
    )
    return digest


def add_report(repository: RegistryRepository, manifest: Manifest, report: Report, output: Output) -> None:
    """Attach a report to an image that is released already, if there is none of its device yet.

    As the version itself, what was measured of it on a device does not change by running it again.
    """
    kept = kept_reports(repository, manifest, report.model, report.version, output)
    if is_about(report, manifest) and report.device not in {each.device for each in kept}:
        keep_report(repository, manifest, report, output)


def kept_reports(
    repository: RegistryRepository, manifest: Manifest, model: str, version: str, output: Output
) -> list[Report]:
    """Return the reports of a released image, the newest of each device, by device.

    What is there under the reports' type and is none of this image is passed over with a warning: whoever may
    push to the repository may attach anything. Raises RegistryUnavailable, RegistryAuthError, and
    RegistryError where the list itself cannot be had.
    """
    found: dict[str, Report] = {}
    for referrer in referrers(repository, manifest, REPORT_TYPE):
        where = f"{repository.name}@{referrer.digest}"
        try:
            raw = read(repository, manifest, referrer.digest, REPORT_TYPE, LARGEST_REPORT)
            report = decode_report(raw, subject=where)
            if (report.model, report.version) != (model, version) or not is_about(report, manifest):
                raise ReportMissing("is not about this version and image", subject=where)
            if not report.passed:
                raise ReportMissing("is of a smoke run that failed", subject=where)
        except (RegistryUnavailable, RegistryAuthError):
            raise
        except RegistryError as error:
            output.event(
                "report_unusable",
                f"{model} {version}: a report in the registry is passed over: {error}",
                level="warning",
                digest=referrer.digest,
            )
            continue
        other = found.get(report.device)
        if other is None or other.started_at < report.started_at:
            found[report.device] = report
    return [found[device] for device in sorted(found)]
