"""What a request to a chat runtime may say, in the form of OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import openai_api
from openai_api import ApiError

PARAMETERS = {
    "messages",
    "model",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "user",
}
# What clients send although it asks for nothing: possible with this very value, refused with any other.
NEUTRAL: dict[str, object] = {"n": 1, "frequency_penalty": 0, "presence_penalty": 0, "logprobs": False}
LIMITS = ("max_tokens", "max_completion_tokens")
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Sampling:
    """How long an answer may be and how its tokens are drawn; None where the request does not say."""

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    seed: int | None
    stop: tuple[str, ...]


def check(body: Mapping[str, Any]) -> None:
    """Refuse what is not supported."""
    for name, value in NEUTRAL.items():
        given = body.get(name)
        # 0.0 is 0, as some clients write it; true is not 1.
        if given is not None and (given != value or isinstance(given, bool) != isinstance(value, bool)):
            raise ApiError(400, f"{name} is not supported, but as {value!r}", param=name)
    openai_api.check_known(body, PARAMETERS | set(NEUTRAL))


def read_messages(value: Any) -> list[dict[str, str]]:
    """The messages of a chat, each a role and a text."""
    if not isinstance(value, list) or not value:
        raise ApiError(400, "messages has to be a list of messages, not empty", param="messages")
    messages = []
    for index, entry in enumerate(value):
        name = f"messages[{index}]"
        if not isinstance(entry, dict):
            raise ApiError(400, f"{name} has to be an object", param="messages")
        unknown = [
            key for key, given in entry.items() if key not in ("role", "content") and given is not None
        ]
        if unknown:
            raise ApiError(400, f"{name} has keys that are not supported: {unknown}"[:300], param="messages")
        if entry.get("role") not in ROLES:
            raise ApiError(400, f"{name}.role has to be one of: {', '.join(ROLES)}", param="messages")
        content = read_content(entry.get("content"), f"{name}.content")
        messages.append({"role": entry["role"], "content": content})
    return messages


def read_content(value: Any, name: str) -> str:
    """A message's text: a string, or parts that are text."""
    if not isinstance(value, list):
        return openai_api.text(value, name)
    texts = []
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text" or set(part) != {"type", "text"}:
            raise ApiError(400, f"{name} may have text parts only", param="messages")
        texts.append(openai_api.text(part["text"], name))
    return "".join(texts)


def read_sampling(body: Mapping[str, Any], seeds: tuple[int, int]) -> Sampling:
    """What a request says of the answer's length and sampling; ``seeds`` are the smallest and the largest."""
    limits = [openai_api.whole_number(body, name, 1, 2**31) for name in LIMITS]
    if None not in limits and limits[0] != limits[1]:
        words = "max_tokens and max_completion_tokens mean the same, and differ"
        raise ApiError(400, words, param="max_tokens")
    temperature = openai_api.number(body, "temperature", 0, 2)
    top_p = openai_api.number(body, "top_p", 0, 1)
    if top_p == 0:
        raise ApiError(400, "top_p has to be more than 0", param="top_p")
    seed = openai_api.whole_number(body, "seed", *seeds)
    stop = read_stop(body.get("stop"))
    if body.get("user") is not None:
        openai_api.text(body["user"], "user")
    wanted = next((limit for limit in limits if limit is not None), None)
    return Sampling(wanted, temperature, top_p, seed, stop)


def read_stop(value: Any) -> tuple[str, ...]:
    """The strings that end an answer: one, or up to four."""
    values = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(values, list) or len(values) > 4:
        raise ApiError(400, "stop has to be a string or a list of at most 4 strings", param="stop")
    if not all(openai_api.text(entry, "stop") for entry in values):
        raise ApiError(400, "stop has an empty string", param="stop")
    return tuple(values)


def read_stream_options(body: Mapping[str, Any], stream: bool) -> bool:
    """Whether a stream is to end with the usage."""
    options = body.get("stream_options")
    if options is None:
        return False
    if not stream or not isinstance(options, dict) or not set(options) <= {"include_usage"}:
        words = "stream_options may have include_usage only, and only where stream is true"
        raise ApiError(400, words, param="stream_options")
    return openai_api.flag(options, "include_usage")
