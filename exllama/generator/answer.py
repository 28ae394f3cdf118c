"""The answer of one job while it grows: tokens become text, stop strings are looked for, and both stay in step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from exllama.generator.stops import StopStrings


class Detokenizer(Protocol):
    """tokenizer.detokenizer.IncrementalDetokenizer."""

    def add(self, token_id: int) -> str: ...
    def flush(self) -> str: ...


class Answer:
    """`add` a token at a time; a piece of text comes out together with the tokens that begin in it.

    Tokens without text of their own (a part of a character, a control token) go with the text that follows them.
    """

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str], min_tokens: int = 0) -> None:
        """min_tokens: stop strings count only in the text of the tokens after these."""
        self._detokenizer = detokenizer
        self._stops = StopStrings(stops)
        self._endless = min_tokens
        self._parts: list[str] = []
        self._waiting: list[tuple[int, int]] = []  # (where its text begins in the text not shown yet, token id)
        self.stop: str | None = None

    @property
    def text(self) -> str:
        """All text shown so far."""
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0] if self._parts else ""

    def add(self, token_id: int) -> tuple[str, tuple[int, ...]]:
        """The text that can be shown now and its tokens; `stop` is then the stop string that ended it, if any."""
        self._waiting.append((len(self._stops.held), token_id))
        text = self._detokenizer.add(token_id)
        if self._endless:
            self._endless -= 1
            return self._show(text)
        shown, self.stop = self._stops.add(text)
        return self._show(shown)

    def finish(self) -> tuple[str, tuple[int, ...]]:
        """No more tokens come and no stop string was found: the text and the tokens that were held back."""
        shown, self.stop = self._stops.add(self._detokenizer.flush())
        text, tokens = self._show(shown + ("" if self.stop else self._stops.flush()))
        if self.stop is None:
            tokens += tuple(token for _, token in self._waiting)
            self._waiting.clear()
        return text, tokens

    def _show(self, text: str) -> tuple[str, tuple[int, ...]]:
        if not text:
            return "", ()
        self._parts.append(text)
        length, waiting = len(text), self._waiting
        if len(waiting) == 1 and waiting[0][0] == 0:  # nearly always
            return text, (waiting.pop()[1],)
        tokens = tuple(token for start, token in waiting if start < length)
        self._waiting = [(start - length, token) for start, token in waiting if start >= length]
        return text, tokens
