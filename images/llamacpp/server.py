"""Chat completions over HTTP, as OpenAI's API has them: POST /v1/chat/completions, streamed or at once.

The model, one GGUF file or its shards in ``$MODELBAKE_WEIGHTS``, is read once by llama.cpp. Its own
server runs within this process (xllamacpp); it listens on a socket that nobody can reach. Of a request only
what chat_parameters.py knows gets there. The rest is serving.py's.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

try:
    import serving
except ModuleNotFoundError:  # Outside of an image, where it lies beside this runtime's folder.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "start"))
    import serving

import chat_parameters
import gguf_file
from chat_service import ChatService, Emit, End, Piece
from openai_api import ApiError
from serving import LoadError

SEEDS = (0, 2**32 - 2)  # one more means random, to llama.cpp
TOO_LONG = "exceed_context_size_error"
PARTS = ("content", "reasoning_content")  # of a message


class Chat(ChatService[dict[str, Any]]):
    """One model, and llama.cpp's server for it."""

    def __init__(self, settings: serving.Settings) -> None:
        self.parallel = serving.setting("MODELBAKE_PARALLEL", 1)
        super().__init__(settings, threads=self.parallel)
        self.context = serving.setting("MODELBAKE_CONTEXT", 8192)
        self.cores = serving.setting("MODELBAKE_THREADS", len(os.sched_getaffinity(0)))
        self.llama: Any

    def load(self) -> dict[str, Any]:
        """Load the model into memory."""
        path = gguf_file.find_model(self.settings.weights)
        header = gguf_file.read_header(path)
        architecture = header.get("general.architecture")
        if not header.get("tokenizer.chat_template"):  # llama.cpp would take some other model's.
            raise LoadError(f"{path.name} has no chat template ({architecture}): this is no chat model")
        trained = header.get(f"{architecture}.context_length")
        if isinstance(trained, int):
            self.context = min(self.context, trained)
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.model_alias = {self.settings.model}
        params.n_parallel = self.parallel
        params.n_ctx = self.context * self.parallel
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self.cores
        params.fit_params = False
        params.cache_ram_mib = 0  # It keeps old prompts in memory otherwise, up to 8 GiB of them.
        params.verbosity = 1  # errors
        params.offline = True
        params.ui = False
        with tempfile.TemporaryDirectory() as folder, errors_kept() as errors:
            params.hostnames = [f"{folder}/llama.sock"]
            try:
                self.llama = xllamacpp.Server(params)
            except RuntimeError as error:
                raise LoadError(f"llama.cpp cannot load {path.name}: {errors() or error}"[:1000]) from error
        return {
            "device": "cpu",
            "file": path.name,
            "architecture": architecture,
            "context": self.context,
            "parallel": self.parallel,
            "threads": self.cores,
        }

    def warm_up(self) -> None:
        """Generate one token."""
        messages = [{"role": "user", "content": "Hello"}]
        order = {"messages": messages, "max_tokens": 1, "temperature": 0}
        answer = self.threads.submit(self.llama.handle_chat_completions, order).result()
        tokens = answer.get("usage", {}).get("completion_tokens")
        if tokens != 1:
            words = answer.get("error", f"{tokens} tokens")
            raise LoadError(f"the model's first answer is not one token: {words}"[:1000])

    async def read_order(self, body: dict[str, Any]) -> dict[str, Any]:
        """Check a request's parameters; return what llama.cpp is to do, which is always to stream."""
        messages = chat_parameters.read_messages(body.get("messages"))
        sampling = chat_parameters.read_sampling(body, SEEDS)
        order: dict[str, Any] = {
            "messages": messages,
            "max_tokens": sampling.max_tokens or self.default_max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if sampling.temperature is not None or sampling.top_p is not None:
            # As OpenAI's API means them: no default of llama.cpp cuts the choice of tokens besides.
            order |= {"top_k": 0, "min_p": 0, "temperature": 1, "top_p": 1}
            given = {"temperature": sampling.temperature, "top_p": sampling.top_p}
            order |= {name: value for name, value in given.items() if value is not None}
        if sampling.seed is not None:
            # A prompt that was computed in other portions gives numbers that differ in their last digits.
            order |= {"seed": sampling.seed, "cache_prompt": False}
        if sampling.stop:
            order["stop"] = list(sampling.stop)
        return order

    def generate(self, order: dict[str, Any], emit: Emit, given_up: threading.Event) -> End:
        """Let llama.cpp answer an order, and pass on its chunks."""
        finish_reason: str | None = None
        usage: Mapping[str, Any] | None = None
        refused: ApiError | None = None

        def take(data: bytes) -> bool:
            """Take one chunk; whether that is enough."""
            nonlocal finish_reason, usage, refused
            chunk = json.loads(data)
            if "error" in chunk:
                refused = refusal(chunk["error"])
                return True
            usage = chunk.get("usage", usage)
            for choice in chunk["choices"]:
                finish_reason = choice["finish_reason"] or finish_reason
                for part in PARTS:
                    if text := choice["delta"].get(part):
                        emit(Piece(text, part))
            return given_up.is_set()

        try:
            self.llama.handle_chat_completions(json.dumps(order).encode(), take)
        except (ValueError, RuntimeError) as error:  # how xllamacpp passes on what llama.cpp throws
            words = f"llama.cpp refuses this request: {error}"[:1000]
            raise ApiError(400, words, param="messages") from error
        if refused is not None:
            raise refused
        if given_up.is_set():
            return End("stop", {})
        if finish_reason is None or usage is None:
            raise RuntimeError("an answer without an end")
        return End(finish_reason, usage)


def refusal(error: Mapping[str, Any]) -> ApiError:
    """What llama.cpp says of a request that it does not answer."""
    message = str(error.get("message"))[:1000]
    if error.get("type") == TOO_LONG:
        return ApiError(400, message, param="messages", code="context_length_exceeded")
    return ApiError(400 if error.get("code") == 400 else 500, message)


@contextlib.contextmanager
def errors_kept() -> Iterator[Any]:
    """Keep what llama.cpp writes to stderr meanwhile; yields what returns its first error.

    Why a model cannot be loaded it tells nobody but its log.
    """
    with tempfile.TemporaryFile() as file:

        def first_error() -> str:
            file.seek(0)
            lines = file.read().decode("utf-8", "replace").splitlines()
            return next((line.partition(" E ")[2].strip() for line in lines if " E " in line), "")

        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield first_error
        finally:
            os.dup2(kept, 2)
            os.close(kept)


if __name__ == "__main__":
    serving.run(Chat)
