from __future__ import annotations

from typing import Any

import pytest

from modelbake.config import ModelSpec
from modelbake.objections import Objection
from modelbake.pickles import is_pickle, pickle_objections


def spec(**keys: Any) -> ModelSpec:
    return ModelSpec(**{"name": "m", "version": "1.0.0", "source": "hf://a/b", "runtime": "r", **keys})


@pytest.mark.promise("pickles")
@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "a/b.pt", "b.PTH", "v1.ckpt", "x.pkl", "x.pickle", "x.joblib"]
)
def test_pickles_by_name(name: str) -> None:
    assert is_pickle(name)
    (found,) = pickle_objections(spec(), ["model.safetensors", name])
    assert found.key == "exclude" and name in found.message


@pytest.mark.parametrize(
    "name", ["model.safetensors", "q4.gguf", "bin", "a.bin.index.json", "bin/config.json", "robin", "a.npz"]
)
def test_other_files_are_none(name: str) -> None:
    assert not is_pickle(name)
    assert pickle_objections(spec(), [name]) == []


def test_the_remedy_can_be_copied() -> None:
    files = ["model.safetensors", "pytorch_model.bin", "rng.pth", "old/pytorch_model.bin"]
    (found,) = pickle_objections(spec(exclude=["onnx/*"]), files)
    assert found == Objection(
        "exclude",
        "m holds old/pytorch_model.bin, pytorch_model.bin, rng.pth: by name a pickle, and loading one can"
        ' run any code. Leave it out with `exclude: ["onnx/*", "*.bin", "*.pth"]`, have it converted with'
        " `convert: safetensors`, or bake it in all the same with"
        ' `allow_pickle: ["old/pytorch_model.bin", "pytorch_model.bin", "rng.pth"]`',
    )
    (found,) = pickle_objections(spec(), files[1:])
    assert "there are no safetensors beside" in found.message


def test_what_is_allowed_by_name_is_allowed_alone() -> None:
    files = ["model.safetensors", "a.bin", "b.bin"]
    assert pickle_objections(spec(allow_pickle=["a.bin", "b.bin"]), files) == []
    (found,) = pickle_objections(spec(allow_pickle=["a.bin"]), files)
    assert "m holds b.bin:" in found.message
    assert 'exclude: ["b.bin"]' in found.message, "`*.bin` would leave out what is allowed"
    assert 'allow_pickle: ["a.bin", "b.bin"]' in found.message


def test_an_allowed_name_that_is_no_file() -> None:
    (found,) = pickle_objections(spec(allow_pickle=["model.bin", "modle.bin"]), ["model.bin"])
    assert found == Objection(
        "allow_pickle",
        "m has no file \"modle.bin\" at the locked commit; did you mean 'model.bin'?; name the files that"
        " `include` and `exclude` select",
    )


def test_of_what_is_added_the_entry_leaves_it_out() -> None:
    added = ({"source": "s3://models/legal", "into": "adapter"},)
    (found,) = pickle_objections(spec(add=added), ["model.safetensors", "adapter/x.bin"])
    assert "Leave it out with `exclude` of what `add` puts into adapter, " in found.message
    (both,) = pickle_objections(spec(add=added), ["a.bin", "adapter/x.bin"])
    assert '`exclude: ["*.bin"]` and `exclude` of what `add` puts into adapter' in both.message
