"""Tokens on their way through the model."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from exllama.cache.page_table import PageTable

_ROOM = 256  # tokens by which the buffer grows at least


class Lane:
    """Tokens that the model reads one after the other, and the pages with their keys and values.

    Tokens [0, computed) are in the pages; [computed, num_tokens) are still to be computed. Invariant: computed <
    num_tokens, so there is always something to run. `tokens` is valid until the next append. slot is the row of the
    page table while the lane runs, else -1.
    """

    def __init__(self, prompt: NDArray[np.int32], table: PageTable) -> None:
        self.buffer, self.table = prompt, table  # (capacity,) int32
        self.num_tokens = len(prompt)
        self.computed = 0
        self.slot = -1

    @property
    def tokens(self) -> NDArray[np.int32]:
        """All tokens so far, (num_tokens,) int32."""
        return self.buffer[: self.num_tokens]

    @property
    def missing(self) -> int:
        """Tokens still to be computed."""
        return self.num_tokens - self.computed

    @property
    def needs_page(self) -> bool:
        """The pages have no room for the next token."""
        return self.computed == self.table.capacity

    def reserve(self, num_tokens: int) -> None:
        """Makes room in the buffer."""
        if num_tokens > len(self.buffer):
            more = max(num_tokens - len(self.buffer), self.num_tokens, _ROOM)
            self.buffer = np.concatenate([self.buffer, np.zeros(more, np.int32)])

    def append(self, token: int) -> None:
        """The token that follows."""
        n = self.num_tokens
        if n == len(self.buffer):
            self.reserve(n + 1)
        self.buffer[n] = token
        self.num_tokens = n + 1

    def cut(self, count: int, copy_page: Callable[[int, int], None]) -> None:
        """The last `count` tokens were never there. Pages that others may have found go on without this lane."""
        self.num_tokens -= count
        self.computed = self.table.cut(self.num_tokens)
        if self.needs_page:
            self.computed = self.table.copy_start(self.tokens, self.computed, copy_page)


def longest_answer(prompts: list[int], context_length: int, num_pages: int, page_size: int) -> int:
    """Tokens that can follow prompts of these lengths at once, below 1 if none: context and pages bound them."""
    most = range(context_length - max(prompts) + 1)
    return bisect_right(most, num_pages, key=lambda new: sum(-(-(n + new) // page_size) for n in prompts)) - 1
