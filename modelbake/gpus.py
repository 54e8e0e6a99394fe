"""Which GPUs a container is given, and what engines and CUDA say where that does not work. Pure.

`--gpus` takes what `docker run --gpus` takes (`all`, a number, `device=0,2`), and CDI names beside that. The
forms of a request: https://docs.docker.com/reference/api/engine/ (ContainerCreate, DeviceRequest), and for
CDI https://docs.docker.com/reference/cli/dockerd/#configure-cdi-devices.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from modelbake.errors import UsageError
from modelbake.scalars import quoted

NVIDIA = "nvidia.com/gpu"
EXPECTED = "all, a number, device=0,1 (indices or UUIDs), or CDI names such as nvidia.com/gpu=0"

_DEVICE = r"(?:[0-9]{1,3}(?::[0-9]{1,2})?|(?:GPU|MIG)-[0-9A-Za-z/-]{8,100})"
_DEVICES = re.compile(rf"device=({_DEVICE}(?:,{_DEVICE})*)", re.ASCII)
# https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md: vendor/class=name
_CDI_NAME = r"nvidia\.com/[A-Za-z][A-Za-z0-9._-]{0,62}=[A-Za-z0-9][A-Za-z0-9._:-]{0,100}"
_CDI_NAMES = re.compile(rf"{_CDI_NAME}(?:,{_CDI_NAME})*", re.ASCII)


@dataclass(frozen=True)
class Gpus:
    """All GPUs (where nothing else is said), the first `count`, `devices` (indices, UUIDs), or CDI names."""

    count: int | None = None
    devices: tuple[str, ...] = ()
    cdi: tuple[str, ...] = ()


ALL = Gpus()


@dataclass(frozen=True)
class Trouble:
    """Why a GPU cannot be had or used, and what to do."""

    message: str
    hint: str


def parse_gpus(text: str) -> Gpus:
    """Read what `--gpus` was given. Raises UsageError."""
    if text == "all":
        return ALL
    if re.fullmatch("[1-9][0-9]{0,2}", text, re.ASCII):
        return Gpus(count=int(text))
    if found := _DEVICES.fullmatch(text):
        return Gpus(devices=tuple(dict.fromkeys(found[1].split(","))))
    if _CDI_NAMES.fullmatch(text):
        return Gpus(cdi=tuple(dict.fromkeys(text.split(","))))
    raise UsageError(f"--gpus takes {EXPECTED}; got {quoted(text)}")


def engine_trouble(text: str) -> Trouble | None:
    """Return what is wrong where an engine's error is about GPUs, None where it is about something else."""
    if (old := driver_trouble(text)) is not None:
        return old
    if found := _UNRESOLVABLE.search(text):
        names = found[1].strip()
        return Trouble(
            f"the engine knows no such GPU: {names}",
            "`nvidia-ctk cdi list` on its machine lists the names; `nvidia-ctk cdi generate"
            " --output=/etc/cdi/nvidia.yaml` writes them anew",
        )
    if _NO_CDI.search(text):
        return Trouble(
            "the engine does not hand out devices by CDI names",
            'it does from Docker 28.2 on; before that from 25 on with {"features": {"cdi": true}} in its'
            " /etc/docker/daemon.json",
        )
    if _NO_RUNTIME.search(text):
        return Trouble(
            "the engine has no GPU runtime",
            "install the NVIDIA container toolkit on its machine, then `nvidia-ctk runtime configure"
            " --runtime=docker` and restart Docker; or set DOCKER_HOST to another engine",
        )
    if found := _NO_DEVICE.search(text):
        return Trouble(
            f"the machine has no such GPU ({found[0].strip()})", "`nvidia-smi -L` on it lists its GPUs"
        )
    if found := _NO_DRIVER.search(text):
        return Trouble(
            f"the machine of the engine has no working NVIDIA driver ({found[0].strip()})",
            "`nvidia-smi` has to work there first",
        )
    return None


def driver_trouble(text: str, cuda: str = "") -> Trouble | None:
    """Return that the host's driver is too old for the image's CUDA, where an error or a log says so.

    Args:
        text: what an engine, PyTorch or another program of CUDA has written.
        cuda: the image's CUDA version as far as it is known otherwise, `13.0`.
    """
    needs, has = cuda, ""
    if found := _UNSATISFIED.search(text):
        needs, has = found["needs"], found["has"] or ""
    elif found := _TOO_OLD.search(text):
        has = _version(int(found[1]))
    elif not _INSUFFICIENT.search(text):
        return None
    image = f"the image has CUDA {needs}" if needs else "the image has a newer CUDA"
    host = f"the host's driver goes up to CUDA {has}" if has else "the host's driver is older"
    return Trouble(
        f"{image}, and {host}",
        "update the host's NVIDIA driver (`nvidia-smi` there says which CUDA it goes up to), or give the"
        " runtime requirements with an older CUDA",
    )


def cuda_of(requirements: str) -> str:
    """Return the CUDA version that a requirements file installs, `13.0`; "" where it says nothing of one."""
    for pattern in (_RUNTIME_WHEEL, _TORCH_WHEEL):
        if found := pattern.search(requirements):
            return f"{found[1]}.{found[2]}"
    return ""


def _version(number: int) -> str:
    """Return a version of CUDA that is written as one number, 12040, as people write it, 12.4."""
    return f"{number // 1000}.{number % 1000 // 10}"


# nvidia-container-cli (libnvidia-container), and with the version that there is nvidia-container-runtime:
# https://github.com/ggml-org/llama.cpp/issues/9665, https://github.com/theroyallab/tabbyAPI/issues/324
_UNSATISFIED = re.compile(
    r"unsatisfied condition: cuda\s?>=\s?(?P<needs>[0-9]+\.[0-9]+)(?: \(cuda=(?P<has>[0-9]+\.[0-9]+)\))?"
)
# c10/cuda/CUDAFunctions.cpp of PyTorch; the number is cudaDriverGetVersion's.
_TOO_OLD = re.compile(r"NVIDIA driver on your system is too old \(found version ([0-9]{4,6})\)")
# cudaGetErrorString(cudaErrorInsufficientDriver), which llama.cpp for example writes.
_INSUFFICIENT = re.compile(r"CUDA driver version is insufficient for CUDA runtime version")
# moby, daemon/devices.go
_NO_CDI = re.compile(r'could not select device driver "cdi"')
_NO_RUNTIME = re.compile(r'could not select device driver "[^"]*" with capabilities: \[\[.*gpu')
# https://github.com/NVIDIA/nvidia-container-toolkit/issues/434, https://github.com/moby/moby/issues/47633
_UNRESOLVABLE = re.compile(r"unresolvable CDI devices ([^\n:]+)")
_NO_DEVICE = re.compile(r"nvidia-container-cli: device error: [^\n\"\\]+")
_NO_DRIVER = re.compile(
    r"nvidia-container-cli: (?:initialization error|detection error|ldcache error): [^\n\"\\]+"
)
_RUNTIME_WHEEL = re.compile(r"^nvidia-cuda-runtime(?:-cu[0-9]+)?==([0-9]+)\.([0-9]+)", re.MULTILINE)
_TORCH_WHEEL = re.compile(r"^torch==[0-9.]+\+cu([0-9]{2})([0-9])\b", re.MULTILINE)
