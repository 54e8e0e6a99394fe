"""Has an engine convert a model's pickles, and reads what came out: the facts that `lock` writes down.

Nothing of the weights comes here, only a list of paths, sizes and digests. The converted files stay in the
engine's build cache, where a build finds them.
"""

from __future__ import annotations

import json
import re
import secrets as randomness
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any

from modelbake.buildkit.solve import build
from modelbake.conversion import converted_names
from modelbake.errors import EngineError, ModelbakeError
from modelbake.imagetar import read_file
from modelbake.locked import Conversion, LockedFile, LockedModel

if TYPE_CHECKING:
    from modelbake.buildkit.progress import BuildEvent
    from modelbake.config import ModelSpec
    from modelbake.credentials import Secret
    from modelbake.dockerconfig import RegistryAuth
    from modelbake.engine import Engine

_LIST = "converted.json"
_LARGEST_LIST = 64 << 20  # bytes
_LARGEST_FILE = 2**63 - 1  # bytes; what a file system can count
_SHA256 = re.compile(r"[0-9a-f]{64}")


def convert(
    engine: Engine,
    spec: ModelSpec,
    locked: LockedModel,
    context: bytes | IO[bytes],
    *,
    converter: str,
    secrets: Mapping[str, Secret],
    registries: RegistryAuth,
    on_event: Callable[[BuildEvent], None],
) -> Conversion:
    """Convert a model's pickles in builder stages of `context`, and return what they have become.

    Args:
        engine: where to convert.
        spec: the model.
        locked: what its source holds.
        context: of `render_conversion`, as it is sent.
        converter: what names the programs in the context.
        secrets: of the build.
        registries: credentials of a private base image.
        on_event: called for each event of the build.

    Raises:
        NotConvertible: a pickle holds more than plain tensors; names the file.
        EngineError: the engine's answer is not what the converter writes; and all that `build` raises.
    """
    # A name of this run's own: another one that converts the same must not have its image taken away.
    name = f"modelbake/conversion:{randomness.token_hex(8)}"
    build(
        engine,
        context,
        secrets=secrets,
        registries=registries,
        target="conversion",
        tags=[name],
        on_event=on_event,
    )
    try:
        listed = read_file(engine.export(name), _LIST, _LARGEST_LIST)
    finally:
        with suppress(ModelbakeError):
            engine.remove(name)
    names = converted_names(spec, [file.path for file in locked.files])
    return Conversion(converter, tuple(sorted(names)), listed_files(listed, sorted(names.values())))


def listed_files(content: bytes, expected: Sequence[str]) -> tuple[LockedFile, ...]:
    """Return the facts of a list; they have to be about the expected files, each once. Raises EngineError."""
    try:
        document: Any = json.loads(content)
        files = tuple(
            LockedFile(file["path"], file["size"], file["sha256"])
            for file in sorted(document["files"], key=lambda file: str(file["path"]))
        )
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise EngineError("the list of converted files cannot be read", subject=_LIST) from error
    if [file.path for file in files] != list(expected):
        raise EngineError("the converter lists other files than it was to make", subject=_LIST)
    for file in files:
        digest = isinstance(file.sha256, str) and _SHA256.fullmatch(file.sha256)
        if type(file.size) is not int or not 0 <= file.size <= _LARGEST_FILE or not digest:
            raise EngineError(f"has no size or no sha256 of {file.path}", subject=_LIST)
    return files
