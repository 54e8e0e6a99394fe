"""Which models are built of something else than at an earlier revision, and what that is.

A model is compared by what `models.yaml` says of it (defaults merged in), its lock, its goldens, and the
digest of its rendered context, which names the runtime's files, the templates and the programs of images/.
What is read of the revision is read by today's toolkit; what cannot be read so counts as changed. Nothing is
reported unchanged on a guess.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelbake.config import load_config
from modelbake.errors import ConfigError, ModelbakeError
from modelbake.goldens import wanted_goldens
from modelbake.plan import make_plan
from modelbake.render import render
from modelbake.runtime import Runtime, read_runtime

if TYPE_CHECKING:
    from modelbake.config import Config, ModelSpec
    from modelbake.gitrevision import Revision
    from modelbake.plan import BuildPlan
    from modelbake.workspace import Workspace

_SHARED = ("builder", "start")  # of the toolkit's images/: in the image of every runtime
_NOT_READ = "__pycache__"


@dataclass
class Snapshot:
    """What models were made of at one time. `images` has runtimes, the next two are the toolkit's.

    Without a `config`, or where something is not there, nothing is equal to it.
    """

    config: Config | None
    models_yaml: bytes
    lock: Mapping[str, Any]  # the entries as they stand in the file: what is equal there is the same lock
    own: Path  # the folder that runtimes named with `./` are below
    goldens: Path
    images: Path
    programs: Path
    templates: Path
    _runtimes: dict[str, Runtime | None] = field(default_factory=dict)

    @classmethod
    def of(cls, workspace: Workspace) -> Snapshot:
        """Return today's. Raises ConfigError."""
        return cls(
            config=workspace.config,
            models_yaml=_content(workspace.file),
            lock=_locked(workspace.lock_path),
            own=workspace.file.absolute().parent,
            goldens=workspace.goldens,
            images=workspace.images,
            programs=workspace.programs,
            templates=workspace.templates,
        )

    def runtime(self, name: str) -> Runtime | None:
        """Return a runtime, None where it is not there or wrong."""
        if name not in self._runtimes:
            self._runtimes[name] = None
            with suppress(ConfigError):
                self._runtimes[name] = read_runtime((self.own if _is_own(name) else self.images) / name)
        return self._runtimes[name]

    @cached_property
    def toolkit(self) -> Mapping[str, bytes]:
        """The files of the toolkit that contexts are rendered of, by their place."""
        folders = {**dict.fromkeys(_SHARED, self.programs), ".": self.templates}
        return {
            f"{name}/{path.relative_to(folder / name)}": path.read_bytes()
            for name, folder in folders.items()
            for path in sorted((folder / name).rglob("*"))
            if path.is_file() and _NOT_READ not in path.parts
        }

    def runtime_files(self, name: str) -> tuple[str, Mapping[str, bytes]] | None:
        """Return what a runtime says and the files that go into its images; None where it is not there."""
        if (runtime := self.runtime(name)) is None:
            return None
        named = sorted({*runtime.builds.values(), *runtime.app})
        try:
            files = {each: (runtime.directory / each).read_bytes() for each in named}
        except OSError:
            return None
        return runtime.model_dump_json(exclude={"directory"}), files

    def golden(self, spec: ModelSpec) -> bytes | None:
        """Return a model's file of goldens; None where there is none, or its checks name none."""
        if wanted_goldens(spec):
            with suppress(OSError):
                return (self.goldens / f"{spec.name}.json").read_bytes()
        return None

    def digest(self, plan: BuildPlan) -> str:
        """Return the digest of a context. Raises RenderError."""
        return render(plan, templates=self.templates, programs=self.programs).digest


