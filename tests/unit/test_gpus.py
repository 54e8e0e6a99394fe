"""Which GPUs are asked for, and the errors about GPUs; the texts are those that engines and CUDA write."""

from __future__ import annotations

import pytest

from modelbake.errors import UsageError
from modelbake.gpus import ALL, Gpus, cuda_of, driver_trouble, engine_trouble, parse_gpus

UUID = "GPU-2f68f999-7b41-e64a-3709-0c8c4fa756c0"

# https://github.com/theroyallab/tabbyAPI/issues/324
OLD_DRIVER_OF_TOOLKIT = (
    "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create"
    " failed: unable to start container process: error during container init: error running prestart hook #0:"
    " exit status 1, stdout: , stderr: Auto-detected mode as 'legacy'\nnvidia-container-cli: requirement"
    " error: unsatisfied condition: cuda>=12.8, please update your driver to a newer version, or use an"
    " earlier cuda container: unknown"
)
# https://github.com/NVIDIA/nvidia-docker/issues/536
OLD_DRIVER_LONG_AGO = "nvidia-container-cli: requirement error: unsatisfied condition: cuda >= 9.0\\n"
# nvidia-container-runtime, where it compares versions itself
OLD_DRIVER_OF_RUNTIME = "unsatisfied condition: cuda>=13.0 (cuda=12.6)"
# https://github.com/pytorch/pytorch/blob/main/c10/cuda/CUDAFunctions.cpp
OLD_DRIVER_OF_TORCH = (
    "/opt/venv/lib/python3.11/site-packages/torch/cuda/__init__.py:141: UserWarning: CUDA initialization: The"
    " NVIDIA driver on your system is too old (found version 11070). Please update your GPU driver by"
    " downloading and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
)
OLD_DRIVER_OF_CUDA = (
    "ggml_cuda_init: failed to initialize CUDA: CUDA driver version is insufficient for CUDA runtime version"
)


@pytest.mark.parametrize(
    ("text", "gpus"),
    [
        ("all", ALL),
        ("1", Gpus(count=1)),
        ("8", Gpus(count=8)),
        ("device=0", Gpus(devices=("0",))),
        ("device=0,2", Gpus(devices=("0", "2"))),
        ("device=2,2", Gpus(devices=("2",))),
        ("device=0:1", Gpus(devices=("0:1",))),
        (f"device={UUID}", Gpus(devices=(UUID,))),
        ("nvidia.com/gpu=0", Gpus(cdi=("nvidia.com/gpu=0",))),
        ("nvidia.com/gpu=0,nvidia.com/gpu=1:0", Gpus(cdi=("nvidia.com/gpu=0", "nvidia.com/gpu=1:0"))),
        ("nvidia.com/gpu=all", Gpus(cdi=("nvidia.com/gpu=all",))),
    ],
)
def test_gpus_are_read(text: str, gpus: Gpus) -> None:
    assert parse_gpus(text) == gpus


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "-1",
        "none",
        "0,1",
        "device=",
        "device=0,",
        "device=gpu0",
        "nvidia.com/gpu",
        "amd.com/gpu=0",
        "ALL",
    ],
)
def test_what_names_no_gpus(text: str) -> None:
    with pytest.raises(UsageError, match=r"--gpus takes all, a number, device=0,1 .* or CDI names"):
        parse_gpus(text)


@pytest.mark.parametrize(
    ("said", "message", "remedy"),
    [
        (
            'could not select device driver "" with capabilities: [[gpu]]',
            "no GPU runtime",
            "nvidia-ctk runtime",
        ),
        (
            'could not select device driver "nvidia" with capabilities: [[gpu utility]]',
            "no GPU runtime",
            "container toolkit",
        ),
        ('could not select device driver "cdi" with capabilities: []', "by CDI names", "Docker 28.2"),
        (
            "CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=7",
            "knows no such GPU: nvidia.com/gpu=7",
            "nvidia-ctk cdi list",
        ),
        (
            "OCI runtime create failed: could not apply required modification to OCI specification: error"
            " modifying OCI spec: failed to inject CDI devices: unresolvable CDI devices nvidia.com/gpu=all:"
            " unknown",
            "knows no such GPU: nvidia.com/gpu=all",
            "nvidia-ctk cdi list",
        ),
        ("nvidia-container-cli: device error: 7: unknown device: unknown", "no such GPU (", "nvidia-smi -L"),
        (
            "nvidia-container-cli: initialization error: load library failed: libnvidia-ml.so.1: cannot open"
            " shared object file: no such file or directory: unknown",
            "no working NVIDIA driver",
            "nvidia-smi",
        ),
        (OLD_DRIVER_OF_TOOLKIT, "the image has CUDA 12.8, and the host's driver is older", "driver"),
    ],
)
def test_what_an_engine_says_of_gpus(said: str, message: str, remedy: str) -> None:
    trouble = engine_trouble(f"500 Server Error: {said}")
    assert trouble is not None
    assert message in trouble.message
    assert remedy in trouble.hint


@pytest.mark.parametrize(
    "said",
    [
        "no such image",
        'exec: "/app": no such file',
        'could not select device driver "x" with capabilities: [[tpu]]',
    ],
)
def test_what_an_engine_says_of_other_things(said: str) -> None:
    assert engine_trouble(said) is None


@pytest.mark.parametrize(
    ("text", "cuda", "message"),
    [
        (OLD_DRIVER_OF_TOOLKIT, "", "the image has CUDA 12.8, and the host's driver is older"),
        (OLD_DRIVER_LONG_AGO, "", "the image has CUDA 9.0, and the host's driver is older"),
        (OLD_DRIVER_OF_RUNTIME, "", "the image has CUDA 13.0, and the host's driver goes up to CUDA 12.6"),
        (OLD_DRIVER_OF_TORCH, "13.0", "the image has CUDA 13.0, and the host's driver goes up to CUDA 11.7"),
        (OLD_DRIVER_OF_TORCH, "", "the image has a newer CUDA, and the host's driver goes up to CUDA 11.7"),
        (OLD_DRIVER_OF_CUDA, "12.9", "the image has CUDA 12.9, and the host's driver is older"),
        (OLD_DRIVER_OF_CUDA, "", "the image has a newer CUDA, and the host's driver is older"),
    ],
)
def test_a_driver_that_is_too_old(text: str, cuda: str, message: str) -> None:
    trouble = driver_trouble(f"line\n{text}\nline", cuda)
    assert trouble is not None
    assert trouble.message == message


def test_a_log_without_such_words_says_nothing() -> None:
    assert driver_trouble("loaded\nCUDA out of memory\ndriver 550.54", "13.0") is None


@pytest.mark.parametrize(
    ("requirements", "cuda"),
    [
        ("torch==2.13.0 \\\n  --hash=sha256:a\nnvidia-cuda-runtime==13.0.96 \\\n  --hash=sha256:b\n", "13.0"),
        ("nvidia-cuda-runtime-cu12==12.8.90\ntorch==2.9.1\n", "12.8"),
        ("torch==2.9.1+cu126\n", "12.6"),
        ("torch==2.9.1+cu130\n", "13.0"),
        ("torch==2.13.0+cpu\nnumpy==2.0\n", ""),
        ("# nvidia-cuda-runtime==13.0.96\n", ""),
        ("", ""),
    ],
)
def test_the_cuda_of_requirements(requirements: str, cuda: str) -> None:
    assert cuda_of(requirements) == cuda
