"""An image's sizes as a JSON document, and as a table for people. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from modelbake.size import REST, WEIGHTS, Sizes

if TYPE_CHECKING:
    from modelbake.plan import BuildPlan

_SHOWN = 15  # packages in the table for people; JSON has all of them
_STEP = 70  # characters of a layer's history in a row


def document(
    plan: BuildPlan,
    image_id: str,
    sizes: Sizes,
    previous: tuple[str, Sizes] | None,
    naive: int | None,
) -> dict[str, Any]:
    """Return the document; sizes in bytes, unpacked. `naive`: the packages without slimming, if known."""
    return {
        "model": plan.name,
        "version": plan.version,
        "image_id": image_id,
        "max_size": plan.spec.max_size,
        "bytes": sizes.total,
        "layers": [{"step": step, "bytes": size} for step, size in sizes.layers],
        "packages": dict(sizes.packages),
        "installed_bytes": sizes.installed,
        "naive_bytes": naive,
        "cuda_libraries": [
            {"name": library.soname, "files": dict(library.files)} for library in sizes.libraries
        ],
        "duplicates": [library.soname for library in sizes.duplicates],
        "previous": _difference(sizes, *previous) if previous else None,
    }


def _difference(sizes: Sizes, version: str, before: Sizes) -> dict[str, Any]:
    """Return what changed since another version: packages are compared by name, whatever their version."""
    now, then = _by_name(sizes.packages), _by_name(before.packages)
    changes = {name: now.get(name, 0) - then.get(name, 0) for name in sorted({*now, *then})}
    changed = sorted(changes.items(), key=lambda item: (-abs(item[1]), item[0]))
    return {
        "version": version,
        "bytes": before.total,
        "packages": {name: change for name, change in changed if change},
    }


def _by_name(packages: Mapping[str, int]) -> dict[str, int]:
    return {
        (name if name in (WEIGHTS, REST) else name.partition(" ")[0]): size for name, size in packages.items()
    }


def in_words(told: Mapping[str, Any]) -> list[str]:
    """Return the document as lines for people."""
    limit = f" of at most {told['max_size']}" if told["max_size"] else ""
    lines = [
        f"{told['model']} {told['version']}: {_amount(told['bytes'])} unpacked{limit}",
        "layers, bottom first",
    ]
    lines += [_row(layer["bytes"], layer["step"][:_STEP]) for layer in told["layers"]]
    lines.append("Python packages and the rest")
    packages = list(told["packages"].items())
    lines += [_row(size, name) for name, size in packages[:_SHOWN]]
    if more := packages[_SHOWN:]:
        lines.append(_row(sum(size for _, size in more), f"{len(more)} more (--json has all)"))
    if naive := told["naive_bytes"]:
        share = told["installed_bytes"] / naive
        installed = _amount(told["installed_bytes"])
        lines.append(f"all packages: {installed}, {share:.2f} of the {_amount(naive)} of a plain pip install")
    if told["cuda_libraries"]:
        lines.append("CUDA libraries")
        lines += [_library(library) for library in told["cuda_libraries"]]
    for name in told["duplicates"]:
        places = next(each["files"] for each in told["cuda_libraries"] if each["name"] == name)
        lines.append(f"duplicate: {name} is there {len(places)} times: {', '.join(places)}")
    if previous := told["previous"]:
        change = _signed(told["bytes"] - previous["bytes"])
        lines.append(f"since {previous['version']}: {change}{_changes(previous['packages'])}")
    return lines


def _library(library: Mapping[str, Any]) -> str:
    return _row(sum(library["files"].values()), f"{library['name']}  {', '.join(library['files'])}")


def _changes(packages: Mapping[str, int]) -> str:
    largest: Sequence[tuple[str, int]] = list(packages.items())[:5]
    return f" ({', '.join(f'{name} {_signed(change)}' for name, change in largest)})" if largest else ""


def _row(size: int, text: str) -> str:
    return f"  {_amount(size):>12}  {text}"


def _amount(size: int) -> str:
    """Return bytes for people: MB, to be compared with each other, and of what has none something smaller."""
    if size >= 100_000:
        return f"{size / 1e6:,.1f} MB"
    return f"{size / 1e3:.1f} kB" if size >= 1000 else f"{size} B"


def _signed(size: int) -> str:
    return f"{'-' if size < 0 else '+'}{_amount(abs(size))}"
