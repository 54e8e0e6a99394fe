"""What a bucket of `tests.servers.gcs` holds: every generation of every object, in memory."""

from __future__ import annotations

import base64
import functools
import hashlib
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import google_crc32c


@dataclass
class Generation:
    """One content of an object. `md5` is missing for what was composed of parts."""

    bucket: str
    name: str
    number: int
    data: bytes = field(repr=False)
    parts: int = 0
    live: bool = True

    @functools.cached_property
    def crc32c(self) -> str:
        """As the API gives it."""
        return base64.b64encode(google_crc32c.value(self.data).to_bytes(4, "big")).decode()

    @functools.cached_property
    def md5(self) -> str:
        """As the API gives it."""
        return base64.b64encode(hashlib.md5(self.data).digest()).decode()

    def resource(self, endpoint: str) -> dict[str, Any]:
        """https://docs.cloud.google.com/storage/docs/json_api/v1/objects#resource"""
        here = f"{endpoint}/storage/v1/b/{self.bucket}/o/{quote(self.name, safe='')}"
        media = f"{endpoint}/download{here.removeprefix(endpoint)}?generation={self.number}&alt=media"
        made = datetime.fromtimestamp(self.number / 1e6, UTC).isoformat().replace("+00:00", "Z")
        return {
            "kind": "storage#object",
            "id": f"{self.bucket}/{self.name}/{self.number}",
            "selfLink": here,
            "mediaLink": media,
            "name": self.name,
            "bucket": self.bucket,
            "generation": str(self.number),
            "metageneration": "1",
            "contentType": "application/octet-stream",
            "storageClass": "STANDARD",
            "size": str(len(self.data)),
            "crc32c": self.crc32c,
            "etag": base64.b64encode(str(self.number).encode()).decode(),
            "timeCreated": made,
            "updated": made,
            **({"componentCount": self.parts} if self.parts else {"md5Hash": self.md5}),
            **({} if self.live else {"timeDeleted": made}),
        }


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, oauth: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self._oauth = status, message, oauth

    def answer(self) -> dict[str, Any]:
        """As JSON: of the token service where it has a name of OAuth's, else of the JSON API."""
        if self._oauth:
            return {"error": self._oauth, "error_description": self.message}
        return {"error": {"code": self.status, "message": self.message}}


class Objects:
    """The buckets and every generation in them."""

    def __init__(self) -> None:
        self.buckets: dict[str, bool] = {}  # whether old generations are kept
        self._kept: dict[tuple[str, str], list[Generation]] = {}
        self._last = time.time_ns() // 1000
        self._listings: dict[tuple[str, str, bool], list[Generation]] = {}
        self._lock = threading.Lock()

    def put(
        self, bucket: str, name: str, data: bytes, parts: int = 0, expected: int | None = None
    ) -> Generation:
        """Make the next generation. `expected` is the live one's number, 0 for none, if demanded."""
        self.need(bucket)
        with self._lock:
            self._listings.clear()
            kept = self._kept.setdefault((bucket, name), [])
            live = kept[-1].number if kept and kept[-1].live else 0
            if expected is not None and expected != live:
                raise Refused(412, "At least one of the pre-conditions you specified did not hold.")
            self._retire(bucket, kept)
            self._last = max(self._last + 1, time.time_ns() // 1000)
            kept.append(Generation(bucket, name, self._last, data, parts))
            return kept[-1]

    def get(self, bucket: str, name: str, number: int | None = None) -> Generation:
        """A generation, the live one unless told. Raises Refused."""
        self.need(bucket)
        for kept in self._kept.get((bucket, name), []):
            if kept.number == number or (number is None and kept.live):
                return kept
        raise Refused(404, f"No such object: {bucket}/{name}")

    def delete(self, bucket: str, name: str, number: int | None = None) -> None:
        """Delete the live generation, which a versioned bucket keeps, or a given one for good."""
        found = self.get(bucket, name, number)
        with self._lock:
            self._listings.clear()
            kept = self._kept[bucket, name]
            if number is None:
                self._retire(bucket, kept)
            else:
                kept.remove(found)

    def listing(self, bucket: str, prefix: str, versions: bool) -> list[Generation]:
        """All below a prefix, sorted by name and generation."""
        self.need(bucket)
        with self._lock:
            asked = (bucket, prefix, versions)
            if asked not in self._listings:  # a page of many must not sort them all again
                names = sorted(key for key in self._kept if key[0] == bucket and key[1].startswith(prefix))
                found = [kept for key in names for kept in self._kept[key]]
                self._listings[asked] = [kept for kept in found if kept.live or versions]
            return self._listings[asked]

    def need(self, bucket: str) -> None:
        """Raise Refused if there is no such bucket."""
        if bucket not in self.buckets:
            raise Refused(404, "The specified bucket does not exist.")

    def _retire(self, bucket: str, kept: list[Generation]) -> None:
        if kept and kept[-1].live:
            kept[-1].live = False
            if not self.buckets[bucket]:
                kept.pop()
