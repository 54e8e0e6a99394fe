"""Sentence embeddings over HTTP, as OpenAI's API has them: POST /v1/embeddings.

The model is read once, from ``$MODELBAKE_WEIGHTS``, with sentence-transformers: safetensors only, no code
from the model's folder, no network. Requests that wait together are computed together. serving.py has the
rest.
"""

from __future__ import annotations

import asyncio
import base64
import sys
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    import serving
except ModuleNotFoundError:  # Outside of an image, where it lies beside this runtime's folder.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "start"))
    import serving

import openai_api
from load_report import LoadReport
from openai_api import ApiError
from serving import Handler, LoadError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

if TYPE_CHECKING:
    import numpy
    from sentence_transformers import SentenceTransformer

PARAMETERS = {"input", "model", "encoding_format", "truncate", "user"}


@dataclass(frozen=True)
class Job:
    """The texts of one request."""

    texts: list[str]
    truncate: bool


@dataclass(frozen=True)
class Answer:
    """The embeddings of one request, float32, one row a text, and how many tokens they were made of."""

    vectors: numpy.ndarray[Any, Any]
    tokens: int


class Embeddings:
    """The model, and the queue before it."""

    def __init__(self, settings: serving.Settings) -> None:
        self.routes: Mapping[str, Handler] = {"/v1/embeddings": self.embeddings}
        self.settings = settings
        self.max_inputs = serving.setting("MODELBAKE_MAX_INPUTS", 256)
        self.max_characters = serving.setting("MODELBAKE_MAX_INPUT_CHARACTERS", 1_000_000)
        self.max_waiting = serving.setting("MODELBAKE_MAX_WAITING", 4096)
        self.batch_size = serving.setting("MODELBAKE_BATCH_SIZE", 32)
        self.waiting: deque[tuple[Job, asyncio.Future[Answer]]] = deque()
        self.worker: asyncio.Task[None] | None = None
        # One thread for all that touches the model: neither it nor its tokenizer is made for several.
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self.model: SentenceTransformer

    def load(self) -> dict[str, Any]:
        """Load the model onto the GPU, or the CPU where there is none."""
        serving.require_safetensors(self.settings.weights)
        import torch
        from sentence_transformers import SentenceTransformer

        serving.tame_transformers()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        # Half precision is slow on CPUs, and "auto" is what the model was saved in.
        dtype = "auto" if device == "cuda" else torch.float32
        with LoadReport() as report:
            self.model = SentenceTransformer(
                str(self.settings.weights),
                device=device,
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True, "dtype": dtype},
            )
        # A pooler is BERT's, for another task than embedding; many models come without it.
        lacking = [name for name in report.missing if not name.startswith("pooler.")]
        if lacking:
            raise LoadError(f"the weights lack parts of the model: {', '.join(lacking)}"[:1000])
        return {
            "device": device,
            "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
            "dtype": str(next(self.model.parameters()).dtype).removeprefix("torch."),
            "dimension": self.model.get_embedding_dimension(),
            "max_tokens": self.model.max_seq_length,
        }

    def warm_up(self) -> None:
        """Embed one text, in the very thread that will embed all others."""
        import numpy

        outcome = self.thread.submit(self.compute, [Job(["warm-up"], truncate=False)]).result()[0]
        if isinstance(outcome, Exception):
            raise outcome
        shape = outcome.vectors.shape
        if shape != (1, self.model.get_embedding_dimension()) or not numpy.isfinite(outcome.vectors).all():
            raise LoadError(f"the model's first answer is no embedding; its shape is {shape}")

    async def embeddings(self, _request: Request, body: dict[str, Any]) -> Response:
        """POST /v1/embeddings."""
        openai_api.check_known(body, PARAMETERS)
        texts = self.read_input(body.get("input"))
        encoding = body.get("encoding_format", "float")
        if encoding not in ("float", "base64", None):
            raise ApiError(400, "encoding_format has to be float or base64", param="encoding_format")
        if body.get("user") is not None:
            openai_api.text(body["user"], "user")
        answer = await self.enqueue(Job(texts, openai_api.flag(body, "truncate")))
        rows = answer.vectors.astype("<f4")
        encoded: list[Any] = (
            [base64.b64encode(row.tobytes()).decode("ascii") for row in rows]
            if encoding == "base64"
            else rows.tolist()
        )
        return JSONResponse(
            {
                "object": "list",
                "data": [
                    {"object": "embedding", "index": index, "embedding": embedding}
                    for index, embedding in enumerate(encoded)
                ],
                "model": self.settings.model,
                "usage": {"prompt_tokens": answer.tokens, "total_tokens": answer.tokens},
            }
        )

    def read_input(self, value: Any) -> list[str]:
        """The texts to embed."""
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not values:
            raise ApiError(400, "input has to be a string or a list of strings, not empty", param="input")
        if any(isinstance(entry, int | list) for entry in values):
            words = "input has to be text: the model has a tokenizer of its own, and takes no tokens"
            raise ApiError(400, words, param="input", code="tokens_not_supported")
        if len(values) > self.max_inputs:
            words = f"input has {len(values)} texts; at most {self.max_inputs} are possible at a time"
            raise ApiError(400, words, param="input", code="too_many_inputs")
        for index, entry in enumerate(values):
            if not openai_api.text(entry, f"input[{index}]"):
                raise ApiError(400, f"input[{index}] is empty", param="input")
            if len(entry) > self.max_characters:
                words = f"input[{index}] has more than {self.max_characters} characters"
                raise ApiError(400, words, param="input", code="context_length_exceeded")
        return values

    async def enqueue(self, job: Job) -> Answer:
        """Wait for the turn of these texts, and for their embeddings."""
        if sum(len(other.texts) for other, _ in self.waiting) + len(job.texts) > self.max_waiting:
            raise ApiError(503, "too many texts are waiting already; try again later", code="overloaded")
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.waiting.append((job, answer))
        if self.worker is None or self.worker.done():
            self.worker = asyncio.create_task(self.work())
        return await answer

    async def work(self) -> None:
        """Compute what waits, as much as fits at a time, until nothing waits any more."""
        while self.waiting:
            batch = [self.waiting.popleft()]
            count = len(batch[0][0].texts)
            while self.waiting and count + len(self.waiting[0][0].texts) <= self.max_inputs:
                batch.append(self.waiting.popleft())
                count += len(batch[-1][0].texts)
            jobs = [job for job, _ in batch]
            outcomes = await asyncio.get_running_loop().run_in_executor(self.thread, self.compute, jobs)
            for (_, answer), outcome in zip(batch, outcomes, strict=True):
                if answer.done():  # Cancelled, while the server shuts down.
                    continue
                if isinstance(outcome, Exception):
                    answer.set_exception(outcome)
                else:
                    answer.set_result(outcome)

    def compute(self, jobs: list[Job]) -> list[Answer | Exception]:
        """Answer several requests with one run of the model; what is wrong with one is its own matter."""
        outcomes: dict[int, Answer | Exception] = {}
        tokens: dict[int, int] = {}
        for number, job in enumerate(jobs):
            try:
                tokens[number] = self.count_tokens(job)
            except Exception as error:
                outcomes[number] = error
        try:
            start = 0
            vectors = self.encode([text for number in tokens for text in jobs[number].texts])
            for number, count in tokens.items():
                end = start + len(jobs[number].texts)
                outcomes[number] = Answer(vectors[start:end], count)
                start = end
        except Exception as error:
            # Too much for the memory, perhaps: then each alone.
            alone = len(tokens) > 1
            outcomes.update(
                {number: self.compute([jobs[number]])[0] if alone else error for number in tokens}
            )
        return [outcomes[number] for number in range(len(jobs))]

    def count_tokens(self, job: Job) -> int:
        """How many tokens a request has; ApiError where one text has more than the model can see."""
        prompt = self.model.prompts.get(self.model.default_prompt_name or "") or ""
        texts = [prompt + text for text in job.texts]
        tokenized = self.model.tokenizer(texts, truncation=False, padding=False, verbose=False)
        counts = [len(tokens) for tokens in tokenized["input_ids"]]
        limit = self.model.max_seq_length
        if limit is None:
            return sum(counts)
        for index, count in enumerate(counts):
            if count > limit and not job.truncate:
                words = (
                    f"input[{index}] has {count} tokens, the model sees {limit}: shorten it or set truncate"
                )
                raise ApiError(400, words, param="input", code="context_length_exceeded")
        return sum(min(count, limit) for count in counts)

    def encode(self, texts: list[str]) -> numpy.ndarray[Any, Any]:
        """The embeddings of the texts, one row each."""
        return self.model.encode(texts, batch_size=self.batch_size, show_progress_bar=False)


if __name__ == "__main__":
    serving.run(Embeddings)
