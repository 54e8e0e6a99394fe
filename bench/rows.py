"""The rows: what is compared, the bar, and how it is measured, in the docstring of each function."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench import slim
from bench.changes import CHANGES
from bench.results import Row
from bench.steps import Pulled
from bench.story import Story, median

Figure = tuple[float, str]  # the value, and what else is to be known
_MB = 1_000_000


@dataclass(frozen=True)
class Plan:
    """One row to come."""

    what: str
    bar: float
    measure: Callable[[Story], Figure]
    unit: str = "ratio"

    def row(self, story: Story) -> Row:
        """Measure it; where that fails, the row says why."""
        try:
            value, note = self.measure(story)
        except Exception as error:
            note = " ".join(f"could not be measured: {type(error).__name__}: {error}".split())
            return Row(self.what, self.bar, None, self.unit, note[:600])
        return Row(self.what, self.bar, value, self.unit, note)


def over_naive(story: Story) -> Figure:
    """`build.py publish --candidate` from process start to exit, over `docker build` and `docker push`.

    Medians of runs in turns. Registry without weights, runtime image in it; the engine has base and runtime,
    and no build cache. The Dockerfile: see `naive`.
    """
    rounds = story.rounds()
    publish, naive = _publish(story), median([each.seconds for each in rounds.naive])
    build, push = (median([getattr(each, step) for each in rounds.naive]) for step in ("build", "push"))
    return publish / naive, f"{publish:.2f} s over {naive:.2f} s (build {build:.2f} s, push {push:.2f} s)"


def over_appended(story: Story) -> Figure:
    """The same publish, which downloads, over `olot` and `skopeo copy` of files that are here already."""
    rounds = story.rounds()
    publish, appended = _publish(story), median([each.seconds for each in rounds.appended])
    append, push, kept = (
        median([getattr(each, step) for each in rounds.appended]) for step in ("append", "push", "kept")
    )
    note = f"{publish:.2f} s over {appended:.2f} s (olot {append:.2f} s, skopeo {push:.2f} s; skopeo told"
    return (
        publish / appended,
        f"{note} not to compress: {kept:.2f} s, which were {publish / (append + kept):.3f})",
    )


def over_floor(story: Story) -> Figure:
    """The same publish over the same files PUT from memory at once, digests known, a connection each."""
    runs, floors = story.rounds().publish, story.rounds().floor
    publish, least = _publish(story), median([each.run for each in floors])
    moved = sum(file.size for file in story.repo().head.files) / _MB
    note = (
        f"{moved / publish:,.0f} MB/s over {moved / least:,.0f} MB/s; publish {_list(_seconds(story))}, floor"
    )
    note += f" {_list([each.run for each in floors])}; processor seconds: "
    processor = {
        "publish": [each.run.processor for each in runs],
        "its hub": [each.hub for each in runs],
        "its registry": [each.registry for each in runs],
        "the floor's registry": [each.registry for each in floors],
    }
    told = ", ".join(f"{who} {median(seconds):.2f}" for who, seconds in processor.items())
    return publish / least, note + told


def hub_bytes(story: Story) -> Figure:
    """Bytes of file bodies that the hub says it has sent, over the files' bytes, in one cold publish."""
    files = sum(file.size for file in story.repo().head.files)
    return story.counted().hub / files, f"{story.counted().hub:,} bytes"


def upload_bytes(story: Story) -> Figure:
    """All bytes from the runner to the registry, HTTP headers included, over the files' bytes."""
    files = sum(file.size for file in story.repo().head.files)
    up = story.counted().up
    return up / files, f"{up:,} bytes; {up - files:,} are tar, documents and headers"


def disk_writes(story: Story) -> Figure:
    """write_bytes of /proc/PID/io of publish and its children, over the files' bytes: the most of any run."""
    files = sum(file.size for file in story.repo().head.files)
    runs = [story.counted().measured, *(each.run for each in story.rounds().publish)]
    written = max(run.written for run in runs)
    # What is not weights (a log, a note) is no weight byte; 1 in 1,000 would be.
    return (0.0 if written < files / 1000 else written / files), f"{written:,} bytes written to disks in all"


