"""What is removed from the packages of every runtime, and why; a runtime adds its own in runtime.yaml.

A pattern is relative to site-packages: `*` and `?` stay within a name, `**` stands for any number of folders.
`python -m bench.slim` counts what each rule removes from the real packages; one that removes nothing is an
error there.
"""

from __future__ import annotations

from collections.abc import Mapping

RULES: Mapping[str, str] = {
    # --- what only compilers read. An image that compiles kernels keeps it with `slim: {keep: [...]}` ----
    "torch/include/**": "C++ headers, for building extensions",
    "torch/share/cmake/**": "CMake files, for building extensions",
    "torch/bin/protoc*": "the compiler of protocol buffers, for building torch",
    "nvidia/**/include/**": "CUDA headers, for compiling; NVRTC has those it needs inside",
    "numpy/**/include/**": "C headers, for building extensions",
    "**/*.a": "static archives, for linking",
    "**/*.pxd": "Cython declarations, for building extensions",
    "**/*.pyi": "types, for editors and type checkers",
    "nvidia/nvshmem/lib/*.bc": "device code of NVSHMEM, for compiling kernels with it",
    # --- what tests a package ---------------------------------------------------------------------------
    "**/tests/**": "a package's own tests",
    "torch/testing/_internal/common_methods_invocations.py": "torch's own tests",
    "torch/testing/_internal/opinfo/**": "torch's own tests",
    "torch/testing/_internal/common_utils.py": "torch's own tests",
    "torch/testing/_internal/distributed/*test*.py": "torch's own tests",
    # --- CUDA libraries that no library of a wheel links, and none names to load ------------------------
    "nvidia/*/lib/libnvrtc.alt.so*": "a second NVRTC; torch, cuBLAS, cuDNN and cuFFT load the first",
    "nvidia/*/lib/libnvrtc-builtins.alt.so*": "of the second NVRTC",
    "nvidia/*/lib/libcusolverMg.so*": "linear algebra over several GPUs; torch links cuSOLVER without Mg",
    "nvidia/*/lib/libcufftw.so*": "FFTW's interface to cuFFT",
    "nvidia/*/lib/libnvblas.so*": "BLAS calls of a CPU program caught for the GPU",
    "nvidia/*/lib/libnvperf_*.so*": "hardware counters, for CUPTI's profiling of kernels",
    "nvidia/*/lib/libpcsamplingutil.so*": "sampling profiler",
    "nvidia/*/lib/libcheckpoint.so*": "checkpoints of kernels under a profiler",
    "nvidia/nvshmem/lib/nvshmem_bootstrap_*.so*": "memory shared over a cluster, by MPI, PMI or SHMEM",
    "nvidia/nvshmem/lib/nvshmem_transport_*.so*": "memory shared over a cluster, by InfiniBand and the like",
}
