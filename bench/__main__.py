"""The command line: measure, print the table, write results.json. `README.md` beside this says more."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from bench.results import Row, table, write_results
from bench.rows import PLANS
from bench.setting import Setting, Sizes, say
from bench.story import Story


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench; 0 when every row was measured, whatever its figure."""
    usual = Sizes()
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").split(".")[0])
    parser.add_argument("--size-mb", type=int, default=usual.file_bytes // 1_000_000, help="of each file")
    parser.add_argument("--files", type=int, default=usual.files)
    parser.add_argument("--huge-gb", type=int, default=usual.huge_gb, help="of the file for the memory rows")
    parser.add_argument("--rounds", type=int, default=usual.rounds, help="of what is timed in turns")
    parser.add_argument("--only", default="", metavar="REGEX", help="rows whose text it is found in")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_name("results.json"), help="default: %(default)s"
    )
    options = parser.parse_args(arguments)
    plans = [plan for plan in PLANS if re.search(options.only, plan.what)]
    if not plans:
        parser.error(f"no row has {options.only!r}; they are:\n" + "\n".join(plan.what for plan in PLANS))
    if min(options.size_mb, options.files, options.rounds) < 1 or options.huge_gb < 2:
        parser.error("sizes, files and rounds start at 1, --huge-gb at 2")
    sizes = Sizes(options.size_mb * 1_000_000, options.files, options.huge_gb, options.rounds)
    # What ends the bench from outside takes the same way out as Ctrl-C: everything is removed.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    for name in [name for name in os.environ if name.startswith(("HF_", "MODELBAKE_"))]:
        if name != "MODELBAKE_CACHE":
            del os.environ[name]  # a token or a registry of the user's own is none of the bench's
    began = time.monotonic()
    rows: list[Row] = []
    try:
        with contextlib.ExitStack() as ending:
            story = Story(sizes, lambda: ending.enter_context(Setting(sizes)))
            for plan in plans:
                rows.append(plan.row(story))
                say(f"bench: {table(rows[-1:]).splitlines()[1]}")
    except KeyboardInterrupt:
        return 130
    write_results(options.output, rows)
    sys.stdout.write(f"{sizes.files} files of {sizes.file_bytes / 1e6:,.0f} MB, {os.cpu_count()} CPUs,")
    sys.stdout.write(f" {sizes.rounds} rounds, {time.monotonic() - began:,.0f} s\n{table(rows)}\n")
    return int(any(row.value is None for row in rows))


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
