"""Sequence breakers of DRY: from strings to token ids."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Protocol


class Vocabulary(Protocol):
    """What is used of tokenizer.tokenizer.Tokenizer."""

    def id_to_piece(self, token_id: int) -> bytes: ...
    def encode(self, text: str, add_special_tokens: bool = True, parse_special: bool = False) -> list[int]: ...


class Breakers:
    """Looks every string up once. A string breaks at each token whose text holds it.

    It also breaks at the last of the tokens that it becomes after a letter: what a string longer than any token needs.
    """

    def __init__(self, vocabulary: Vocabulary, vocab_size: int) -> None:
        self._vocabulary, self._vocab_size = vocabulary, vocab_size
        self._known: dict[str, frozenset[int]] = {}

    def ids(self, breakers: Iterable[str | int]) -> frozenset[int]:
        """The token ids of strings and ids."""
        found: set[int] = set()
        for breaker in breakers:
            found |= {breaker} if isinstance(breaker, int) else self._holding(breaker)
        return frozenset(found)

    def _holding(self, text: str) -> frozenset[int]:
        if text not in self._known:
            if len(self._known) >= 1024:  # they come from requests
                self._known.clear()
            wanted = text.encode()
            holding = {token for token, piece in enumerate(self._pieces) if wanted in piece}
            last = self._vocabulary.encode("a" + text, add_special_tokens=False)[-1:]
            self._known[text] = frozenset(holding | set(last))
        return self._known[text]

    @cached_property
    def _pieces(self) -> list[bytes]:
        return [self._vocabulary.id_to_piece(token) for token in range(self._vocab_size)]
