"""The command line of `vllm serve`: what this runtime decides, and what a model may add to it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from serving import LoadError, Settings

SETTING = "MODELBAKE_VLLM_ARGS"
LOGGING = Path(__file__).resolve().parent / "logging.json"
# What a model cannot say: the server would be another than the image says, /health would not be this
# runtime's, or code of the model's repository would run. `--config` could say all of them.
OWNED = {
    "--model": "the image has one model",
    "--served-model-name": "it is the model's name in models.yaml",
    "--host": "set MODELBAKE_HOST",
    "--port": "set MODELBAKE_PORT",
    "--uds": "the port is what health checks ask",
    "--grpc": "HTTP is what health checks ask",
    "--api-key": "set VLLM_API_KEY, which no list of processes shows",
    "--config": f"write its options into {SETTING}",
    "--trust-remote-code": "no server runs code of a model's repository",
    "--load-format": "it is safetensors, which runs no code",
    "--middleware": "it is what makes /health true",
    "--worker-extension-cls": "it is what tells /metrics the GPU memory",
    "--api-server-count": "the metrics are of one process",
    "-asc": "the metrics are of one process",
    "--headless": "it would not listen",
    "--shutdown-timeout": "set MODELBAKE_DRAIN_SECONDS",
    "--log-config-file": "the log is JSON lines",
    "--logging-config": "the log is JSON lines",
    "--omni": "it is another program, which is not in the image",
    "--data-parallel-rank": "the server is one of one container",
    "-dpn": "the server is one of one container",
    "--data-parallel-start-rank": "the server is one of one container",
    "-dpr": "the server is one of one container",
    "--data-parallel-hybrid-lb": "the server is one of one container",
    "-dph": "the server is one of one container",
    "--data-parallel-external-lb": "the server is one of one container",
    "-dpe": "the server is one of one container",
    "--data-parallel-multi-port-external-lb": "the server is one of one container",
    "-dpm": "the server is one of one container",
}
# Settings of the other runtimes that nothing would heed here.
ABSENT = ("MODELBAKE_MAX_BODY_BYTES", "MODELBAKE_MAX_WAITING", "MODELBAKE_DEFAULT_MAX_TOKENS")
# In the server's environment whatever the container's says: another front end has no middleware.
FORCED = {"VLLM_USE_RUST_FRONTEND": "0", "VLLM_CONFIGURE_LOGGING": "1"}


def serve(settings: Settings, added: str) -> list[str]:
    """The arguments of `vllm`; ``added`` is what MODELBAKE_VLLM_ARGS says. LoadError names what is wrong."""
    try:
        words = shlex.split(added)
    except ValueError as error:
        raise LoadError(f"{SETTING} cannot be split into arguments: {error}") from error
    refuse_owned(words)
    return [
        "serve",
        str(settings.weights),
        *("--served-model-name", settings.model),
        *("--host", settings.host),
        *("--port", str(settings.port)),
        *("--load-format", "safetensors"),
        *("--middleware", "gate.Gate"),
        *("--worker-extension-cls", "gpu_memory.GpuMemory"),
        *("--api-server-count", "1"),
        *("--shutdown-timeout", str(settings.drain_seconds)),
        *("--logging-config.pylogging_config_file", str(LOGGING)),
        *("--uvicorn-log-level", "warning"),
        "--disable-uvicorn-access-log",
        *words,
    ]


def refuse_absent(environment: Mapping[str, str]) -> None:
    """LoadError for a setting that other runtimes have and this one has not: it would protect nothing."""
    for name in ABSENT:
        if name in environment:
            raise LoadError(f"{name} is no setting of runtime vllm, whose server is vLLM's own; remove it")


def refuse_owned(words: Sequence[str]) -> None:
    """LoadError for an option that is not a model's to give, in any of the ways that vLLM reads it."""
    for word in words:
        if not word.startswith("-"):
            continue
        name = word.partition("=")[0].replace("_", "-")
        # vLLM's parser also takes the beginning of an option's name, and keys behind a dot.
        name = name.partition(".")[0]
        for owned, why in OWNED.items():
            if name == owned or (len(name) > 3 and owned.startswith(name) and owned.startswith("--")):
                raise LoadError(f"{SETTING} may not have {word.partition('=')[0]}: {why}")