def peak_memory(story: Story) -> Figure:
    """VmHWM of the publish process, looked at every 10 ms: the most of all publishes of weights here."""
    runs = {f"{size} GB file": run.peak for size, run in story.memory().items()}
    runs["cold"] = max(each.run.peak for each in story.rounds().publish)
    runs["counted"] = story.counted().measured.peak
    note = ", ".join(f"{name} {peak / _MB:.0f} MB" for name, peak in runs.items())
    return max(runs.values()) / _MB, note


def memory_growth(story: Story) -> Figure:
    """VmHWM with the huge file over VmHWM with one of 1 GB; the registry is `sink`, which keeps no bytes."""
    small, *_, huge = story.memory().values()
    size = max(story.memory())
    return huge.peak / small.peak, f"{huge.peak / _MB:.0f} MB for {size} GB in {huge.seconds:.0f} s"


def re_publish(story: Story, change: str) -> Figure:
    """Weight bytes read from the hub, and sent to the registry, over the files' bytes, on an empty runner.

    Sent are the bodies of all uploads that committed a weight layer or nothing.
    """
    published = story.change(change)
    weights = {digest for digest, _ in story.weight_layers("model", published.digest)}
    sent = sum(each.size for each in published.uploads if each.digest in weights or not each.digest)
    own = sum(each.size for each in published.uploads if each.agent.startswith("modelbake"))
    engine = sum(each.size for each in published.uploads) - own
    note = (
        f"hub {published.hub:,}, registry {sent:,} weight bytes; besides {own:,} bytes of documents from the"
    )
    note += f" runner and {engine:,} of the new runtime from the engine"
    return (published.hub + sent) / published.weights, note


def no_op(story: Story) -> Figure:
    """Seconds of `build.py publish NAME` of a version that is released and unchanged: median of 5 runs."""
    seconds, requests = story.re_published()
    kinds = Counter(
        re.sub(r"^(\S+) /v2/\S*?/(manifests|blobs|tags)/\S*$", r"\1 \2", each) for each in requests
    )
    return median(seconds), "requests: " + ", ".join(
        f"{count} {kind}" for kind, count in sorted(kinds.items())
    )


def re_pull(story: Story, change: str, store: str) -> Figure:
    """Bytes of weight layers that an engine with the old image gets for the changed one, per weight byte."""
    pulls: dict[str, Pulled] = story.re_pulls_classic() if store == "classic" else story.re_pulls_containerd()
    pulled = pulls[change]
    weights = story.counted().weights
    return pulled.weights / weights, f"{pulled.layers} weight layers asked for; {pulled.all:,} bytes in all"


def three_pulled(story: Story) -> Figure:
    """All bytes that a stock engine gets for three models, over one runtime and three models' weights."""
    return story.three_models()[0], "base-first, classic store, HTTP headers included"


def adapters_pulled(story: Story) -> Figure:
    """All bytes that a stock engine gets for the second to tenth model of one base, over their adapters'."""
    pulled, size = story.ten_adapters()
    return pulled / size, f"{pulled:,} over {size:,} bytes; weights-first, classic store, headers included"


def three_on_disk(story: Story) -> Figure:
    """What its store takes on disk (du), over what the first model took and two more models' weights."""
    return story.three_models()[1], "base-first, classic store"


def weights_changed(story: Story) -> Figure:
    """All bytes from the runner to the registry, HTTP headers included, over the bytes that changed."""
    published, changed = story.changed_weights()
    files = sum(file.size for file in story.repo().head.files)
    return (
        published.up / changed,
        f"{published.up:,} over {changed:,} bytes, of {files:,}; hub {published.hub:,}",
    )


