from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbake.buildkit.failure import build_error
from modelbake.buildkit.progress import (
    BuildEvent,
    Log,
    Trace,
    Transfer,
    VertexDone,
    VertexError,
    VertexStarted,
    Warned,
)
from modelbake.buildkit.status import LogPiece, StatusUpdate, VertexState, decode_status, status_from_json
from modelbake.buildkit.wire import WireError, bytes_field, varint_field
from modelbake.credentials import Redactor, Secret
from modelbake.errors import (
    BuildFailed,
    DiskFull,
    ModelbakeError,
    NotConvertible,
    RegistryAuthError,
    RegistryUnavailable,
    SecretMissing,
    SourceAuthError,
    SourceGatedError,
    SourceNotFound,
    SourceUnavailable,
    WrongBytes,
)

TOKEN = "hf_canary0123456789"
RUN = VertexState(digest="sha256:1", name="[weights 1/1] RUN fetch.py", started=100.0)


def timestamp(seconds: int, nanoseconds: int = 0) -> bytes:
    return varint_field(1, seconds) + varint_field(2, nanoseconds)


def vertex(
    digest: str, name: str, *, started: int = 0, completed: int = 0, cached: int = 0, error: str = ""
) -> bytes:
    message = (
        bytes_field(1, digest.encode()) + bytes_field(2, b"sha256:input") + bytes_field(3, name.encode())
    )
    message += varint_field(4, cached) + bytes_field(7, error.encode())
    message += bytes_field(5, timestamp(started)) + bytes_field(
        6, timestamp(completed, 500_000_000 if completed else 0)
    )
    return bytes_field(1, message)


def log(digest: str, text: bytes, stream: int = 1) -> bytes:
    message = bytes_field(1, digest.encode()) + bytes_field(2, timestamp(7)) + varint_field(3, stream)
    return bytes_field(3, message + bytes_field(4, text))


STATUS = (
    vertex("sha256:1", "[weights 1/1] RUN fetch.py", started=100, completed=102)
    + bytes_field(
        2,
        bytes_field(1, b"sha256:layer")
        + bytes_field(2, b"sha256:1")
        + varint_field(4, 5)
        + varint_field(5, 9),
    )
    + log("sha256:1", b"hello\n", 2)
    + bytes_field(
        4,
        bytes_field(1, b"sha256:1")
        + varint_field(2, 1)
        + bytes_field(3, b"old syntax")
        + bytes_field(5, b"https://x"),
    )
)
JSON_STATUS = {
    "vertexes": [
        {
            "digest": "sha256:1",
            "inputs": ["sha256:input"],
            "name": "[weights 1/1] RUN fetch.py",
            "started": "1970-01-01T00:01:40Z",
            "completed": "1970-01-01T01:01:42.500000000+01:00",
        }
    ],
    "statuses": [
        {
            "id": "sha256:layer",
            "vertex": "sha256:1",
            "current": 5,
            "total": 9,
            "timestamp": "1970-01-01T00:00:00Z",
        }
    ],
    "logs": [
        {
            "vertex": "sha256:1",
            "stream": 2,
            "data": base64.b64encode(b"hello\n").decode(),
            "timestamp": "1970-01-01T00:00:00Z",
        }
    ],
    "warnings": [
        {
            "vertex": "sha256:1",
            "level": 1,
            "short": base64.b64encode(b"old syntax").decode(),
            "url": "https://x",
        }
    ],
}


def lines_of(pieces: list[bytes], redact: Redactor | None = None, *, finish: bool = True) -> list[str]:
    trace = Trace(redact or Redactor())
    events: list[BuildEvent] = list(trace.update(StatusUpdate(vertexes=(RUN,))))
    for piece in pieces:
        events += trace.update(StatusUpdate(logs=(LogPiece("sha256:1", 1, piece),)))
    events += trace.finish() if finish else []
    return [event.line for event in events if isinstance(event, Log)]


def test_both_encodings_say_the_same() -> None:
    expected = StatusUpdate(
        vertexes=(replace(RUN, completed=102.5),),
        transfers=(Transfer("sha256:1", "sha256:layer", 5, 9, done=False),),
        logs=(LogPiece("sha256:1", 2, b"hello\n"),),
        warnings=(Warned("sha256:1", "old syntax", "https://x"),),
    )
    assert decode_status(STATUS) == expected
    assert status_from_json(json.loads(json.dumps(JSON_STATUS))) == expected


