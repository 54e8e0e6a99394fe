"""The bill of materials of an image: CycloneDX 1.6, made of what the image itself holds. Pure.

    the image (container)  -->  its base image, each Python package, each package of the distribution,
                                the model (machine-learning-model) with a component for each weight file

The same image gives the same bytes, wherever it lies: the serial number comes from its digest, the time from
its configuration. What the image does not say, such as a model's licence, is left out and never guessed.

Sources: https://cyclonedx.org/docs/1.6/json/ and https://github.com/package-url/purl-spec (types).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cyclonedx.contrib.license.exceptions import InvalidLicenseExpressionException
from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import LicenseExpression
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from modelbake import __version__
from modelbake.dockerconfig import split_reference
from modelbake.errors import UsageError

if TYPE_CHECKING:
    from modelbake.release.inventory import Inventory, Package


_BASE_NAME, _BASE_DIGEST = "org.opencontainers.image.base.name", "org.opencontainers.image.base.digest"
_PROPERTY = "modelbake:"  # https://github.com/CycloneDX/cyclonedx-property-taxonomy: a namespace, a colon
_HEX = frozenset("0123456789abcdef")


def make_sbom(model: str, version: str, digest: str, inventory: Inventory) -> bytes:
    """Return the document, UTF-8 JSON that ends with a newline.

    Args:
        model: the model's name.
        version: its version.
        digest: the image's, `sha256:` and 64 hex digits.
        inventory: what the image holds.
    """
    image = Component(
        type=ComponentType.CONTAINER,
        name=model,
        version=version,
        purl=PackageURL("oci", None, model, digest),
        bom_ref=f"pkg:oci/{model}@{digest}",
        hashes=_sha256(digest),
    )
    parts = [
        *_base(inventory.labels),
        *_model(model, version, inventory.baked),
        *(_package(package, inventory.distribution) for package in inventory.packages),
    ]
    toolkit = Component(type=ComponentType.APPLICATION, name="modelbake", version=__version__)
    toolkit.bom_ref.value = f"modelbake@{__version__}"
    bom = Bom(
        serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"https://modelbake.invalid/sbom/{digest}"),
        metadata=BomMetaData(
            timestamp=_moment(inventory.config.get("created")),
            component=image,
            tools=ToolRepository(components=[toolkit]),
        ),
        components=parts,
    )
    bom.register_dependency(image, parts)
    return (JsonV1Dot6(bom).output_as_string(indent=2) + "\n").encode()


def _base(labels: Mapping[str, str]) -> Iterator[Component]:
    name, digest = labels.get(_BASE_NAME), labels.get(_BASE_DIGEST)
    if not isinstance(name, str) or not isinstance(digest, str) or not list(_sha256(digest)):
        return
    try:
        reference = split_reference(name)
    except UsageError:
        return
    last = reference.repository.rpartition("/")[2]
    purl = PackageURL("oci", None, last, digest, {"repository_url": reference.name})
    yield Component(
        type=ComponentType.CONTAINER,
        name=reference.name,
        version=reference.tag or digest,
        purl=purl,
        bom_ref=f"base:{digest}",
        hashes=_sha256(digest),
        properties=[Property(name=f"{_PROPERTY}role", value="base image")],
    )


def _model(model: str, version: str, baked: Mapping[str, Any]) -> Iterator[Component]:
    source, commit, lock = (str(baked.get(key) or "") for key in ("source", "commit", "lock"))
    listed = baked.get("files")
    files = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    if not source:
        return
    purl = None
    owner, slash, name = source.removeprefix("hf://").partition("/")
    if source.startswith("hf://") and slash and commit:
        purl = PackageURL("huggingface", owner, name, commit)
    notes = {"source": source, "commit": commit, "lock": lock, "added": ", ".join(_added(baked))}
    yield Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=model,
        version=version,
        purl=purl,
        bom_ref=f"model:{model}@{version}",
        properties=[Property(name=_PROPERTY + key, value=text) for key, text in notes.items() if text],
        components=[_file(each) for each in files],
    )


def _added(baked: Mapping[str, Any]) -> Iterator[str]:
    """Yield the further sources of a model, each with its commit and its folder."""
    listed = baked.get("added")
    for each in listed if isinstance(listed, list) else []:
        if isinstance(each, dict):
            yield f"{each.get('source')}@{each.get('commit')} in {each.get('into')}"


def _file(facts: Mapping[str, Any]) -> Component:
    path = str(facts.get("path"))
    return Component(
        type=ComponentType.FILE,
        name=path,
        bom_ref=f"file:/models/{path}",
        hashes=_sha256(f"sha256:{facts.get('sha256')}"),
        properties=[Property(name=f"{_PROPERTY}size", value=str(facts.get("size")))],
    )


def _package(package: Package, distribution: tuple[str, str]) -> Component:
    properties = [Property(name=f"{_PROPERTY}path", value=package.path)]
    if package.ecosystem == "deb":
        system, release = distribution
        notes = {"arch": package.architecture, "distro": f"{system}-{release}" if release else ""}
        known = {key: text for key, text in notes.items() if text}
        purl = PackageURL("deb", system or "debian", package.name, package.version, known)
    else:
        purl = PackageURL("pypi", None, package.name, package.version)
    return Component(
        type=ComponentType.LIBRARY,
        name=package.name,
        version=package.version,
        purl=purl,
        # The same package may be installed in two places.
        bom_ref=f"{purl.to_string()}#{package.path}",
        licenses=_licence(package.licence),
        properties=properties,
    )


def _licence(expression: str) -> list[LicenseExpression]:
    if not expression:
        return []
    try:
        return [LicenseFactory().make_with_expression(expression)]
    except InvalidLicenseExpressionException:
        return []


def _sha256(digest: str) -> Iterator[HashType]:
    algorithm, _, value = digest.partition(":")
    if algorithm == "sha256" and len(value) == 64 and set(value) <= _HEX:
        yield HashType(alg=HashAlgorithm.SHA_256, content=value)


def _moment(created: object) -> datetime:
    """Return when an image was made; the beginning of Unix time where it does not say."""
    try:
        moment = datetime.fromisoformat(str(created))
    except ValueError:
        return datetime.fromtimestamp(0, UTC)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
