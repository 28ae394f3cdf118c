"""Rows of a batch under construction, in buffers that are used again for every batch."""

from __future__ import annotations

import numpy as np

from exllama.engine.batch import Batch, Ints


class BatchRows:
    """`add` stretches of sequences, then `batch`. Sequences are known by their row of `page_table`, called slot."""

    def __init__(self, max_rows: int, page_table: Ints) -> None:
        self.page_table = page_table  # (max_sequences, P)
        self.max_rows = max_rows
        self.count = 0
        self._token_ids = np.zeros(max_rows, np.int32)
        self._positions = np.zeros(max_rows, np.int32)
        self._sequences = np.zeros(max_rows, np.int32)
        self._slots = 0

    def clear(self) -> None:
        """No rows."""
        self.count = self._slots = 0

    def add(self, slot: int, tokens: Ints, begin: int, end: int) -> None:
        """tokens[begin:end] at these positions; the pages of `slot` have room for them."""
        row = self.count
        self.count = stop = row + end - begin
        if stop == row + 1:
            self._token_ids[row] = tokens[begin]
            self._positions[row] = begin
            self._sequences[row] = slot
        else:
            self._token_ids[row:stop] = tokens[begin:end]
            self._positions[row:stop] = np.arange(begin, end, dtype=np.int32)
            self._sequences[row:stop] = slot
        if slot >= self._slots:
            self._slots = slot + 1

    def batch(self, logit_rows: list[int]) -> Batch:
        """Views of the buffers, valid until the next clear()."""
        n = self.count
        return Batch(
            self._token_ids[:n], self._positions[:n], self._sequences[:n],
            self.page_table[: self._slots], np.array(logit_rows, np.int32),
        )  # fmt: skip
