"""Where an image is read from: an engine's export, a repository of a registry, an OCI layout.

Each gives its images (several where an index lists several platforms) with their documents and layers.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from modelbake.audit.layer import LayerFacts
from modelbake.errors import ImageNotFound, RegistryError
from modelbake.imagetar import UNREADABLE, as_file, read_export, steps_of
from modelbake.manifest import Descriptor, Manifest, unique
from modelbake.stream.repository import Repository, read_document

if TYPE_CHECKING:
    from modelbake.engine import Engine

ReadLayer = Callable[[io.BufferedReader], LayerFacts]
_MOST_LAYERS = 1000  # no engine takes more than some hundred
_ATTESTATION = "unknown/unknown"  # the platform under which an index lists what is said of an image


@dataclass(frozen=True)
class ReadImage:
    """One image: JSON documents by what findings call them, its configuration, its layers, bottom first.

    `platform`: "" where there is one only. `steps`: what made each layer.
    """

    platform: str
    documents: Mapping[str, Any]
    config: Mapping[str, Any]
    layers: tuple[LayerFacts, ...]
    steps: tuple[str, ...]


class Image(Protocol):
    """An image that can be read once or more."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def digest(self) -> str:
        """What it is: `sha256:` and 64 hex digits."""

    def read(self, read_layer: ReadLayer) -> Iterator[ReadImage]:
        """Read all of it. Raises ModelbakeError where that cannot be done."""


@dataclass(frozen=True)
class EngineImage:
    """An image of an engine, which exports all of it. `digest`: its id."""

    engine: Engine
    name: str
    digest: str

    def read(self, read_layer: ReadLayer) -> Iterator[ReadImage]:
        """See Image. Raises ImageNotFound, EngineError."""
        image = read_export(self.engine.export(self.digest), read_layer)
        # The names of an export's files are those of digests: only what they hold is worth a word.
        documents = {f"export/{name}": each for name, each in image.documents.items() if each != image.config}
        yield ReadImage("", documents, image.config, image.layers, image.steps)


class RepositoryImage:
    """An image of a registry or a layout, by its manifest."""

    def __init__(self, repository: Repository, reference: str) -> None:
        """Raise ImageNotFound where the repository has no such image."""
        manifest = repository.manifest(reference)
        separator = "@" if ":" in reference else ":"
        self.name = f"{repository.name}{separator}{reference}"
        if manifest is None:
            raise ImageNotFound("there is no such image", subject=self.name)
        self._repository = repository
        self._manifest = manifest

    @property
    def digest(self) -> str:
        """The digest of its manifest, or of the index that lists several."""
        return self._manifest.digest

    def read(self, read_layer: ReadLayer) -> Iterator[ReadImage]:
        """See Image. Raises RegistryError, LayoutError."""
        if not self._manifest.is_index:
            yield self._image(self._manifest, "", {}, read_layer)
            return
        read: dict[str, LayerFacts] = {}
        listed = [(each.platform or "", self._listed(each)) for each in self._manifest.manifests]
        images = [each for each in listed if each[0] != _ATTESTATION]
        documents = {"index": self._manifest.document()}
        for number, (_, manifest) in enumerate(each for each in listed if each[0] == _ATTESTATION):
            documents |= self._attestation(f"attestation {number + 1}", manifest)
        if not images:
            raise RegistryError("the index lists no image", subject=self.name)
        for platform, manifest in images:
            shown = platform if len(images) > 1 else ""
            yield self._image(manifest, shown, documents, read_layer, read)
            documents = {}  # said once

    def _listed(self, entry: Descriptor) -> Manifest:
        manifest = self._repository.manifest(entry.digest)
        if manifest is None or manifest.is_index:
            raise RegistryError(f"has no image manifest {entry.digest}", subject=self.name)
        return manifest

    def _image(
        self,
        manifest: Manifest,
        platform: str,
        documents: Mapping[str, Any],
        read_layer: ReadLayer,
        read: dict[str, LayerFacts] | None = None,
    ) -> ReadImage:
        read = {} if read is None else read
        if len(manifest.layers) > _MOST_LAYERS:
            raise RegistryError(f"it has {len(manifest.layers):,} layers", subject=self.name)
        config = self._json(manifest.config)
        if not isinstance(config, dict):
            raise RegistryError("the configuration is no JSON object", subject=self.name)
        for layer in manifest.layers:
            if layer.digest not in read:
                read[layer.digest] = self._layer(layer, read_layer)
        layers = tuple(read[layer.digest] for layer in manifest.layers)
        return ReadImage(
            platform,
            {"manifest": manifest.document(), **documents},
            config,
            layers,
            _steps(config, len(layers)),
        )

    def _layer(self, layer: Descriptor, read_layer: ReadLayer) -> LayerFacts:
        pieces = as_file(self._repository.read(layer))
        try:
            facts = read_layer(pieces)
            while pieces.read(1 << 20):  # to its end, so that the digest of all of it is compared
                pass
        except UNREADABLE as error:
            raise RegistryError(
                f"the layer {layer.digest} cannot be read ({error})",
                subject=self.name,
                hint="an audit says nothing of an image that it cannot read to its end",
            ) from error
        return facts

    def _attestation(self, name: str, manifest: Manifest) -> dict[str, Any]:
        blobs = (manifest.config, *manifest.layers)
        found = {f"{name}: {number}": self._json(blob) for number, blob in enumerate(blobs)}
        return {name: manifest.document(), **found}

    def _json(self, blob: Descriptor) -> Any:
        raw = read_document(self._repository, blob)
        try:
            return json.loads(raw, object_pairs_hook=unique)
        except (ValueError, RecursionError) as error:
            raise RegistryError(f"the document {blob.digest} is not JSON", subject=self.name) from error


def _steps(config: Mapping[str, Any], count: int) -> tuple[str, ...]:
    try:
        return steps_of(config, count)
    except (TypeError, AttributeError):
        return ("",) * count
