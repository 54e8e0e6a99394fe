"""How far vLLM gets on a machine without a GPU, from the packages of the runtime: all but the engine itself.

    VENV/bin/python vllm_without_gpu.py FOLDER...    FOLDERs of the runtime's and of start's programs

Run by the environment or image that is to be looked at, with the settings of a container. It imports what
serves and what computes, reads the launcher's own command line with vLLM's parser, has vLLM check the model
in ``$MODELBAKE_WEIGHTS`` and make the engine's configuration, and asks vLLM's own application, with the
middleware around it. Triton compiles a kernel for a GPU, and NCCL says its version. vLLM is told that it is
on a CPU, as its `bench` command does where there is no GPU.
stdout: one JSON object.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import tempfile
from pathlib import Path
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
KERNEL = """
import triton
import triton.language as tl

@triton.jit
def add(x, y, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.exp(tl.load(x + at, mask=at < n)), mask=at < n)
"""


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
    told["nccl"] = importlib.import_module("torch.cuda.nccl").version()[0]
    told["compiled"] = compile_kernel()
    told |= {"architecture": architecture, "context": model.max_model_len, "served": model.served_model_name}
    told["answers"] = asyncio.run(ask(args, model))
    sys.stdout.write(f"{json.dumps(told)}\n")


def compile_kernel() -> list[str]:
    """What Triton makes of a kernel for an H100, the last of it by its own ptxas."""
    with tempfile.TemporaryDirectory() as folder:
        # Triton reads a kernel's source from its file.
        (Path(folder) / "kernel_of_test.py").write_text(KERNEL)
        sys.path.insert(0, folder)
        kernel = importlib.import_module("kernel_of_test").add
        triton: Any = importlib.import_module("triton")
        compiler: Any = importlib.import_module("triton.compiler")
        signature = {"x": "*fp32", "y": "*fp32", "n": "i32", "BLOCK": "constexpr"}
        source = compiler.ASTSource(fn=kernel, signature=signature, constexprs={"BLOCK": 128})
        target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", 90, 32)
        made = triton.compile(source, target=target)
        return sorted(kind for kind, content in made.asm.items() if content)


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