def test_events_of_one_step_in_order() -> None:
    assert list(Trace().update(decode_status(STATUS))) == [
        VertexStarted("sha256:1", RUN.name),
        Log("sha256:1", RUN.name, "stderr", "hello"),
        Transfer("sha256:1", "sha256:layer", 5, 9, done=False),
        VertexDone("sha256:1", RUN.name, cached=False, seconds=2.5),
        Warned("sha256:1", "old syntax", "https://x"),
    ]


@pytest.mark.parametrize(
    "document",
    [
        [],
        1,
        {"logs": [{"data": "%"}]},
        {"vertexes": [3]},
        {"vertexes": [{"started": "x"}]},
        {"statuses": [{"total": "x"}]},
    ],
)
def test_json_that_is_no_status(document: object) -> None:
    with pytest.raises(WireError):
        status_from_json(document)  # type: ignore[arg-type]


def test_a_number_where_text_should_be() -> None:
    with pytest.raises(WireError):
        decode_status(bytes_field(1, varint_field(3, 5)))


@given(st.text(alphabet=st.sampled_from("aé😀\n"), max_size=60), st.data())
def test_lines_come_whole_however_they_are_cut(text: str, data: st.DataObject) -> None:
    encoded = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(encoded)), max_size=6)))
    pieces = [encoded[start:end] for start, end in zip([0, *cuts], [*cuts, len(encoded)], strict=True)]
    expected = text.split("\n")
    assert lines_of(pieces) == (expected if expected[-1] else expected[:-1])


@given(st.integers(0, len(TOKEN)), st.integers(0, len(TOKEN)))
def test_a_secret_in_pieces_is_masked(first: int, second: int) -> None:
    text = f"token {TOKEN} end\n".encode()
    start, end = sorted((6 + first, 6 + second))
    assert lines_of([text[:start], text[start:end], text[end:]], Redactor([Secret(TOKEN)])) == [
        "token *** end"
    ]


@pytest.mark.parametrize("offset", range(0, 40, 3))
def test_a_secret_in_an_endless_line_is_masked(offset: int) -> None:
    text = ("x" * (64 * 1024 - 20 + offset) + TOKEN + "y" * 100).encode()
    lines = lines_of(
        [text[index : index + 1000] for index in range(0, len(text), 1000)], Redactor([Secret(TOKEN)])
    )
    assert len(lines) == 2
    joined = "".join(lines)
    assert "canary" not in joined
    assert joined.replace("***", TOKEN) == text.decode()


def test_an_endless_line_takes_no_endless_memory() -> None:
    lines = lines_of([b"x" * 10_000] * 100, finish=False)
    assert len("".join(lines)) > 900_000


def test_terminal_control_is_taken_out() -> None:
    assert lines_of([b"\x1b[31mred\x1b[0m\x1b]0;title\x07\x08!\n", b" 10%\r 20%\r100%\r\n", b"a\tb\n"]) == [
        "red!",
        "100%",
        "a\tb",
    ]


def test_an_open_line_ends_with_its_step() -> None:
    trace = Trace()
    list(trace.update(StatusUpdate(vertexes=(RUN,), logs=(LogPiece("sha256:1", 1, b"no newline"),))))
    events = list(trace.update(StatusUpdate(vertexes=(replace(RUN, completed=101.0),))))
    assert events == [
        Log("sha256:1", RUN.name, "stdout", "no newline"),
        VertexDone("sha256:1", RUN.name, cached=False, seconds=1.0),
    ]


def test_what_buildkit_repeats_is_said_once() -> None:
    trace = Trace()
    done = replace(RUN, completed=101.0, cached=True)
    updates = [
        StatusUpdate(vertexes=(replace(RUN, started=None),)),
        *[StatusUpdate(vertexes=(RUN,))] * 2,
        *[StatusUpdate(vertexes=(done,))] * 2,
    ]
    events = [event for update in updates for event in trace.update(update)]
    assert events == [
        VertexStarted("sha256:1", RUN.name),
        VertexDone("sha256:1", RUN.name, cached=True, seconds=1.0),
    ]


