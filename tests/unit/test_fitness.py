"""Whether a runtime can serve what is locked: what is missing, who leaves it out, and how it is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modelbake.config import ModelSpec
from modelbake.fitness import Evidence, holds, objections, selects, warnings
from modelbake.objections import Objection
from modelbake.runtime import Runtime, load_runtime

IMAGES = Path(__file__).parents[2] / "images"
COMPLETE = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
TOKENIZER = "chat lacks the tokenizer that runtime small needs (tokenizer.json or tokenizer.model)"


def spec(**keys: Any) -> ModelSpec:
    return ModelSpec(**{"name": "chat", "version": "1.0.0", "source": "hf://a/b", "runtime": "small", **keys})


def runtime(name: str = "small", **keys: Any) -> Runtime:
    needs = {
        "configuration": ("config.json",),
        "weights": ("*.safetensors",),
        "tokenizer": ("tokenizer.json", "tokenizer.model"),
    }
    return Runtime(
        **{
            "name": name,
            "directory": IMAGES,
            "description": "a runtime",
            "base": f"python@sha256:{'ab' * 32}",
            "command": ("serve",),
            "port": 8000,
            "health": "/health",
            "needs": needs,
            **keys,
        }
    )


def without(*names: str) -> list[str]:
    return [path for path in COMPLETE if path not in names]


def described(**architectures: Any) -> bytes:
    return json.dumps(architectures).encode()


def test_a_model_with_all_that_is_needed_is_fit() -> None:
    assert objections(spec(), runtime(), Evidence(COMPLETE)) == []
    assert objections(spec(), runtime(), Evidence(COMPLETE, COMPLETE, b"{}")) == []


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_each_need_is_looked_for(name: str) -> None:
    (found,) = objections(spec(), runtime(), Evidence(without(name), without(name)))
    assert found.key == "source"
    assert name.replace("model.", "*.") in found.message
    assert found.message.endswith("; upstream has none either")


def test_one_of_several_names_is_enough() -> None:
    files = [*without("tokenizer.json"), "tokenizer.model"]
    assert objections(spec(), runtime(), Evidence(files)) == []


@pytest.mark.parametrize(
    ("keys", "key", "words"),
    [
        (
            {"exclude": ["onnx/*", "token*"]},
            "exclude",
            f'{TOKENIZER}; upstream has it, but tokenizer.json is left out by "token*"',
        ),
        (
            {"include": ["*.safetensors", "config.json"]},
            "include",
            f'{TOKENIZER}; upstream has it, but tokenizer.json is not selected: add "tokenizer.json"',
        ),
    ],
)
def test_what_upstream_has_and_models_yaml_leaves_out_is_said_so(
    keys: dict[str, Any], key: str, words: str
) -> None:
    evidence = Evidence(without("tokenizer.json"), COMPLETE)
    assert objections(spec(**keys), runtime(), evidence) == [Objection(key, words)]


def test_without_upstream_only_what_is_certain_is_said() -> None:
    evidence = Evidence(without("tokenizer.json"))
    (found,) = objections(spec(), runtime(), evidence)
    assert found == Objection("runtime", f"{TOKENIZER}; `build.py lock chat` says whether upstream has it"), (
        "it may be missing upstream"
    )
    (found,) = objections(spec(exclude=["tokenizer*"]), runtime(), evidence)
    assert found == Objection("exclude", f'{TOKENIZER}; tokenizer.json is left out by "tokenizer*"')
    (found,) = objections(spec(exclude=["tokenizer.json"]), runtime(), evidence)
    assert found.key == "runtime", "tokenizer.model would do"
    (found,) = objections(spec(include=["*.json"]), runtime(), Evidence(without("model.safetensors")))
    assert found.key == "runtime", "a pattern has too many names"


def test_weights_in_parts_have_to_be_whole() -> None:
    parts = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    index = "model.safetensors.index.json"
    files = [*without("model.safetensors"), *parts, index]
    assert objections(spec(), runtime(), Evidence(files, files)) == []
    files.remove(parts[1])
    (found,) = objections(spec(exclude=["*00002*"]), runtime(), Evidence(files, [*files, parts[1]]))
    assert found.key == "exclude"
    assert found.message == (
        f'chat lacks {parts[1]}, one of 3 parts; upstream has it, but {parts[1]} is left out by "*00002*"'
    )
    files = [*without("model.safetensors"), *parts]
    (found,) = objections(spec(), runtime(), Evidence(files, files))
    assert (
        found.message
        == f"chat lacks {index}, which says what is in which of 3 parts; upstream has none either"
    )
    gguf = ["q-00001-of-00002.gguf", *COMPLETE]
    (found,) = objections(spec(), runtime(), Evidence(gguf, gguf))
    assert "q-00002-of-00002.gguf" in found.message


def test_a_runtime_that_says_nothing_takes_anything() -> None:
    parts = ["model-00001-of-00002.safetensors"]
    assert objections(spec(), runtime(needs={}), Evidence(parts, parts, b"no JSON")) == []


@pytest.mark.parametrize(
    ("named", "fits"),
    [
        (["LlamaForCausalLM"], True),
        (["BertModel", "LlamaForCausalLM"], True),
        (["BertModel"], False),
        ([], True),
        (None, True),
        ("LlamaForCausalLM", True),
        ([1], True),
    ],
)
def test_an_architecture_that_the_runtime_does_not_serve(named: Any, fits: bool) -> None:
    evidence = Evidence(COMPLETE, COMPLETE, described(architectures=named))
    found = objections(spec(), runtime(architectures=("*ForCausalLM",)), evidence)
    assert found == (
        []
        if fits
        else [
            Objection(
                "runtime", "chat is a BertModel by its config.json, and runtime small serves *ForCausalLM"
            )
        ]
    )
    assert objections(spec(), runtime(), evidence) == [], (
        "control: without `architectures` nothing is refused"
    )


def test_runtimes_that_would_find_what_they_need_are_named() -> None:
    others = [
        runtime("chatty", architectures=("*ForCausalLM",)),
        runtime("vectors"),
        runtime("pictures", needs={"pipeline": ("model_index.json",)}),
        runtime("anything", needs={}),
    ]
    evidence = Evidence(COMPLETE, COMPLETE, described(architectures=["BertModel"]))
    (found,) = objections(spec(), runtime(architectures=("*ForCausalLM",)), evidence, others)
    assert found.message.endswith("; runtime vectors would find what it needs")
    pipeline = ["model_index.json", "unet/diffusion_pytorch_model.safetensors"]
    for found in objections(spec(), runtime(), Evidence(pipeline, pipeline), others):
        assert found.message.endswith("; runtime pictures would find what it needs")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_a_configuration_that_is_none(content: bytes) -> None:
    (found,) = objections(spec(), runtime(), Evidence(COMPLETE, COMPLETE, content))
    assert found == Objection("source", "config.json of chat is not a JSON object")


def test_names_of_strangers_cannot_change_what_is_shown() -> None:
    evidence = Evidence(COMPLETE, COMPLETE, described(architectures=["A\x1b[2J\u202e" + "x" * 1000]))
    (found,) = objections(spec(), runtime(architectures=("B",)), evidence)
    assert found.message.isprintable()
    assert len(found.message) < 300


def test_code_among_weights_is_worth_a_warning() -> None:
    assert warnings(spec(), Evidence(COMPLETE, COMPLETE, b"{}")) == []
    (one,) = warnings(spec(), Evidence([*COMPLETE, "modeling_x.py"]))
    assert "modeling_x.py" in one and 'exclude: ["*.py"]' in one
    content = described(auto_map={"AutoModel": "modeling_x.XModel"})
    (one,) = warnings(spec(), Evidence(COMPLETE, COMPLETE, content))
    assert "auto_map" in one and "trust_remote_code" in one


@pytest.mark.parametrize(
    ("path", "pattern", "answer"),
    [
        ("model.safetensors", "*.safetensors", True),
        ("original/model.safetensors", "*.safetensors", False),
        ("0_Transformer/model.safetensors", "*/*.safetensors", True),
        ("config.json", "config.json", True),
        ("x/config.json", "config.json", False),
        ("q.gguf", "**/*.gguf", True),
        ("x/y/q.gguf", "**/*.gguf", True),
        ("x/y/q.gguf", "x/**/*.gguf", True),
        ("x/q.bin", "**/*.gguf", False),
        ("x", "x/**/*", False),
        ("x/y/z", "x/**", False),
    ],
)
def test_a_need_is_met_in_its_own_folder(path: str, pattern: str, answer: bool) -> None:
    assert holds(path, pattern) is answer


@pytest.mark.parametrize("pattern", ["*.json", "onnx/", "onnx/*", "config.json", "[co]*", "*", "ONNX/*"])
def test_patterns_select_as_the_hub_client_does(pattern: str) -> None:
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

    paths = ["config.json", "onnx/config.json", "onnx/deep/model.onnx", "original/x"]
    assert [path for path in paths if selects(pattern, path)] == list(
        filter_repo_objects(paths, allow_patterns=[pattern])
    )


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (["q4.gguf", "q8.gguf"], "q4.gguf, q8.gguf"),
        (["q4.gguf", "deep/er/q8.gguf"], "deep/er/q8.gguf, q4.gguf"),
        (["b.gguf", "a-00001-of-00002.gguf", "a-00002-of-00002.gguf"], "a-00001-of-00002.gguf, b.gguf"),
        ([f"{number}.gguf" for number in range(9)], "0.gguf, 1.gguf, 2.gguf, 3.gguf, 4.gguf ..."),
        (["q4.gguf", "README.md"], None),
        (["deep/q4.gguf"], None),
        (["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"], None),
    ],
)
def test_what_a_runtime_takes_once_is_not_there_twice(files: list[str], named: str | None) -> None:
    needs = {"weights": ("**/*.gguf", "*.gguf")}
    one, many = runtime(needs=needs, single=("weights",)), runtime(needs=needs)
    found = objections(spec(), one, Evidence(files), [many])
    assert [each.key for each in found] == (["include"] if named else [])
    if named:
        assert found[0].message.startswith("chat has ") and "runtime small takes one" in found[0].message
        assert found[0].message.endswith(f": {named}; let `include` name one")
    assert objections(spec(), many, Evidence(files)) == [], "control: without `single` any number will do"


MINILM = ["1_Pooling/config.json", "config.json", "model.safetensors", "modules.json", "tokenizer.json"]


def test_what_the_runtimes_of_this_repository_need() -> None:
    transformers, embeddings = (load_runtime(IMAGES, name) for name in ("transformers", "embeddings"))
    llama, bert = described(architectures=["LlamaForCausalLM"]), described(architectures=["BertModel"])
    assert objections(spec(), transformers, Evidence(COMPLETE, COMPLETE, llama)) == []
    assert objections(spec(), embeddings, Evidence(MINILM, MINILM, bert)) == []
    for missing in COMPLETE:
        assert objections(spec(), transformers, Evidence(without(missing))), missing
    (found,) = objections(
        spec(), transformers, Evidence(COMPLETE, COMPLETE, bert), [transformers, embeddings]
    )
    assert found.key == "runtime" and "embeddings would find" in found.message
