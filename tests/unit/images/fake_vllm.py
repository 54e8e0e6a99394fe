"""A package `vllm` in the place of the real one, which needs a GPU: its engine answers with nothing.

Around it everything is real: the launcher, the middleware, uvicorn, the metrics.
"""

from __future__ import annotations

from pathlib import Path

from tests.unit.images.test_slim import builder

MAIN = '''
"""What the tests need of vllm's command line; FAKE_* says how it goes."""

import asyncio, importlib, json, logging, logging.config, os, sys, time
from pathlib import Path

import prometheus_client
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

words = sys.argv[1:]
options = {word: words[at + 1] for at, word in enumerate(words[:-1]) if word.startswith("--")}
logging.config.dictConfig(json.loads(Path(options["--logging-config.pylogging_config_file"]).read_text()))
HERE = Path(os.environ["FAKE_FOLDER"])
(HERE / "started.json").write_text(json.dumps({"argv": words, "pid": os.getpid(), "env": dict(os.environ)}))
logging.getLogger("vllm.engine").info("the engine starts")
print("a plain line")
print(os.environ.get("FAKE_LINE", ""))
print("10%\\r20%\\r90%", file=sys.stderr)
if os.environ.get("FAKE_LOAD") == "fails":
    print("ValueError: the model has 3 layers", file=sys.stderr)
    raise RuntimeError("Engine core initialization failed. See root cause above.")
time.sleep(float(os.environ.get("FAKE_LOAD_SECONDS", "0")))
REQUESTS = prometheus_client.Counter("vllm:requests", "vLLM's own")


class Engine:
    class model_config:
        dtype = "torch.bfloat16"
        max_model_len = 256

    async def collective_rpc(self, method):
        module, _, name = options["--worker-extension-cls"].rpartition(".")
        assert hasattr(getattr(importlib.import_module(module), name), method)
        if (HERE / "no-memory").exists():
            raise RuntimeError("the engine is dead")
        worker = {"gpu": "NVIDIA Fake", "allocated": 10, "reserved": 20, "peak": 30}
        return [worker, {**worker, "peak": 31}]


async def complete(request):
    asked = await request.json()
    REQUESTS.inc()
    while asked["prompt"] == "Hello" and (HERE / "wait").exists():
        await asyncio.sleep(0.01)
    if asked["prompt"] == "slow":
        await asyncio.sleep(1)
    status = int(os.environ.get("FAKE_STATUS", "200"))
    tokens = int(os.environ.get("FAKE_TOKENS", "1"))
    return JSONResponse({"model": asked["model"], "usage": {"completion_tokens": tokens}}, status)


async def end(request):
    print("RuntimeError: CUDA error: an illegal memory access", file=sys.stderr, flush=True)
    os._exit(1)


app = Starlette(routes=[
    Route("/health", lambda request: Response(status_code=200)),
    Route("/ping", lambda request: Response(status_code=200)),
    Route("/metrics", lambda request: Response(prometheus_client.generate_latest(), media_type="text/plain")),
    Route("/v1/models", lambda request: JSONResponse({"data": [{"id": options["--served-model-name"]}]})),
    Route("/v1/completions", complete, methods=["POST"]),
    Route("/end", end, methods=["POST"]),
])
app.state.engine_client = Engine()
module, _, name = options["--middleware"].rpartition(".")
app.add_middleware(getattr(importlib.import_module(module), name))
uvicorn.run(
    app,
    host=options["--host"],
    port=int(options["--port"]),
    log_config=None,
    access_log=False,
    timeout_graceful_shutdown=int(options["--shutdown-timeout"]),
)
'''


def write_vllm(folder: Path) -> None:
    """Write the package below `folder`, to be named by PYTHONPATH."""
    package = folder / "vllm/entrypoints/cli"
    package.mkdir(parents=True)
    for parent in (folder / "vllm", folder / "vllm/entrypoints", package):
        (parent / "__init__.py").touch()
    (package / "main.py").write_text(MAIN)


def write_driver(folder: Path, result: int) -> None:
    """Write a libcuda.so.1 whose cuInit returns `result`, to be named by LD_LIBRARY_PATH."""
    stub = builder("stub")
    library = stub.make_stub("libcuda.so.1", ["cuInit"], "")
    returns = b"\xb8%b\xc3"  # mov eax, n; ret
    before, after = (returns % number.to_bytes(4, "little") for number in (3, result))
    assert library.count(before) == 1
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "libcuda.so.1").write_bytes(library.replace(before, after))


def write_compiler(folder: Path) -> Path:
    """Write a C compiler that makes one library, whatever it is given; return its path."""
    library = folder / "compiled.so"
    library.write_bytes(builder("stub").make_stub("helper.so", ["modelbake_helper"], ""))
    compiler = folder / "compiler"
    # `... -o OUTPUT -Iinclude`
    compiler.write_text(f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\ncp {library} "$2"\n')
    compiler.chmod(0o755)
    return compiler
