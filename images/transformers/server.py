"""Chat completions over HTTP, as OpenAI's API has them: POST /v1/chat/completions, streamed or at once.

The model is read once, from ``$MODELBAKE_WEIGHTS``, with transformers: safetensors only, no code from the
model's folder, no network. It answers one request at a time; the others wait. The rest is serving.py's.
"""

from __future__ import annotations

import asyncio
import copy
import json
import secrets
import sys
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import serving
except ModuleNotFoundError:  # Outside of an image, where it lies beside this runtime's folder.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "start"))
    import serving

from serving import ApiError, Handler, LoadError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

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
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Task:
    """One request: the prompt's tokens, and how to go on from there."""

    prompt: Any
    max_tokens: int
    temperature: float | None
    top_p: float | None
    seed: int | None
    stop: tuple[str, ...]

    @property
    def prompt_tokens(self) -> int:
        """How long the prompt is."""
        return int(self.prompt.shape[-1])


@dataclass(frozen=True)
class Outcome:
    """How an answer ended."""

    finish_reason: str
    completion_tokens: int


class Decoder:
    """Turns tokens into text as they come, and holds back what is no whole character yet."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self.decode = decode
        self.tokens: list[int] = []
        # The tokens before ``read`` have become text. Those from ``context`` on are decoded once more each
        # time, because a token's text depends on the one before it.
        self.context = 0
        self.read = 0

    def add(self, token: int) -> str:
        """The text that is certain now."""
        self.tokens.append(token)
        text = self.pending()
        if not text or text.endswith("\ufffd"):
            return ""
        self.context, self.read = self.read, len(self.tokens)
        return text

    def pending(self) -> str:
        """The text of all tokens that have not become text yet."""
        known = self.decode(self.tokens[self.context : self.read])
        return self.decode(self.tokens[self.context :])[len(known) :]


class StopFilter:
    """Cuts the text at the first stop string, and holds back what may yet become one."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.stops = stops
        self.held = ""
        self.found = False

    def add(self, text: str) -> str:
        """The text that may be sent now; nothing any more after a stop string."""
        if self.found:
            return ""
        self.held += text
        places = [place for stop in self.stops if (place := self.held.find(stop)) >= 0]
        if places:
            self.found = True
            return self.held[: min(places)]
        keep = max(
            (
                size
                for stop in self.stops
                for size in range(1, min(len(stop), len(self.held) + 1))
                if self.held.endswith(stop[:size])
            ),
            default=0,
        )
        ready, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return ready


class Streamer:
    """What ``generate`` hands its tokens to: decodes, looks for stop strings, passes the text on."""

    def __init__(self, decoder: Decoder, stops: StopFilter, emit: Callable[[str], None]) -> None:
        self.decoder = decoder
        self.stops = stops
        self.emit = emit
        self.prompt = True

    def put(self, value: Any) -> None:
        """Take the prompt, the first time, and one token each time after that."""
        if self.prompt:
            self.prompt = False
            return
        for token in value.flatten().tolist():
            self.pass_on(self.stops.add(self.decoder.add(token)))

    def end(self) -> None:
        """Pass on what was held back."""
        self.pass_on(self.stops.add(self.decoder.pending()))
        if not self.stops.found:
            self.pass_on(self.stops.held)

    def pass_on(self, text: str) -> None:
        """Send text where there is any."""
        if text:
            self.emit(text)


