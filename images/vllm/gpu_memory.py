"""What vLLM's workers, the processes that hold the GPUs, tell the server of their memory.

vLLM makes each worker's class with this one as a base (``--worker-extension-cls``), and the server calls the
method in all of them (``collective_rpc``).
"""

from __future__ import annotations


class GpuMemory:
    """Added to vLLM's worker."""

    def modelbake_gpu_memory(self) -> dict[str, str | int]:
        """PyTorch's view of this worker's GPU: its name, and bytes as /metrics has them."""
        import torch

        return {
            "gpu": torch.cuda.get_device_name(),
            "allocated": torch.cuda.memory_allocated(),
            "reserved": torch.cuda.memory_reserved(),
            "peak": torch.cuda.max_memory_allocated(),
        }
