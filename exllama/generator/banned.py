"""Texts that must not occur in an answer, found while they can still be taken back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate


class BannedStrings:
    """Compares without regard to case (str.casefold), as users of ExLlama know it.

    pieces: the texts of the last tokens, folded, in order; what was shown before them is no part of a banned text.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._by_first: defaultdict[str, list[str]] = defaultdict(list)  # first character -> texts
        for text in texts:
            folded = text.casefold()
            self._by_first[folded[0]].append(folded)

    def find(self, pieces: Sequence[str]) -> int | None:
        """The piece in which the first banned text begins that the pieces contain whole; None if there is none."""
        text = "".join(pieces)
        for at, char in enumerate(text):
            if char in self._by_first and any(text.startswith(banned, at) for banned in self._by_first[char]):
                return _piece_at(pieces, at)
        return None

    def begun(self, pieces: Sequence[str]) -> int:
        """The first piece that may still be taken back, or become a part of what is; len(pieces) if there is none.

        What may become a banned text may also be cut at its beginning, and then what is left before it may go on
        to become one.
        """
        ends, first = [len(pieces)], len(pieces)
        for end in ends:  # which grows meanwhile
            text = "".join(pieces[:end])
            begins = {_piece_at(pieces, at) for at, char in enumerate(text) if self._may_become(text[at:], char)}
            ends += sorted(begins - set(ends))
            first = min(first, *begins, end)
        return first

    def _may_become(self, text: str, first: str) -> bool:
        return first in self._by_first and any(banned.startswith(text) for banned in self._by_first[first])


def _piece_at(pieces: Sequence[str], offset: int) -> int:
    """The piece that character `offset` of all of them together is in."""
    return next(index for index, end in enumerate(accumulate(map(len, pieces))) if end > offset)
