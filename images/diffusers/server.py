"""Text to image over HTTP, as OpenAI's API has it: POST /v1/images/generations.

The pipeline is read once, from ``$MODELBAKE_WEIGHTS``, with diffusers: safetensors only, no code from the
model's folder, no network. It draws for one request at a time; the others wait. The rest is serving.py's.
"""

from __future__ import annotations

import asyncio
import base64
import inspect
import io
import logging
import re
import secrets
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import serving
except ModuleNotFoundError:  # Outside of an image, where it lies beside this runtime's folder.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "start"))
    import serving

import openai_api
from load_report import LoadReport
from openai_api import ApiError
from serving import Handler, LoadError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

PARAMETERS = {"prompt", "model", "n", "size", "response_format", "user"}
# Beyond OpenAI's API: a request's own names, and what diffusers calls them.
OWN = {
    "seed": "generator",
    "steps": "num_inference_steps",
    "guidance_scale": "guidance_scale",
    "negative_prompt": "negative_prompt",
}
SIZE = re.compile(r"([1-9][0-9]{1,4})x([1-9][0-9]{1,4})")
MULTIPLE = 16  # pixels; every latent space divides an edge by 8 or 16
SMALLEST = 64  # pixels of an edge
DENOISERS = ("transformer", "unet")  # the component that holds most of the weights


class GivenUp(Exception):
    """The client has gone away: nobody waits for this image."""


@dataclass(frozen=True)
class Task:
    """One request: how many images, from which seed on, and what else the pipeline is told."""

    count: int
    seed: int | None
    options: Mapping[str, Any]
    given_up: threading.Event


