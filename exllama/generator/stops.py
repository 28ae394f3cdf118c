"""Where an answer ends: stop strings, also across tokens, and the text that waits until it is known not to be one."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Splits the text of one answer into what can be shown and what may be the beginning of a stop string.

    Invariant: the text held back is the longest end of the text so far that some stop string begins with.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self.held = ""

    def add(self, text: str) -> tuple[str, str | None]:
        """(text to show, the stop string that was found or None). The earliest counts; at one place, the shortest."""
        if not self._stops:
            return text, None
        text = self.held + text
        found = min(((at, len(stop), stop) for stop in self._stops if (at := text.find(stop)) >= 0), default=None)
        if found is not None:
            self.held = ""
            return text[: found[0]], found[2]
        cut = len(text) - max(_beginning_at_end(text, stop) for stop in self._stops)
        self.held = text[cut:]
        return text[:cut], None

    def flush(self) -> str:
        """No more text comes: what was held back was no stop string."""
        held, self.held = self.held, ""
        return held


def _beginning_at_end(text: str, stop: str) -> int:
    """Length of the longest beginning of `stop`, not all of it, that `text` ends with."""
    longest = min(len(stop) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
