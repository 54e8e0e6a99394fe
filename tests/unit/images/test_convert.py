"""convert.py with real torch: what it makes of weights, and what it refuses to load."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.servers.pickled import HOSTILE, Call, archive, save
from tests.unit.images.test_slim import BUILDER, builder

torch: Any = pytest.importorskip("torch", reason="`make test` installs requirements/reference.txt")
safetensors: Any = pytest.importorskip("safetensors")


def load_file(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = importlib.import_module("safetensors.torch").load_file(path)
    return loaded


class Bench:
    """A folder with pickles, and the program run on them in this process."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capsys = capsys
        (folder / "pickles").mkdir()
        self.weights: dict[str, str] = {}
        self.indexes: dict[str, str] = {}

    def put(self, source: str, content: bytes, becomes: str, group: int = 0) -> None:
        path = self.folder / "pickles" / str(group) / source
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        (self.indexes if source.endswith(".index.json") else self.weights)[source] = becomes

    def arguments(self, output: str = "out") -> list[str]:
        document = {"schema": 1, "weights": self.weights, "indexes": self.indexes}
        (self.folder / "convert.json").write_text(json.dumps(document))
        return [str(self.folder / name) for name in ("convert.json", "pickles", output)]

    def run(self, output: str = "out") -> tuple[int, list[dict[str, Any]]]:
        code = builder("convert").main(self.arguments(output))
        said = self._capsys.readouterr()
        return code, [json.loads(line) for line in (said.out + said.err).splitlines()]

    def refuse(self) -> str:
        """Run it; return why it refused, which names the file."""
        code, events = self.run()
        assert (code, events[-1]["code"]) == (28, 28), events
        message: str = events[-1]["message"]
        assert message.startswith(f"{events[-1]['file']}: ")
        assert message.isprintable() and len(message) < 1000
        assert not (self.folder / "out" / "converted.json").exists()
        return message

    def models(self) -> Path:
        code, events = self.run()
        assert code == 0, events
        return self.folder / "out" / "models"


@pytest.fixture
def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Bench:
    return Bench(tmp_path, capsys)


def one(bench: Bench, value: Any, **how: Any) -> None:
    bench.put("pytorch_model.bin", save(value, **how), "model.safetensors")


def same(one: Any, other: Any) -> bool:
    return bool(one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other))


def assorted() -> dict[str, Any]:
    """Return tensors that safetensors does not take as they are: tied, overlapping, transposed, empty."""
    base = torch.arange(48, dtype=torch.float32).reshape(6, 8)
    return {
        "embed": base,
        "head": base,
        "rows": base[2:4],
        "columns": base[:, 1:3],
        "turned": base.t(),
        "repeated": torch.ones(1, 3).expand(4, 3),
        "middle": base[3:3],
        "scalar": torch.tensor(7),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "conjugate": torch.tensor([1 + 2j], dtype=torch.complex64).conj(),
        "half": torch.tensor([0.5, -1.0], dtype=torch.bfloat16),
        "flags": torch.tensor([True, False]),
        "tiny": torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn),
    }


