"""The bench finds rules of slimming that have become idle."""

from __future__ import annotations

import yaml

from bench.slim import IMAGES, RUNTIMES, Slimming, dead_rules
from tests.unit.images.test_slim import builder


def slimming(runtime: str, *idle: str) -> Slimming:
    """Return a measurement in which all rules but these have removed something."""
    own = yaml.safe_load((IMAGES / runtime / "runtime.yaml").read_text()).get("slim", {})
    patterns = [*builder("slim_rules").RULES, *own.get("remove", {}), *own.get("stub", {})]
    return Slimming(runtime, 2, 1, {pattern: 1 for pattern in patterns if pattern not in idle})


def test_a_rule_is_idle_when_it_removes_nothing_from_any_runtime() -> None:
    assert dead_rules([slimming(runtime) for runtime in RUNTIMES]) == []
    first, *others = RUNTIMES
    assert dead_rules([slimming(first, "**/*.pyi"), *map(slimming, others)]) == []
    assert dead_rules([slimming(runtime, "**/*.pyi") for runtime in RUNTIMES]) == ["**/*.pyi"]


def test_a_runtimes_own_rule_is_idle_when_it_removes_nothing_there() -> None:
    measured = [slimming(runtime, *["triton/**"][: runtime == "embeddings"]) for runtime in RUNTIMES]
    assert dead_rules(measured) == ["embeddings: triton/**"]


def test_the_bar_is_met_or_not() -> None:
    assert Slimming("transformers", 1000, 700, {}).row().met
    assert not Slimming("transformers", 1000, 701, {}).row().met
    assert Slimming("vllm", 1000, 1000, {}).row().met
    assert not Slimming("vllm", 1000, 1001, {}).row().met
