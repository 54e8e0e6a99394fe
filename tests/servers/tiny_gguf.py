"""A GGUF file of some hundred kB that llama.cpp loads: a Llama of random weights, and a tokenizer of bytes.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import random
import struct
from array import array
from collections.abc import Mapping
from typing import Any

from tests.servers.minilm import CHAT_TEMPLATE

CONTEXT = 256
LAYERS, WIDTH, HEADS, KV_HEADS, INNER = 2, 64, 4, 2, 128
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_ALIGNMENT = 32
_UNKNOWN, _CONTROL, _NORMAL, _BYTE = 2, 3, 1, 6  # kinds of tokens


def tiny_gguf(seed: int = 0, **changes: Any) -> bytes:
    """Return the file. The same seed gives the same bytes.

    `changes` are metadata by the name's last part (`chat_template=None` leaves it out).
    """
    metadata = {
        name: value
        for name, value in _metadata().items()
        if changes.get(name.rpartition(".")[2], value) is not None
    }
    for name in metadata:
        metadata[name] = changes.get(name.rpartition(".")[2], metadata[name])
    tensors = _tensors(random.Random(seed), len(_tokens()))
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    head += [_text(name) + _value(value) for name, value in metadata.items()]
    body, offset = [], 0
    for name, (shape, values) in tensors.items():
        dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        head.append(_text(name) + dimensions + struct.pack("<IQ", 0, offset))  # 0: float32
        data = _padded(values.tobytes())
        body.append(data)
        offset += len(data)
    return _padded(b"".join(head)) + b"".join(body)


def _metadata() -> dict[str, Any]:
    tokens = _tokens()
    return {
        "general.architecture": "llama",
        "general.alignment": _ALIGNMENT,
        "llama.context_length": CONTEXT,
        "llama.embedding_length": WIDTH,
        "llama.block_count": LAYERS,
        "llama.feed_forward_length": INNER,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": WIDTH // HEADS,
        "llama.vocab_size": len(tokens),
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [token for token, _ in tokens],
        "tokenizer.ggml.scores": [-float(number) for number in range(len(tokens))],
        "tokenizer.ggml.token_type": [kind for _, kind in tokens],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def _tokens() -> list[tuple[str, int]]:
    special = [("<unk>", _UNKNOWN), ("<s>", _CONTROL), ("</s>", _CONTROL)]
    letters = ["\u2581", *map(chr, range(33, 127))]  # the first one means a space
    return [
        *special,
        *((f"<0x{byte:02X}>", _BYTE) for byte in range(256)),
        *((letter, _NORMAL) for letter in letters),
    ]


def _tensors(numbers: random.Random, vocabulary: int) -> dict[str, tuple[tuple[int, ...], array[float]]]:
    def noise(*shape: int) -> tuple[tuple[int, ...], array[float]]:
        size = shape[0] * shape[1]
        return shape, array("f", (numbers.uniform(-0.5, 0.5) for _ in range(size)))

    ones = ((WIDTH,), array("f", [1.0] * WIDTH))
    shape, output = noise(WIDTH, vocabulary)
    # Only letters are ever the likeliest: an answer is text, and has no end of its own.
    output[: WIDTH * 259] = array("f", [0.0] * WIDTH * 259)
    tensors = {"token_embd.weight": noise(WIDTH, vocabulary), "output_norm.weight": ones}
    tensors["output.weight"] = (shape, output)
    for layer in range(LAYERS):
        narrow = WIDTH // HEADS * KV_HEADS
        shapes = {"attn_q": (WIDTH, WIDTH), "attn_k": (WIDTH, narrow), "attn_v": (WIDTH, narrow)}
        shapes |= {"attn_output": (WIDTH, WIDTH), "ffn_gate": (WIDTH, INNER), "ffn_up": (WIDTH, INNER)}
        shapes |= {"ffn_down": (INNER, WIDTH)}
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{layer}.{name}.weight"] = ones
        for name, wanted in shapes.items():
            tensors[f"blk.{layer}.{name}.weight"] = noise(*wanted)
    return tensors


def _value(value: Any) -> bytes:
    kind = _kind(value)
    if kind == _ARRAY:
        items = b"".join(_bare(item) for item in value)
        inner = _I32 if isinstance(value[0], int) else _kind(value[0])
        return struct.pack("<IIQ", _ARRAY, inner, len(value)) + items
    return struct.pack("<I", kind) + _bare(value)


def _bare(value: Any) -> bytes:
    if isinstance(value, str):
        return _text(value)
    return struct.pack({_BOOL: "<?", _U32: "<I", _F32: "<f"}[_kind(value)], value)


def _kind(value: Any) -> int:
    kinds: Mapping[type, int] = {bool: _BOOL, int: _U32, float: _F32, str: _STRING, list: _ARRAY}
    return kinds[type(value)]


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)
