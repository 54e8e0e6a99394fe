"""What models.yaml may say, key by key: the one description that the loader and the editors share.

These classes mirror the file. `modelbake.config` turns them into what the program works with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, field_validator, model_validator
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import CoreSchema, core_schema

from modelbake import grammar, quantity
from modelbake.expressions import EXPRESSION, why_not
from modelbake.grammar import holds_a_secret, holds_a_token, names_a_secret
from modelbake.scalars import quoted
from modelbake.validation import Entry, Number, Text, refusal

Device = Literal["cuda", "any", "cpu"]
LayerOrder = Literal["auto", "weights-first", "base-first"]
Compression = Literal["none", "zstd"]
DEFAULT_HUB = "https://huggingface.co"

_IMAGE_ENVIRONMENT = frozenset(
    ["PATH", "PYTHONPATH"]
    + [f"MODELBAKE_{name}" for name in ("MODEL", "PORT", "PROBE", "VERSION", "WEIGHTS")]
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


Name = Annotated[str, Text(grammar.NAME)]
ModelName = Annotated[str, Text(grammar.NAME, _refuse_taken_name)]
Version = Annotated[str, Text(grammar.VERSION)]
Source = Annotated[str, Text(grammar.SOURCE)]
Revision = Annotated[str, Text(grammar.REVISION)]
Patterns = tuple[Annotated[str, Text(grammar.PATTERN)], ...]
Registry = Annotated[str, Text(grammar.REGISTRY)]
Base = Annotated[str, Text(grammar.BASE)]
Hub = Annotated[str, Text(grammar.HUB)]
MaxSize = Annotated[str, Text(quantity.SIZE)]
UrlPath = Annotated[str, Text(grammar.PATH)]
Expression = Annotated[str, Text(EXPRESSION, why_not)]
Environment = dict[
    Annotated[str, Text(grammar.ENV_NAME, _refuse_env_name)],
    Annotated[str, Text(grammar.ENV_VALUE, _refuse_secret)],
]
Labels = dict[
    Annotated[str, Text(grammar.LABEL_NAME, _refuse_label)],
    Annotated[str, Text(grammar.LINE, _refuse_secret)],
]


class Approx(Entry):
    """An expected number that may be off by `tolerance` in either direction."""

    approx: Annotated[float, Number("a number", -1e308, 1e308)] = Field(description="The expected number.")
    tolerance: Annotated[float, Number("a number greater than 0", 0, 1e308, above=True)] = Field(
        description="How far the answer may be off, in either direction.", examples=[0.001]
    )


@dataclass(frozen=True)
class _Expected:
    """Annotation of an expected value: any JSON value, or an Approx where a mapping looks like one."""

    model = Approx

    def __get_pydantic_core_schema__(self, _source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def check(value: Any, as_approx: core_schema.ValidatorFunctionWrapHandler) -> Any:
            looks_so = isinstance(value, dict) and ("approx" in value or "tolerance" in value)
            return as_approx(value) if looks_so else value

        return core_schema.no_info_wrap_validator_function(check, handler.generate_schema(Approx))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        looks_so = {"type": "object", "anyOf": [{"required": ["approx"]}, {"required": ["tolerance"]}]}
        return {"anyOf": [handler(schema), {"not": looks_so}]}


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in a JSON value, the keys of its objects included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield key
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


class CheckEntry(Entry):
    """One request to the running image, and the answer that shows that it works."""

    name: Annotated[str | None, Text(grammar.CHECK_NAME)] = Field(
        default=None, description="What the report calls this check.", examples=["dimension"]
    )
    get: Annotated[str | None, Text(grammar.PATH)] = Field(
        default=None, description="The path to GET.", examples=["/health"]
    )
    post: Annotated[str | None, Text(grammar.PATH)] = Field(
        default=None, description="The path to POST `body` to.", examples=["/v1/embeddings"]
    )
    body: Any = Field(default=None, description="The request's JSON body.", examples=[{"input": "hello"}])
    status: Annotated[int, Number("an HTTP status from 100 to 599", 100, 599, whole=True)] = Field(
        default=200, description="The expected HTTP status."
    )
    expect: dict[Expression, Annotated[Any, _Expected()]] = Field(
        default_factory=dict,
        description="JMESPath expressions over the answer, each with the value it has to yield,"
        " or {approx: NUMBER, tolerance: NUMBER}.",
        examples=[
            {"length(data[0].embedding)": 384, "data[0].embedding[0]": {"approx": 0.034, "tolerance": 0.001}}
        ],
    )

    @field_validator("body", "expect")
    @classmethod
    def _no_token(cls, value: Any) -> Any:
        if any(map(holds_a_token, _texts(value))):
            raise refusal(
                "this looks like a token, and everyone who reads this file or a report could read it"
            )
        return value

    @model_validator(mode="after")
    def _one_request(self) -> Self:
        if (self.get is None) == (self.post is None):
            raise refusal("expected either 'get' or 'post', with a path")
        if self.get is not None and "body" in self.model_fields_set:
            raise refusal("a 'get' has no 'body'; did you mean 'post'?")
        return self


class SmokeEntry(Entry):
    """How the built image is tried out before it may be pushed."""

    startup_seconds: Annotated[float, Number("a number of seconds from 1 to 86400", 1, 86400)] = Field(
        default=300.0, description="How long the image may take to become ready, in seconds."
    )
    requests: Annotated[int, Number("a whole number from 1 to 100000", 1, 100_000, whole=True)] = Field(
        default=20, description="How often the first check is repeated to measure latency and throughput."
    )
    checks: tuple[CheckEntry, ...] = Field(
        default=(), strict=False, description="Requests and their expected answers, in order."
    )

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        names = [check.name for check in self.checks if check.name is not None]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise refusal(f"two checks have the name {quoted(twice[0])}")
        return self


class Settings(Entry):
    """What a model may say, and what `defaults` may say for all models."""

    explained = MappingProxyType(
        dict.fromkeys(("version", "source"), "each model has its own, so it cannot be a default")
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
    runtime: Annotated[str | None, Text(grammar.NAME)] = Field(
        default=None,
        description="What serves the model: a folder of images/ with a runtime.yaml.",
        examples=["embeddings", "transformers"],
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


class ModelEntry(Settings):
    """A model: where its weights come from, what serves them, and how to see that it works."""

    explained = MappingProxyType(
        {
            "name": "the model's name is the key above",
            "repo": "write 'source: hf://organisation/name'",
            "repo_id": "write 'source: hf://organisation/name'",
            "gpu": "write 'device: cuda'",
        }
    )

    version: Version = Field(
        description="Version of the image, a semantic version in quotes; it becomes the image's tag.",
        examples=list(grammar.VERSION.examples),
    )
    source: Source = Field(
        description="Where the weights come from: hf://organisation/name.",
        examples=list(grammar.SOURCE.examples),
    )


class ModelsFile(Entry):
    """The models that are built into images, and the registry these are pushed to."""

    registry: Registry = Field(
        description="Registry host, with a port and namespaces if needed; images are REGISTRY/MODEL:VERSION.",
        examples=list(grammar.REGISTRY.examples),
    )
    defaults: Settings = Field(
        default_factory=Settings,
        description="Settings of every model. A model's own `env`, `labels` and `smoke` are added key by key;"
        " anything else that it says replaces the default.",
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
