"""Listings of a bucket with very many objects, made page by page: moto needs minutes to list 100,000.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectVersions.html and API_ListObjectsV2.html, as far
as their paging and `prefix` go; every object has six bytes, its number, and one version.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from xml.sax.saxutils import escape

PAGE = 1000
_MADE = "2026-01-01T00:00:00.000Z"
_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


class Numbered:
    """The objects `prefix`000000.bin and so on of one bucket."""

    def __init__(self, bucket: str, prefix: str, count: int) -> None:
        self._bucket, self._prefix, self._count = bucket, prefix, count

    def answers(self, query: Mapping[str, str]) -> bool:
        """Whether this is a listing that is made here."""
        return "versions" in query or query.get("list-type") == "2"

    def listing(self, query: Mapping[str, str]) -> bytes:
        """One page as XML."""
        versions = "versions" in query
        marker = query.get("key-marker" if versions else "continuation-token", "")
        start = int(marker.removesuffix(".bin")[-6:]) + 1 if marker else 0
        size = min(int(query.get("max-keys") or PAGE), PAGE)
        wanted = query.get("prefix", "")
        matching = (number for number in range(start, self._count) if self._key(number).startswith(wanted))
        numbers = list(itertools.islice(matching, size + 1))
        page, more = numbers[:size], len(numbers) > size
        kind, item = ("ListVersionsResult", "Version") if versions else ("ListBucketResult", "Contents")
        parts = [
            f'<?xml version="1.0" encoding="UTF-8"?>\n<{kind} xmlns="{_NAMESPACE}">',
            f"<Name>{self._bucket}</Name><Prefix>{escape(wanted)}</Prefix><MaxKeys>{size}</MaxKeys>",
            f"<KeyCount>{len(page)}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>",
        ]
        if more:
            last = escape(self._key(page[-1]))
            parts.append(
                f"<NextKeyMarker>{last}</NextKeyMarker><NextVersionIdMarker>v1</NextVersionIdMarker>"
                if versions
                else f"<NextContinuationToken>{last}</NextContinuationToken>"
            )
        parts += [f"<{item}>{self._entry(number, versions)}</{item}>" for number in page]
        return "".join([*parts, f"</{kind}>"]).encode()

    def _key(self, number: int) -> str:
        return f"{self._prefix}{number:06}.bin"

    def _entry(self, number: int, versions: bool) -> str:
        md5 = hashlib.md5(b"%06d" % number).hexdigest()
        return (
            f"<Key>{escape(self._key(number))}</Key><LastModified>{_MADE}</LastModified>"
            f"<ETag>&quot;{md5}&quot;</ETag><Size>6</Size><StorageClass>STANDARD</StorageClass>"
            + ("<VersionId>v1</VersionId><IsLatest>true</IsLatest>" if versions else "")
        )
