"""A version tag: put last, read back, and never moved to another image.

Registries have no "create this tag only if it is absent". A tag that somebody else moves is noticed before
ours is put, and again by reading it back; between these two moments the later writer wins, unless the
registry's tags are immutable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from modelbake.errors import ReadBackMismatch, RegistryError, RegistryUnavailable, TagConflict
from modelbake.grammar import VERSION
from modelbake.manifest import Manifest
from modelbake.registry import Registry

CANDIDATE = "candidate-"  # how the tag begins that an image has before its version tag, and keeps


def candidate_tag(digest: str) -> str:
    """Return the tag of a candidate, by `sha256:...` of its manifest or its configuration."""
    return f"{CANDIDATE}{digest.removeprefix('sha256:')[:12]}"


def precedence(version: str) -> tuple[tuple[int, ...], bool, tuple[tuple[bool, int, str], ...]]:
    """Return a semantic version's key for comparison: https://semver.org, item 11."""
    core, _, prerelease = version.partition("-")
    numbers = tuple(int(part) for part in core.split("."))
    words = prerelease.split(".") if prerelease else []
    keys = tuple((not word.isdigit(), int(word) if word.isdigit() else 0, word) for word in words)
    return numbers, not prerelease, keys


def released_versions(registry: Registry, path: str) -> list[str]:
    """Return the versions that a repository's tags name, the newest first; none without the repository."""
    return sorted((tag for tag in registry.tags(path) if VERSION.matches(tag)), key=precedence, reverse=True)


def next_free(version: str, released: Iterable[str]) -> str:
    """Return the version to release instead of one that is taken: the next patch above all of its minor.

    Of a pre-release the next one of its kind: `2.0.0-rc.2` after `2.0.0-rc.1`. Pure.
    """
    core, _, prerelease = version.partition("-")
    major, minor, _ = core.split(".")
    taken = {version, *released}
    if prerelease:
        words = prerelease.split(".")
        if not words[-1].isdigit():
            words.append("0")
        while (found := f"{core}-{'.'.join(words)}") in taken:
            words[-1] = str(int(words[-1]) + 1)
        return found
    numbers = [precedence(each) for each in taken if each.startswith(f"{major}.{minor}.")]
    # The patch of a pre-release is free as long as the release itself is not there.
    return f"{major}.{minor}.{max(core[2] + is_final for core, is_final, _ in numbers)}"


@dataclass(frozen=True)
class VersionTag:
    """One version of one image; `path` is its repository, `same` tells whether a manifest is that image."""

    registry: Registry
    path: str
    version: str
    same: Callable[[Manifest], bool]

    @property
    def name(self) -> str:
        """`host/path:version`."""
        return f"{self.registry.host}/{self.path}:{self.version}"

    def current(self) -> Manifest | None:
        """Return the tag's manifest, None without the tag. Raises TagConflict for another image."""
        manifest = self.registry.manifest(self.path, self.version)
        if manifest is not None and not self.same(manifest):
            raise TagConflict(
                f"the tag is taken by another image ({manifest.digest})",
                subject=self.name,
                hint=self.remedy(),
            )
        return manifest

    def remedy(self) -> str:
        """Return what to do where the version is taken: which one is free."""
        try:
            free = f" to {next_free(self.version, released_versions(self.registry, self.path))}"
        except RegistryError:
            free = ""  # what is wrong is said already
        return f"a released version does not change: raise `version` in models.yaml{free}"

    def put(self, manifest: Manifest) -> Manifest:
        """Give the manifest the tag, if that is still free; return what is read back under it.

        Raises:
            TagConflict: somebody else was faster, or moved it.
            RegistryUnavailable, RegistryError, ReadBackMismatch: it is not known to be there.
        """
        if (there := self.current()) is not None:
            return there
        lost: RegistryUnavailable | None = None
        try:
            self.registry.put_manifest(self.path, self.version, manifest)
        except RegistryUnavailable as error:
            lost = error  # it may have been taken nevertheless; what counts is what is there now
        try:
            found = self.registry.manifest(self.path, self.version)
        except RegistryError as error:
            raise type(error)(
                f"the tag was sent, but could not be read back: {error.message}",
                subject=self.name,
                hint="run it again: it finds out, and sends nothing twice",
            ) from error
        if found is None:
            raise lost or ReadBackMismatch(
                "the registry took the tag, but does not have it",
                subject=self.name,
                hint="run it again: it finds out, and sends nothing twice",
            )
        if found != manifest:
            raise TagConflict(
                f"somebody moved the tag to {found.digest} while {manifest.digest} was being pushed",
                subject=self.name,
                hint="find out who releases this version besides you, and make the registry's tags immutable",
            )
        return found