@contextmanager
def snapshot_at(revision: Revision, workspace: Workspace) -> Iterator[Snapshot]:
    """Yield what models were made of at a revision. What lies in another repository is taken as it is today.

    Raises UsageError.
    """
    now = Snapshot.of(workspace)
    kept = {path: revision.holds(path) for path in {now.images, now.programs, now.templates}}
    with tempfile.TemporaryDirectory(prefix="modelbake-revision-") as name:
        below = Path(name)

        def then(path: Path) -> Path:
            return revision.place(path, below) if kept.get(path, True) else path

        # A model of another runtime than today's differs anyway, so these are the only ones to look at.
        used = sorted({spec.runtime for spec in workspace.config.models.values()})
        ours = [path for path, is_ours in kept.items() if is_ours]
        folders = [
            *(now.programs / part for part in _SHARED if now.programs in ours),
            *(now.images / name for name in used if now.images in ours and not _is_own(name)),
            *(now.own / name for name in used if _is_own(name)),
            *(path for path in {now.templates} if path in ours),
        ]
        inside = [path for path in folders if path.resolve().is_relative_to(revision.root)]
        revision.write([workspace.file, workspace.lock_path, now.goldens, *inside], below)
        config, content = None, _content(then(workspace.file))
        if content == now.models_yaml:
            config = now.config
        else:
            with suppress(ConfigError):
                config = load_config(then(workspace.file))
        yield replace(
            now,
            config=config,
            models_yaml=content,
            lock=_locked(then(workspace.lock_path)),
            own=then(now.own),
            goldens=then(now.goldens),
            images=then(now.images),
            programs=then(now.programs),
            templates=then(now.templates),
            _runtimes={},
        )


def _content(path: Path) -> bytes:
    """Return a file's content, nothing where it is not there."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _locked(path: Path) -> Mapping[str, Any]:
    """Return the entries of a lock; none where it cannot be read: what was not locked was not built."""
    try:
        document = json.loads(_content(path))
    except (ValueError, RecursionError):
        return {}
    entries = document.get("models") if isinstance(document, dict) else None
    return entries if isinstance(entries, dict) else {}


def _is_own(runtime: str) -> bool:
    return runtime.startswith("./")


def changes(plans: Iterable[BuildPlan], now: Snapshot, then: Snapshot) -> dict[str, str]:
    """Return the models that differ, and of each the first thing that does."""
    comparison = _Comparison(now, then)
    return {plan.name: why for plan in plans if (why := comparison.difference(plan))}


class _Comparison:
    """Compares models one after the other, and remembers what several of them share."""

    def __init__(self, now: Snapshot, then: Snapshot) -> None:
        self._now, self._then = now, then
        self._same_inputs: dict[str, bool] = {}
        self._differing: set[tuple[str, str, bool]] = set()

    def difference(self, plan: BuildPlan) -> str:
        """Return what of a model differs, "" where nothing does."""
        now, then, spec = self._now, self._then, plan.spec
        if then.config is None or now.config is None:
            return "models.yaml was not there, or cannot be read today"
        earlier = then.config.models.get(spec.name)
        if earlier is None:
            return "it is new"
        if then.config.registry != now.config.registry:
            return "the registry is another one"
        if keys := _different_keys(spec, earlier):
            return f"models.yaml says otherwise of it ({', '.join(keys)})"
        if then.lock.get(spec.name) != now.lock.get(spec.name):
            return "its lock is another one"
        if then.golden(spec) != now.golden(spec):
            return "its goldens are other ones"
        if not self._inputs_are_the_same(spec.runtime) and self._is_rendered_differently(plan):
            return f"what it is built with has changed: the runtime {spec.runtime}, or the toolkit's images/"
        return ""

    def _inputs_are_the_same(self, runtime: str) -> bool:
        if runtime not in self._same_inputs:
            now, then = self._now, self._then
            ours = now.runtime_files(runtime)
            same = ours is not None and ours == then.runtime_files(runtime)
            self._same_inputs[runtime] = same and now.toolkit == then.toolkit
        return self._same_inputs[runtime]

    def _is_rendered_differently(self, plan: BuildPlan) -> bool:
        # What has changed one model's context by its runtime has hardly spared another one's: rendering each
        # of a thousand twice would only tell these apart.
        kind = (plan.runtime.name, plan.base, plan.conversion is not None)
        if kind in self._differing:
            return True
        runtime = self._then.runtime(plan.spec.runtime)
        assert self._then.config is not None
        try:
            if runtime is None:
                raise ConfigError("there was no such runtime")
            earlier = make_plan(self._then.config, plan.spec, plan.locked, runtime)
            same = self._then.digest(earlier) == self._now.digest(plan)
        except ModelbakeError:
            same = False
        if not same:
            self._differing.add(kind)
        return not same


def _different_keys(spec: ModelSpec, earlier: ModelSpec) -> list[str]:
    """Return the keys of a model that differ: not by the order of a mapping, but `1` and `true` do."""
    if spec.model_dump_json() == earlier.model_dump_json():
        return []
    ours, theirs = (each.model_dump(mode="json") for each in (spec, earlier))
    return [key for key in ours if _sorted_json(ours[key]) != _sorted_json(theirs[key])]


def _sorted_json(value: object) -> str:
    return json.dumps(value, sort_keys=True)
