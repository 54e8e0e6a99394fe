"""Which module opens which kind of store. Each is imported when it is needed: their libraries are large."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from modelbake.errors import UsageError

if TYPE_CHECKING:
    from modelbake.config import SourceSpec
    from modelbake.locked import LockedSource
    from modelbake.sources.store import Store

# Kind -> module of modelbake.sources with `open_store(spec)`, and the extra of the package that it needs.
STORES = {
    "file": ("files", ""),
    "s3": ("s3", "s3"),
    "gs": ("gcs", "gcs"),
    "az": ("azure", "azure"),
    "mlflow": ("mlflow", ""),
    "sagemaker": ("sagemaker", "s3"),
    "https": ("web", ""),
    "oci": ("oci", ""),
}


def open_store(spec: SourceSpec | LockedSource) -> Store:
    """Open the store that a source names. Raises SourceError; UsageError where its library is missing."""
    module, extra = STORES[spec.kind]
    try:
        opened: Store = import_module(f"modelbake.sources.{module}").open_store(spec)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{error.name} is not installed, which reads {spec.kind}: sources",
            subject=f"{spec.name}: {spec.source}",
            hint=f"`make setup` in the clone of modelbake has it; elsewhere `pip install '.[{extra}]'` there",
        ) from error
    return opened


def open_target(spec: SourceSpec) -> Store:
    """Open the store of a source to put files into: it may have none yet. Raises as `open_store`."""
    module, _ = STORES[spec.kind]
    try:
        opened = getattr(import_module(f"modelbake.sources.{module}"), "open_target", open_store)
    except ModuleNotFoundError:
        opened = open_store  # which says what is missing
    store: Store = opened(spec)
    return store


def subject_of(spec: SourceSpec | LockedSource) -> str:
    """Return what errors of a store are about: the model, the address, and the server if it is named."""
    return f"{spec.name}: {spec.source}" + (f" at {spec.server}" if spec.server else "")
