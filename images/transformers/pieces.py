"""From tokens to the pieces of text that a client may see already."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Decoder:
    """Turns tokens into text as they come, and holds back what is no whole character yet."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self.decode = decode
        self.tokens: list[int] = []
        # The tokens before ``read`` have become text. Those from ``context`` on are decoded once more each
        # time, because a token's text depends on the one before it.
        self.context = 0
        self.read = 0

    def add(self, token: int) -> str:
        """The text that is certain now."""
        self.tokens.append(token)
        text = self.pending()
        if not text or text.endswith("\ufffd"):
            return ""
        self.context, self.read = self.read, len(self.tokens)
        return text

    def pending(self) -> str:
        """The text of all tokens that have not become text yet."""
        known = self.decode(self.tokens[self.context : self.read])
        return self.decode(self.tokens[self.context :])[len(known) :]


class StopFilter:
    """Cuts the text at the first stop string, and holds back what may yet become one."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.stops = stops
        self.held = ""
        self.found = False

    def add(self, text: str) -> str:
        """The text that may be sent now; nothing any more after a stop string."""
        if self.found:
            return ""
        self.held += text
        places = [place for stop in self.stops if (place := self.held.find(stop)) >= 0]
        if places:
            self.found = True
            return self.held[: min(places)]
        keep = max(
            (
                size
                for stop in self.stops
                for size in range(1, min(len(stop), len(self.held) + 1))
                if self.held.endswith(stop[:size])
            ),
            default=0,
        )
        ready, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return ready


class Streamer:
    """What ``generate`` hands its tokens to: decodes, looks for stop strings, passes the text on."""

    def __init__(self, decoder: Decoder, stops: StopFilter, emit: Callable[[str], None]) -> None:
        self.decoder = decoder
        self.stops = stops
        self.emit = emit
        self.prompt = True

    def put(self, value: Any) -> None:
        """Take the prompt, the first time, and one token each time after that."""
        if self.prompt:
            self.prompt = False
            return
        for token in value.flatten().tolist():
            self.pass_on(self.stops.add(self.decoder.add(token)))

    def end(self) -> None:
        """Pass on what was held back."""
        self.pass_on(self.stops.add(self.decoder.pending()))
        if not self.stops.found:
            self.pass_on(self.stops.held)

    def pass_on(self, text: str) -> None:
        """Send text where there is any."""
        if text:
            self.emit(text)
