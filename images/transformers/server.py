"""Chat completions over HTTP, as OpenAI's API has them: POST /v1/chat/completions, streamed or at once.

The model is read once, from ``$MODELBAKE_WEIGHTS``, with transformers: safetensors only, no code from the
model's folder, no network. It answers one request at a time; the others wait. The rest is serving.py's.
"""

from __future__ import annotations

import asyncio
import copy
import secrets
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import serving
except ModuleNotFoundError:  # Outside of an image, where it lies beside this runtime's folder.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "start"))
    import serving

import chat_parameters
from chat_service import ChatService, Emit, End, Piece, count_usage
from openai_api import ApiError
from pieces import Decoder, StopFilter, Streamer
from serving import LoadError

UNLIMITED = 2**40  # tokens, where a model knows no limit of its own


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


class Chat(ChatService[Task]):
    """The model, which answers one request at a time."""

    def __init__(self, settings: serving.Settings) -> None:
        super().__init__(settings)
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
        limit = longest_context(self.model.config.get_text_config())
        self.context = UNLIMITED if limit is None else limit
        return {
            "device": device,
            "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "context": limit,
        }

    def warm_up(self) -> None:
        """Generate one token, in the very thread that will generate all others."""
        prompt = self.make_prompt([{"role": "user", "content": "Hello"}])
        task = Task(prompt, 1, temperature=0, top_p=None, seed=None, stop=())
        end = self.threads.submit(self.generate, task, lambda _: None, threading.Event()).result()
        if (tokens := end.usage["completion_tokens"]) != 1:
            raise LoadError(f"the model's first answer has {tokens} tokens instead of 1")

    async def read_order(self, body: dict[str, Any]) -> Task:
        """Check a request's parameters, and make its prompt."""
        messages = chat_parameters.read_messages(body.get("messages"))
        sampling = chat_parameters.read_sampling(body, seeds=(-(2**63), 2**63 - 1))
        wanted = sampling.max_tokens
        loop = asyncio.get_running_loop()
        prompt = await loop.run_in_executor(self.prompt_thread, self.make_prompt, messages)
        length = int(prompt.shape[-1])
        room = self.context - length
        if room < (wanted or 1):
            words = f"{length} tokens of messages and {wanted or 1} to follow are more than {self.context}"
            raise ApiError(400, words, param="messages", code="context_length_exceeded")
        return Task(
            prompt,
            wanted or min(room, self.default_max_tokens),
            sampling.temperature,
            sampling.top_p,
            sampling.seed,
            sampling.stop,
        )

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

    def generate(self, order: Task, emit: Emit, given_up: threading.Event) -> End:
        """Let the model go on from a prompt."""
        import torch
        from transformers import StoppingCriteriaList

        def decode(tokens: list[int]) -> str:
            return str(
                self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            )

        streamer = Streamer(Decoder(decode), StopFilter(order.stop), lambda text: emit(Piece(text)))

        def is_over(tokens: torch.Tensor, _scores: object, **_: object) -> torch.Tensor:
            over = given_up.is_set() or streamer.stops.found
            return torch.full((tokens.shape[0],), over, dtype=torch.bool, device=tokens.device)

        # Another request's seed must not decide this answer.
        torch.manual_seed(secrets.randbits(63) if order.seed is None else order.seed)
        prompt = order.prompt.to(self.model.device)
        with torch.inference_mode():
            self.model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=self.configure(order),
                stopping_criteria=StoppingCriteriaList([is_over]),
                streamer=streamer,
            )
        tokens = streamer.decoder.tokens
        ended = streamer.stops.found or (bool(tokens) and tokens[-1] in self.end_tokens())
        return End("stop" if ended else "length", count_usage(order.prompt_tokens, len(tokens)))

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


def longest_context(config: Any) -> int | None:
    """How many tokens a model can see; None where its architecture has no such limit (Mamba, BLOOM)."""
    limit = getattr(config, "max_position_embeddings", None)
    return None if limit is None else int(limit)


if __name__ == "__main__":
    serving.run(Chat)
