"""Where a backup is: `oci:DIR`, or a path of a registry below which each model has a repository."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from modelbake.dockerconfig import DOCKER_HUB, split_reference
from modelbake.errors import UsageError
from modelbake.history import opened
from modelbake.release.backup import Copied
from modelbake.tables import table

if TYPE_CHECKING:
    from modelbake.output import Output
    from modelbake.release.backupfolder import BackupFolder
    from modelbake.stream.repository import RegistryRepository

_LAYOUT = "oci:"
_HUB = ("docker.io/", "index.docker.io/")  # said in so many words: nobody sends a backup there by mistake


def folder_of(place: str, option: str, registry: str) -> Path | None:
    """Return the folder that a place names, None for a registry's path.

    `registry` is that of models.yaml. Raises UsageError for what is no place, and for that registry itself.
    """
    example = f"{option} oci:DIR, or {option} registry.example.com/backup"
    if place.startswith(_LAYOUT):
        if place == _LAYOUT:
            raise UsageError("oci: is followed by a folder", subject=option, hint=example)
        return Path(place.removeprefix(_LAYOUT))
    try:
        given = split_reference(f"{place}/model")
    except UsageError as error:
        raise UsageError(f"{place!r} is no path of a registry", subject=option, hint=example) from error
    if given.registry == DOCKER_HUB and not place.startswith(_HUB):
        raise UsageError(f"{place!r} names no registry", subject=option, hint=example)
    if given == split_reference(f"{registry}/model"):
        raise UsageError("that is the registry of models.yaml itself", subject=option, hint=example)
    return None


@contextmanager
def opened_place(
    folder: BackupFolder | None, place: str, model: str, output: Output
) -> Iterator[BackupFolder | RegistryRepository]:
    """Open a model's part of a place: the folder, or its repository below the path."""
    if folder is not None:
        yield folder
        return
    with opened(place, model, output) as repository:
        yield repository


def show(copied: Mapping[str, Copied], as_json: bool, output: Output) -> None:
    """Print what was copied of each model; nothing where there is nothing."""
    if as_json:
        output.result_json({model: asdict(each) for model, each in copied.items()})
    elif copied:
        header = ("MODEL", "TAGS", "MANIFESTS", "BLOBS SENT", "BYTES SENT", "SECONDS")
        rows = [
            (
                model,
                str(each.tags),
                str(each.manifests),
                str(each.blobs),
                f"{each.size:,}",
                f"{each.seconds:.1f}",
            )
            for model, each in copied.items()
        ]
        for line in table(header, rows, right=range(1, 6)):
            output.result(line)
