"""`make faults`: every fault against every promise, as a table and as bench/faults.json.

    python -m tests.fault_matrix [--output FILE] [--exhaustive] [pytest arguments]

A row says how many faults were tried, how many got through (a failed test), and whether the controls found
what was let through on purpose. The exit status is 1 unless every row is 0 and has a control that found it.

Unit tests try all they have. Integration tests try of each fault what `make test` tries; with --exhaustive
every request, moment and size, which takes hours.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.conftest import LOST
from tests.promises import PROMISES

ROOT = Path(__file__).resolve().parent.parent
# The unit tests need nothing of each other, and many of them wait; the integration tests share one engine.
_RUNS = (("--numprocesses", "3", "--dist", "loadfile", "tests/unit"), ("tests/integration",))
_COLUMNS = ("promise", "tried", "through", "skipped", "control")
Counts = dict[str, dict[str, int]]


def main() -> int:
    """Run both kinds of tests, print the matrix and write it."""
    parser = argparse.ArgumentParser(description="Tries every fault against every promise.")
    parser.add_argument("--output", type=Path, default=ROOT / "bench/faults.json")
    parser.add_argument("--exhaustive", action="store_true", help="integration tests in full; hours")
    args, others = parser.parse_known_args()
    began = time.monotonic()
    counts: list[Counts] = []
    broken = False
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(_RUNS)) as pool:
        # Side by side: integration tests mostly wait for an engine.
        def start(number: int) -> tuple[int, Counts | None, str]:
            full = number == 0 or args.exhaustive
            return _run(Path(folder) / f"counts-{number}.json", (*_RUNS[number], *others), full=full)

        outcomes = list(pool.map(start, range(len(_RUNS))))
    for run, (code, found, said) in zip(_RUNS, outcomes, strict=True):
        sys.stdout.write(f"{said}\n")
        broken |= code not in (0, 1)
        counts += [found] if found is not None else []
        lost = found.pop(LOST, {}).get("through", 0) if found is not None else 0
        if code not in (0, 1) or lost:
            told = f"{' '.join(run)}: pytest ended with {code}; {lost} tests were lost"
            Console(stderr=True).print(told, markup=False)
        broken |= bool(lost)
    rows = matrix(counts)
    args.output.write_text(json.dumps(rows, indent=1) + "\n")
    _print(rows, time.monotonic() - began)
    return int(broken or not all(holds(row) for row in rows))


def _run(file: Path, arguments: tuple[str, ...], *, full: bool) -> tuple[int, Counts | None, str]:
    """Run pytest; return its exit status, what it counted, and what it said."""
    command = [sys.executable, "-m", "pytest", "-q", "--faults", str(file), *arguments]
    env = {**os.environ, "MODELBAKE_FAULTS": "full" if full else "quick"}
    done = subprocess.run(
        command, cwd=ROOT, env=env, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return done.returncode, json.loads(file.read_text()) if file.exists() else None, done.stdout


def matrix(counts: list[Counts]) -> list[dict[str, object]]:
    """Return one row a promise, whether or not anything was tried."""
    rows = []
    for key, promise in PROMISES.items():
        of_key = [count[key] for count in counts if key in count]
        total = {name: sum(row[name] for row in of_key) for name in (of_key[0] if of_key else ())}
        controls, missed = total.get("controls", 0), total.get("controls_missed", 0)
        row: dict[str, object] = {
            "key": key,
            "promise": promise,
            "tried": total.get("tried", 0),
            "through": total.get("through", 0),
            "control": f"{controls - missed} of {controls} found",
        }
        if total.get("skipped"):
            row["skipped"] = total["skipped"]
        rows.append(row)
    return rows


def holds(row: dict[str, object]) -> bool:
    """Tell whether a promise was attacked, nothing got through, and every control found its fault."""
    found, _, controls, _ = str(row["control"]).split()
    return bool(row["tried"]) and row["through"] == 0 and controls != "0" and found == controls


def _print(rows: list[dict[str, object]], seconds: float) -> None:
    table = Table(title=f"{sum(holds(row) for row in rows)} of {len(rows)} promises hold; {seconds:.0f} s")
    for heading in _COLUMNS:
        table.add_column(heading, justify="left" if heading == "promise" else "right")
    for row in rows:
        table.add_row(*(str(row.get(name, 0)) for name in _COLUMNS))
    Console(width=110).print(table)


if __name__ == "__main__":
    sys.exit(main())