def test_the_old_story_of_a_cached_step_is_not_told_as_news() -> None:
    """Else a build that fetched nothing would log, and count, what an earlier one fetched."""
    trace = Trace()
    context = VertexState(digest="sha256:0", name="[internal] load context", started=500.0, completed=501.0)
    old = replace(RUN, completed=110.0)
    now = replace(RUN, started=502.0, completed=502.0, cached=True)
    piece = LogPiece(vertex="sha256:1", stream=1, data=b'{"event": "fetched"}\n')
    events = [
        *trace.update(StatusUpdate(vertexes=(context,))),
        *trace.update(StatusUpdate(vertexes=(old,), logs=(piece,))),
        *trace.update(StatusUpdate(vertexes=(now,))),
    ]
    told = [
        (type(event).__name__, event.name) for event in events if not isinstance(event, Transfer | Warned)
    ]
    assert told == [
        ("VertexStarted", "[internal] load context"),
        ("VertexDone", "[internal] load context"),
        ("VertexStarted", RUN.name),
        ("VertexDone", RUN.name),
    ]
    assert isinstance(events[-1], VertexDone)
    assert events[-1].cached
    running = Trace()
    fresh = list(running.update(StatusUpdate(vertexes=(replace(RUN, completed=110.0),), logs=(piece,))))
    assert any(isinstance(event, Log) for event in fresh), "control: a step of this very build is told"


def test_a_step_in_two_parts() -> None:
    # As BuildKit reports the loading of a context: both parts in one message.
    parts = (replace(RUN, completed=100.0), replace(RUN, started=101.0, completed=102.0))
    events = list(Trace().update(StatusUpdate(vertexes=parts)))
    assert [type(event) for event in events] == [VertexStarted, VertexDone]


def failed_trace(error: str, lines: str = "", name: str = RUN.name) -> Trace:
    trace = Trace(Redactor([Secret(TOKEN)]))
    other = VertexState(digest="sha256:2", name="other", started=1.0, completed=2.0, error="context canceled")
    step = replace(RUN, name=name)
    pieces = (LogPiece("sha256:1", 1, lines.encode()),)
    list(trace.update(StatusUpdate(vertexes=(step, other), logs=pieces)))
    list(trace.update(StatusUpdate(vertexes=(replace(step, completed=3.0, error=error),))))
    return trace


def test_a_chatty_stream_does_not_hide_the_other() -> None:
    trace = Trace()
    pieces = [
        LogPiece("sha256:1", 2, b"the reason\n"),
        LogPiece("sha256:1", 1, b"%d\n" * 100 % (*range(100),)),
    ]
    list(trace.update(StatusUpdate(vertexes=(RUN,), logs=tuple(pieces))))
    list(trace.update(StatusUpdate(vertexes=(replace(RUN, completed=101.0, error="boom"),))))
    assert trace.failed is not None
    assert trace.failed[2] == ("the reason", *map(str, range(85, 100)))


def test_the_cancelled_step_is_not_the_failed_one() -> None:
    trace = Trace()
    cancelled = VertexState("sha256:2", "other", started=1.0, completed=2.0, error="rpc: context canceled")
    events = list(trace.update(StatusUpdate(vertexes=(cancelled, replace(RUN, completed=3.0, error="boom")))))
    assert [(event.vertex, event.cancelled) for event in events if isinstance(event, VertexError)] == [
        ("sha256:2", True),
        ("sha256:1", False),
    ]
    assert trace.failed == (RUN.name, "boom", ())


STEP_FAILED = 'process "/bin/sh -c x" did not complete successfully: exit code: 24'
HEAD = "127.0.0.1:5000/b:1: failed to resolve source metadata for 127.0.0.1:5000/b:1: "


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (20, SourceAuthError),
        (21, SourceGatedError),
        (22, SourceNotFound),
        (23, SourceUnavailable),
        (24, WrongBytes),
        (25, SecretMissing),
        (26, DiskFull),
        (27, BuildFailed),
        (28, NotConvertible),
        (29, WrongBytes),
    ],
)
def test_what_the_programs_of_the_weights_stages_say(code: int, expected: type[ModelbakeError]) -> None:
    said = json.dumps(
        {"event": "error", "code": code, "file": "a/model.safetensors", "message": "not as locked"}
    )
    error = build_error(STEP_FAILED, failed_trace(STEP_FAILED, f"starting\n{said}\n"))
    assert type(error) is expected
    assert error.message == "a/model.safetensors: not as locked"
    assert error.subject == RUN.name


