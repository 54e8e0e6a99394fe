from __future__ import annotations

import pytest

from modelbake.quantity import SIZE, bytes_of, size_text


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("6 GB", 6_000_000_000),
        ("6GB", 6_000_000_000),
        ("1.5 GB", 1_500_000_000),
        ("500 MiB", 500 * 1024 * 1024),
        ("1 TiB", 1024**4),
        ("1 KiB", 1024),
        ("10 kB", 10_000),
        ("1 B", 1),
        ("0.5 MB", 500_000),
        ("1.9 B", 1),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert SIZE.matches(text)
    assert bytes_of(text) == count


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("6", "say of what: 6 GB, for example"),
        ("6 gb", "did you mean 6 GB?"),
        ("6G", "did you mean 6 GB?"),
        ("6  GB", "did you mean 6 GB?"),
        ("500 mib", "did you mean 500 MiB?"),
        ("500M", "did you mean 500 MB?"),
        ("6 GiBi", ""),
        ("0 GB", ""),
        ("0.0 GB", ""),
        ("-1 GB", ""),
        ("1e3 GB", ""),
        ("six GB", ""),
        ("", ""),
        (".5 GB", ""),
    ],
)
def test_what_is_no_size(text: str, advice: str) -> None:
    assert not SIZE.matches(text)
    assert SIZE.advise(text) == advice
    with pytest.raises(ValueError, match="expected a size such as 6 GB"):
        bytes_of(text)


def test_sizes_for_people() -> None:
    assert [size_text(count) for count in (0, 999, 1000, 6_120_000_000, 12_345_678)] == [
        "0 B",
        "999 B",
        "1.00 kB",
        "6.12 GB",
        "12.35 MB",
    ]
