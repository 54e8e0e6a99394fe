"""What a smoke check may expect of a value: the words of models.yaml, and which of them go together.

    equals          any JSON value, this very one; for mappings that would otherwise be read as one of these
    approx          a number that may be off by `tolerance`
    at_least, at_most   a number within these bounds
    contains        text that has this in it
    matches         text that a regular expression finds something in
    cosine          a vector whose direction is that of a golden one (`at_least`: how nearly)
    golden          the value that a golden file keeps

Whatever else is written is expected as it stands; a word within it is refused, because it would be taken
literally: a value inside needs an expression of its own. Whether an answer is so is `expectations`'s to say.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema, core_schema

from modelbake import grammar
from modelbake.patterns import REGEX, why_not_a_pattern
from modelbake.scalars import quoted
from modelbake.validation import Entry, Number, Text, refusal

_ANY_NUMBER = Number("a number", -1e308, 1e308)
_TEXT = grammar.Grammar("text of 1 to 1000 characters", r"[\s\S]+", 1000, ("weights",))
GoldenName = Annotated[str, Text(grammar.NAME)]


class Equals(Entry):
    """An expected value, whatever it looks like."""

    equals: Any = Field(description="Any JSON value: the answer is this very one.")


class Approx(Entry):
    """An expected number that may be off by `tolerance` in either direction."""

    approx: Annotated[float, _ANY_NUMBER] = Field(description="The expected number.")
    tolerance: Annotated[float, Number("a number greater than 0", 0, 1e308, above=True)] = Field(
        description="How far the answer may be off, in either direction.", examples=[0.001]
    )


class Between(Entry):
    """An expected number within bounds, both included."""

    at_least: Annotated[float | None, _ANY_NUMBER] = Field(default=None, description="The smallest number.")
    at_most: Annotated[float | None, _ANY_NUMBER] = Field(default=None, description="The largest number.")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise refusal("no number is so: 'at_least' is more than 'at_most'")
        return self


class Contains(Entry):
    """Expected text with something in it."""

    contains: Annotated[str, Text(_TEXT)] = Field(
        description="Text that the answer has in it.", examples=["weights"]
    )


class Matches(Entry):
    """Expected text in which a regular expression finds something."""

    matches: Annotated[str, Text(REGEX, why_not_a_pattern)] = Field(
        description="A regular expression of Python that finds something in the text; ^ and $ bind it.",
        examples=["^[Hh]ello"],
    )


class Cosine(Entry):
    """An expected vector, such as an embedding: as good as parallel to a golden one."""

    cosine: GoldenName = Field(
        description="Name of the golden vector, of goldens/MODEL.json; `smoke --update-goldens` writes it.",
        examples=["hello"],
    )
    at_least: Annotated[float, Number("a number from -1 to 1", -1, 1)] = Field(
        default=0.999, description="The smallest cosine of the angle between the two vectors."
    )


class Golden(Entry):
    """An expected value that a golden file keeps: text of a greedy answer, for example."""

    golden: GoldenName = Field(
        description="Name of the golden value, of goldens/MODEL.json; `smoke --update-goldens` writes it.",
        examples=["greeting"],
    )


class _Words(Entry):
    """All of the words, for advice about one that is misspelt."""

    equals: Any
    approx: Any
    tolerance: Any
    at_least: Any
    at_most: Any
    contains: Any
    matches: Any
    cosine: Any
    golden: Any


Kind = type[Equals | Approx | Between | Contains | Matches | Cosine | Golden]
# The first word that a mapping has decides; `at_least` alone says nothing of a cosine.
_KINDS: dict[str, Kind] = {
    "equals": Equals,
    "approx": Approx,
    "tolerance": Approx,
    "contains": Contains,
    "matches": Matches,
    "cosine": Cosine,
    "golden": Golden,
    "at_least": Between,
    "at_most": Between,
}
_CLOSE = 0.8  # of difflib: `contain` and `contains` are, `content` and `contains` are not


@dataclass(frozen=True)
class Expected:
    """Annotation of an expected value: any JSON value, or an entry where a mapping has one of the words."""

    model = _Words

    @staticmethod
    def _read(value: Any, _handler: core_schema.ValidatorFunctionWrapHandler) -> Any:
        if not isinstance(value, dict):
            _refuse_nested(value)
            return value
        leading = next((word for word in _KINDS if word in value), None)
        if leading is None:
            _refuse_misspelt(value)
            _refuse_nested(value)
            return value
        kind = _KINDS[leading]
        for word in _KINDS:
            if word in value and word not in kind.model_fields:
                raise refusal(f"'{leading}' and '{word}' do not go together")
        return kind.model_validate(value)

    def __get_pydantic_core_schema__(self, _source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        kinds = core_schema.union_schema(
            [handler.generate_schema(kind) for kind in dict.fromkeys(_KINDS.values())]
        )
        return core_schema.no_info_wrap_validator_function(self._read, kinds)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        has_a_word = {"type": "object", "anyOf": [{"required": [word]} for word in _KINDS]}
        return {"anyOf": [*handler(schema)["anyOf"], {"not": has_a_word}]}


def _refuse_misspelt(value: dict[str, Any]) -> None:
    for key in value:
        # Taken as it stands it could only fail, and only once the image is built and started.
        close = difflib.get_close_matches(str(key)[:100], _KINDS, n=1, cutoff=_CLOSE)
        if close:
            raise refusal(
                f"{quoted(str(key))} looks like a word for an expectation; did you mean '{close[0]}'?"
                " (write {equals: {...}} to expect this very mapping)"
            )


def _refuse_nested(value: Any) -> None:
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        word = next((word for word in _KINDS if word in each), None) if isinstance(each, dict) else None
        if word is not None:
            raise refusal(
                f"'{word}' inside a list or a mapping would be taken literally: expect that value by an"
                " expression of its own (write {equals: ...} around all of it to expect it as it stands)"
            )
        _refuse_nested(each)


def golden_of(wanted: Any) -> str | None:
    """Return the name of the golden that an expected value is compared with, None where it needs none."""
    if isinstance(wanted, Cosine):
        return wanted.cosine
    return wanted.golden if isinstance(wanted, Golden) else None
