"""What an image holds, read from its layers: Python's packages, the distribution's, the weights' manifest.

Layers of weights are not read: from the first large file below the weights' folder on a layer is left alone.
All other layers are read to their end, so that their digests are compared.

Sources: https://packaging.python.org/en/latest/specifications/core-metadata/ and deb822(5), dpkg(1) for the
database of Debian's packages (`status.d` is how distroless images keep it), os-release(5).
"""

from __future__ import annotations

import io
import json
import posixpath
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modelbake.errors import RegistryError, ReleaseError
from modelbake.history import single_image
from modelbake.imagetar import UNREADABLE, as_file, is_below, unpacked, whiteout
from modelbake.manifest import Descriptor, Manifest, labels_in
from modelbake.requirements import normalised
from modelbake.stream.layers import ROOT
from modelbake.stream.repository import RegistryRepository, read_document

BAKED = "modelbake/manifest.json"
_METADATA = re.compile(r"(?:[^/]+/)*(?P<stem>[^/]+)\.dist-info/METADATA")
_DPKG = re.compile(r"var/lib/dpkg/(?:status|status\.d/(?!.*\.md5sums$)[^/]+)")
_OS_RELEASE = ("usr/lib/os-release", "etc/os-release")  # the second is usually a link to the first
_MOST = 64 << 20  # bytes of one file that is kept
_LARGE = 1 << 20  # bytes; a weight file of this size says that a layer is one of weights
_PIECE = 1 << 20  # bytes
_WORD = re.compile(r"[\x21-\x7e]{1,200}")
_LICENCE = re.compile(r"[\x20-\x7e]{1,500}")


@dataclass(frozen=True, order=True)
class Package:
    """An installed package. `ecosystem`: pypi or deb; `licence`: an SPDX expression, where it says one."""

    ecosystem: str
    name: str
    version: str
    path: str
    licence: str = ""
    architecture: str = ""


@dataclass(frozen=True)
class Inventory:
    """What was found; `distribution` is ID and VERSION_ID of os-release, `baked` the weights' manifest."""

    packages: tuple[Package, ...]
    distribution: tuple[str, str]
    baked: Mapping[str, Any]
    config: Mapping[str, Any]

    @property
    def labels(self) -> Mapping[str, str]:
        """The image's labels."""
        return labels_in(self.config)


@dataclass(frozen=True)
class LayerFiles:
    """The files of one layer that an inventory is made of, and what it takes away of those below it."""

    kept: Mapping[str, bytes] = field(default_factory=dict)
    hidden: frozenset[str] = frozenset()


def read_inventory(repository: RegistryRepository, manifest: Manifest) -> Inventory:
    """Read an image's layers and return what it holds.

    Raises:
        ReleaseError: it is of several platforms.
        RegistryError: it cannot be read.
    """
    image = single_image(repository, manifest)
    subject = f"{repository.name}@{manifest.digest}"
    if image is None:
        raise ReleaseError("the image is of several platforms; one is expected", subject=subject)
    try:
        config = json.loads(read_document(repository, image.config))
    except (ValueError, RecursionError) as error:
        raise RegistryError("the configuration is not JSON", subject=subject) from error
    if not isinstance(config, dict):
        raise RegistryError("the configuration is no JSON object", subject=subject)
    layers = [_read(repository, layer, subject) for layer in image.layers]
    return inventory_of(layers, config)


def inventory_of(layers: Sequence[LayerFiles], config: Mapping[str, Any]) -> Inventory:
    """Return what layers hold together, bottom first. Pure."""
    seen: dict[str, bytes] = {}
    for layer in layers:
        seen = {
            path: raw for path, raw in seen.items() if not any(is_below(path, top) for top in layer.hidden)
        }
        seen |= layer.kept
    found: set[Package] = set()
    for path, raw in seen.items():
        text = raw.decode(errors="replace")
        if match := _METADATA.fullmatch(path):
            found |= set(_python_package(path, match["stem"], text))
        elif _DPKG.fullmatch(path):
            found |= set(_debian_packages(path, text))
    release = next((seen[path] for path in _OS_RELEASE if path in seen), b"")
    return Inventory(
        tuple(sorted(found)),
        _distribution(release.decode(errors="replace")),
        _object(seen.get(BAKED)),
        config,
    )


def _read(repository: RegistryRepository, layer: Descriptor, subject: str) -> LayerFiles:
    try:
        pieces = as_file(repository.read(layer))
        return read_layer(pieces)
    except UNREADABLE as error:
        raise RegistryError(f"the layer {layer.digest} cannot be read ({error})", subject=subject) from error


def read_layer(content: io.BufferedReader) -> LayerFiles:
    """Read a layer, compressed or not; raises what `imagetar.UNREADABLE` lists."""
    kept: dict[str, bytes] = {}
    hidden: set[str] = set()
    with tarfile.open(fileobj=unpacked(content), mode="r|") as archive:
        for member in archive:
            archive.members.clear()  # type: ignore[attr-defined]  # else it remembers every one of them
            path = posixpath.normpath(member.name.lstrip("/"))
            if (taken := whiteout(path)) is not None:
                hidden.add(taken)
                continue
            if not member.isfile():
                continue
            if path.startswith(f"{ROOT}/") and member.size >= _LARGE:
                return LayerFiles(kept, frozenset(hidden))
            wanted = (
                path == BAKED or path in _OS_RELEASE or _METADATA.fullmatch(path) or _DPKG.fullmatch(path)
            )
            if wanted and member.size <= _MOST and (file := archive.extractfile(member)) is not None:
                kept[path] = file.read()
    while content.read(_PIECE):  # to its end, so that the digest of all of it is compared
        pass
    return LayerFiles(kept, frozenset(hidden))


def _python_package(path: str, stem: str, text: str) -> Iterator[Package]:
    fields = _fields(text.partition("\n\n")[0])
    folder_name, _, folder_version = stem.rpartition("-")
    name = fields.get("name") or folder_name
    version = fields.get("version") or folder_version
    if _WORD.fullmatch(name) and _WORD.fullmatch(version):
        licence = fields.get("license-expression", "")
        place = posixpath.dirname(posixpath.dirname(path))
        known = licence if _LICENCE.fullmatch(licence) else ""
        yield Package("pypi", normalised(name), version, f"/{place}", known)


def _debian_packages(path: str, text: str) -> Iterator[Package]:
    for paragraph in re.split(r"\n\s*\n", text):
        fields = _fields(paragraph)
        name, version = fields.get("package", ""), fields.get("version", "")
        installed = fields.get("status", "install ok installed").endswith(" installed")
        if installed and _WORD.fullmatch(name) and _WORD.fullmatch(version):
            architecture = fields.get("architecture", "")
            known = architecture if _WORD.fullmatch(architecture) else ""
            yield Package("deb", name, version, f"/{path}", "", known)


def _fields(paragraph: str) -> dict[str, str]:
    """Return `Key: value` lines; the first of a key counts, and lines that go on are left out."""
    found: dict[str, str] = {}
    for line in paragraph.splitlines():
        key, colon, value = line.partition(":")
        if colon and not line[:1].isspace():
            found.setdefault(key.strip().lower(), value.strip())
    return found


def _distribution(text: str) -> tuple[str, str]:
    values = dict(line.partition("=")[::2] for line in text.splitlines() if "=" in line)
    known = (values.get(key, "").strip().strip("\"'") for key in ("ID", "VERSION_ID"))
    name, version = (value if _WORD.fullmatch(value) else "" for value in known)
    return name, version


def _object(raw: bytes | None) -> dict[str, Any]:
    try:
        document = json.loads(raw or b"{}")
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