@pytest.mark.parametrize(
    ("message", "is_here"),
    [
        ("127.0.0.1:18765: [Errno 111] Connection refused", True),
        ("localhost: Connection refused", True),
        ("files.example.com: Connection refused", False),
    ],
)
def test_an_address_of_this_machine_is_the_builds_own_there(message: str, is_here: bool) -> None:
    said = json.dumps({"event": "error", "code": 23, "file": "a", "message": message})
    error = build_error(STEP_FAILED, failed_trace(STEP_FAILED, f"{said}\n"))
    assert ("is the build container itself" in error.hint) is is_here


def test_the_fetch_program_with_a_clipped_log() -> None:
    error = build_error(STEP_FAILED, failed_trace(STEP_FAILED, "[output clipped, log limit 2MiB reached]\n"))
    assert type(error) is WrongBytes
    assert "clipped" in error.message


@pytest.mark.parametrize(
    "line", ['{"event":"error","code":99}', '{"event":"error"', '["error"]', '{"event":"error","code":"24"}']
)
def test_lines_that_only_look_like_the_fetch_programs(line: str) -> None:
    error = build_error(STEP_FAILED, failed_trace(STEP_FAILED, line + "\n", name="RUN other"))
    assert type(error) is BuildFailed
    assert line in error.message


@pytest.mark.parametrize(
    ("error", "lines", "expected"),
    [
        ("exporting: write /x: no space left on device", "", DiskFull),
        (
            'process "x" did not complete successfully: exit code: 1',
            "OSError: [Errno 28] No space left on device\n",
            DiskFull,
        ),
        ("secret xyz: not found", "", SecretMissing),
        (HEAD + "unexpected status from HEAD request to http://x: 401 Unauthorized", "", RegistryAuthError),
        (
            HEAD + "pull access denied, repository does not exist or may require authorization",
            "",
            RegistryAuthError,
        ),
        (HEAD + "failed to authorize: failed to fetch oauth token: 401", "", RegistryAuthError),
        (HEAD + "failed to do request: dial tcp: lookup x: no such host", "", RegistryUnavailable),
        (
            HEAD + "failed to do request: tls: failed to verify certificate: x509: unknown authority",
            "",
            RegistryUnavailable,
        ),
        (
            HEAD + "unexpected status from HEAD request to http://x: 503 Service Unavailable",
            "",
            RegistryUnavailable,
        ),
        (
            HEAD + "unexpected status from HEAD request to http://x: 429 Too Many Requests",
            "",
            RegistryUnavailable,
        ),
        (HEAD + "127.0.0.1:5000/b:1: not found", "", BuildFailed),
        (HEAD + "some riddle", "", BuildFailed),
        (
            'process "curl" did not complete successfully: exit code: 7',
            "dial tcp: connection refused\n401 Unauthorized\n",
            BuildFailed,
        ),
        ("dockerfile parse error on line 1: unknown instruction: FRO", "", BuildFailed),
    ],
)
def test_what_a_failed_build_means(error: str, lines: str, expected: type[ModelbakeError]) -> None:
    assert type(build_error(error, failed_trace(error, lines, name="[runtime 2/3] RUN x"))) is expected


def test_a_failed_build_names_what_it_is_about() -> None:
    assert build_error(HEAD + "127.0.0.1:5000/b:1: not found", Trace()).subject == "127.0.0.1:5000/b:1"
    assert "'xyz'" in build_error("secret xyz: not found", Trace()).message
    shown = build_error(
        "x did not complete successfully: exit code: 3",
        failed_trace("boom", "".join(f"line {n}.\n" for n in range(50)) + f"{TOKEN}\n"),
    )
    assert "exit code: 3" in shown.message
    assert "line 49." in shown.message
    assert "line 2." not in shown.message
    assert TOKEN not in str(shown)