class Chat:
    """The model, and the requests that wait for it."""

    def __init__(self, settings: serving.Settings) -> None:
        self.routes: Mapping[str, Handler] = {"/v1/chat/completions": self.completions}
        self.settings = settings
        self.default_max_tokens = serving.setting("MODELBAKE_DEFAULT_MAX_TOKENS", 512)
        self.max_waiting = serving.setting("MODELBAKE_MAX_WAITING", 64)
        self.waiting = 0
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        # Prompts are made apart, so that a wrong one is refused while another request's answer is on its way.
        self.prompt_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prompt")
        self.model: Any
        self.tokenizer: Any
        self.prompt_tokenizer: Any
        self.context: int

    def load(self) -> dict[str, Any]:
        """Load the model onto the GPU, or the CPU where there is none."""
        weights = self.settings.weights
        serving.require_safetensors(weights)
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        serving.tame_transformers()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        local = {"local_files_only": True, "trust_remote_code": False}
        self.tokenizer = AutoTokenizer.from_pretrained(str(weights), **local)
        if not self.tokenizer.chat_template:
            raise LoadError("the model's tokenizer has no chat template: this is no chat model")
        # A tokenizer changes its state while it tokenizes, hence one for each thread.
        self.prompt_tokenizer = copy.deepcopy(self.tokenizer)
        # Half precision is slow on CPUs, and "auto" is what the model was saved in.
        dtype = "auto" if device == "cuda" else torch.float32
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(weights), dtype=dtype, use_safetensors=True, output_loading_info=True, **local
        )
        model, report = loaded
        if report["missing_keys"]:  # transformers would fill them with random numbers.
            words = ", ".join(sorted(report["missing_keys"]))
            raise LoadError(f"the weights lack parts of the model: {words}"[:1000])
        self.model = model.to(device).eval()
        self.context = int(self.model.config.get_text_config().max_position_embeddings)
        return {
            "device": device,
            "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "context": self.context,
        }

    def warm_up(self) -> None:
        """Generate one token, in the very thread that will generate all others."""
        prompt = self.make_prompt([{"role": "user", "content": "Hello"}])
        task = Task(prompt, 1, temperature=0, top_p=None, seed=None, stop=())
        outcome = self.thread.submit(self.generate, task, lambda _: None, threading.Event()).result()
        if outcome.completion_tokens != 1:
            raise LoadError(f"the model's first answer has {outcome.completion_tokens} tokens instead of 1")

    async def completions(self, request: Request, body: dict[str, Any]) -> Response:
        """POST /v1/chat/completions."""
        for name, value in NEUTRAL.items():
            if body.get(name) is not None and (body[name] != value or type(body[name]) is not type(value)):
                raise ApiError(400, f"{name} is not supported, but as {value!r}", param=name)
        serving.check_known(body, PARAMETERS | set(NEUTRAL))
        stream = serving.flag(body, "stream")
        usage_wanted = read_stream_options(body, stream)
        task = await self.read_task(body)
        if self.waiting >= self.max_waiting:
            raise ApiError(503, "too many requests are waiting already; try again later", code="overloaded")
        answer = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": self.settings.model,
        }
        if stream:
            events = self.stream(task, answer, usage_wanted)
            return StreamingResponse(
                events, media_type="text/event-stream", headers={"Cache-Control": "no-store"}
            )
        text, outcome = await self.collect(task, request)
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": outcome.finish_reason}
        usage = count_usage(task, outcome)
        return JSONResponse({**answer, "object": "chat.completion", "choices": [choice], "usage": usage})

    async def read_task(self, body: dict[str, Any]) -> Task:
        """Check a request's parameters, and make its prompt."""
        messages = read_messages(body.get("messages"))
        limits = [
            serving.whole_number(body, name, 1, 2**31) for name in ("max_tokens", "max_completion_tokens")
        ]
        if None not in limits and limits[0] != limits[1]:
            words = "max_tokens and max_completion_tokens mean the same, and differ"
            raise ApiError(400, words, param="max_tokens")
        wanted = next((limit for limit in limits if limit is not None), None)
        temperature = serving.number(body, "temperature", 0, 2)
        top_p = serving.number(body, "top_p", 0, 1)
        if top_p == 0:
            raise ApiError(400, "top_p has to be more than 0", param="top_p")
        seed = serving.whole_number(body, "seed", -(2**63), 2**63 - 1)
        stop = read_stop(body.get("stop"))
        if body.get("user") is not None:
            serving.text(body["user"], "user")
        loop = asyncio.get_running_loop()
        prompt = await loop.run_in_executor(self.prompt_thread, self.make_prompt, messages)
        length = int(prompt.shape[-1])
        room = self.context - length
        if room < (wanted or 1):
            words = f"{length} tokens of messages and {wanted or 1} to follow are more than {self.context}"
            raise ApiError(400, words, param="messages", code="context_length_exceeded")
        return Task(prompt, wanted or min(room, self.default_max_tokens), temperature, top_p, seed, stop)

    def make_prompt(self, messages: list[dict[str, str]]) -> Any:
        """The tokens of the messages, as the model's own chat template puts them."""
        import jinja2

        try:
            encoded = self.prompt_tokenizer.apply_chat_template(
                messages,
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=True,
                tokenizer_kwargs={"verbose": False},
            )
        except jinja2.TemplateError as error:
            words = f"the model's chat template refuses these messages: {error.message}"
            raise ApiError(400, words, param="messages") from error
        return encoded["input_ids"]

    async def collect(self, task: Task, request: Request) -> tuple[str, Outcome]:
        """The whole text of an answer; no longer computed once the client goes away."""

        async def gather() -> tuple[str, Outcome]:
            pieces: list[str] = []
            async for piece in self.pieces(task):
                if isinstance(piece, Outcome):
                    return "".join(pieces), piece
                pieces.append(piece)
            raise RuntimeError("an answer without an end")

        gathering = asyncio.create_task(gather())
        watching = asyncio.create_task(serving.until_disconnect(request))
        try:
            await asyncio.wait({gathering, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not gathering.done():
                raise ClientDisconnect
            return gathering.result()
        finally:
            gathering.cancel()
            watching.cancel()

    async def stream(self, task: Task, answer: dict[str, Any], usage_wanted: bool) -> AsyncIterator[str]:
        """The events of an answer, as text/event-stream."""

        def event(choices: list[dict[str, Any]], **others: Any) -> str:
            chunk = {**answer, "object": "chat.completion.chunk", "choices": choices, **others}
            return f"data: {json.dumps(chunk)}\n\n"

        def choice(delta: dict[str, str], finish_reason: str | None = None) -> list[dict[str, Any]]:
            return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]

        try:
            yield event(choice({"role": "assistant", "content": ""}))
            async for piece in self.pieces(task):
                if isinstance(piece, str):
                    yield event(choice({"content": piece}))
                    continue
                yield event(choice({}, piece.finish_reason))
                if usage_wanted:
                    yield event([], usage=count_usage(task, piece))
        except Exception as error:  # The status is long sent; the stream is the only place left to tell it.
            serving.log("error", "request_failed", **serving.describe_error(error))
            failure = ApiError(500, "the model could not answer", code="internal_error")
            yield f"data: {json.dumps(failure.body)}\n\n"
        yield "data: [DONE]\n\n"

    async def pieces(self, task: Task) -> AsyncGenerator[str | Outcome, None]:
        """The pieces of an answer as they are generated, and how it ended. Closing this ends it early."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[str | None] = asyncio.Queue()
        given_up = threading.Event()

        def emit(text: str) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, text)

        self.waiting += 1
        try:
            generating = loop.run_in_executor(self.thread, self.generate, task, emit, given_up)
            generating.add_done_callback(lambda _: queue.put_nowait(None))
            while (text := await queue.get()) is not None:
                yield text
            yield await generating
        finally:
            self.waiting -= 1
            given_up.set()

    def generate(self, task: Task, emit: Callable[[str], None], given_up: threading.Event) -> Outcome:
        """Generate one answer, in the model's thread, until it ends or is given up."""
        import torch
        from transformers import StoppingCriteriaList

        def decode(tokens: list[int]) -> str:
            return str(
                self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            )

        if given_up.is_set():
            return Outcome("stop", 0)
        streamer = Streamer(Decoder(decode), StopFilter(task.stop), emit)

        def is_over(tokens: torch.Tensor, _scores: object, **_: object) -> torch.Tensor:
            over = given_up.is_set() or streamer.stops.found
            return torch.full((tokens.shape[0],), over, dtype=torch.bool, device=tokens.device)

        # Another request's seed must not decide this answer.
        torch.manual_seed(secrets.randbits(63) if task.seed is None else task.seed)
        prompt = task.prompt.to(self.model.device)
        with torch.inference_mode():
            self.model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=self.configure(task),
                stopping_criteria=StoppingCriteriaList([is_over]),
                streamer=streamer,
            )
        tokens = streamer.decoder.tokens
        ended = streamer.stops.found or (bool(tokens) and tokens[-1] in self.end_tokens())
        return Outcome("stop" if ended else "length", len(tokens))

    def configure(self, task: Task) -> Any:
        """How to sample. What a request leaves open is as the model's own generation_config.json has it."""
        config = copy.deepcopy(self.model.generation_config)
        config.max_length = None
        config.max_new_tokens = task.max_tokens
        if task.temperature is not None or task.top_p is not None:
            # Less than that is the greedy answer to all digits; dividing by it would only overflow.
            config.do_sample = task.temperature is None or task.temperature > 1e-6
            config.top_k = 0
            config.temperature = 1.0 if task.temperature is None else task.temperature
            config.top_p = 1.0 if task.top_p is None else task.top_p
        if not config.do_sample:
            config.temperature = config.top_p = config.top_k = None
        if config.pad_token_id is None:
            config.pad_token_id = next(iter(self.end_tokens()), 0)
        return config

    def end_tokens(self) -> tuple[int, ...]:
        """The tokens that end an answer."""
        tokens = self.model.generation_config.eos_token_id
        if tokens is None:
            return ()
        return (tokens,) if isinstance(tokens, int) else tuple(tokens)


def count_usage(task: Task, outcome: Outcome) -> dict[str, int]:
    """How many tokens went in and came out."""
    total = task.prompt_tokens + outcome.completion_tokens
    return {
        "prompt_tokens": task.prompt_tokens,
        "completion_tokens": outcome.completion_tokens,
        "total_tokens": total,
    }


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
        return serving.text(value, name)
    texts = []
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text" or set(part) != {"type", "text"}:
            raise ApiError(400, f"{name} may have text parts only", param="messages")
        texts.append(serving.text(part["text"], name))
    return "".join(texts)


def read_stop(value: Any) -> tuple[str, ...]:
    """The strings that end an answer: one, or up to four."""
    values = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(values, list) or len(values) > 4:
        raise ApiError(400, "stop has to be a string or a list of at most 4 strings", param="stop")
    if not all(serving.text(entry, "stop") for entry in values):
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
    return serving.flag(options, "include_usage")


if __name__ == "__main__":
    serving.run(Chat)