@pytest.mark.parametrize("legacy", [False, True])
def test_every_tensor_keeps_its_name_dtype_shape_and_values(bench: Bench, legacy: bool) -> None:
    tensors = assorted()
    if legacy:
        del tensors["tiny"]  # a dtype that is younger than the format
    one(bench, tensors, legacy=legacy)
    found = load_file(bench.models() / "model.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        wanted = tensor.detach().resolve_conj()
        if name == "tiny":  # no comparison is made of these
            wanted, found[name] = wanted.view(torch.uint8), found[name].view(torch.uint8)
        assert same(found[name], wanted), name
    with safetensors.safe_open(bench.folder / "out/models/model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


@pytest.mark.promise("lock")
def test_the_same_pickles_give_the_same_bytes_in_every_process(bench: Bench) -> None:
    tensors = assorted()
    one(bench, tensors)
    outputs = []
    for number, seed in enumerate(("1", "2")):
        command = [sys.executable, str(BUILDER / "convert.py"), *bench.arguments(f"out{number}")]
        done = subprocess.run(
            command, env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        made = bench.folder / f"out{number}"
        outputs.append({path.name: path.read_bytes() for path in made.rglob("*") if path.is_file()})
    assert outputs[0] == outputs[1]
    assert outputs[0].keys() == {"converted.json", "model.safetensors"}
    one(bench, dict(reversed(tensors.items())))
    bench.models()
    reordered = (bench.folder / "out/models/model.safetensors").read_bytes()
    assert reordered == outputs[0]["model.safetensors"], "the order in a pickle says nothing of the tensors"
    one(bench, {**tensors, "half": tensors["half"] * 2})
    code, _ = bench.run("other")
    assert code == 0
    other = (bench.folder / "other/models/model.safetensors").read_bytes()
    assert other != reordered, "control: other values are other bytes"


def test_what_is_made_is_listed(bench: Bench) -> None:
    one(bench, {"a": torch.ones(3)})
    bench.put("deep/consolidated.00.pth", save({"b": torch.ones(2)}), "deep/consolidated.00.safetensors", 1)
    code, events = bench.run()
    assert code == 0
    assert [event["event"] for event in events] == ["converted", "converted"]
    listed = json.loads((bench.folder / "out/converted.json").read_text())["files"]
    assert [file["path"] for file in listed] == ["deep/consolidated.00.safetensors", "model.safetensors"]
    for file in listed:
        content = (bench.folder / "out/models" / file["path"]).read_bytes()
        assert (file["size"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("name", ["state_dict", "model", "module", "model_state_dict"])
def test_a_dictionary_in_a_wrapper(bench: Bench, name: str) -> None:
    one(bench, {name: {"a": torch.ones(2)}, "epoch": 3, "config": {"layers": [1, 2]}, "note": None})
    code, events = bench.run()
    assert code == 0
    assert events[0]["message"] == "left out, being no tensors: epoch, config, note"
    assert load_file(bench.folder / "out/models/model.safetensors").keys() == {"a"}


WEIGHT = {"a": torch.ones(2)}
AMBIGUOUS: dict[str, tuple[Callable[[], Any], str]] = {
    "two wrappers": (lambda: {"state_dict": WEIGHT, "model": WEIGHT}, "several dictionaries"),
    "an optimizer": (
        lambda: {"model": WEIGHT, "optimizer": {"state": {0: [torch.ones(1)]}}},
        "tensors beside its 'model': optimizer",
    ),
    "weights beside": (
        lambda: {"state_dict": WEIGHT, "bias": torch.ones(1)},
        "beside its 'state_dict': bias",
    ),
    "a dictionary in a wrapper": (lambda: {"model": {"model": WEIGHT}}, "'model' is a dict, and no tensor"),
    "another name": (lambda: {"weights": WEIGHT}, "'weights' is a dict, and no tensor"),
    "a number among tensors": (lambda: {**WEIGHT, "step": 3}, "'step' is a int, and no tensor"),
    "a list": (lambda: [torch.ones(2)], "holds a list"),
    "a tensor": (lambda: torch.ones(2), "holds a Tensor"),
    "nothing": (dict, "holds nothing"),
    "nothing in a wrapper": (lambda: {"model": {}}, "holds nothing"),
    "a number as a name": (lambda: {1: torch.ones(2)}, "1 is no name of a tensor"),
    "a reserved name": (lambda: {"__metadata__": torch.ones(2)}, "is no name of a tensor"),
    "a dtype": (lambda: {"a": torch.ones(2, dtype=torch.complex128)}, "dtype complex128"),
    "a sparse tensor": (lambda: {"a": torch.eye(3).to_sparse()}, "'a' is sparse"),
    "no values": (lambda: {"a": torch.ones(2, device="meta")}, "device meta"),
    "endless": (lambda: {"a": torch.ones(1).expand(1 << 40)}, "would become 4,398,046,511,104"),
}


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_what_is_no_plain_dictionary_of_tensors_is_refused(bench: Bench, kind: str) -> None:
    make, words = AMBIGUOUS[kind]
    one(bench, make())
    assert words in bench.refuse()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        b"no pickle",
        save(WEIGHT)[:300],
        b"\x80\x02}",
        bytes(1000),
        archive(b"\x80\x02X\xff"),
    ],
)
@pytest.mark.promise("parsers")
def test_what_is_no_whole_file_is_refused(bench: Bench, content: bytes) -> None:
    bench.put("pytorch_model.bin", content, "model.safetensors")
    message = bench.refuse()
    assert "torch cannot read it as weights alone: " in message
    assert "False" not in message, "torch recommends weights_only=False"


@pytest.mark.parametrize(
    "content", [b"<html>no such page", b"version https://git-lfs", bytes(8) + b'{"a": {}}', b"GGUF\3\0\0\0"]
)
def test_what_is_no_pickle_at_all_is_named_by_its_beginning(bench: Bench, content: bytes) -> None:
    bench.put("pytorch_model.bin", content, "model.safetensors")
    assert f"nothing that torch.save writes, for it begins with {content[:16]!r}" in bench.refuse()


@pytest.mark.parametrize("part", ["data/0", "data/1", "data.pkl"])
def test_an_archive_with_a_compressed_part_is_refused(bench: Bench, part: str) -> None:
    """Mapped, the compressed bytes would be taken for the numbers themselves."""
    content = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(save({"a": torch.zeros(1000), "b": torch.rand(1000)}))) as given,
        zipfile.ZipFile(content, "w") as made,
    ):
        for name in given.namelist():
            how = zipfile.ZIP_DEFLATED if name.endswith(part) else zipfile.ZIP_STORED
            made.writestr(name, given.read(name), compress_type=how)
    bench.put("pytorch_model.bin", content.getvalue(), "model.safetensors")
    assert f"{part} is compressed" in bench.refuse()


@pytest.mark.promise("pickles")
@pytest.mark.parametrize("kind", HOSTILE)
def test_no_pickle_runs_anything(bench: Bench, kind: str) -> None:
    mark = bench.folder / "mark"
    bench.put("pytorch_model.bin", HOSTILE[kind](str(mark)), "model.safetensors")
    message = bench.refuse()
    assert not mark.exists()
    assert "loading it would run" in message or "torch cannot read it" in message


@pytest.mark.control("pickles")
@pytest.mark.parametrize("kind", HOSTILE)
def test_each_of_these_pickles_does_run_where_it_may(tmp_path: Path, kind: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / "pytorch_model.bin"
    path.write_bytes(HOSTILE[kind](str(mark)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.load(path, weights_only=False)
        except Exception as error:  # what it leaves behind is no state of anything
            assert not isinstance(error, FileNotFoundError)
    assert mark.is_dir()


@pytest.mark.promise("pickles")
def test_the_environment_cannot_allow_what_is_refused(bench: Bench) -> None:
    mark = bench.folder / "mark"
    bench.put("x.pth", save(Call(Path.mkdir, mark)), "x.safetensors")
    for name in ("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "NOTHING"):
        done = subprocess.run(
            [sys.executable, str(BUILDER / "convert.py"), *bench.arguments(name)],
            env={name: "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 28, done.stderr
        assert not mark.exists()


def parts(bench: Bench, weight_map: Any, **more: Any) -> None:
    names = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    tied = torch.ones(4)
    bench.put(f"m/{names[0]}", save({"a": tied, "b": tied}), "m/model-00001-of-00002.safetensors")
    bench.put(f"m/{names[1]}", save({"c": torch.zeros(2)}), "m/model-00002-of-00002.safetensors", 1)
    index = {"metadata": {"total_size": 1, "kind": "x"}, "weight_map": weight_map, **more}
    bench.put(
        "m/pytorch_model.bin.index.json", json.dumps(index).encode(), "m/model.safetensors.index.json", 2
    )


FIRST, SECOND = "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"


def test_an_index_names_the_new_parts(bench: Bench) -> None:
    parts(bench, {"c": SECOND, "b": FIRST, "a": FIRST})
    index = json.loads((bench.models() / "m/model.safetensors.index.json").read_text())
    assert index == {
        "metadata": {"total_size": 40, "kind": "x"},
        "weight_map": {
            "a": "model-00001-of-00002.safetensors",
            "b": "model-00001-of-00002.safetensors",
            "c": "model-00002-of-00002.safetensors",
        },
    }


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        ({"a": FIRST, "b": FIRST, "c": "other.bin"}, "names other.bin, which is not among"),
        ({"a": FIRST, "b": FIRST, "c": "../m/" + SECOND}, "which is not among"),
        ({"a": FIRST, "b": FIRST, "c": FIRST}, "has no such tensor"),
        ({"a": FIRST, "c": SECOND}, "does not name b"),
        ({"a": 1}, "names 1, which is not among"),
        ({}, "no `weight_map`"),
        ([], "no `weight_map`"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(bench: Bench, weight_map: Any, words: str) -> None:
    parts(bench, weight_map)
    assert words in bench.refuse()


@pytest.mark.parametrize("content", [b"{", b"[]", b'"x"', b"[" * 100_000])
@pytest.mark.promise("parsers")
def test_an_index_that_is_none(bench: Bench, content: bytes) -> None:
    parts(bench, {"a": FIRST, "b": FIRST, "c": SECOND})
    bench.put("m/pytorch_model.bin.index.json", content, "m/model.safetensors.index.json", 2)
    assert bench.refuse().startswith("m/pytorch_model.bin.index.json: ")


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({}, "must name files"),
        ({"../a.bin": "a.safetensors"}, "not a safe path"),
        ({"a.bin": "/a.safetensors"}, "not a safe path"),
        ({"a.bin": "a.safetensors", "b.bin": "a.safetensors"}, "a file of its own"),
        ({"absent.bin": "a.safetensors"}, "absent.bin is 0 times below"),
        ([], "must map paths to paths"),
    ],
)
def test_wrong_instructions(bench: Bench, weights: Any, words: str) -> None:
    bench.weights = weights
    code, events = bench.run()
    assert code == 27
    assert words in events[-1]["message"]
