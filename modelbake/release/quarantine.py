"""Quarantine: a document beside an image which says that no channel may name it any more, and why.

It is kept as reports are, so that it travels with the image, and nothing lifts it: what is wrong with an
image stays wrong with it. Its version tag stays, so that hosts which run it can still be told what it is.
What is listed as such a document and cannot be read counts as one: doubt is on the safe side.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelbake.errors import PolicyRefused, RegistryAuthError, RegistryError, RegistryUnavailable
from modelbake.plan import encode_json
from modelbake.referrers import Document, attach, read, referrers
from modelbake.tables import printable

if TYPE_CHECKING:
    from modelbake.manifest import Manifest
    from modelbake.stream.repository import RegistryRepository

QUARANTINE_TYPE = "application/vnd.modelbake.quarantine.v1+json"
_LARGEST = 64 << 10  # bytes
_LONGEST = 500  # characters of a reason, or of a name


@dataclass(frozen=True)
class Quarantine:
    """Why an image is in quarantine, since when (RFC 3339, UTC), and who put it there; "" where unknown."""

    reason: str
    date: str = ""
    who: str = ""

    @property
    def words(self) -> str:
        """One line about it."""
        since = f" since {self.date}" if self.date else ""
        return f"in quarantine{since}: {self.reason}" + (f" (by {self.who})" if self.who else "")


def encode(quarantine: Quarantine) -> bytes:
    """Return the document, UTF-8 JSON. Pure."""
    said = {
        "schema": 1,
        "reason": printable(quarantine.reason)[:_LONGEST],
        "date": quarantine.date,
        "by": printable(quarantine.who)[:_LONGEST],
    }
    return encode_json(said)


def decode(raw: bytes) -> Quarantine:
    """Return what a document says, as far as it can be read. Pure."""
    try:
        document: Any = json.loads(raw)
    except (ValueError, RecursionError):
        document = None
    said = document if isinstance(document, dict) else {}
    reason, date, who = (
        printable(said[key])[:_LONGEST] if isinstance(said.get(key), str) else ""
        for key in ("reason", "date", "by")
    )
    return Quarantine(reason or "it does not say why", date, who)


def quarantines(repository: RegistryRepository, image: Manifest) -> list[Quarantine]:
    """Return why an image is in quarantine, the oldest first. Raises RegistryError."""
    found = []
    for referrer in referrers(repository, image, QUARANTINE_TYPE):
        try:
            raw = read(repository, image, referrer.digest, QUARANTINE_TYPE, _LARGEST)
        except (RegistryUnavailable, RegistryAuthError):
            raise
        except RegistryError:
            raw = b""
        found.append(decode(raw))
    return sorted(found, key=lambda each: each.date)


def put_into_quarantine(repository: RegistryRepository, image: Manifest, quarantine: Quarantine) -> bool:
    """Attach the document, unless one with the same reason is there; tell whether it was attached.

    Raises RegistryError and its subclasses: it is not known to be there.
    """
    if any(each.reason == decode(encode(quarantine)).reason for each in quarantines(repository, image)):
        return False
    notes = {"org.opencontainers.image.created": quarantine.date}
    attach(repository, image, Document(encode(quarantine), QUARANTINE_TYPE, "quarantine.json", notes))
    return True


def require_none(repository: RegistryRepository, image: Manifest, subject: str) -> None:
    """Raise PolicyRefused where an image is in quarantine: no channel may name it."""
    found = quarantines(repository, image)
    if found:
        raise PolicyRefused(
            "\n  ".join(dict.fromkeys(each.words for each in found)),
            subject=subject,
            hint="nothing lifts a quarantine: choose another version, or release one without what is wrong",
        )
