"""What a weight file says of itself at its beginning, without a look at the weights.

A safetensors file begins with the length of a JSON header, and that header says where each tensor lies; the
tensors fill the rest of the file without a gap (https://github.com/huggingface/safetensors#format). So a file
that begins with something else, or belongs to another length, is told from its beginning. A GGUF file begins
with a magic and a version (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md); no more is looked at.

None of this finds what is wrong with the weights themselves. Standard library only, for any Python from 3.9.
"""

from __future__ import annotations

import json
from typing import Any, BinaryIO

# The format's own limit; a longer header is refused by the library, too.
LONGEST_HEADER = 100_000_000
GGUF_VERSIONS = (1, 2, 3)


def header_problem(path: str, stream: BinaryIO, size: int) -> str:
    """What is wrong with the beginning of a file of ``size`` bytes, or "" where nothing is.

    ``path`` tells the format by its ending; of another format nothing is known, and nothing wrong. OSError
    where the file cannot be read.
    """
    if path.endswith(".safetensors"):
        return safetensors_problem(stream, size)
    if path.endswith(".gguf"):
        return gguf_problem(stream)
    return ""


def safetensors_problem(stream: BinaryIO, size: int) -> str:
    """What is wrong with a safetensors header, for a file of that size."""
    length = int.from_bytes(stream.read(8), "little")
    if size < 8 or length > min(size - 8, LONGEST_HEADER):
        return f"a header of {length} bytes in a file of {size} bytes"
    try:
        header = json.loads(stream.read(length).decode("utf-8"))
    except (ValueError, RecursionError):
        return "a header that is not JSON"
    if not isinstance(header, dict):
        return "a header that is not a JSON object"
    spans = []
    for name, tensor in header.items():
        if name != "__metadata__":
            span = read_span(tensor)
            if span is None:
                return "a header in which a tensor has no place"
            spans.append(span)
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            return f"a header with a gap or an overlap of tensors at byte {end}"
        end = stop
    if 8 + length + end != size:
        return f"a header of a file of {8 + length + end} bytes"
    return ""


def read_span(tensor: Any) -> tuple[int, int] | None:
    """Where a tensor begins and ends, counted from the end of the header; None where that is not said."""
    offsets = tensor.get("data_offsets") if isinstance(tensor, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2:
        return None
    start, stop = offsets
    if type(start) is not int or type(stop) is not int or not 0 <= start <= stop:
        return None
    return start, stop


def gguf_problem(stream: BinaryIO) -> str:
    """What is wrong with the first 8 bytes of a GGUF file."""
    start = stream.read(8)
    if start[:4] != b"GGUF":
        return "a file that does not begin with GGUF"
    # The magic is the same in either order of bytes; the version tells which one it is.
    if not {int.from_bytes(start[4:], "little"), int.from_bytes(start[4:], "big")} & set(GGUF_VERSIONS):
        return "a GGUF file of an unknown version"
    return ""
