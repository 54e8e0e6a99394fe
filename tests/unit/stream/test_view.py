"""What is seen of transfers: lines for logs, bars for terminals."""

from __future__ import annotations

import io
import json
import threading

import pytest

from modelbake.errors import WrongBytes
from modelbake.output import Output
from modelbake.stream.flow import Verified
from modelbake.stream.view import TransferView
from tests.unit.planning import planned
from tests.unit.stream.material import content, group_of, locked

GROUP = group_of({"model.safetensors": content(1000), "other.bin": content(10)})
DIGEST = "sha256:" + "ab" * 32


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """What `time` is to the view: it stands still until it is told."""

    def __init__(self, now: float) -> None:
        self.now = now

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock(100.0)
    monkeypatch.setattr("modelbake.stream.view.time", made)
    return made


def view_of(stderr: io.StringIO, log_format: str = "text") -> tuple[TransferView, Output]:
    output = Output(stdout=io.StringIO(), stderr=stderr, log_format=log_format)
    return TransferView(output), output


class TestLines:
    def test_one_every_few_seconds(self, clock: Clock) -> None:
        err = io.StringIO()
        view, _ = view_of(err)
        with view.layers(2, 40_000_000), view.layer(GROUP) as told:
            for clock.now in (100.1, 101.0, 104.9):
                told(2_000_000)
            assert err.getvalue() == ""
            for clock.now in (105.0, 106.0, 109.9):
                told(2_000_000)
            clock.now = 110.0
            told(8_000_000)
        assert err.getvalue().splitlines() == [
            "weights: 20% of 40 MB, 2 MB/s, 20 s left",
            "weights: 50% of 40 MB, 2 MB/s, 10 s left",
        ]

    def test_headers_do_not_make_it_more_than_all(self, clock: Clock) -> None:
        err = io.StringIO()
        view, _ = view_of(err, "json")
        with view.layers(1, 1_000_000), view.layer(GROUP) as told:
            clock.now += 10
            told(1_002_048)
        (record,) = map(json.loads, err.getvalue().splitlines())
        assert record["event"] == "transfer_progress"
        assert record["message"] == "weights: 100% of 1 MB, 0 MB/s, 0 s left"
        assert (record["bytes"], record["total"]) == (1_002_048, 1_000_000)

    def test_weights_of_no_bytes(self, clock: Clock) -> None:
        view, _ = view_of(io.StringIO())
        with view.layers(1, 0), view.layer(group_of({"empty": b""})) as told:
            clock.now += 10
            told(2048)

    def test_what_is_finished(self) -> None:
        err = io.StringIO()
        view, _ = view_of(err)
        view.stored(GROUP, DIGEST, 3072)
        view.remembered("registry/weights:weights-ab", DIGEST)
        assert err.getvalue().splitlines() == [
            "stored model.safetensors +1 as sha256:abababababab",
            f"registry/weights:weights-ab is {DIGEST}",
        ]

    def test_the_audit_line_of_a_file(self) -> None:
        err = io.StringIO()
        view, _ = view_of(err, "json")
        (file,) = locked({"a.bin": b"abc"})
        view.verified(planned().locked, Verified(file, 3, 0.25))
        record = json.loads(err.getvalue())
        assert (
            record.items()
            >= {
                "event": "transfer",
                "source": "hf://acme/minilm@" + "0123456789" * 4,
                "file": "a.bin",
                "bytes": 3,
                "attempts": 3,
                "sha256": file.sha256,
                "seconds": 0.25,
            }.items()
        )

    @pytest.mark.parametrize(
        ("paths", "name"),
        [
            (["model.safetensors"], "model.safetensors"),
            (["config.json", "vocab.txt", "z"], "config.json +2"),
            (["very/deep/folder/model-00001-of-00002.safetensors"], "...0001-of-00002.safetensors"),
            (["a\u202eb", "c"], "a\\u202eb +1"),
        ],
    )
    def test_a_layers_name_is_short_and_printable(self, paths: list[str], name: str) -> None:
        err = io.StringIO()
        view, _ = view_of(err)
        view.stored(group_of(dict.fromkeys(paths, b"x")), DIGEST, 1)
        assert err.getvalue() == f"stored {name} as sha256:abababababab\n"
        assert len(name) <= 28


class TestBars:
    def test_a_bar_for_each_layer_and_one_for_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "120")
        err = Terminal()
        view, output = view_of(err)
        usual = output.write_line
        with view.layers(3, 5000):
            with view.layer(GROUP) as told:
                told(1000)
                output.event("x", "a line [red]above[/red]")
            with view.layer(group_of({"z.bin": b"z"})) as told:
                told(1)
        text = err.getvalue()
        assert "3 layers" in text
        assert "a line [red]above[/red]" in text, "no markup in it"
        assert output.write_line == usual
        view.stored(GROUP, DIGEST, 1)
        assert err.getvalue().endswith("as sha256:abababababab\n")

    def test_they_go_away_after_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TERM", "xterm")
        view, output = view_of(Terminal())
        usual = output.write_line
        with pytest.raises(WrongBytes), view.layers(1, 10), view.layer(GROUP):
            raise WrongBytes("wrong")
        assert output.write_line == usual
        assert threading.active_count() < 20

    def test_many_threads_may_tell(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TERM", "xterm")
        for stderr in (Terminal(), io.StringIO()):
            view, _ = view_of(stderr)

            def work(view: TransferView = view) -> None:
                with view.layer(GROUP) as told:
                    for _ in range(200):
                        told(5)
                view.stored(GROUP, DIGEST, 1000)

            with view.layers(8, 8000):
                threads = [threading.Thread(target=work) for _ in range(8)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            assert stderr.getvalue().count("as sha256:abababababab") == 8
