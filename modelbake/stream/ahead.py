"""The weights of several models at once, before each model is published in its turn.

A cluster has more workers than one model may have layers. So all layers that any of the models lacks are
streamed together, the largest first; publishing then finds them in the registry.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelbake.errors import ModelbakeError
from modelbake.parallel import try_all
from modelbake.stream.flow import refuse_wrong_empty_files
from modelbake.stream.layers import WeightLayer
from modelbake.stream.publish import WeightsSpec, ensure_layer, recall_layers

if TYPE_CHECKING:
    from modelbake.plan import WeightGroup
    from modelbake.stream.pool import LayerPool
    from modelbake.stream.repository import RegistryRepository
    from modelbake.stream.view import TransferView


@dataclass(frozen=True)
class Wanted:
    """The weights of one model, and the repository that is to have them."""

    spec: WeightsSpec
    repository: RegistryRepository


def stream_ahead(wanted: Sequence[Wanted], pool: LayerPool, view: TransferView) -> dict[str, ModelbakeError]:
    """Have all layers streamed by a pool; return why a model's layers are not all there, by its name.

    One model's error does not keep the others' layers from being streamed; of its own no more are begun. A
    layer that several models share is streamed once.
    """
    failed: dict[str, ModelbakeError] = {}
    layers: dict[tuple[str, str, str], tuple[Wanted, WeightGroup]] = {}
    for each in wanted:
        try:
            if recall_layers(each.repository, each.spec) is not None:
                continue  # remembered as a whole; whether all of it is still there, `publish` looks
            for group in each.spec.groups:
                refuse_wrong_empty_files(WeightLayer(group))
        except ModelbakeError as error:
            failed[each.spec.locked.name] = error
            continue
        for group in each.spec.groups:
            layers.setdefault((each.repository.name, group.digest, each.spec.compression), (each, group))

    def ensure(unit: tuple[Wanted, WeightGroup]) -> None:
        (spec, repository), group = (unit[0].spec, unit[0].repository), unit[1]
        if spec.locked.name in failed:
            return
        try:
            ensure_layer(
                group,
                spec.compression,
                repository,
                lambda group: pool.stream(spec.locked, group, spec.compression, repository, view, never),
                view,
            )
        except ModelbakeError as error:
            failed.setdefault(spec.locked.name, error)

    never = threading.Event()  # what runs when the user gives up is called off by the end of the pool
    ordered = sorted(layers.values(), key=lambda unit: unit[1].size, reverse=True)
    with view.layers(len(ordered), sum(group.size for _, group in ordered)):
        try_all(ordered, ensure, pool.slots)
    return failed
