"""Whether weights may lie below a runtime's layers: whether one of these would hide or change them. Pure.

A layer above may delete what is below it by a whiteout (`.wh.NAME`, or `.wh..wh..opq` for all of a folder),
and what it says of a path replaces what is below. With the weights at the bottom, no layer of the runtime may
say anything of their folder.

Source: https://github.com/opencontainers/image-spec/blob/main/layer.md#whiteouts
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from typing import Any

from modelbake.errors import RegistryError
from modelbake.imagetar import UNREADABLE, as_file
from modelbake.layertar import members_of, opened
from modelbake.stream.layers import ROOT

_OPAQUE = ".wh..wh..opq"
_LISTED = 5


def over_weights(names: Iterable[str]) -> list[str]:
    """Return the entries of a layer that hide or replace anything of the weights' folder, a few of them."""
    found = []
    for name in names:
        path = "/".join(part for part in name.split("/") if part not in ("", "."))
        if path in (_OPAQUE, f".wh.{ROOT}") or path == ROOT or path.startswith(f"{ROOT}/"):
            found.append(path)
            if len(found) == _LISTED:
                break
    return found


def names_of(pieces: Iterator[bytes], media_type: str, subject: str) -> Iterator[str]:
    """Yield the names in a layer's tar (plain, gzip or zstd) as it comes; its content is passed over.

    Raises RegistryError where it is no such tar.
    """
    raw = as_file(pieces)
    try:
        if media_type.endswith("gzip"):
            yield from _names(gzip.GzipFile(fileobj=raw))
        elif media_type.endswith("zstd"):
            import zstandard

            try:
                yield from _names(zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True))
            except zstandard.ZstdError as error:
                raise OSError(str(error)) from error
        else:
            yield from _names(raw)
        while raw.read(1 << 20):  # to its end, so that the digest of all of it is compared
            pass
    except UNREADABLE as error:
        raise RegistryError(f"a layer is no readable tar ({error})", subject=subject) from error


def _names(stream: Any) -> Iterator[str]:
    with opened(stream) as archive:
        for member in members_of(archive):
            yield member.name
