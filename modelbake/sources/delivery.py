"""What a build is told of stores: addresses that are signed for it, and for a while, as build secrets.

A builder has no credentials of a store. It is given an address for each file, which lets it read these very
bytes and nothing else; what has no address travels with the build context instead (`WeightGroup.carried`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from modelbake.credentials import Secret
from modelbake.errors import SourceError
from modelbake.plan import encode_json, secret_name

if TYPE_CHECKING:
    from modelbake.credentials import Redactor
    from modelbake.locked import LockedFile, LockedModel, LockedSource
    from modelbake.plan import WeightGroup

LARGEST_SECRET = 500_000  # bytes that BuildKit's clients pass on


def source_secrets(
    locked: LockedModel,
    groups: Sequence[WeightGroup],
    documents: Mapping[str, bytes],
    redactor: Redactor,
) -> dict[str, Secret]:
    """Return the build secrets that say where the files of some groups are, by id.

    `documents`: those of hubs, which a plan knows. `redactor` learns what may be told to nobody. Raises
    SourceError where a store gives no address.
    """
    secrets = {name: Secret(document) for name, document in documents.items()}
    for number, source in enumerate(locked.sources):
        if source.kind == "hf":
            continue
        fetched = [
            file
            for group in groups
            if group.source == number and not (group.carried or group.converted)
            for file in group.files
        ]
        secrets[secret_name(number)] = Secret(_addresses(source, fetched, redactor))
    return secrets


def _addresses(source: LockedSource, files: Sequence[LockedFile], redactor: Redactor) -> bytes:
    from modelbake.sources.kinds import open_store

    found: dict[str, object] = {}
    if files:
        with closing(open_store(source)) as store:
            for file in files:
                address = store.address(replace(file, path=source.path_there(file)))
                if address is None:
                    raise SourceError(f"has no address of {file.path}", subject=store.subject)
                for value in (address.url.partition("?")[2], *address.headers.values()):
                    redactor.add(Secret(value))
                    redactor.add(Secret(value.rpartition(" ")[2]))  # of `Bearer TOKEN`, the token alone
                found[file.path] = {"url": address.url, "headers": dict(address.headers)}
    document = encode_json(
        {"schema": 1, "kind": "addresses", "name": ascii(source.origin)[1:-1], "files": found}
    )
    if len(document) > LARGEST_SECRET:
        raise SourceError(
            f"the addresses of {len(files)} files take {len(document):,} bytes, and a build secret has"
            f" {LARGEST_SECRET:,} at most",
            subject=source.origin,
            hint="use `publish`, which needs no addresses",
        )
    return document
