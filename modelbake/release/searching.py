"""Whether an image holds what an incident is about: the cheapest thing that can tell is read.

    commit     labels of the configuration; the provenance beside the image; the records of its channels
    file       the manifest that is baked into one of its last, small layers
    package    the SBOM beside the image, else what its layers have; layers of weights are not read
    token      every byte of every layer, once for all images that share it; configuration and manifest

What cannot be told is "unknown" with the reason, and never left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from modelbake.audit.layer import LayerReader
from modelbake.audit.tokens import Canaries
from modelbake.errors import RegistryAuthError, RegistryError, RegistryUnavailable, ReleaseError
from modelbake.imagetar import UNREADABLE, as_file
from modelbake.release.baked import read_baked, read_labels
from modelbake.release.documents import SBOM_TYPE, usable_documents
from modelbake.release.inventory import read_inventory
from modelbake.release.provenance import PROVENANCE_TYPE
from modelbake.release.questions import (
    CommitQuestion,
    FileQuestion,
    PackageQuestion,
    Question,
    TokenQuestion,
)
from modelbake.stream.repository import read_document

if TYPE_CHECKING:
    from modelbake.manifest import Descriptor, Manifest
    from modelbake.output import Output
    from modelbake.release.holdings import Holding, Holdings
    from modelbake.stream.repository import RegistryRepository

State = Literal["affected", "clean", "unknown"]
_CANARY = "secret-canary"
_ATTESTATION = "unknown/unknown"  # the platform under which an index lists what is said of an image
_PIECE = 1 << 20  # bytes


@dataclass(frozen=True)
class Answer:
    """What was found in one image: places, or the reason why nothing can be told; and what was asked."""

    state: State
    found: tuple[str, ...] = ()
    by: str = ""


@dataclass
class Searcher:
    """Answers one question about images of any repository; layers that were read are remembered."""

    question: Question
    output: Output
    _layers: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def answer(self, repository: RegistryRepository, holdings: Holdings, image: Holding) -> Answer:
        """Say whether one image holds it.

        Raises RegistryUnavailable, RegistryAuthError: the question cannot be answered at all.
        """
        manifest = holdings.manifests.get(image.digest)
        if manifest is None:
            return Answer("unknown", ("the registry has no such manifest any more",))
        try:
            parts = self._parts(repository, manifest)
            answers = [self._of(repository, holdings, image, manifest, part) for part in parts]
        except (RegistryUnavailable, RegistryAuthError):
            raise
        except (RegistryError, ReleaseError) as error:
            return Answer("unknown", (str(error.message),))
        return together(answers)

    def _parts(self, repository: RegistryRepository, manifest: Manifest) -> list[Manifest]:
        """Return the images of all platforms that a manifest lists, or itself."""
        if not manifest.is_index:
            return [manifest]
        parts = []
        for entry in manifest.manifests:
            if entry.platform == _ATTESTATION:
                continue
            part = repository.manifest(entry.digest)
            if part is None or part.is_index:
                raise RegistryError(f"it lists no image manifest {entry.digest}", subject=repository.name)
            parts.append(part)
        return parts

    def _of(
        self,
        repository: RegistryRepository,
        holdings: Holdings,
        image: Holding,
        whole: Manifest,
        part: Manifest,
    ) -> Answer:
        """Return the answer about the image of one platform; `whole`: what documents are about."""
        question = self.question
        match question:
            case CommitQuestion():
                return self._commit(question, repository, holdings, image, whole, part)
            case FileQuestion():
                return _file(question, repository, part)
            case PackageQuestion():
                return self._package(question, repository, whole, part)
            case TokenQuestion():
                return self._token(question, repository, part)

    def _commit(
        self,
        question: CommitQuestion,
        repository: RegistryRepository,
        holdings: Holdings,
        image: Holding,
        whole: Manifest,
        part: Manifest,
    ) -> Answer:
        labels = read_labels(repository, part)
        found = question.in_labels(labels)
        statements = [raw for _, raw in usable_documents(repository, whole, PROVENANCE_TYPE, self.output)]
        for statement in statements:  # whoever may push may add one: none of them hides what another says
            found += question.in_provenance(statement)
        found += [
            f"{entry.record.tag}: the repository of models.yaml"
            for channel in holdings.channels
            for entry in channel.history
            if entry.record.digest == image.digest and (entry.record.commit or "").startswith(question.commit)
        ]
        if not found and "io.modelbake.commit" not in labels:
            return Answer("unknown", ("it has no label that says its weights' commit",))
        return _told(found, "labels, provenance, records" if statements else "labels, records")

    def _package(
        self, question: PackageQuestion, repository: RegistryRepository, whole: Manifest, part: Manifest
    ) -> Answer:
        boms = [raw for _, raw in usable_documents(repository, whole, SBOM_TYPE, self.output)]
        listed = [found for raw in boms if (found := question.in_sbom(raw)) is not None]
        if listed:  # what one of them lists, another does not hide
            return _told([each for found in listed for each in found], "SBOM")
        self.output.event("layers_read", f"{repository.name}@{part.digest} has no SBOM: reading its layers")
        packages = read_inventory(repository, part).packages
        if not packages:
            return Answer("unknown", ("no SBOM, and its layers say nothing of packages",), "layers")
        found = [
            f"{each.name} {each.version}"
            for each in packages
            if question.matches(each.ecosystem, each.name, each.version)
        ]
        return _told(found, "layers")

    def _token(self, question: TokenQuestion, repository: RegistryRepository, part: Manifest) -> Answer:
        canaries = Canaries([question.secret])
        found = []
        texts = {"manifest": part.body, "configuration": read_document(repository, part.config)}
        for name, text in texts.items():
            if any(canaries.find(text)):
                found.append(name)
        for number, layer in enumerate(part.layers, start=1):
            if layer.digest not in self._layers:
                self._layers[layer.digest] = self._search(repository, layer, canaries)
            found += [f"layer {number}: {place}" for place in self._layers[layer.digest]]
        return _told(found, "all layers")

    def _search(
        self, repository: RegistryRepository, layer: Descriptor, canaries: Canaries
    ) -> tuple[str, ...]:
        pieces = as_file(repository.read(layer))
        try:
            facts = LayerReader(canaries, canaries_only=True).read(pieces)
            while pieces.read(_PIECE):  # to its end, so that the digest of all of it is compared
                pass
        except UNREADABLE as error:
            raise RegistryError(f"the layer {layer.digest} cannot be read ({error})") from error
        self.output.event(
            "layer_searched", f"read a layer of {facts.size:,} bytes", bytes=facts.size, digest=layer.digest
        )
        broken = [seen.message or seen.rule for seen in facts.seen if seen.rule == "unreadable"]
        found = tuple(seen.path or "the layer itself" for seen in facts.seen if seen.rule == _CANARY)
        if broken and not found:
            raise RegistryError(f"the layer {layer.digest} cannot be read to its end ({broken[0]})")
        return found


def _file(question: FileQuestion, repository: RegistryRepository, part: Manifest) -> Answer:
    baked = read_baked(repository, part)
    if baked is None:
        return Answer("unknown", ("it has no manifest of its weights",))
    return _told(question.in_files(baked.files), "the manifest in the image")


def _told(found: list[str], by: str) -> Answer:
    return Answer("affected", tuple(dict.fromkeys(found)), by) if found else Answer("clean", (), by)


def together(answers: list[Answer]) -> Answer:
    """Return the answer about an image of several platforms: what one holds, the image holds. Pure."""
    if not answers:
        return Answer("unknown", ("it lists no image",))
    for state in ("affected", "unknown"):
        told = [each for each in answers if each.state == state]
        if told:
            places = (place for each in told for place in each.found)
            return Answer(told[0].state, tuple(dict.fromkeys(places)), told[0].by)
    return answers[0]
