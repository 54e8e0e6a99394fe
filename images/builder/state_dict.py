"""The tensors that a pickle holds, read by torch with weights_only=True, each in memory of its own.

What is refused ends in a FetchError, NOT_CONVERTIBLE, that names the file and why.
"""

from __future__ import annotations

import re
import tarfile
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from events import Code, FetchError

if TYPE_CHECKING:
    from torch import Tensor

_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
_DTYPES = frozenset(
    ["bool", "complex64", "bfloat16", "float16", "float32", "float64"]
    + [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
    + [f"float8_{kind}" for kind in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu")]
)
# Tied weights make a file larger. A tensor that repeats a few bytes without end must not fill the disk.
_MOST_GROWTH = 8
_SLACK = 1 << 20  # bytes
_SHOWN = 5
_LONGEST = 300  # characters of a text that is shown
_ZIP = b"PK\x03\x04"  # how torch.save begins a file since 1.6
_PICKLE = b"\x80"  # and before that
_GLOBAL = re.compile(r"GLOBAL ([^\s]+)")


def read_tensors(source: str, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of a pickle by name, contiguous and none over memory of another.

    Also the names of what lay beside them in the file and is no tensor. `source` is the file's name in
    messages. Raises FetchError: NOT_CONVERTIBLE.
    """
    tensors, left_out = _tensors(source, _load(source, path))
    return _separate(source, tensors, path.stat().st_size), left_out


def size_of(tensor: Tensor) -> int:
    """Return a tensor's bytes."""
    return int(tensor.numel()) * int(tensor.element_size())


def refused(source: str, why: str) -> FetchError:
    """Return the error that says why a file cannot be converted."""
    return FetchError(Code.NOT_CONVERTIBLE, f"{source}: {why}", file=source)


def some(names: Sequence[str]) -> str:
    """Return a few of a stranger's names, to be shown."""
    return ", ".join(plain(name) for name in names[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")


def plain(text: str) -> str:
    """Return a stranger's text on one line, printable and not too long."""
    line = " ".join(text[:_LONGEST].split())
    return "".join(char if char.isprintable() else "?" for char in line)


def _load(source: str, path: Path) -> Any:
    """Read a pickle and run nothing of it; its tensors stay in the file where the format lets them."""
    import torch

    with path.open("rb") as file:
        start = file.read(16)
    mapped = start.startswith(_ZIP)
    if mapped and (packed := _compressed(path)):
        # torch maps the packed bytes as they are: other numbers, and no error.
        raise refused(source, f"its {plain(packed)} is compressed, which torch.save never does")
    try:
        # What torch warns of (an old format, a view of a storage) is no more to see in what comes out.
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError:
        raise
    except Exception as error:
        said = str(error)
        if (asked := _GLOBAL.search(said)) and "nsupported" in said:
            wanted = plain(asked[1].rstrip(".`"))
            raise refused(source, f"loading it would run {wanted}, which is nothing of weights") from error
        why = plain(_reason(said)) or type(error).__name__
        if start and not start.startswith((_ZIP, _PICKLE)) and not tarfile.is_tarfile(path):
            why = f"it is nothing that torch.save writes, for it begins with {start!r}"
        raise refused(source, f"torch cannot read it as weights alone: {why}") from error


def _compressed(path: Path) -> str:
    """Return the name of a part of a zip file that is not stored as it is, or "" where there is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except OSError:
        raise
    except Exception:  # It is damaged in one of many ways: torch says in which.
        return ""
    return next((part.filename for part in parts if part.compress_type != zipfile.ZIP_STORED), "")


def _tensors(source: str, loaded: Any) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors by name, and the names beside their dictionary that are left out."""
    from torch import Tensor

    if not isinstance(loaded, dict):
        raise refused(source, f"it holds a {type(loaded).__name__}, and no dictionary of tensors")
    if not loaded:
        raise refused(source, "it holds nothing")
    inner, beside = loaded, []
    if not all(isinstance(value, Tensor) for value in loaded.values()):
        wrappers = [name for name in _WRAPPERS if isinstance(loaded.get(name), dict)]
        if len(wrappers) > 1:
            raise refused(source, f"it holds several dictionaries, and nothing says which: {some(wrappers)}")
        if wrappers:
            inner = loaded[wrappers[0]]
            others = {str(name): value for name, value in loaded.items() if name != wrappers[0]}
            beside = list(others)
            if not inner:
                raise refused(source, f"its {wrappers[0]!r} holds nothing")
            if lost := [name for name, value in others.items() if _holds_tensor(value)]:
                raise refused(source, f"it has tensors beside its {wrappers[0]!r}: {some(lost)}")
    for name, value in inner.items():
        if not isinstance(name, str) or name == "__metadata__":
            raise refused(source, f"{plain(repr(name))} is no name of a tensor")
        if not isinstance(value, Tensor):
            raise refused(source, f"{plain(name)!r} is a {type(value).__name__}, and no tensor")
        _require_storable(source, name, value)
    return dict(inner), beside


def _holds_tensor(value: Any) -> bool:
    """Tell whether a value is a tensor or has one in it. A loaded pickle can hold itself."""
    from torch import Tensor

    seen: set[int] = set()
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, Tensor):
            return True
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, Mapping):
            waiting += [*each.keys(), *each.values()]
        elif isinstance(each, (list, tuple, set, frozenset)):
            waiting += each
        elif getattr(each, "__dict__", None):
            waiting += vars(each).values()
    return False


def _require_storable(source: str, name: str, tensor: Tensor) -> None:
    import torch

    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        raise refused(
            source, f"{plain(name)!r} is sparse, quantized or nested: safetensors has no such thing"
        )
    if tensor.device.type != "cpu":
        raise refused(source, f"{plain(name)!r} has no values (it is on device {tensor.device.type})")
    if dtype not in _DTYPES:
        raise refused(source, f"{plain(name)!r} is of dtype {dtype}, which safetensors does not have")


def _separate(source: str, tensors: Mapping[str, Tensor], size: int) -> dict[str, Tensor]:
    """Return the tensors contiguous, and none over memory of another; `size` is the pickle's, in bytes."""
    import torch

    needed = sum(size_of(tensor) for tensor in tensors.values())
    if needed > _MOST_GROWTH * size + _SLACK:
        raise refused(source, f"its {size:,} bytes would become {needed:,}: it repeats itself without end")
    separate: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        values = tensor.detach().resolve_conj().resolve_neg()
        # An empty tensor can lie in the middle of another one.
        separate[name] = values.contiguous() if values.numel() else torch.empty_like(values)
    places = sorted(
        (tensor.data_ptr(), -size_of(tensor), name) for name, tensor in separate.items() if tensor.numel()
    )
    end = 0
    for start, negative, name in places:
        if start < end:
            separate[name] = separate[name].clone(memory_format=torch.contiguous_format)
        end = max(end, start - negative)
    return separate


def _reason(text: str) -> str:
    """Return the one sentence of torch's long explanation that says what is wrong; others give bad advice."""
    text = text.partition("WeightsUnpickler error:")[2] or text
    return re.split(r"(?<=[.])\s|\n", text.strip(), maxsplit=1)[0]
