"""The sampling parameters of the rows of one step, as plain arrays that native code can read."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from exllama.generator.sampling.settings import Sampling

_NO_HISTORY = np.empty(0, np.int32)


class SamplingRows:
    """Parameters of up to `capacity` rows; the first `count` are valid. Reused from step to step.

    temperature, top_p, min_p, repetition_penalty: (capacity,) float64. top_k: (capacity,) int32, 0 is off.
    seed: (capacity,) uint64. position: (capacity,) int64, the place in the sequence of the token to be drawn.
    history: (n,) int32, the tokens that the repetition penalty looks at, row after row, repetitions included; row r's
    are history[history_offsets[r] : history_offsets[r + 1]], empty when its penalty is 1.
    """

    def __init__(self, capacity: int) -> None:
        self.temperature = np.zeros(capacity)
        self.top_k = np.zeros(capacity, np.int32)
        self.top_p = np.zeros(capacity)
        self.min_p = np.zeros(capacity)
        self.repetition_penalty = np.zeros(capacity)
        self.seed = np.zeros(capacity, np.uint64)
        self.position = np.zeros(capacity, np.int64)
        self.history_offsets = np.zeros(capacity + 1, np.int32)
        self.count = 0
        self.argmax_only = True  # every row is greedy and unpenalized
        self._settings: list[tuple[Sampling, int]] = []  # what stands in the arrays, row by row
        self._histories: list[NDArray[np.int32]] = []
        self._end = 0

    @property
    def history(self) -> NDArray[np.int32]:
        """All histories in one array."""
        return np.concatenate(self._histories) if self._histories else _NO_HISTORY

    def clear(self) -> None:
        """No rows."""
        self.count = 0
        self.argmax_only = True
        self._histories.clear()

    def add(self, sampling: Sampling, seed: int, tokens: NDArray[np.int32], length: int) -> None:
        """One more row: the token after tokens[:length] is to be drawn."""
        row = self.count
        self.count = row + 1
        self.position[row] = length
        if row == len(self._settings) or self._settings[row] != (sampling, seed):
            self._write(row, sampling, seed)
        offset = 0 if row == 0 else self._end
        if sampling.repetition_penalty != 1.0:
            begin = max(0, length - sampling.repetition_range) if sampling.repetition_range else 0
            self._histories.append(tokens[begin:length])
            offset += length - begin
            self.argmax_only = False
        elif sampling.temperature != 0.0:
            self.argmax_only = False
        self._end = offset
        self.history_offsets[row + 1] = offset

    def _write(self, row: int, sampling: Sampling, seed: int) -> None:
        """Steps in a row mostly have the same jobs in the same rows, so this is rarely needed."""
        self._settings[row:] = [(sampling, seed)]
        self.temperature[row] = sampling.temperature
        self.top_k[row] = sampling.top_k
        self.top_p[row] = sampling.top_p
        self.min_p[row] = sampling.min_p
        self.repetition_penalty[row] = sampling.repetition_penalty
        self.seed[row] = seed
