"""Where an image's bytes are: by layer, by Python package, in CUDA libraries. Pure."""

from __future__ import annotations

import csv
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from modelbake.imagetar import ImageContent

# What NVIDIA's libraries are called; a wheel that carries its own copies puts a hash before the suffix.
_CUDA = re.compile(
    r"(?P<stem>lib(?:cu(?:da|blas|dnn|fft|rand|solver|sparse|pti|file)\w*|nccl|nvrtc(?:-builtins)?(?:\.alt)?"
    r"|nvJitLink|nvToolsExt|nvshmem\w*|nvperf\w*|npp\w*|nvjpeg|nvblas))(?:-[0-9a-f]{6,})?\.so(?P<version>(?:\.\d+)*)"
)
_BYTECODE = re.compile(r"(?P<folder>.*/)?__pycache__/(?P<module>[^/.]+)\.[^/]*\.pyc")
_WEIGHTS, _VENV = "models/", "opt/venv/"
WEIGHTS, REST = "(weights)", "(everything else)"


@dataclass(frozen=True)
class Library:
    """A CUDA library, by what a program asks the loader for, and all files of that name with their bytes."""

    soname: str
    files: Mapping[str, int]


@dataclass(frozen=True)
class Sizes:
    """Bytes of an image, unpacked. `layers` bottom first, with what made them; `packages` by their bytes.

    `packages` also has the weights, and what no package has brought. `installed`: all that the environment
    of the runtime's packages holds, which leaves out what the base image brings.
    """

    total: int
    layers: Sequence[tuple[str, int]]
    packages: Mapping[str, int]
    libraries: Sequence[Library]
    installed: int

    @property
    def duplicates(self) -> list[Library]:
        """The CUDA libraries that are there more than once."""
        return [library for library in self.libraries if len(library.files) > 1]

    def largest(self, count: int = 5) -> list[tuple[str, int]]:
        """Return what takes most."""
        return list(self.packages.items())[:count]


def sizes_of(image: ImageContent) -> Sizes:
    """Count an image."""
    files = image.files()
    layers = [(_shown(layer.created_by), layer.size) for layer in image.layers]
    packages = _by_package(files, image.records(), image.size)
    installed = sum(size for path, size in files.items() if path.startswith(_VENV))
    return Sizes(image.size, layers, packages, cuda_libraries(files), installed)


def cuda_libraries(files: Mapping[str, int]) -> list[Library]:
    """Return the CUDA libraries among files, the largest first; `libx.so.12.4` and `libx.so.12` are one."""
    found: dict[str, dict[str, int]] = {}
    for path, size in files.items():
        if match := _CUDA.fullmatch(posixpath.basename(path)):
            major = match["version"].split(".")[1:2]
            found.setdefault(".".join([f"{match['stem']}.so", *major]), {})[f"/{path}"] = size
    libraries = [Library(soname, dict(sorted(places.items()))) for soname, places in found.items()]
    return sorted(libraries, key=lambda library: (-sum(library.files.values()), library.soname))


def _by_package(files: Mapping[str, int], records: Mapping[str, str], total: int) -> dict[str, int]:
    owners: dict[str, str] = {}
    for record, text in records.items():
        info = posixpath.dirname(record)
        site, package = posixpath.dirname(info), posixpath.basename(info).removesuffix(".dist-info")
        for row in _rows(text):
            if row:
                owners.setdefault(posixpath.normpath(posixpath.join(site, row[0])), package.replace("-", " "))
    sums: dict[str, int] = {}
    for path, size in files.items():
        # RECORD does not list byte code that was compiled afterwards; it belongs to its module's package.
        compiled = _BYTECODE.fullmatch(path)
        module = f"{compiled['folder'] or ''}{compiled['module']}.py" if compiled else path
        owner = owners.get(path) or owners.get(module) or (WEIGHTS if path.startswith(_WEIGHTS) else REST)
        sums[owner] = sums.get(owner, 0) + size
    # What an upper layer hides no package has, and it still takes its place.
    if hidden := total - sum(sums.values()):
        sums[REST] = sums.get(REST, 0) + hidden
    return dict(sorted(sums.items(), key=lambda item: (-item[1], item[0])))


def _rows(record: str) -> Iterator[list[str]]:
    """Yield the rows of a RECORD, up to one that cannot be read: what comes after it no package has."""
    with suppress(csv.Error):
        yield from csv.reader(record.splitlines())


def _shown(created_by: str) -> str:
    """Return a step of an image's history without the engine's own words around it."""
    text = re.sub(r"^/bin/sh -c (?:#\(nop\)\s*)?|\s*# buildkit$", "", created_by)
    return " ".join(text.split()) or "(imported)"
