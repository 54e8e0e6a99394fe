"""How far vLLM gets on a machine without a GPU, from the packages of the runtime: all but the engine itself.

    VENV/bin/python vllm_without_gpu.py FOLDER...    FOLDERs of the runtime's and of start's programs

Run by the environment or image that is to be looked at, with the settings of a container. It imports what
serves and what computes, reads the launcher's own command line with vLLM's parser, has vLLM check the model
in ``$MODELBAKE_WEIGHTS`` and make the engine's configuration, and asks vLLM's own application, with the
middleware around it. vLLM is told that it is on a CPU, as its `bench` command does where there is no GPU.
stdout: one JSON object.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
from typing import Any

# What a request needs, and what the engine and its workers do.
MODULES = (
    "torch._inductor.compile_fx",
    "triton.compiler",
    "triton.backends.nvidia.compiler",
    "triton.backends.nvidia.driver",
    "xgrammar",
    "llguidance",
    "tokenizers",
    "vllm.entrypoints.cli.main",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.worker.gpu_worker",
    "vllm.v1.worker.gpu_model_runner",
    "vllm.v1.attention.backends.flash_attn",
    "vllm.v1.attention.backends.triton_attn",
    "vllm.model_executor.model_loader",
)


def main(folders: list[str]) -> None:
    """Do all of it; any exception is the answer as well."""
    sys.path[:0] = folders
    cuda: Any = importlib.import_module("torch").cuda
    platforms: Any = importlib.import_module("vllm.platforms")
    told = {"gpu": bool(cuda.is_available()), "platform": type(platforms.current_platform).__name__}
    platforms.current_platform = importlib.import_module("vllm.platforms.cpu").CpuPlatform()
    for name in MODULES:
        importlib.import_module(name)
    arguments: Any = importlib.import_module("arguments")
    serving: Any = importlib.import_module("serving")
    settings = serving.Settings.from_environment()
    args = parse(arguments.serve(settings, os.environ.get(arguments.SETTING, "")))
    engine = importlib.import_module("vllm.engine.arg_utils").AsyncEngineArgs.from_cli_args(args)
    model = engine.create_model_config()
    _, architecture = model.registry.resolve_model_cls(model.architectures, model)
    engine.create_engine_config()
    told |= {"architecture": architecture, "context": model.max_model_len, "served": model.served_model_name}
    told["answers"] = asyncio.run(ask(args, model))
    sys.stdout.write(f"{json.dumps(told)}\n")


def parse(words: list[str]) -> Any:
    """The command line, as `vllm` reads it."""
    serve: Any = importlib.import_module("vllm.entrypoints.cli.serve")
    parser: Any = importlib.import_module("vllm.utils.argparse_utils").FlexibleArgumentParser()
    (command,) = serve.cmd_init()
    command.subparser_init(parser.add_subparsers(dest="subparser"))
    args = parser.parse_args(words)
    command.validate(args)
    args.model = args.model_tag
    return args


async def ask(args: Any, model: Any) -> dict[str, int]:
    """The statuses of vLLM's own application before the model has answered; 0 for metrics without ours."""
    gate: Any = importlib.import_module("gate")
    app = importlib.import_module("vllm.entrypoints.launchers.app").build_app(args, ("generate",), model)
    app.state.engine_client = None
    answers: dict[str, int] = {}
    for path in ("/health", "/ping", "/v1/models", "/metrics"):
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
        }
        answers[path], text = await gate.ask(app, scope, b"")
        if path == "/metrics" and b"modelbake_load_seconds" not in text:
            answers[path] = 0
    return answers


if __name__ == "__main__":
    main(sys.argv[1:])
