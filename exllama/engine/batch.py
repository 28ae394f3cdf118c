"""What one forward pass works on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exllama.ops import PAGE_SIZE

Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Batch:
    """Rows of one or more sequences; those of one sequence are adjacent and in order of position.

    token_ids, positions, sequences: (R,) int32, a row's token, its position, and the row of page_table that its
    sequence uses. page_table: (S, P) int32; page_table[s, i] holds positions 256 i .. 256 i + 255 of sequence s.
    logit_rows: (L,) int32, the rows whose logits are wanted.
    """

    token_ids: Ints
    positions: Ints
    sequences: Ints
    page_table: Ints
    logit_rows: Ints

    def check(self, vocab_size: int, num_pages: int, max_sequences: int) -> None:
        """Native code reads and writes where these numbers point, so all are checked: an error here is our own bug."""
        rows = len(self.token_ids)
        assert rows > 0, "a batch has no rows"
        assert rows == len(self.positions) == len(self.sequences), "a batch has columns of different length"
        assert all(a.dtype == np.int32 for a in vars(self).values()), "a batch holds something else than int32"
        assert _within(self.token_ids, vocab_size), "a token id is outside the vocabulary"
        assert len(self.page_table) <= max_sequences, "a batch has more sequences than its runner"
        assert _within(self.sequences, len(self.page_table)), "a row names no sequence"
        assert _within(self.positions, self.page_table.shape[1] * PAGE_SIZE), "a position is outside the page table"
        used = self.page_table[self.sequences, self.positions // PAGE_SIZE]
        assert _within(used, num_pages), "a page is outside the cache"
        assert _within(self.logit_rows, rows), "a logit row is outside the batch"


def _within(values: Ints, limit: int) -> bool:
    """Whether all are in 0 .. limit - 1; a negative number is a huge one without its sign, so one pass tells both."""
    return values.size == 0 or bool(values.view(np.uint32).max() < limit)
