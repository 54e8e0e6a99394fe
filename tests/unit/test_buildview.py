from __future__ import annotations

import io
import json
import os
import pty
import re
import threading

from modelbake.buildkit.progress import Log, VertexDone, VertexError, VertexStarted, short_name
from modelbake.buildkit.status import Transfer
from modelbake.buildview import BuildView, stage
from modelbake.credentials import Redactor, Secret
from modelbake.output import Output

RUN = '[weights-0 2/2] RUN --mount=type=secret,id=hf_token --mount=type=secret,id=ca     ["python", "f.py"]'
FETCHED = {
    "event": "fetched",
    "source": "hf://acme/minilm@0123",
    "file": "model.safetensors",
    "bytes": 90_000_000,
    "attempts": 1,
    "sha256": "ab" * 32,
    "seconds": 1.5,
}


def _line(record: object) -> Log:
    return Log(vertex="v", name=RUN, stream="stdout", line=json.dumps(record))


def _said(*events: object, log_format: str = "text") -> tuple[str, BuildView]:
    stderr = io.StringIO()
    output = Output(stderr=stderr, log_format=log_format, redactor=Redactor([Secret("hf_canary")]))
    with BuildView(output) as view:
        for event in events:
            view(event)  # type: ignore[arg-type]
    return stderr.getvalue(), view


def test_a_step_is_named_as_a_person_would() -> None:
    assert short_name(RUN) == '[weights-0 2/2] RUN ["python", "f.py"]'
    assert short_name(f"FROM a/b@sha256:{'ab' * 32}") == "FROM a/b@sha256:abababababab"
    assert stage(RUN) == "weights-0"
    assert stage("exporting to image") == "exporting to image"
    assert stage("[]") == "[]"


def test_plain_lines_for_a_log_that_is_read_later() -> None:
    said, _ = _said(
        VertexStarted("v", RUN),
        Log("v", RUN, "stdout", "Collecting torch"),
        VertexDone("v", RUN, cached=False, seconds=2.25),
        VertexDone("w", "[base 1/1] FROM x", cached=True, seconds=0),
        VertexError("x", "[fetch 1/1] RUN y", "exit code: 24", cancelled=False),
        VertexError("y", "[other 1/1] RUN z", "context canceled", cancelled=True),
    )
    assert said.splitlines() == [
        "weights-0 | Collecting torch",
        '[weights-0 2/2] RUN ["python", "f.py"]: done in 2.2 s',
        "[base 1/1] FROM x: cached",
    ]


def test_a_fetched_file_is_an_audit_line_and_counted() -> None:
    said, view = _said(_line(FETCHED), _line({**FETCHED, "file": "config.json", "bytes": 600}))
    assert view.fetched_bytes == 90_000_600
    assert said.startswith(
        "fetched model.safetensors (90,000,000 bytes, 60 MB/s, attempt 1) sha256:abababababab"
    )
    records = [json.loads(line) for line in _said(_line(FETCHED), log_format="json")[0].splitlines()]
    assert records[0]["sha256"] == "ab" * 32


def test_progress_is_said_now_and_then_not_at_every_report() -> None:
    reports = [
        _line({"event": "progress", "file": "m", "bytes": n, "total": 1000}) for n in range(0, 1001, 10)
    ]
    assert _said(*reports)[0] == "m: 0% of 0.0 MB\n"
    assert (
        _said(Transfer("v", "sha256:ab", 5, 10, False), Transfer("v", "sha256:ab", 10, 10, True))[0].count(
            "\n"
        )
        == 1
    )


def test_odd_lines_of_a_step_are_passed_on_as_they_are() -> None:
    odd = ['{"event": "progress"}', '{"event": 3}', '{"a', "[]", '{"event": "fetched", "bytes": 1}']
    said, view = _said(*(Log("v", RUN, "stdout", line) for line in odd))
    assert said.splitlines() == [f"weights-0 | {line}" for line in odd]
    assert view.fetched_bytes == 0
    assert _said(_line({"event": "warning", "message": "slow"}))[0] == "weights-0 | slow\n"


def test_no_secret_passes_the_view() -> None:
    said, _ = _said(
        Log("v", RUN, "stderr", "token hf_canary"), VertexError("v", "[a] hf_canary", "hf_canary", False)
    )
    assert "hf_canary" not in said
    assert said.count("***") == 1


def test_bars_on_a_terminal_leave_it_clean() -> None:
    """Drawn on a real pseudo-terminal: the bars appear while bytes move and are gone at the end."""
    master, slave = pty.openpty()
    drawn = bytearray()

    def read() -> None:
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError:
                return
            if not piece:
                return
            drawn.extend(piece)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(slave, "w") as terminal:
        output = Output(stderr=terminal)
        assert output.live
        with BuildView(output) as view:
            view(VertexStarted("v", RUN))
            view(
                _line(
                    {
                        "event": "progress",
                        "file": "model.safetensors",
                        "bytes": 45_000_000,
                        "total": 90_000_000,
                    }
                )
            )
            assert view._bars is not None
            view._bars.refresh()
            view(_line(FETCHED))
            view._bars.refresh()
            view(VertexDone("v", RUN, cached=False, seconds=1))
    reader.join(5)
    os.close(master)
    text = drawn.decode()
    assert "model.safetensors" in text
    assert "45.0/90.0 MB" in text
    audit = next(line for line in text.splitlines() if "fetched model.safetensors" in line)
    assert re.search(r"\x1b\[2K(?:\x1b\[1A\x1b\[2K)*fetched model", audit), (
        "on a line of its own, above the bars"
    )
    assert text.rstrip().endswith("\x1b[2K") or "\x1b[?25h" in text, "the cursor is shown again"
