"""What `smoke:` of models.yaml may say: the checks of an image, and what it may measure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from types import MappingProxyType
from typing import Annotated, Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import Field, field_validator, model_validator

from modelbake import grammar, quantity
from modelbake.expected import Expected, golden_of
from modelbake.expressions import EXPRESSION, why_not
from modelbake.grammar import holds_a_token, names_a_secret
from modelbake.scalars import quoted
from modelbake.validation import Entry, Number, Text, refusal

UrlPath = Annotated[str, Text(grammar.PATH)]
Expression = Annotated[str, Text(EXPRESSION, why_not)]


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in a JSON value or an expected one, the keys of its objects included."""
    if isinstance(value, Entry):
        yield from _texts(value.model_dump())
    elif isinstance(value, str):
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
    expect: dict[Expression, Annotated[Any, Expected()]] = Field(
        default_factory=dict,
        description="JMESPath expressions over the answer, each with the value it has to yield or with one of"
        " {approx, tolerance}, {at_least, at_most}, {contains}, {matches}, {cosine, at_least}, {golden},"
        " {equals}.",
        examples=[
            {"length(data[0].embedding)": 384, "data[0].embedding": {"cosine": "hello", "at_least": 0.999}},
            {"choices[0].message.content": {"contains": "hello"}, "usage.total_tokens": {"at_most": 64}},
        ],
    )

    @field_validator("name", "get", "post", "body", "expect")
    @classmethod
    def _no_token(cls, value: Any) -> Any:
        if any(holds_a_token(text) or holds_a_token(unquote(text)) for text in _texts(value)):
            raise refusal(
                "this looks like a token, and everyone who reads this file or a report could read it"
            )
        return value

    @field_validator("get", "post")
    @classmethod
    def _no_secret(cls, value: str | None) -> str | None:
        for key, _ in parse_qsl(urlsplit(value or "").query):
            if names_a_secret(key):
                raise refusal(
                    f"{quoted(key)} names a secret, and everyone who reads this file or a report could read"
                    " its value; let the server answer this check without it"
                )
        return value

    @model_validator(mode="after")
    def _one_request(self) -> Self:
        if (self.get is None) == (self.post is None):
            raise refusal("expected either 'get' or 'post', with a path")
        if self.get is not None and "body" in self.model_fields_set:
            raise refusal("a 'get' has no 'body'; did you mean 'post'?")
        return self


class ToleranceEntry(Entry):
    """How much worse than the last released version, measured on the same device, a version may be."""

    explained = MappingProxyType(
        dict.fromkeys(("size", "image", "max_size"), "an image's size is no matter of a measurement")
    )

    latency: Annotated[str | None, Text(grammar.PERCENT)] = Field(
        default=None,
        description="Of the 95th percentile of the latency: 20% allows 12 ms after 10 ms.",
        examples=["20%"],
    )
    throughput: Annotated[str | None, Text(grammar.SHARE)] = Field(
        default=None,
        description="Of the answers a second: 20% allows 80 after 100.",
        examples=["20%"],
    )
    load: Annotated[str | None, Text(grammar.PERCENT)] = Field(
        default=None, description="Of the time that loading the model takes.", examples=["50%"]
    )
    gpu_memory: Annotated[str | None, Text(grammar.PERCENT)] = Field(
        default=None, description="Of the peak GPU memory.", examples=["10%"]
    )


_AMOUNT = Number("a number greater than 0", 0, 1e9, above=True)


class Limits(Entry):
    """What a smoke run may measure at most, or at least, and still pass."""

    explained = MappingProxyType(
        {
            "max_memory": "write 'max_gpu_memory'",
            "max_size": "the image's size is no matter of a smoke run",
            "max_latency_seconds": "write 'max_latency', in seconds",
            "min_throughput_per_second": "write 'min_throughput', in answers a second",
        }
    )

    max_gpu_memory: Annotated[str | None, Text(quantity.SIZE)] = Field(
        default=None,
        description="The most GPU memory: the server's own peak (modelbake_gpu_memory_peak_bytes), or where"
        " it does not count what the driver says is taken.",
        examples=list(quantity.SIZE.examples),
    )
    max_load_seconds: Annotated[float | None, _AMOUNT] = Field(
        default=None, description="The longest that loading the model takes, as the server counts it."
    )
    min_throughput: Annotated[float | None, _AMOUNT] = Field(
        default=None, description="The fewest answers a second, to requests one after the other."
    )
    max_latency: Annotated[float | None, _AMOUNT] = Field(
        default=None, description="The most seconds within which 95 of 100 answers are whole."
    )


def _twice(names: Iterable[str | None]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if name is not None and count > 1)


class SmokeEntry(Entry):
    """How the built image is tried out before it may be pushed."""

    startup_seconds: Annotated[float, Number("a number of seconds from 1 to 86400", 1, 86400)] = Field(
        default=300.0, description="How long the image may take to become ready, in seconds."
    )
    requests: Annotated[int, Number("a whole number from 1 to 100000", 1, 100_000, whole=True)] = Field(
        default=20, description="How often the first check is repeated to measure latency and throughput."
    )
    require_gpu: bool = Field(
        default=False,
        description="Nothing is pushed or published on the report of a CPU: for `device: any`, which may be"
        " tried on one.",
    )
    limits: Limits = Field(
        default_factory=Limits, description="What the run may measure at most, or at least, and still pass."
    )
    checks: tuple[CheckEntry, ...] = Field(
        default=(), strict=False, description="Requests and their expected answers, in order."
    )
    tolerance: ToleranceEntry = Field(
        default_factory=ToleranceEntry,
        description="How much worse than the last released version on the same device a version may be, to be"
        " released. What is not named here is not compared.",
        examples=[{"latency": "20%", "throughput": "20%", "load": "50%", "gpu_memory": "10%"}],
    )

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        if twice := _twice(check.name for check in self.checks):
            raise refusal(f"two checks have the name {quoted(twice[0])}")
        goldens = (golden for check in self.checks for golden in map(golden_of, check.expect.values()))
        if twice := _twice(goldens):
            raise refusal(f"golden {quoted(twice[0])} is named twice; give each answer a golden of its own")
        return self
