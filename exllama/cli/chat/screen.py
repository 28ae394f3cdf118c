"""Where an answer is shown: coloured on a terminal, plain anywhere else."""

from __future__ import annotations

from typing import Protocol, TextIO

from rich.console import Console
from rich.text import Text as Styled

from exllama.cli.chat.markdown import MarkdownStream, Span

STYLES = {
    "bold": "bold",
    "italic": "italic",
    "bold italic": "bold italic",
    "code": "cyan",
    "fence": "dim",
    "heading": "bold magenta",
    "bullet": "yellow",
    "quote": "green",
}


class Screen(Protocol):
    """What the chat shows things on."""

    def chunk(self, text: str) -> None:
        """The next part of an answer, at once."""

    def end(self) -> None:
        """The answer is complete."""

    def note(self, text: str) -> None:
        """Something that the program says."""


class ColourScreen:
    """A terminal with colours; Markdown is styled while it streams."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._markdown = MarkdownStream()

    def chunk(self, text: str) -> None:
        self._show(self._markdown.feed(text))

    def end(self) -> None:
        self._show(self._markdown.flush())
        self._markdown = MarkdownStream()
        self._console.print()

    def note(self, text: str) -> None:
        self._console.print(Styled(text, style="dim"))

    def _show(self, spans: list[Span]) -> None:
        for span in spans:
            self._console.print(Styled(span.text, style=STYLES.get(span.style, "")), end="", soft_wrap=True)
        self._console.file.flush()


class PlainScreen:
    """The answer and nothing else on one stream, notes on another."""

    def __init__(self, out: TextIO, notes: TextIO) -> None:
        self._out, self._notes = out, notes

    def chunk(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()

    def end(self) -> None:
        self._out.write("\n")
        self._out.flush()

    def note(self, text: str) -> None:
        self._notes.write(f"exllama: {text}\n")
