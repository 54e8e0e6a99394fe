"""The moving tags of a released version: `1.4` and `1` name the newest release of their line.

A pre-release moves none: whoever asks for `1.4` asks for what was released. Of major version 0 there is `0.4`
and no `0`: https://semver.org (item 4) promises nothing from one minor version to the next there, so that a
host which follows `0` would take a break for an update.

An alias is put after its version tag, and read back; two releases at the same time settle on the newer one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from modelbake.errors import ReadBackMismatch, ReleaseError
from modelbake.versiontag import precedence, released_versions

if TYPE_CHECKING:
    from modelbake.manifest import Manifest
    from modelbake.output import Output
    from modelbake.stream.repository import RegistryRepository

ALIAS = re.compile(r"(?:0|[1-9][0-9]*)(?:\.(?:0|[1-9][0-9]*))?", re.ASCII)  # `1.4`, `1`
_TURNS = 5  # at one alias, while others release newer versions of its line


def aliases_of(version: str) -> tuple[str, ...]:
    """Return the moving tags of a version: `1.4` and `1` of `1.4.2`; none of a pre-release. Pure."""
    if "-" in version:
        return ()
    major, minor, _ = version.split(".")
    return (f"{major}.{minor}",) if major == "0" else (f"{major}.{minor}", major)


def line_of(alias: str, versions: Iterable[str]) -> list[str]:
    """Return the versions that an alias may name, the newest first. Pure."""
    return sorted((each for each in versions if alias in aliases_of(each)), key=precedence, reverse=True)


def aliases_to_move(version: str, versions: Iterable[str]) -> list[str]:
    """Return the aliases of a version that no newer one of their line has. Pure.

    `versions`: what is released, with or without this version.
    """
    known = {version, *versions}
    return [alias for alias in aliases_of(version) if line_of(alias, known)[0] == version]


def require_ours(
    repository: RegistryRepository, alias: str, versions: Iterable[str], manifest: Manifest
) -> None:
    """Raise ReleaseError where an alias names something that no release of its line is.

    Args:
        repository: of the model.
        alias: the moving tag.
        versions: what is released.
        manifest: what is to be released; it counts as released.
    """
    there = repository.manifest(alias)
    if there is None or there == manifest:
        return
    if any(repository.manifest(version) == there for version in line_of(alias, versions)):
        return
    raise ReleaseError(
        f"the tag names {there.digest}, which is no released version of its line: somebody put it by hand",
        subject=f"{repository.name}:{alias}",
        hint="find out who; then put it on a released version of the line, or delete it, and release again",
    )


def move_alias(
    repository: RegistryRepository, alias: str, version: str, manifest: Manifest, output: Output
) -> None:
    """Let an alias name a version that has its version tag; the newest of the line, if there is a newer one.

    Raises:
        ReleaseError: it was put by hand meanwhile.
        ReadBackMismatch: others move it again and again.
        RegistryError: it is not known to be there.
    """
    for _ in range(_TURNS):
        versions = released_versions(repository.registry, repository.path)
        newest = next(iter(line_of(alias, versions)), version)
        target = manifest if newest == version else repository.manifest(newest)
        if target is None:
            continue
        if repository.manifest(alias) == target:
            return
        require_ours(repository, alias, versions, manifest)
        repository.put_manifest(alias, target)
        output.event(
            "alias_moved",
            f"{repository.name}:{alias} is {newest} ({target.digest})",
            tag=alias,
            version=newest,
            digest=target.digest,
        )
    raise ReadBackMismatch(
        f"others move it as well: after {_TURNS} turns it is not {version}",
        subject=f"{repository.name}:{alias}",
        hint="run it again",
    )
