"""What models.yaml may say, key by key: the one description that the loader and the editors share.

These classes mirror the file. `modelbake.config` turns them into what the program works with.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from modelbake import grammar, quantity
from modelbake.grammar import holds_a_secret, names_a_secret
from modelbake.release.entries import USUAL_CHANNELS, ChannelEntry, ChannelName, SigningEntry
from modelbake.smokeentry import SmokeEntry
from modelbake.sourceuri import SOURCE
from modelbake.validation import Entry, Text

Device = Literal["cuda", "any", "cpu"]
LayerOrder = Literal["auto", "weights-first", "base-first"]
Compression = Literal["none", "zstd"]
Verify = Literal["full", "quick", "off"]
Convert = Literal["none", "safetensors"]
DEFAULT_HUB = "https://huggingface.co"

_IMAGE_ENVIRONMENT = frozenset(
    ["PATH", "PYTHONPATH"]
    + [f"MODELBAKE_{name}" for name in ("MODEL", "PORT", "PROBE", "VERIFY", "VERSION", "WEIGHTS")]
)
_RESERVED_LABELS = (
    "io.modelbake.",
    "com.docker.",
    "io.docker.",
    "org.dockerproject.",
    "org.opencontainers.image.",
)
WEIGHTS_REPOSITORY = "weights"  # below the registry: where all models' layers are remembered
RUNTIMES_REPOSITORY = "runtimes"  # and where the runtimes' images are
_TAKEN_NAMES = (WEIGHTS_REPOSITORY, RUNTIMES_REPOSITORY)
_FREE_LABELS = frozenset(
    f"org.opencontainers.image.{name}"
    for name in ("authors", "description", "documentation", "licenses", "title", "url", "vendor")
)


def _refuse_secret(text: str) -> str:
    if holds_a_secret(text):
        return "this looks like a token or a password, and everyone who pulls the image could read it"
    return ""


def _refuse_taken_name(name: str) -> str:
    if name in _TAKEN_NAMES:
        return f"REGISTRY/{name} is where `publish` keeps the {name} of all models; choose another name"
    return ""


def _refuse_env_name(name: str) -> str:
    if names_a_secret(name):
        return (
            "this names a secret, and everyone who pulls the image could read it;"
            " give it to the container when it is started"
        )
    if name in _IMAGE_ENVIRONMENT:
        return "this is set by the image itself"
    return ""


def _refuse_label(name: str) -> str:
    if names_a_secret(name):
        return "this names a secret, and everyone who can see the image can read its labels"
    if name.startswith(_RESERVED_LABELS) and name not in _FREE_LABELS:
        prefix = next(prefix for prefix in _RESERVED_LABELS if name.startswith(prefix))
        return f"labels of {prefix}* are reserved; use a name of your own, such as org.example.team"
    return ""


def _refuse_wildcard(path: str) -> str:
    return "a web server has no list of its files; name each by itself" if set(path) & set("*?[") else ""


Name = Annotated[str, Text(grammar.NAME)]
RuntimeName = Annotated[str, Text(grammar.RUNTIME)]
ModelName = Annotated[str, Text(grammar.NAME, _refuse_taken_name)]
Version = Annotated[str, Text(grammar.VERSION)]
Source = Annotated[str, Text(SOURCE)]
Into = Annotated[str, Text(grammar.FOLDER)]
Endpoint = Annotated[str, Text(grammar.HUB)]
GivenFiles = dict[
    Annotated[str, Text(grammar.PATTERN, _refuse_wildcard)], Annotated[str, Text(grammar.SHA256)]
]
Revision = Annotated[str, Text(grammar.REVISION)]
Patterns = tuple[Annotated[str, Text(grammar.PATTERN)], ...]
PickleNames = tuple[Annotated[str, Text(grammar.PICKLE)], ...]
Registry = Annotated[str, Text(grammar.REGISTRY)]
Base = Annotated[str, Text(grammar.BASE)]
Hub = Annotated[str, Text(grammar.HUB)]
MaxSize = Annotated[str, Text(quantity.SIZE)]
Environment = dict[
    Annotated[str, Text(grammar.ENV_NAME, _refuse_env_name)],
    Annotated[str, Text(grammar.ENV_VALUE, _refuse_secret)],
]
Labels = dict[
    Annotated[str, Text(grammar.LABEL_NAME, _refuse_label)],
    Annotated[str, Text(grammar.LINE, _refuse_secret)],
]


# A change of models.yaml must neither run a program here nor lower what is asked of a registry.
_OF_THE_ENVIRONMENT = {
    "token_command": "set MODELBAKE_TOKEN_COMMAND in the environment",
    "insecure_registries": "set MODELBAKE_INSECURE_REGISTRIES in the environment",
}


class Settings(Entry):
    """What a model may say, and what `defaults` may say for all models."""

    explained = MappingProxyType(
        dict.fromkeys(
            ("version", "source", "endpoint", "files", "add", "allow_pickle", "convert"),
            "each model has its own, so it cannot be a default",
        )
        | _OF_THE_ENVIRONMENT
    )

    revision: Revision = Field(
        default="main",
        description="Branch, tag or commit; `lock` turns it into a commit.",
        examples=["main", "v1.5"],
    )
    include: Patterns = Field(
        default=("*",),
        min_length=1,
        strict=False,
        description="File name patterns to take from the source; '*' also crosses '/'. Default: every file.",
        examples=[["*.json", "*.safetensors"]],
    )
    exclude: Patterns = Field(
        default=(),
        strict=False,
        description="File name patterns to leave out of what `include` selects.",
        examples=[["onnx/*"]],
    )
    runtime: Annotated[str | None, Text(grammar.RUNTIME)] = Field(
        default=None,
        description="What serves the model: a folder of images/ with a runtime.yaml, or ./ and the path of"
        " such a folder of your own.",
        examples=["embeddings", "transformers", "./services/chat"],
    )
    device: Device = Field(
        default="cuda",
        description="cuda: smoke needs a GPU. any: CUDA build, smoke may use a CPU. cpu: CPU build.",
    )
    base: Annotated[str | None, Text(grammar.BASE)] = Field(
        default=None,
        description="Base image in place of the runtime's, pinned by its digest.",
        examples=list(grammar.BASE.examples),
    )
    hub: Hub = Field(
        default=DEFAULT_HUB,
        description="The hub that hf:// sources are on.",
        examples=["https://hub.example.com"],
    )
    layer_order: LayerOrder = Field(
        default="auto",
        description="Where `publish` puts the weights. weights-first: at the bottom, where a patched runtime"
        " does not move them. base-first: on top, where models of one runtime share it on a host."
        " auto: at the bottom when they outweigh the runtime.",
    )
    compression: Compression = Field(
        default="none",
        description="Of the weight layers that `publish` makes. zstd: about a fifth fewer bytes, several"
        " times slower to make and to pull, and hosts need Docker Engine 23 or newer.",
    )
    verify: Verify = Field(
        default="full",
        description="What every start compares with the manifest before it serves. full: every byte. quick:"
        " names, kinds and sizes, the bytes of the smallest files, 256 MiB at most, and of each other one its"
        " header and a sample of 4 MiB. off: nothing; the log warns of it.",
    )
    max_size: MaxSize | None = Field(
        default=None,
        description="How large the image may be, unpacked. `build` and `publish` fail when it is larger.",
        examples=list(quantity.SIZE.examples),
    )
    env: Environment = Field(
        default_factory=dict,
        description="Environment of the image. Never secrets: everyone who pulls the image can read it.",
        examples=[{"OMP_NUM_THREADS": "4"}],
    )
    labels: Labels = Field(
        default_factory=dict, description="Labels of the image.", examples=[{"org.example.team": "search"}]
    )
    smoke: SmokeEntry = Field(default_factory=SmokeEntry, description="How the built image is tried out.")


_INCLUDE = "File name patterns to take from the source; '*' also crosses '/'. Default: every file."
_EXCLUDE = "File name patterns to leave out of what `include` selects."
_ENDPOINT = (
    "The server of an s3://, gs://, az:// or mlflow: source, where it is not the cloud's own: MinIO, R2,"
    " Ceph, an MLflow tracking server."
)
_FILES = (
    "Of an https:// source: its files, each with its sha256. A web server has no list of them, and says"
    " nothing that could be trusted."
)
_DIGEST_EXAMPLE = {"model.gguf": "ab" * 32}


class AddedEntry(Entry):
    """A further source of a model, whose files come into a folder of their own, on top of the others."""

    explained = MappingProxyType(
        {
            "path": "write 'into', with a folder below /models",
            "target": "write 'into', with a folder below /models",
            "allow_pickle": "it belongs to the model: name the pickle with its folder there",
            "convert": "it belongs to the model",
        }
    )

    source: Source = Field(description="Where these files come from.", examples=list(SOURCE.examples))
    into: Into = Field(
        description="The folder below /models that they come into.", examples=list(grammar.FOLDER.examples)
    )
    revision: Revision | None = Field(
        default=None,
        description="Of an hf:// source: branch, tag or commit. Default: main.",
        examples=["main"],
    )
    hub: Hub | None = Field(
        default=None, description="The hub of an hf:// source.", examples=["https://hub.example.com"]
    )
    endpoint: Endpoint | None = Field(
        default=None, description=_ENDPOINT, examples=["https://minio.example.com"]
    )
    include: Patterns = Field(
        default=("*",), min_length=1, strict=False, description=_INCLUDE, examples=[["*.safetensors"]]
    )
    exclude: Patterns = Field(default=(), strict=False, description=_EXCLUDE, examples=[["onnx/*"]])
    files: GivenFiles = Field(default_factory=dict, description=_FILES, examples=[_DIGEST_EXAMPLE])


class ModelEntry(Settings):
    """A model: where its weights come from, what serves them, and how to see that it works."""

    explained = MappingProxyType(
        {
            "name": "the model's name is the key above",
            "repo": "write 'source: hf://organisation/name'",
            "repo_id": "write 'source: hf://organisation/name'",
            "gpu": "write 'device: cuda'",
            **_OF_THE_ENVIRONMENT,
        }
    )

    version: Version = Field(
        description="Version of the image, a semantic version in quotes; it becomes the image's tag.",
        examples=list(grammar.VERSION.examples),
    )
    source: Source = Field(
        description="Where the weights come from: hf://organisation/name, s3://bucket/prefix,"
        " gs://bucket/prefix, az://account/container/prefix, mlflow:models/NAME/VERSION, sagemaker:ARN,"
        " https://host/folder/, oci://registry/repository:tag or file:///folder.",
        examples=list(SOURCE.examples),
    )
    endpoint: Endpoint | None = Field(
        default=None, description=_ENDPOINT, examples=["https://minio.example.com"]
    )
    files: GivenFiles = Field(default_factory=dict, description=_FILES, examples=[_DIGEST_EXAMPLE])
    add: tuple[AddedEntry, ...] = Field(
        default=(),
        strict=False,
        description="Further sources, each into a folder of its own and a layer on top: an adapter, a"
        " tokenizer. Models that differ in these alone share all else on a host.",
        examples=[[{"source": "s3://models/legal-adapter", "into": "adapter"}]],
    )
    allow_pickle: PickleNames = Field(
        default=(),
        strict=False,
        description="Pickles to bake in although loading one can run any code, each by its whole name; any"
        " other among the model's files is refused.",
        examples=[["pytorch_model.bin"]],
    )
    convert: Convert = Field(
        default="none",
        description="safetensors: the model's pickles (.bin, .pt, .pth) are converted where the image is"
        " built, without running anything of them; the image has the converted files in their place. Those"
        " that `allow_pickle` names stay as they are.",
    )


class ModelsFile(Entry):
    """The models that are built into images, and the registry these are pushed to."""

    explained = MappingProxyType(_OF_THE_ENVIRONMENT)

    registry: Registry = Field(
        description="Registry host, with a port and namespaces if needed; images are REGISTRY/MODEL:VERSION.",
        examples=list(grammar.REGISTRY.examples),
    )
    defaults: Settings = Field(
        default_factory=Settings,
        description="Settings of every model. A model's own `env`, `labels`, `smoke` and `limits` are added"
        " key by key; anything else that it says replaces the default.",
    )
    channels: dict[ChannelName, ChannelEntry] = Field(
        default_factory=lambda: dict(USUAL_CHANNELS),
        min_length=1,
        description="The moving tags that hosts follow, and what a version needs to get there. Default:"
        " staging and production, which require nothing.",
    )
    signing: SigningEntry | None = Field(
        default=None, description="How released images are signed, and whose signature counts."
    )
    models: dict[ModelName, ModelEntry] = Field(
        min_length=1, description="The models by name; the name becomes the image's name."
    )


class _ForEditors(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def dict_schema(self, schema: core_schema.DictSchema) -> dict[str, Any]:
        # pydantic says what the values of matching keys are, and lets all other keys through.
        found = super().dict_schema(schema)
        for pattern, values in found.pop("patternProperties", {}).items():
            found["additionalProperties"] = values
            found["propertyNames"]["pattern"] = pattern
        return found


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of models.yaml (draft 2020-12), which editors complete and check with."""
    schema = ModelsFile.model_json_schema(schema_generator=_ForEditors)
    for definition in [schema, *schema["$defs"].values()]:
        for key in definition.get("properties", {}).values():
            if "default" in key and key["default"] is None:
                del key["default"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "models.yaml of modelbake",
    }
