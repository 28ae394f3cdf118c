"""Token healing: where a prompt ends inside of what would be one token, the last one is drawn anew."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Vocabulary(Protocol):
    """What is used of tokenizer.Tokenizer."""

    @property
    def control_ids(self) -> Collection[int]: ...
    def id_to_piece(self, token_id: int) -> bytes: ...


class Healed(NamedTuple):
    """A prompt without its last token, the text of that, and the tokens that begin with this text."""

    prompt: NDArray[np.int32]
    text: str
    first_ids: list[int]


class Healer:
    """Knows all tokens by how they begin."""

    def __init__(self, vocabulary: Vocabulary, vocab_size: int) -> None:
        self._vocabulary = vocabulary
        plain = [token for token in range(vocab_size) if token not in vocabulary.control_ids]
        self._sorted = sorted((vocabulary.id_to_piece(token), token) for token in plain)

    def heal(self, prompt: NDArray[np.int32]) -> Healed | None:
        """None where there is nothing to mend: one token alone, a control token, or a part of a character."""
        last = int(prompt[-1])
        piece = self._vocabulary.id_to_piece(last)
        try:
            text = piece.decode()
        except UnicodeDecodeError:
            return None
        if len(prompt) == 1 or last in self._vocabulary.control_ids or not text:
            return None
        return Healed(prompt[:-1].copy(), text, self._beginning_with(piece))

    def _beginning_with(self, piece: bytes) -> list[int]:
        found = []
        for index in range(bisect_left(self._sorted, (piece, -1)), len(self._sorted)):
            each, token = self._sorted[index]
            if not each.startswith(piece):
                break
            found.append(token)
        return found
