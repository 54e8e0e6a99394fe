"""A layer as a piece of work: what is sent, what comes back, and what is in neither of them."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import pytest

from modelbake import __version__
from modelbake.credentials import Secret
from modelbake.errors import ClusterError, RegistryAuthError, SourceError, WrongBytes
from modelbake.plan import WeightGroup
from modelbake.stream import task as task_module
from modelbake.stream.flow import TAR
from modelbake.stream.task import LayerFailure, LayerResult, LayerTask, other_version, stream_layer
from tests.servers.hub import Fault
from tests.servers.upload_registry import PASSWORD
from tests.unit.stream.far import FILES, Far, again, far_away
from tests.unit.stream.material import bytes_of


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Far]:
    with far_away(tmp_path) as made:
        for name, value in made.environment().items():
            monkeypatch.setenv(name, value)
        yield made


def failure(task: LayerTask) -> LayerFailure:
    outcome = stream_layer(task)
    assert isinstance(outcome, LayerFailure)
    assert outcome.error.__cause__ is None and outcome.error.__traceback__ is None
    assert type(again(outcome).error) is type(outcome.error)
    return outcome


def test_a_task_needs_nothing_but_what_this_machine_has(far: Far) -> None:
    task = again(far.task())
    assert task == far.task()
    result = stream_layer(task)
    assert isinstance(result, LayerResult), result
    assert again(result) == result
    assert (result.blob.media_type, result.worker) == (TAR, "")
    assert far.server.blobs("ml/weights") == {result.blob.digest: bytes_of(FILES)}
    assert [(each.file.path, each.attempts) for each in result.verified] == [
        ("config.json", 1),
        ("model.safetensors", 1),
    ]
    assert not far.hub.token_leaks()


def test_neither_a_task_nor_what_comes_back_has_a_secret(far: Far) -> None:
    sent = pickle.dumps(far.task()) + repr(far.task()).encode()
    outcome = stream_layer(far.task())
    back = pickle.dumps(outcome) + repr(outcome).encode()
    for secret in (far.token, PASSWORD):
        assert secret.encode() not in sent + back
    assert b"model.safetensors" in sent and b"model.safetensors" in back, "control"


@pytest.mark.parametrize("name", [field.name for field in fields(LayerTask)])
def test_a_secret_that_is_put_into_a_task_cannot_be_sent(far: Far, name: str) -> None:
    with pytest.raises(TypeError, match="a Secret is not pickled"):
        pickle.dumps(replace(far.task(), **cast(Any, {name: Secret(far.token)})))


def test_wrong_bytes_come_back_as_such(far: Far) -> None:
    far.hub.faults.add(Fault("corrupt", "*.safetensors", offset=1000))
    error = failure(far.task()).error
    assert isinstance(error, WrongBytes)
    assert (error.subject, "models.lock" in str(error) or "lock --check" in error.hint) == (
        "model.safetensors",
        True,
    )
    assert far.server.blobs("ml/weights") == {} and not far.server.sessions


def test_a_token_is_missing_where_the_work_is_done(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    error = failure(far.task()).error
    assert isinstance(error, SourceError), error
    assert far.server.blobs("ml/weights") == {}


def test_a_registry_that_refuses_the_worker(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELBAKE_REGISTRY_PASSWORD", "another-password")
    error = failure(far.task()).error
    assert isinstance(error, RegistryAuthError)
    assert far.host in error.subject
    assert far.hub.bytes_sent("*.safetensors") in range(300_001)


def test_what_an_error_says_of_a_secret_is_masked(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(*_: object) -> object:
        raise SourceError(f"no {far.token}", subject=PASSWORD, hint=f"try {far.token}") from ValueError(
            far.token
        )

    monkeypatch.setattr(task_module, "reader_for", careless)
    outcome = failure(far.task())
    assert str(outcome.error) == "***: no ***\n  hint: try ***"
    assert far.token.encode() not in pickle.dumps(outcome)


def test_a_defect_is_named_and_its_text_kept_back(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    def defective(*_: object) -> object:
        raise ZeroDivisionError(far.token)

    monkeypatch.setattr(task_module, "reader_for", defective)
    error = failure(far.task()).error
    assert isinstance(error, ClusterError)
    assert "ZeroDivisionError at test_task.py:" in error.message
    assert far.token not in str(error)


def test_another_version_does_no_work(far: Far) -> None:
    error = failure(replace(far.task(), version="9.9.9")).error
    assert isinstance(error, ClusterError)
    assert f"modelbake {__version__}" in error.message and "here it is 9.9.9" in error.message
    assert far.hub.requests() == []


def test_workers_of_other_versions_are_all_named() -> None:
    said = str(other_version({"b": "0.2.0", "a": ""}, "0.1.0"))
    assert "a has no modelbake, b has modelbake 0.2.0; here it is 0.1.0" in said
    assert "install modelbake 0.1.0" in said


def test_a_group_of_another_model_is_no_other_task(far: Far) -> None:
    """What a task says of its files is compared with what comes, whatever the hub has."""
    wrong = WeightGroup(tuple(replace(file, sha256="0" * 64) for file in far.group.files))
    assert isinstance(failure(replace(far.task(), group=wrong)).error, WrongBytes)
