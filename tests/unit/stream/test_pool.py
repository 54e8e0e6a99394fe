"""Layers that an executor streams: what is shown, what is called off, and what becomes of its failures."""

from __future__ import annotations

import io
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modelbake.errors import ClusterError, Interrupted, ReadBackMismatch, SourceAuthError, WrongBytes
from modelbake.output import Output
from modelbake.stream.ahead import Wanted, stream_ahead
from modelbake.stream.pool import LayerPool, _forward
from modelbake.stream.publish import WeightsSpec, ensure_layers, recall_layer
from modelbake.stream.task import LayerFailure, LayerResult, stream_layer
from modelbake.stream.view import TransferView
from tests.servers.hub import Fault
from tests.unit.stream.far import FILES, Far, again, far_away
from tests.unit.stream.material import stored


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Far]:
    with far_away(tmp_path) as made:
        for name, value in made.environment().items():
            monkeypatch.setenv(name, value)
        yield made


class Said:
    """A view, and what was seen in it."""

    def __init__(self) -> None:
        self.stderr = io.StringIO()
        self.view = TransferView(Output(stdout=io.StringIO(), stderr=self.stderr))

    @property
    def text(self) -> str:
        return self.stderr.getvalue()


class Doing(Executor):
    """An executor that does something else than it is asked for."""

    def __init__(self, action: Callable[[], Any]) -> None:
        self._action = action
        self.futures: list[Future[Any]] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.futures.append(future)
        try:
            if (made := self._action()) is not None:
                future.set_result(made)
        except Exception as error:
            future.set_exception(error)
        return future


def no_reader(stop: threading.Event) -> Any:
    raise AssertionError("nothing is read here")


def test_any_executor_streams_layers(far: Far) -> None:
    """Here threads; the work itself is the one function that a cluster gets as well."""
    said = Said()
    spec = WeightsSpec(far.locked, (far.group,), "none", "amd64")
    with ThreadPoolExecutor(2) as executor, far.repository() as repository:
        pool = LayerPool(executor, 2)
        layers = ensure_layers(spec, repository, no_reader, said.view, pool=pool, jobs=pool.slots)
        assert layers == (stored(FILES),)
        assert recall_layer(repository, far.group, "none") == layers[0]
        asked = len(far.hub.requests())
        assert ensure_layers(spec, repository, no_reader, said.view, pool=pool) == layers
    assert len(far.hub.requests()) == asked
    assert said.text.count("fetched model.safetensors (300,000 bytes") == 1
    assert "stored model.safetensors +1 as sha256:" in said.text


def test_another_process_streams_layers(far: Far) -> None:
    said = Said()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as executor, far.repository() as repository:
        made = LayerPool(executor, 1).stream(
            far.locked, far.group, "zstd", repository, said.view, threading.Event()
        )
    assert made == stored(FILES, "zstd")


def test_errors_of_the_work_are_raised_here(far: Far) -> None:
    far.hub.faults.add(Fault("corrupt", "*.safetensors", offset=1000))
    with ThreadPoolExecutor(1) as executor, far.repository() as repository, pytest.raises(WrongBytes):
        LayerPool(executor, 1).stream(
            far.locked, far.group, "none", repository, Said().view, threading.Event()
        )


def test_what_an_executor_fails_with_is_said_in_our_words(far: Far) -> None:
    def lost() -> None:
        raise RuntimeError("hf_of_some_worker")

    with far.repository() as repository, pytest.raises(ClusterError, match="RuntimeError") as caught:
        LayerPool(Doing(lost), 1).stream(
            far.locked, far.group, "none", repository, Said().view, threading.Event()
        )
    assert "hf_of_some_worker" not in str(caught.value)


def test_a_layer_that_is_not_where_it_should_be(far: Far) -> None:
    """A worker may know another machine by the registry's name."""
    elsewhere = stored(FILES)
    result = LayerResult(elsewhere.blob, elsewhere.diff_id, elsewhere.samples, (), "far-off")
    with far.repository() as repository, pytest.raises(ReadBackMismatch, match="far-off has sent"):
        LayerPool(Doing(lambda: result), 1).stream(
            far.locked, far.group, "none", repository, Said().view, threading.Event()
        )


def test_work_is_called_off(far: Far) -> None:
    never, stop = Doing(lambda: None), threading.Event()
    stop.set()
    with far.repository() as repository, pytest.raises(Interrupted):
        LayerPool(never, 1).stream(far.locked, far.group, "none", repository, Said().view, stop)
    assert never.futures[0].cancelled()


def test_useless_waiting_ends(far: Far) -> None:
    class Gone(LayerPool):
        def check(self) -> None:
            raise ClusterError("all workers are gone")

    never = Doing(lambda: None)
    with far.repository() as repository, pytest.raises(ClusterError, match="all workers are gone"):
        Gone(never, 1).stream(far.locked, far.group, "none", repository, Said().view, threading.Event())
    assert never.futures[0].cancelled()


def test_a_layer_that_begins_again_is_not_counted_twice() -> None:
    heard: list[int] = []
    tell = _forward(heard.append)
    for passed in (10, 30, 5, 20, 40, 40):
        tell(passed)
    assert heard == [10, 20, 10]


def test_one_model_s_error_leaves_the_other_s_layers_alone(far: Far, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    said = Said()
    with far_away(tmp_path / "other") as bad, ThreadPoolExecutor(2) as executor, far.repository() as target:
        broken = replace(bad.locked, name="broken")
        wanted = [
            Wanted(WeightsSpec(broken, (bad.group,), "zstd", "amd64"), target),
            Wanted(WeightsSpec(far.locked, (far.group,), "none", "amd64"), target),
            Wanted(WeightsSpec(replace(far.locked, name="same"), (far.group,), "none", "amd64"), target),
        ]
        failed = stream_ahead(wanted, LayerPool(executor, 2), said.view)
        assert set(failed) == {"broken"}, "its hub knows another token"
        assert recall_layer(target, far.group, "none") == stored(FILES)
        assert recall_layer(target, bad.group, "zstd") is None
        assert far.hub.bytes_sent("*.safetensors") == 300_000, "a shared layer is streamed once"
        assert stream_ahead(wanted[1:], LayerPool(executor, 2), said.view) == {}
    assert far.hub.bytes_sent("*.safetensors") == 300_000


def test_the_function_that_is_sent_is_found_by_name() -> None:
    assert again(stream_layer) is stream_layer


def test_whose_failure_it_is_is_said(far: Far) -> None:
    def fail() -> LayerFailure:
        return LayerFailure(SourceAuthError("there are no usable AWS credentials", subject="m"), "one")

    with far.repository() as repository:
        for worker, said in (("one", r"credentials \(on the worker one\)"), ("", "credentials$")):
            pool = LayerPool(Doing(lambda worker=worker: replace(fail(), worker=worker)), 1)  # type: ignore[misc]
            with pytest.raises(SourceAuthError, match=said):
                pool.stream(far.locked, far.group, "none", repository, Said().view, threading.Event())
