"""The report of a smoke run: what was measured, and whether the image may be pushed. Bound to one image id.

It is read as strictly as it is written: a report that was edited into something no run can produce is
refused. That keeps out mistakes, not malice; who can write reports can also run smoke tests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, ValidationError, model_validator

from modelbake import grammar
from modelbake.diskspace import saying_full
from modelbake.errors import ReportMissing, SmokeError
from modelbake.records import Digest, Record, json_digest, parse
from modelbake.smallfile import read_small
from modelbake.writing import replace_file

if TYPE_CHECKING:
    from modelbake.config import ModelSpec

LARGEST_REPORT = 16 << 20  # bytes
MOST_BYTES = 2**63 - 1  # that anything can have; a larger number has no place among floats

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Bytes = Annotated[int, Field(ge=0, le=MOST_BYTES)]
Moment = Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$")]


class EngineFacts(Record):
    """The engine that the image ran on."""

    version: str
    api_version: str
    os: str
    arch: str
    store: str


class Latency(Record):
    """Seconds from request to whole answer, over the repeated first check."""

    p50: Amount
    p95: Amount
    max: Amount


class GpuMemory(Record):
    """Bytes: torch.cuda's peak as the server counts it; the driver's use of all visible GPUs at the end."""

    torch_peak_bytes: Bytes | None
    driver_bytes: Bytes | None


class CheckReport(Record):
    """One check: what was expected, what came. `seconds` is how long its answer took."""

    name: str
    passed: bool
    expected: JsonValue
    actual: JsonValue
    seconds: Amount


class Report(Record):
    """A smoke run. Seconds are wall time; what was never reached is None.

    `asked` is the digest of what the model declared for this run (`asked_of`), `request` that of the one
    request which was repeated for latency and throughput (`request_of`).
    `device` is `cpu` or `cuda:NAME OF THE GPU`; `load_seconds` is the server's own count of loading the
    model, `ready_seconds` runs from the container's start to the first healthy answer;
    `throughput_per_second` counts answers to requests sent one after the other.
    """

    schema_: Literal[1] = Field(default=1, alias="schema")
    model: str
    version: str
    image_id: Digest
    lock: Digest
    asked: Digest
    request: Digest | None = None
    passed: bool
    device: Annotated[str, Field(pattern=r"^(cpu|cuda:.+)$")]
    gpu: bool
    started_at: Moment
    engine: EngineFacts
    load_seconds: Amount | None
    ready_seconds: Amount | None
    latency_seconds: Latency | None
    throughput_per_second: Amount | None
    image_bytes: Bytes
    gpu_memory: GpuMemory | None
    checks: Annotated[tuple[CheckReport, ...], Field(min_length=1, strict=False)]
    toolkit_version: str

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.passed != all(check.passed for check in self.checks):
            raise ValueError("`passed` does not follow from the checks")
        if self.passed and self.ready_seconds is None:
            raise ValueError("it passed without ever having been ready")
        if self.gpu != self.device.startswith("cuda:"):
            raise ValueError("`gpu` does not follow from `device`")
        return self


def asked_of(model: ModelSpec, goldens: Mapping[str, Any]) -> str:
    """Return `sha256:...` of what is asked of a smoke run: the device, all checks, and their golden values.

    A report is about an image and these: it says nothing of a check that was declared after it.
    """
    named = {name for check in model.smoke.checks for name in check.goldens}
    return json_digest(
        {
            "device": model.device,
            # What may be tolerated is asked of a release, not of a run.
            "smoke": model.smoke.model_dump(mode="json", exclude={"tolerance"}),
            "goldens": {name: value for name, value in goldens.items() if name in named},
        }
    )


def request_of(model: ModelSpec) -> str | None:
    """Return `sha256:...` of the request that speed is measured with; None where none is declared.

    Latency and throughput of two versions say something about each other only where it is the same.
    """
    check = model.smoke.meant_to_succeed
    if check is None:
        return None
    return json_digest({"method": check.method, "path": check.path, "body": check.body})


def report_path(root: Path, model: str, version: str) -> Path:
    """Return where the report of a model version is: ROOT/MODEL/VERSION.json."""
    if not grammar.NAME.matches(model) or not grammar.VERSION.matches(version):
        raise ReportMissing("not a model name and a version", subject=f"{model!r} {version!r}")
    return root / model / f"{version}.json"


def encode_report(report: Report) -> bytes:
    """Encode a report; the same report has the same bytes."""
    document = report.model_dump(mode="json", by_alias=True)
    return (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def write_report(root: Path, report: Report) -> Path:
    """Write a report in place of an older one of that model version, atomically; return its path.

    Raises SmokeError, and DiskFull where there is no room for it.
    """
    path = report_path(root, report.model, report.version)
    content = encode_report(report)
    try:
        with saying_full(path, len(content)):
            path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)
    except OSError as error:
        raise SmokeError(f"the report cannot be written ({error.strerror})", subject=str(path)) from error
    return path


def discard_report(root: Path, model: str, version: str) -> None:
    """Remove the report of a model version, if there is one."""
    path = report_path(root, model, version)
    try:
        path.unlink(missing_ok=True)
    except NotADirectoryError:
        return
    except OSError as error:
        raise SmokeError(
            f"an older report cannot be removed ({error.strerror})", subject=str(path)
        ) from error


def read_report(root: Path, model: str, version: str) -> Report:
    """Read a report. Raises ReportMissing where there is none, or it is not what a run writes."""
    report = find_report(root, model, version)
    if report is None:
        hint = f"`build.py smoke {model}` writes it"
        raise ReportMissing("there is no smoke report", subject=f"{model} {version}", hint=hint)
    return report


def find_report(root: Path, model: str, version: str) -> Report | None:
    """Read a report, None where there is none. Raises ReportMissing where it is not what a run writes."""
    path = report_path(root, model, version)
    hint = f"`build.py smoke {model}` writes it"
    try:
        raw = read_small(path, LARGEST_REPORT)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ReportMissing(f"cannot be read ({error.strerror})", subject=str(path), hint=hint) from error
    report = decode_report(raw, subject=str(path), hint=hint)
    if (report.model, report.version) != (model, version):
        raise ReportMissing(f"is the report of {report.model} {report.version}", subject=str(path), hint=hint)
    return report


def decode_report(raw: bytes, *, subject: str, hint: str = "") -> Report:
    """Return the report that these bytes are. Raises ReportMissing where they are not what a run writes."""
    if len(raw) > LARGEST_REPORT:
        raise ReportMissing(f"is larger than {LARGEST_REPORT} bytes", subject=subject, hint=hint)
    try:
        return Report.model_validate(_strict_json(raw))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        problem = f"{where}: {first['msg']}" if where else first["msg"]
        raise ReportMissing(f"is not a report: {problem}", subject=subject, hint=hint) from None
    except (ValueError, RecursionError) as error:
        raise ReportMissing(f"is not a report: {error}", subject=subject, hint=hint) from None


def _strict_json(raw: bytes) -> Any:
    """Return a JSON document that can be written again; ValueError for what no report has.

    Python's reader makes half characters of `\\ud800`.
    """
    document = parse(raw)
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair is no character") from None
    return document
