"""What keeps a locked model from being built: each objection at its line of models.yaml, all in one error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelbake.errors import UnfitModel
from modelbake.yamlfile import raise_problems

if TYPE_CHECKING:
    from modelbake.config import Config


@dataclass(frozen=True, slots=True)
class Objection:
    """Something that is wrong with a model's files: `key` is the model's key that can mend it."""

    key: str
    message: str


def raise_objections(config: Config, found: Mapping[str, Sequence[Objection]]) -> None:
    """Raise UnfitModel with all objections, which are given by model; return where there are none."""
    problems = [
        config.problem(name, objection.key, objection.message)
        for name, objections in found.items()
        for objection in objections
    ]
    raise_problems(config.path, problems, UnfitModel)
