"""Makes text of a model harmless for a terminal: escape sequences and control characters are taken out."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

try:
    import termios
except ImportError:  # Windows consoles neither echo nor translate while nobody reads
    termios = None  # type: ignore[assignment]

ESC = "\x1b"
BEL = "\x07"
# An unterminated string sequence must not swallow an answer.
LONGEST_SEQUENCE = 1024


class TerminalGuard:
    """Removes ECMA-48 escape sequences and control characters from a stream, also when they are cut between chunks.

    Newlines and tabs stay. A lone carriage return is dropped, so no text can overwrite what stands before it.
    """

    def __init__(self) -> None:
        self._inside = ""  # "", ESC, "[" (control sequence) or "]" (string sequence)
        self._length = 0

    def feed(self, text: str) -> str:
        """The harmless part of the next chunk."""
        return "".join(filter(None, map(self._character, text)))

    def _character(self, character: str) -> str:
        if self._inside:
            self._length += 1
            self._advance(character)
            return "\n" if character == "\n" else ""
        if character in (ESC, "\x9b", "\x90", "\x98", "\x9d", "\x9e", "\x9f"):
            self._length = 0
            self._inside = {ESC: ESC, "\x9b": "["}.get(character, "]")
            return ""
        return character if character in "\n\t" or not is_control(character) else ""

    def _advance(self, character: str) -> None:
        """Moves through a sequence; any newline or too much length ends it."""
        if character == "\n" or self._length > LONGEST_SEQUENCE:
            self._inside = ""
        elif character == ESC:
            self._inside = ESC
        elif self._inside == ESC:
            if character in "PX]^_":
                self._inside = "]"
            elif character == "[":
                self._inside = "["
            elif not " " <= character <= "/":  # intermediate bytes continue, anything else is final
                self._inside = ""
        elif self._inside == "[":
            if not " " <= character <= "?":  # parameters and intermediates continue, anything else is final
                self._inside = ""
        elif character in (BEL, "\x9c"):
            self._inside = ""


def is_control(character: str) -> bool:
    """C0, DEL, C1, and the marks that turn the direction of text around (CVE-2021-42574)."""
    code = ord(character)
    return code < 0x20 or 0x7F <= code < 0xA0 or 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069


def clean(text: str) -> str:
    """One whole text, made harmless."""
    return TerminalGuard().feed(text)


def is_interactive() -> bool:
    """A person sits at both ends."""
    return sys.stdin.isatty() and sys.stdout.isatty()


@contextlib.contextmanager
def silent_keyboard() -> Iterator[None]:
    """Between two prompts keys are neither shown nor changed: they wait for the next one. Ctrl-C works."""
    if termios is None or not is_interactive():
        yield
        return
    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)
    silent = termios.tcgetattr(number)
    silent[0] &= ~termios.ICRNL
    silent[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(number, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)
