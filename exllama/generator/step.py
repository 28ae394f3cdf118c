"""What one step runs: rows of tokens for the model and rows of parameters for the sampler."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from exllama.engine.batch import Batch
from exllama.generator.sampling.rows import SamplingRows
from exllama.generator.sequence import Sequence


class Part(NamedTuple):
    """The next `num_rows` tokens of a sequence; `draws`: these are all that it has, so a new one is drawn."""

    sequence: Sequence
    num_rows: int
    draws: bool


class Step:
    """One step under construction, over buffers that every step uses again.

    page_table: (max_sequences, P) int32, kept up to date by the page tables of the sequences, row `slot` each.
    """

    def __init__(self, max_rows: int, max_sequences: int, pages_per_sequence: int) -> None:
        self.page_table = np.zeros((max_sequences, pages_per_sequence), np.int32)
        self.parts: list[Part] = []
        self.rows = 0
        self.sampling = SamplingRows(max_sequences)
        self._token_ids = np.zeros(max_rows, np.int32)
        self._positions = np.zeros(max_rows, np.int32)
        self._sequences = np.zeros(max_rows, np.int32)
        self._logit_rows = np.zeros(max_sequences, np.int32)
        self._slots = 0

    def clear(self) -> None:
        """Nothing to run."""
        self.parts.clear()
        self.sampling.clear()
        self.rows = self._slots = 0

    def add(self, sequence: Sequence, count: int) -> None:
        """The next `count` tokens of `sequence`, whose pages have room for them."""
        begin, row, slot = sequence.computed, self.rows, sequence.slot
        end, stop = begin + count, row + count
        if count == 1:
            self._token_ids[row] = sequence.buffer[begin]
            self._positions[row] = begin
            self._sequences[row] = slot
        else:
            self._token_ids[row:stop] = sequence.buffer[begin:end]
            self._positions[row:stop] = np.arange(begin, end, dtype=np.int32)
            self._sequences[row:stop] = slot
        draws = end == sequence.num_tokens
        if draws:
            self._logit_rows[self.sampling.count] = stop - 1
            self.sampling.add(sequence.sampling, sequence.seed, sequence.buffer, end)
        self.parts.append(Part(sequence, count, draws))
        self.rows = stop
        if slot >= self._slots:
            self._slots = slot + 1

    @property
    def batch(self) -> Batch:
        """Views of the buffers, valid until the next clear()."""
        rows = self.rows
        return Batch(
            self._token_ids[:rows], self._positions[:rows], self._sequences[:rows],
            self.page_table[: self._slots], self._logit_rows[: self.sampling.count],
        )  # fmt: skip
