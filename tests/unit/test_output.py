from __future__ import annotations

import io
import json
import re
import threading

from modelbake.credentials import Redactor, Secret
from modelbake.output import Output, visible

CANARY = "hf_canary0123456789"


def _output(log_format: str) -> tuple[Output, io.StringIO, io.StringIO]:
    out, err = io.StringIO(), io.StringIO()
    return (
        Output(stdout=out, stderr=err, log_format=log_format, redactor=Redactor([Secret(CANARY)])),
        out,
        err,
    )


def test_results_go_to_stdout_and_events_to_stderr() -> None:
    output, out, err = _output("text")
    output.result("registry/minilm@sha256:00")
    output.event("pushed", "pushed minilm")
    output.event("drift", "minilm moved", level="warning")
    assert out.getvalue() == "registry/minilm@sha256:00\n"
    assert err.getvalue() == "pushed minilm\nwarning: minilm moved\n"
    assert not output.live, "a StringIO is no terminal"


def test_json_events_are_one_object_a_line() -> None:
    output, _, err = _output("json")
    output.audit(source="hf://a/b@c", file="x", bytes=2_000_000, attempts=1, sha256="ab" * 32, seconds=0.5)
    record = json.loads(err.getvalue())
    assert record["event"] == "transfer"
    assert record["bytes"] == 2_000_000
    assert record["message"].startswith("fetched x (2,000,000 bytes, 4 MB/s, attempt 1)")
    assert "worker" not in record


def test_who_has_fetched_is_said_where_it_was_not_this_process() -> None:
    output, _, err = _output("json")
    output.audit(
        source="hf://a/b@c", file="x", bytes=2, attempts=1, sha256="ab" * 32, seconds=0.5, worker="gpu-7"
    )
    record = json.loads(err.getvalue())
    assert record["worker"] == "gpu-7"
    assert record["message"].endswith("from hf://a/b@c by gpu-7")


def test_lines_of_threads_do_not_run_together() -> None:
    written: list[str] = []

    class Slow(io.StringIO):
        def write(self, text: str) -> int:
            written.append(text)
            return len(text)

    output = Output(stderr=Slow())
    threads = [threading.Thread(target=output.event, args=("x", f"line {number}")) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(written) == sorted(f"line {number}\n" for number in range(20)), "a line is one write"


def test_a_secret_with_characters_that_json_escapes_is_masked_too() -> None:
    awkward = 'pa"ss\\w\u00f6rd'
    output, out, err = _output("json")
    output.redactor.add(Secret(awkward))
    output.event("x", f"said {awkward}", detail={awkward: [awkward]})
    output.result_json({"token": awkward})
    assert json.loads(err.getvalue())["message"] == "said ***"
    assert "ss\\" not in err.getvalue() + out.getvalue()
    assert json.loads(out.getvalue()) == {"token": "***"}


def test_no_voice_speaks_a_known_secret() -> None:
    for log_format in ("text", "json"):
        output, out, err = _output(log_format)
        output.event("x", f"token {CANARY}", detail={"deep": [CANARY]})
        output.result(CANARY)
        output.result_json({"token": CANARY})
        assert CANARY not in out.getvalue() + err.getvalue()
        assert out.getvalue().count("***") == 2


def test_nothing_that_is_printed_moves_a_terminal() -> None:
    said = io.StringIO()
    hostile = "\x1b[31mred\u202e\x9b1m\u200b\r"
    for log_format in ("text", "json"):
        output = Output(stdout=said, stderr=said, log_format=log_format)
        output.event("event", hostile)
        output.result(hostile)
        output.result_json({hostile: hostile})
    assert not re.search("[\x1b\u202e\x9b\u200b\r]", said.getvalue())
    assert "\\u001b[31mred\\u202e" in said.getvalue()
    assert visible("a\tb\nc \u00e9\u200d") == "a\tb\nc \u00e9\u200d", "control: what people write stays"