def cold_pull(story: Story) -> Figure:
    """Seconds of `docker pull` on an engine without images, over those of the naive image; medians."""
    ours, naive = story.cold_pulls()
    return median(ours) / median(naive), f"{_list(ours)} over {_list(naive)}"


def verification(story: Story) -> Figure:
    """Seconds of start.py's verification over those of hashlib.file_digest by one core, divided by the cores.

    Medians of runs in turns. Equal files, all in the page cache.
    """
    runs = story.verifications()
    start, one, *others = (median(each) for each in (runs.start, runs.one_core, runs.all_cores, runs.memory))
    speeds = [f"{runs.bytes / seconds / 1e9:.2f} GB/s" for seconds in (start, one, *others)]
    note = f"{speeds[0]}; hashlib {speeds[1]} on one core, {speeds[2]} in {runs.cores} processes at once,"
    note += f" {speeds[3]} from memory; start.py {_list(runs.start)}, one core {_list(runs.one_core)}"
    return start / (one / runs.cores), note


def slim_packages(story: Story, runtime: str) -> Figure:
    """Bytes of a CUDA build's packages as an image has them, over those of a plain install; see `slim`."""
    row = _slimmed(story, runtime).row()
    assert row.value is not None
    return row.value, row.note


def idle_rules(story: Story) -> Figure:
    """Rules of slimming that remove nothing from the packages of any runtime."""
    dead = slim.dead_rules([_slimmed(story, runtime) for runtime in slim.RUNTIMES])
    return len(dead), ", ".join(dead)


@functools.cache
def _slimmed(story: Story, runtime: str) -> slim.Slimming:
    return slim.measure(runtime, story.setting.folder)


def _seconds(story: Story) -> list[float]:
    return [each.run.seconds for each in story.rounds().publish]


def _publish(story: Story) -> float:
    return median(_seconds(story))


def _list(times: Sequence[float]) -> str:
    return "/".join(f"{each:.2f}" for each in times) + " s"


PLANS: tuple[Plan, ...] = (
    Plan("publish, cold / naive docker build + push", 0.12, over_naive),
    Plan("publish, cold / olot + skopeo of downloaded files", 0.40, over_appended),
    Plan("publish, cold / floor: PUT from memory", 1.15, over_floor),
    Plan("cold pull / naive gzip image", 0.40, cold_pull),
    Plan("hub bytes read / weight byte", 1.00, hub_bytes),
    Plan("upload bytes / weight byte", 1.001, upload_bytes),
    Plan("client disk writes / weight byte", 0, disk_writes),
    Plan("no-op publish", 0.6, no_op, "seconds"),
    *(
        Plan(
            f"re-publish after {change} change: weight bytes moved",
            0,
            functools.partial(re_publish, change=change),
        )
        for change in CHANGES
    ),
    *(
        Plan(
            f"re-pull after {change} change, {store} store: weight bytes",
            0,
            functools.partial(re_pull, change=change, store=store),
        )
        for store in ("classic", "containerd")
        for change in CHANGES
    ),
    Plan("three models, bytes pulled / one runtime + three weights", 1.02, three_pulled),
    Plan("three models, disk / one runtime + three weights", 1.02, three_on_disk),
    Plan("ten adapters on one model, bytes pulled for 2 to 10 / their bytes", 1.02, adapters_pulled),
    Plan("one shard changed, LoRA added: bytes sent / bytes changed", 1.01, weights_changed),
    Plan("start verification / hashlib by all cores", 1.25, verification),
    Plan("peak memory of the client", 150, peak_memory, "MB"),
    Plan("peak memory, huge file / 1 GB file", 1.1, memory_growth),
    *(
        Plan(
            f"{runtime} CUDA packages, unpacked / plain pip install",
            slim.bar_of(runtime),
            functools.partial(slim_packages, runtime=runtime),
        )
        for runtime in slim.RUNTIMES
    ),
    Plan("rules of slimming that remove nothing", 0, idle_rules, "rules"),
)
