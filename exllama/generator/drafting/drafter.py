"""What every way of guessing tokens has in common."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from exllama.generator.sequence import Sequence


class Guess(NamedTuple):
    """What a drafter could say now: kinds are right differently often; `longest` tokens at most, 0: nothing."""

    kind: int
    longest: int


class Drafter(Protocol):
    """Guesses what running sequences will draw next; a wrong guess costs time and nothing else.

    A drafter may remember something per sequence. Tokens of a sequence are only ever added; whoever takes some back
    calls `drop` too.
    """

    priors: tuple[float, ...]  # by kind: how often a guess is right before anything is known

    def guess_seconds(self, sequences: int) -> float:
        """Time of one guess for each of so many sequences together, 0 before it is known."""
        ...

    def look(self, sequence: Sequence) -> Guess:
        """What could be guessed for a sequence that lacks nothing but its last token."""
        ...

    def write(self, sequences: list[Sequence], counts: list[int]) -> None:
        """Puts up to counts[i] guesses, at least 1, behind the tokens of sequences[i] and sets its num_drafts."""
        ...

    def settle(self, sequence: Sequence) -> None:
        """The drafts of this sequence were compared with what was drawn."""
        ...

    def drop(self, sequence: Sequence) -> None:
        """The sequence leaves the batch; nothing needs to be remembered."""
        ...

    def close(self) -> None:
        """Gives memory back."""
        ...

    def check_integrity(self) -> None:
        """Raises AssertionError on a broken invariant."""
        ...
