"""Colours Markdown while it streams in. Nothing is added, removed or reordered: only styles are chosen.

A character is held back only while its meaning hangs on the next one: `#`, `-`, `1.` or backticks at the start of a
line, a run of `*` or backticks inside one. What a character looks like does not depend on how the text was chunked.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Span(NamedTuple):
    """Text and the name of its style: "", bold, italic, bold italic, code, fence, heading, bullet or quote."""

    text: str
    style: str


_OPENING = re.compile(r"[ \t]*(#{1,6}|`{1,2}|~{1,2}|[-*+]|\d{1,3}[.)]?)?\Z")  # may still become a marker
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_HEADING = re.compile(r" {0,3}#{1,6}[ \t]")
_BULLET = re.compile(r"[ \t]*([-*+]|\d{1,3}[.)])[ \t]")
_QUOTE = re.compile(r" {0,3}>")
_PLAIN = re.compile(r"[^`*\\\n]+")


class MarkdownStream:
    """Feed chunks, get spans; `flush` at the end gives what was held back."""

    def __init__(self) -> None:
        self._held = ""
        self._at_line_start = True
        self._fence = ""  # the marker that opened the code block we are in
        self._line_style = ""
        self._bold = self._italic = False
        self._code = ""  # the backticks that opened the code span we are in
        self._before = "\n"  # last character emitted

    def feed(self, text: str) -> list[Span]:
        self._held += text
        return self._drain(final=False)

    def flush(self) -> list[Span]:
        return self._drain(final=True)

    def _drain(self, final: bool) -> list[Span]:
        spans: list[Span] = []
        while self._held:
            span = self._next(final)
            if span is None:
                break
            self._held = self._held[len(span.text) :]
            if span.text:
                self._before = span.text[-1]
                spans.append(span)
        return spans

    def _next(self, final: bool) -> Span | None:
        """The next span at the front of what is held, or None if more text must come first."""
        if self._at_line_start:
            return self._line_start(final)
        if self._held[0] == "\n":
            self._at_line_start = True
            self._bold = self._italic = False
            self._code = ""
            return Span("\n", "")
        if self._fence or self._line_style in ("fence", "heading"):
            end = self._held.find("\n")
            return Span(self._held if end < 0 else self._held[:end], self._line_style or "code")
        return self._inline(final)

    def _line_start(self, final: bool) -> Span | None:
        if not final and _OPENING.match(self._held):
            return None
        self._line_style = ""
        fence = _FENCE.match(self._held)
        if fence and (not self._fence or fence[1].startswith(self._fence)):
            if not final and fence.end() == len(self._held):
                return None  # the run of backticks may go on
            self._fence = "" if self._fence else fence[1]
            self._line_style = "fence"
        elif self._fence:
            self._line_style = "code"
        elif _HEADING.match(self._held):
            self._line_style = "heading"
        elif _QUOTE.match(self._held):
            self._line_style = "quote"
        elif bullet := _BULLET.match(self._held):
            self._at_line_start = False
            return Span(bullet[0], "bullet")
        self._at_line_start = False
        return Span("", "")

    def _inline(self, final: bool) -> Span | None:
        first = self._held[0]
        if first in "`*":
            run = re.match(r"`+" if first == "`" else r"\*+", self._held)
            assert run is not None
            if run.end() == len(self._held) and not final:
                return None
            after = self._held[run.end() : run.end() + 1]
            return self._backticks(run[0]) if first == "`" else self._stars(run[0], after)
        if first == "\\" and not self._code:
            if len(self._held) == 1 and not final:
                return None
            return Span(self._held[:2] if self._held[1:2] not in ("", "\n") else first, self._style())
        plain = _PLAIN.match(self._held)
        return Span(plain[0] if plain else first, self._style())

    def _backticks(self, run: str) -> Span:
        if not self._code:
            self._code = run
            return Span(run, "code")
        if run == self._code:
            self._code = ""
        return Span(run, "code")

    def _stars(self, run: str, after: str) -> Span:
        """Emphasis opens before a non-space and closes after one; other stars are just stars."""
        if self._code:
            return Span(run, "code")
        opens = bool(after) and not after.isspace()
        closes = not self._before.isspace()
        style = self._style()
        if len(run) >= 2 and (closes if self._bold else opens):
            self._bold = not self._bold
        if len(run) in (1, 3) and (closes if self._italic else opens):
            self._italic = not self._italic
        return Span(run, self._style() or style)

    def _style(self) -> str:
        if self._code:
            return "code"
        emphasis = " ".join(name for name, on in (("bold", self._bold), ("italic", self._italic)) if on)
        return emphasis or self._line_style
