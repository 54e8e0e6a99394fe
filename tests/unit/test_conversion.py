"""Which files `convert` converts, what they become, and when a locked conversion still holds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modelbake.config import ModelSpec
from modelbake.conversion import (
    DECISIVE,
    conversion_changes,
    conversion_objections,
    converted_names,
    identity,
    image_files,
    instructions,
    kept_conversion,
)
from modelbake.errors import LockDrift, RenderError, UsageError
from modelbake.fitness import Evidence, objections
from modelbake.lock import Conversion, Lock, LockedFile, LockedModel, config_drift, require_locked
from modelbake.output import Output
from modelbake.stream.lane import Lane
from modelbake.workspace import Workspace
from tests.unit.planning import converting, planned
from tests.unit.test_fitness import runtime

ROOT = Path(__file__).resolve().parents[2]
CONVERTER = "sha256:" + "12" * 32
SHARDS = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
INDEX = "pytorch_model.bin.index.json"


def spec(**keys: Any) -> ModelSpec:
    wanted = {"name": "m", "version": "1.0.0", "source": "hf://a/b", "runtime": "small", **keys}
    return ModelSpec(**{"convert": "safetensors", **wanted})


@pytest.mark.parametrize(
    ("path", "becomes"),
    [
        ("pytorch_model.bin", "model.safetensors"),
        ("pytorch_model-00001-of-00002.bin", "model-00001-of-00002.safetensors"),
        ("pytorch_model.fp16.bin", "model.fp16.safetensors"),
        ("2_Dense/pytorch_model.bin", "2_Dense/model.safetensors"),
        ("unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.safetensors"),
        ("consolidated.00.pth", "consolidated.00.safetensors"),
        ("original/consolidated.00.PTH", "original/consolidated.00.safetensors"),
        ("weights.pt", "weights.safetensors"),
        ("adapter_model.bin", "adapter_model.safetensors"),
        ("model.ckpt", None),
        ("scaler.pkl", None),
        ("bin", None),
        ("a.bin.md", None),
        ("model.safetensors", None),
    ],
)
def test_what_a_file_becomes(path: str, becomes: str | None) -> None:
    assert converted_names(spec(), [path]) == ({path: becomes} if becomes else {})
    assert converted_names(spec(convert="none"), [path]) == {}
    assert image_files(spec(), [path]) == [becomes or path]


def test_an_index_goes_with_its_parts() -> None:
    files = [*SHARDS, INDEX, "onnx/pytorch_model.bin.index.json", "config.json"]
    names = converted_names(spec(), files)
    assert names == {
        INDEX: "model.safetensors.index.json",
        SHARDS[0]: "model-00001-of-00002.safetensors",
        SHARDS[1]: "model-00002-of-00002.safetensors",
    }
    told = json.loads(instructions(names))
    assert told["indexes"] == {INDEX: "model.safetensors.index.json"}
    assert sorted(told["weights"]) == SHARDS
    assert converted_names(spec(allow_pickle=SHARDS), files) == {}, "an index of what stays stays"


def test_what_allow_pickle_names_stays_as_it_is() -> None:
    files = ["config.json", "pytorch_model.bin", "tables.bin"]
    both = spec(allow_pickle=["tables.bin"])
    assert image_files(both, files) == ["config.json", "model.safetensors", "tables.bin"]
    assert conversion_objections(both, files, None) == []
    (found,) = conversion_objections(spec(allow_pickle=["tables.bin"]), ["tables.bin"], None)
    assert (
        found.key == "convert"
        and "`allow_pickle` names all that m has to convert: tables.bin" in found.message
    )


@pytest.mark.parametrize(
    ("files", "upstream", "words"),
    [
        (
            ["config.json"],
            None,
            "m has no file to convert, none that ends in .bin, .pt or .pth: remove `convert`",
        ),
        (["config.json"], ["config.json"], "remove `convert`"),
        (["a.ckpt"], None, "(and a.ckpt cannot be converted): remove `convert`"),
        (["config.json"], ["pytorch_model.bin"], "leave out all that could be converted: pytorch_model.bin"),
        (
            ["model.safetensors", "pytorch_model.bin"],
            None,
            "pytorch_model.bin of m would become model.safetensors, which is there already: leave one out"
            ' with `exclude: ["pytorch_model.bin"]`',
        ),
        (["x.bin", "x.pt"], None, "x.bin and x.pt of m would both become x.safetensors: leave one out"),
        (["x.bin", "X.safetensors"], None, "which cannot both exist"),
        ([f"{'x' * 251}.bin"], None, "would get a name that has a part longer than 255 bytes"),
    ],
)
def test_what_cannot_be_converted(files: list[str], upstream: list[str] | None, words: str) -> None:
    (found,) = conversion_objections(spec(), files, upstream)
    assert found.key == "convert"
    assert words in found.message
    assert conversion_objections(spec(convert="none"), files, upstream) == []


NEEDED = ["config.json", "tokenizer.json"]


def test_needs_are_met_by_what_files_become() -> None:
    assert objections(spec(), runtime(), Evidence([*NEEDED, "pytorch_model.bin"])) == []
    refused = objections(spec(convert="none"), runtime(), Evidence([*NEEDED, "pytorch_model.bin"]))
    assert [each.key for each in refused] == ["exclude", "runtime"], (
        "control: unconverted it is no safetensors"
    )
    assert "or have" not in refused[0].message and "`convert: safetensors`" in refused[0].message
    (found,) = objections(spec(), runtime(), Evidence(NEEDED, [*NEEDED, "pytorch_model.bin"]))
    assert found.key == "convert"


def test_other_pickles_are_refused_all_the_same() -> None:
    (found,) = objections(spec(), runtime(), Evidence([*NEEDED, "pytorch_model.bin", "scaler.pkl"]))
    assert found.message.startswith("m holds scaler.pkl: by name a pickle")
    assert "`convert: safetensors`" not in found.message, "it would not help"


def test_parts_have_to_be_whole_before_they_are_converted() -> None:
    whole = [*NEEDED, *SHARDS, INDEX]
    assert objections(spec(), runtime(), Evidence(whole, whole)) == []
    evidence = Evidence([path for path in whole if path != SHARDS[1]], whole)
    (found,) = objections(spec(exclude=["*00002*.bin"]), runtime(), evidence)
    assert f"m lacks {SHARDS[1]}, one of 2 parts; upstream has it" in found.message
    (found,) = objections(spec(), runtime(), Evidence([*NEEDED, *SHARDS], [*NEEDED, *SHARDS]))
    assert f"m lacks {INDEX}" in found.message


def test_parts_of_a_pickle_have_to_be_whole_for_a_runtime_that_needs_nothing() -> None:
    indulgent = runtime(needs={})
    assert objections(spec(), indulgent, Evidence(SHARDS)) == [], "an index is not asked for"
    (found,) = objections(spec(), indulgent, Evidence(SHARDS[:1]))
    assert f"m lacks {SHARDS[1]}, one of 2 parts" in found.message
    unconverted = spec(convert="none", allow_pickle=SHARDS[:1])
    assert objections(unconverted, indulgent, Evidence(SHARDS[:1])) == [], "control: baked in as it is"


def test_what_a_runtime_takes_once_is_counted_after_conversion() -> None:
    single = runtime(needs={"weights": ("*.safetensors",)}, single=("weights",))
    assert objections(spec(), single, Evidence([*SHARDS, INDEX])) == []
    (found,) = objections(spec(), single, Evidence(["a.bin", "b.bin"]))
    assert "2 candidates for the weights" in found.message


def file(path: str, sha: str = "ab") -> LockedFile:
    return LockedFile(path, 10, sha * 32)


def locked(*files: LockedFile, converted: Conversion | None = None, **keys: Any) -> LockedModel:
    given = files or (file("config.json"), file("pytorch_model.bin"))
    return replace(LockedModel.of(spec(**keys), "0" * 40, given), converted=converted)


DONE = Conversion(CONVERTER, ("pytorch_model.bin",), (file("model.safetensors", "cd"),))


def test_a_locked_conversion_holds_as_long_as_nothing_that_decides_about_it_changes() -> None:
    had = locked(converted=DONE)
    assert conversion_changes(spec(), had, CONVERTER) == []
    assert conversion_changes(spec(convert="none"), locked(), CONVERTER) == []
    for wanted, entry, converter, words in [
        (spec(convert="none"), had, CONVERTER, "convert was safetensors, is not there"),
        (spec(), locked(), CONVERTER, "convert was not there, is safetensors"),
        (spec(), had, "sha256:" + "34" * 32, f"the converter was {CONVERTER}, is sha256:3434"),
        (spec(), had, "", "is not known"),
        (
            spec(allow_pickle=["pytorch_model.bin"]),
            had,
            CONVERTER,
            "what is converted was pytorch_model.bin, is ",
        ),
        (
            spec(),
            locked(converted=replace(DONE, files=(file("x.safetensors"),))),
            CONVERTER,
            "the converted files were x.safetensors, are model.safetensors",
        ),
    ]:
        (change,) = conversion_changes(wanted, entry, converter)
        assert words in change
        with pytest.raises(LockDrift, match="is not of this models"):
            require_locked(wanted, Lock({"m": entry}), converter)
    assert require_locked(spec(), Lock({"m": had}), CONVERTER) is had


def test_drift_of_a_conversion_is_found_without_asking_anybody() -> None:
    plan = converting(planned())
    lock = Lock({plan.name: plan.locked})
    from modelbake.config import Config

    config = Config(path=Path("models.yaml"), registry="r.example.com/ml", models={plan.name: plan.spec})
    assert config_drift(config, lock, CONVERTER) == []
    (drift,) = config_drift(config, lock, "sha256:" + "34" * 32)
    assert drift.kind == "changed" and "the converter was" in drift.detail


def test_only_the_same_pickles_are_not_converted_again() -> None:
    previous = locked(converted=DONE)
    assert kept_conversion(spec(), locked(), previous, CONVERTER) is DONE
    more = locked(file("README.md"), file("config.json", "99"), file("pytorch_model.bin"))
    assert kept_conversion(spec(), more, previous, CONVERTER) is DONE, "other files have no part in it"
    changed = locked(file("config.json"), file("pytorch_model.bin", "99"))
    assert kept_conversion(spec(), changed, previous, CONVERTER) is None
    assert kept_conversion(spec(), locked(file("x.bin")), previous, CONVERTER) is None
    assert kept_conversion(spec(), locked(), previous, "sha256:" + "34" * 32) is None
    assert kept_conversion(spec(), locked(), locked(), CONVERTER) is None
    assert kept_conversion(spec(), locked(), None, CONVERTER) is None


def test_the_identity_is_that_of_what_decides_about_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "builder").mkdir()
    for name in DECISIVE:
        (tmp_path / name).write_bytes((ROOT / "images" / name).read_bytes())
    here = identity.__wrapped__(ROOT / "images")
    assert identity.__wrapped__(tmp_path) == here
    for name in DECISIVE:
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content + b"\n")
        assert identity.__wrapped__(tmp_path) != here, name
        (tmp_path / name).write_bytes(content)
    (tmp_path / DECISIVE[0]).unlink()
    with pytest.raises(RenderError, match="cannot read"):
        identity.__wrapped__(tmp_path)


def test_what_convert_py_imports_of_ours_is_part_of_its_identity_or_decides_nothing() -> None:
    """events, manifest and tree say how a run ended and which paths are safe; they write no tensor."""
    import ast

    ours = {path.stem for path in (ROOT / "images/builder").glob("*.py")}
    found = set()
    for name in DECISIVE:
        if name.endswith(".py"):
            for node in ast.walk(ast.parse((ROOT / "images" / name).read_text())):
                if isinstance(node, ast.ImportFrom) and node.module in ours:
                    found.add(node.module)
    assert found == {"events", "manifest", "state_dict", "tree"}


def test_an_image_has_what_files_become_in_groups_of_their_own() -> None:
    plan = converting(planned())
    assert [[file.path for file in group.files] for group in plan.groups] == [
        ["model.safetensors"],
        ["config.json"],
    ]
    assert [group.converted for group in plan.groups] == [True, False]
    assert plan.conversion is not None
    assert [[file.path for file in group.files] for group in plan.conversion.groups] == [
        ["pytorch_model.bin"]
    ]
    assert plan.locked.size == 612 + plan.locked.weights[1].size
    assert [file.path for file in plan.locked.replaced] == ["pytorch_model.bin"]
    assert planned().conversion is None
    assert planned().locked.weights == planned().locked.files


@pytest.mark.promise("lock")
def test_the_digest_is_of_everything_that_is_locked() -> None:
    had = locked(converted=DONE)
    others = [
        locked(),
        locked(converted=replace(DONE, converter="sha256:" + "34" * 32)),
        locked(converted=replace(DONE, replaces=("config.json",))),
        locked(converted=replace(DONE, files=(file("model.safetensors", "99"),))),
        locked(file("config.json"), file("pytorch_model.bin", "99"), converted=DONE),
    ]
    assert len({each.digest for each in [had, *others]}) == 6


def test_the_stream_lane_says_what_to_use_instead(tmp_path: Path) -> None:
    def lane(plan: Any) -> Lane:
        return Lane(Workspace(tmp_path / "models.yaml"), plan, secrets={}, output=Output(), jobs=1)

    with pytest.raises(UsageError, match="convert: safetensors") as caught:
        lane(converting(planned()))
    assert "use `build`, `smoke` and `push`" in caught.value.hint
    with lane(planned()):
        pass


def test_what_is_added_stays_as_it_is() -> None:
    added = ({"source": "s3://models/legal", "into": "adapter"},)
    model = spec(add=added)
    assert converted_names(model, ["a.bin", "adapter/b.bin"]) == {"a.bin": "a.safetensors"}
