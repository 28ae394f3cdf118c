"""Guesses from the sequence itself: what followed when its last tokens occurred before (prompt lookup decoding).

Costs no computing to speak of, and is right where an answer quotes, edits or repeats.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from exllama.generator.drafting.drafter import Guess
from exllama.generator.sequence import Sequence

LENGTH = 3  # last tokens that must have occurred together before
_CANDIDATES = 4  # latest places that are compared
_COMPARED = 32  # tokens before them that may agree too
_BASE = np.int64(1_000_003)


class NgramDrafter:
    """Continues from the place before that agrees with most of the last tokens.

    A guess is the better the longer that agreement is; its kind says how long.
    """

    priors: tuple[float, ...] = (0.4, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # by bit length of the agreement, at most _COMPARED

    def __init__(self) -> None:
        self._indexes: dict[Sequence, SuffixIndex] = {}
        self._found: dict[Sequence, int] = {}

    def guess_seconds(self, sequences: int) -> float:
        """Nothing that counts."""
        return 0.0

    def look(self, sequence: Sequence) -> Guess:
        """How long the agreement is, and that there is no limit to a guess."""
        index = self._indexes.get(sequence)
        if index is None:
            index = self._indexes[sequence] = SuffixIndex()
        place, agreement = index.find(sequence.tokens)
        self._found[sequence] = place
        return Guess(agreement.bit_length(), 1 << 30 if agreement else 0)

    def write(self, sequences: list[Sequence], counts: list[int]) -> None:
        """What followed; where that reaches the end of the sequence, the guess goes on repeating itself."""
        for sequence, count in zip(sequences, counts, strict=True):
            n, place = sequence.num_tokens, self._found[sequence]
            sequence.reserve(n + count)
            source = place + np.arange(count) % (n - place)
            sequence.buffer[n : n + count] = sequence.buffer[source]
            sequence.num_drafts = count

    def settle(self, sequence: Sequence) -> None:
        """Nothing to remember."""

    def drop(self, sequence: Sequence) -> None:
        """The sequence leaves the batch."""
        self._indexes.pop(sequence, None)
        self._found.pop(sequence, None)

    def close(self) -> None:
        """Nothing of its own."""

    def check_integrity(self) -> None:
        """Raises AssertionError on a broken invariant."""
        assert self._found.keys() <= self._indexes.keys(), "something is remembered of a sequence that has left"


class SuffixIndex:
    """Where every LENGTH tokens in a row occurred, kept up to date as the sequence grows."""

    def __init__(self) -> None:
        self._places: dict[int, int] = {}  # hash of LENGTH tokens -> the latest place after them
        self._earlier: dict[int, int] = {}  # place -> the one before it with the same hash
        self._indexed = LENGTH - 1  # places up to this one are known
        self._best = (0, 0)  # what `find` said at last

    def find(self, tokens: NDArray[np.int32]) -> tuple[int, int]:
        """(place, agreement): tokens[:place] end with as many equal tokens as all of them do; (0, 0): none do."""
        if len(tokens) <= self._indexed:
            return self._best
        keys = _keys(tokens[self._indexed - LENGTH + 1 :])
        for key in keys[:-1]:
            self._remember(key)
        best, place = (0, 0), self._places.get(keys[-1], 0)
        self._remember(keys[-1])
        for _ in range(_CANDIDATES):
            if place == 0:
                break
            agreement = _agreement(tokens, place)
            if agreement > best[1]:
                best = place, agreement
            place = self._earlier.get(place, 0)
        self._best = best if best[1] >= LENGTH else (0, 0)  # less: only the hashes are equal
        return self._best

    def _remember(self, key: int) -> None:
        self._indexed += 1
        before = self._places.get(key)
        if before is not None:
            self._earlier[self._indexed] = before
        self._places[key] = self._indexed


def _keys(tokens: NDArray[np.int32]) -> list[int]:
    """A hash of every LENGTH tokens in a row."""
    ids = tokens.astype(np.int64)
    keys = ids[: len(ids) - LENGTH + 1].copy()
    for i in range(1, LENGTH):
        keys = keys * _BASE + ids[i : len(ids) - LENGTH + 1 + i]
    result: list[int] = keys.tolist()
    return result


def _agreement(tokens: NDArray[np.int32], place: int) -> int:
    """How many tokens before `place` and before the end are equal, at most _COMPARED."""
    count = min(place, _COMPARED)
    n = len(tokens)
    equal = (tokens[place - count : place] == tokens[n - count : n])[::-1]
    return count if equal.all() else int(equal.argmin())
