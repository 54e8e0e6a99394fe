"""What a version lacks of what a channel requires."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from modelbake.errors import PolicyRefused
from modelbake.release.channels import Channel
from modelbake.release.entries import ChannelEntry, SoakEntry
from modelbake.release.policy import Facts, missing, require
from tests.unit.historical import measured
from tests.unit.release.moving_channels import IMAGES
from tests.unit.release.test_channels import channel

NOW = datetime(2026, 2, 1, 12, tzinfo=UTC)  # a day after the records
DIGEST = IMAGES["a"].digest
ALL = ChannelEntry(require=("signature", "gpu_report", "audit"), soak=SoakEntry(channel="staging", hours=24))


def test_nothing_is_asked_that_is_not_required() -> None:
    assert missing(ChannelEntry(), Facts(DIGEST, NOW)) == []


def test_all_that_is_missing_is_said_at_once() -> None:
    with pytest.raises(PolicyRefused) as caught:
        require(ALL, Facts(DIGEST, NOW), "minilm 1.0.0", "production")
    lines = caught.value.message.splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["signature", "gpu_report", "audit", "soak"]
    assert "channels: production" in caught.value.hint


def test_what_has_everything_passes() -> None:
    facts = Facts(DIGEST, NOW, (measured(),), None, None, channel("z a"))
    require(ALL, facts, "minilm 1.0.0", "production")


def test_a_report_of_a_cpu_is_none_of_a_gpu() -> None:
    entry = ChannelEntry(require=("gpu_report",))
    (line,) = missing(entry, Facts(DIGEST, NOW, (measured(device="cpu"),)))
    assert "one of: cpu" in line
    failed = {"name": "c", "passed": False, "expected": 1, "actual": 2, "seconds": 0.1}
    assert missing(entry, Facts(DIGEST, NOW, (measured(passed=False, checks=[failed]),)))


@pytest.mark.parametrize(
    ("soaked", "hours", "said"),
    [
        (channel("z a"), 24, None),
        (channel("z a"), 24.1, "it has been there for 24.0 h"),
        (channel("a z"), 1, "it is not there now"),
        (channel("a z a"), 24, None),
        (channel("z a", IMAGES["z"].digest), 1, "it is not there now"),
        (channel("z a", f"sha256:{'9' * 64}"), 1, "it is not there now"),
        (None, 1, "it is not there now"),
    ],
)
def test_soak(soaked: Channel | None, hours: float, said: str | None) -> None:
    entry = ChannelEntry(soak=SoakEntry(channel="staging", hours=hours))
    lines = missing(entry, Facts(DIGEST, NOW, soaked=soaked))
    assert (said is None and lines == []) or (said is not None and said in lines[0])
    early = NOW.replace(year=2025)
    assert missing(entry, Facts(DIGEST, early, soaked=soaked)), "a clock that is wrong lets nothing pass"
