"""An audit of one image: read, judge, gather. `build.py audit` prints it, and a release can ask for it."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from modelbake.audit.findings import Finding, Findings
from modelbake.audit.images import Image
from modelbake.audit.judging import Expected, judge
from modelbake.audit.layer import LayerFacts, LayerReader
from modelbake.audit.tokens import Canaries
from modelbake.stream.layers import ROOT

if TYPE_CHECKING:
    from modelbake.config import ModelSpec
    from modelbake.credentials import Secret
    from modelbake.locked import LockedModel
    from modelbake.output import Output


def telling_layers(output: Output) -> Callable[[LayerFacts], None]:
    """Return a listener that tells of each layer that has been read, and of all bytes so far."""
    read = 0

    def tell(layer: LayerFacts) -> None:
        nonlocal read
        read += layer.size
        output.event(
            "layer_audited", f"read a layer of {layer.size:,} bytes; {read / 1e6:,.0f} MB", bytes=layer.size
        )

    return tell


def expected_of(spec: ModelSpec, locked: LockedModel) -> Expected:
    """Return what an image of a model should hold."""
    files = {file.path: (file.size, file.sha256) for file in locked.files}
    return Expected(files, frozenset(spec.allow_pickle))


def audit(
    image: Image,
    expected: Expected | None = None,
    *,
    canaries: Sequence[Secret] = (),
    strict: bool = False,
    on_layer: Callable[[LayerFacts], None] = lambda _: None,
) -> Findings:
    """Read an image to its last byte and return what is wrong with it. Nothing is printed or changed.

    Args:
        image: where it is (see `images`).
        expected: what it should hold; None compares the weights with the manifest in the image only.
        canaries: secrets that must not be in it, in whatever encoding.
        strict: have picklescan and fickling look at the pickles that are allowed.
        on_layer: told of each layer when it has been read.

    Raises:
        UsageError: picklescan or fickling is not installed, or a canary is too short.
        ImageNotFound, EngineError, RegistryError, LayoutError: the image cannot be read.
    """
    sought = Canaries(canaries)
    reader = LayerReader(sought)
    if strict:
        from modelbake.audit.opinions import opinions

        allowed = expected.allow_pickle if expected else frozenset[str]()
        look = opinions()
        reader = LayerReader(sought, {f"{ROOT}/{path}": look for path in allowed})

    def read_layer(content: io.BufferedReader) -> LayerFacts:
        facts = reader.read(content)
        on_layer(facts)
        return facts

    found: list[Finding] = []
    layers: dict[int, LayerFacts] = {}
    for each in image.read(read_layer):
        layers |= {id(layer): layer for layer in each.layers}
        of_this = judge(each, expected, sought)
        found += (
            [replace(one, path=f"{each.platform}: {one.path}") for one in of_this]
            if each.platform
            else of_this
        )
    return Findings(
        image.name,
        image.digest,
        len(layers),
        sum(layer.files for layer in layers.values()),
        sum(layer.size for layer in layers.values()),
        tuple(sorted(found, key=lambda one: one.key)),
    )