class Images:
    """The pipeline, and the requests that wait for it."""

    def __init__(self, settings: serving.Settings) -> None:
        self.routes: Mapping[str, Handler] = {"/v1/images/generations": self.generations}
        self.settings = settings
        self.max_images = serving.setting("MODELBAKE_MAX_IMAGES", 4)
        self.max_edge = serving.setting("MODELBAKE_MAX_EDGE", 2048)
        self.max_steps = serving.setting("MODELBAKE_MAX_STEPS", 200)
        self.max_characters = serving.setting("MODELBAKE_MAX_INPUT_CHARACTERS", 10_000)
        self.max_waiting = serving.setting("MODELBAKE_MAX_WAITING", 16)
        self.waiting = 0
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self.pipeline: Any
        self.takes: frozenset[str]

    def load(self) -> dict[str, Any]:
        """Load the pipeline onto the GPU, or the CPU where there is none."""
        weights = self.settings.weights
        serving.require_safetensors(weights)
        if not (weights / "model_index.json").is_file():
            raise LoadError("there is no model_index.json: this is no pipeline of diffusers")
        serving.tame_transformers()
        logging.disable(logging.WARNING)  # of image processors that would like torchvision; none is used here
        import torch
        from diffusers import AutoPipelineForText2Image
        from diffusers.utils import logging as diffusers_logging

        logging.disable(logging.NOTSET)
        diffusers_logging.disable_default_handler()
        diffusers_logging.enable_propagation()
        diffusers_logging.disable_progress_bar()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = saved_dtype(weights) if device == "cuda" else torch.float32
        loader: Any = AutoPipelineForText2Image  # of a package without types
        with LoadReport() as report:
            pipeline = loader.from_pretrained(
                str(weights), dtype=dtype, use_safetensors=True, local_files_only=True
            )
        # transformers fills what is missing with random numbers, and diffusers leaves it empty.
        lacking = [*report.missing, *empty_parameters(pipeline)]
        if lacking:
            raise LoadError(f"the weights lack parts of the model: {', '.join(lacking)}"[:1000])
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline = pipeline.to(device)
        self.takes = frozenset(inspect.signature(pipeline.__call__).parameters)
        return {
            "device": device,
            "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
            "dtype": str(dtype).removeprefix("torch."),
            "pipeline": type(pipeline).__name__,
        }

    def warm_up(self) -> None:
        """Draw one small image in one step, in the very thread that will draw all others."""
        options = {"prompt": "a cat", "width": SMALLEST, "height": SMALLEST, "num_inference_steps": 1}
        task = Task(1, 0, options, threading.Event())
        (image,) = self.thread.submit(self.draw, task).result()
        if not image.startswith(b"\x89PNG"):
            raise LoadError("the model's first answer is no image")

    async def generations(self, request: Request, body: dict[str, Any]) -> Response:
        """POST /v1/images/generations."""
        openai_api.check_known(body, PARAMETERS | set(OWN))
        task = self.read_task(body)
        created = int(time.time())
        images = await self.enqueue(task, request)
        data = [{"b64_json": base64.b64encode(image).decode("ascii")} for image in images]
        return JSONResponse({"created": created, "data": data})

    def read_task(self, body: Mapping[str, Any]) -> Task:
        """Check a request's parameters."""
        for name, own in OWN.items():
            if body.get(name) is not None and own not in self.takes:
                words = f"{name} is not supported by this model's {type(self.pipeline).__name__}"
                raise ApiError(400, words, param=name, code="unsupported_parameter")
        options: dict[str, Any] = {"prompt": self.read_text(body, "prompt")}
        if not options["prompt"]:
            raise ApiError(400, "prompt has to be a string, not empty", param="prompt")
        if body.get("response_format") not in (None, "b64_json"):
            words = "response_format has to be b64_json: this server keeps no images"
            raise ApiError(400, words, param="response_format")
        if body.get("user") is not None:
            openai_api.text(body["user"], "user")
        if body.get("negative_prompt") is not None:
            options["negative_prompt"] = self.read_text(body, "negative_prompt")
        if (steps := openai_api.whole_number(body, "steps", 1, self.max_steps)) is not None:
            options["num_inference_steps"] = steps
        if (scale := openai_api.number(body, "guidance_scale", 0, 100)) is not None:
            options["guidance_scale"] = scale
        if (size := self.read_size(body.get("size"))) is not None:
            options["width"], options["height"] = size
        count = openai_api.whole_number(body, "n", 1, self.max_images) or 1
        seed = openai_api.whole_number(body, "seed", 0, 2**63 - 1)
        return Task(count, seed, options, threading.Event())

    def read_text(self, body: Mapping[str, Any], name: str) -> str:
        """A text that is not too long."""
        text = openai_api.text(body.get(name), name)
        if len(text) > self.max_characters:
            raise ApiError(400, f"{name} has more than {self.max_characters} characters", param=name)
        return text

    def read_size(self, value: Any) -> tuple[int, int] | None:
        """Width and height in pixels; None where the model's own size is asked for."""
        if value in (None, "auto"):
            return None
        found = SIZE.fullmatch(value) if isinstance(value, str) else None
        edges = (int(found[1]), int(found[2])) if found else (0, 0)
        if any(edge % MULTIPLE or not SMALLEST <= edge <= self.max_edge for edge in edges):
            words = f"from {SMALLEST} to {self.max_edge} in multiples of {MULTIPLE}"
            raise ApiError(400, f"size has to be auto, or WIDTHxHEIGHT, each {words}", param="size")
        return edges

    async def enqueue(self, task: Task, request: Request) -> list[bytes]:
        """Wait for the turn of a request, and for its images; no longer drawn once the client goes away."""
        if self.waiting >= self.max_waiting:
            raise ApiError(503, "too many requests are waiting already; try again later", code="overloaded")

        def end(_: object) -> None:
            self.waiting -= 1

        self.waiting += 1
        drawing = asyncio.get_running_loop().run_in_executor(self.thread, self.draw, task)
        drawing.add_done_callback(end)
        watching = asyncio.create_task(serving.until_disconnect(request))
        either: set[asyncio.Future[Any]] = {drawing, watching}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not drawing.done():
                # It ends by itself, at its next step: what it raises then is meant for nobody.
                drawing.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
                raise ClientDisconnect
            return drawing.result()
        finally:
            task.given_up.set()
            watching.cancel()

    def draw(self, task: Task) -> list[bytes]:
        """Draw images, in the model's thread; PNG files. GivenUp where nobody waits any more."""
        import torch

        def after_step(_pipeline: Any, _step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if task.given_up.is_set():
                raise GivenUp
            return tensors

        if task.given_up.is_set():
            raise GivenUp
        options = dict(task.options)
        if "callback_on_step_end" in self.takes:
            options["callback_on_step_end"] = after_step
        first = secrets.randbits(62) if task.seed is None else task.seed
        images = []
        # One after the other: a seed's first image does not depend on how many are asked for.
        for number in range(task.count):
            # On the CPU, so that a seed means the same noise on every device.
            generator = torch.Generator("cpu").manual_seed((first + number) % 2**63)
            with torch.inference_mode():
                drawn = self.pipeline(**options, generator=generator).images[0]
            file = io.BytesIO()
            drawn.save(file, format="PNG")
            images.append(file.getvalue())
        return images


def empty_parameters(pipeline: Any) -> list[str]:
    """The parameters that no file has given a value."""
    return [
        f"{name}.{parameter}"
        for name, component in pipeline.components.items()
        if hasattr(component, "named_parameters")
        for parameter, tensor in component.named_parameters()
        if tensor.is_meta
    ]


def saved_dtype(weights: Path) -> Any:
    """The precision that the largest component was saved in; half precision where it was more."""
    import torch
    from safetensors import safe_open

    known = {"BF16": torch.bfloat16, "F16": torch.float16}
    for component in DENOISERS:
        for path in sorted((weights / component).glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                names = file.keys()
                return known.get(file.get_slice(next(iter(names))).get_dtype(), torch.bfloat16)
    return torch.bfloat16


if __name__ == "__main__":
    serving.run(Images)
