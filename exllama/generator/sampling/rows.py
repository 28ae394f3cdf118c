"""The sampling parameters of the rows of one step, as plain arrays that native code can read."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from exllama import ops
from exllama.generator.sampling.job_sampler import JobSampler
from exllama.generator.sampling.stack import dry_bias

_NOTHING = np.empty(0, np.int32)
_NAMES = [name for name in ops.SAMPLE_SETTINGS.names or () if name not in ("seed", "position")]


class SamplingRows:
    """Parameters of up to `capacity` rows; the first `count` are valid. Reused from step to step.

    settings: (capacity,) of ops.SAMPLE_SETTINGS. histories: (n,) int32 per row, the tokens that its penalties look at.
    biases: (ids (n,) int32, values (n,) float64) per row, or None. masks: (words,) uint32 per row, or None.
    """

    def __init__(self, capacity: int) -> None:
        self.settings = np.zeros(capacity, ops.SAMPLE_SETTINGS)
        self.position = self.settings["position"]
        self.samplers: list[JobSampler] = []
        self.histories: list[NDArray[np.int32]] = []
        self.biases: list[tuple[NDArray[np.int32], NDArray[np.float64]] | None] = []
        self.masks: list[NDArray[np.uint32] | None] = []
        self.tokens: list[NDArray[np.int32]] = []  # all tokens before the one to be drawn, row by row
        self._written: list[JobSampler] = []  # whose settings stand in the array

    @property
    def count(self) -> int:
        """Rows added since clear()."""
        return len(self.samplers)

    def clear(self) -> None:
        """No rows."""
        for rows in (self.samplers, self.histories, self.biases, self.masks, self.tokens):
            rows.clear()

    def add(
        self, sampler: JobSampler, tokens: NDArray[np.int32], length: int, allowed: NDArray[np.uint32] | None = None
    ) -> None:
        """One more row: the token after tokens[:length] is to be drawn. Rows of one job come in order of length.

        allowed: a mask beside the sampler's own, of a grammar; read before the next clear().
        """
        row, sampling = self.count, sampler.sampling
        self.samplers.append(sampler)
        self.tokens.append(tokens[:length])
        self.position[row] = length
        if row == len(self._written) or self._written[row] is not sampler:
            self._write(row, sampler)
        window = sampling.penalty_window
        begin = max(0, length - window) if window else 0
        self.histories.append(tokens[begin:length] if sampling.has_penalties else _NOTHING)
        self.biases.append(self._bias(sampler, tokens[:length]))
        self.masks.append(_both(sampler.mask, allowed))

    def _bias(
        self, sampler: JobSampler, tokens: NDArray[np.int32]
    ) -> tuple[NDArray[np.int32], NDArray[np.float64]] | None:
        if sampler.sampling.dry_multiplier:
            ids, values = dry_bias(sampler, tokens, sampler.vocab_size)
            return np.concatenate([sampler.bias_ids, ids]), np.concatenate([sampler.bias_values, values])
        return (sampler.bias_ids, sampler.bias_values) if len(sampler.bias_ids) else None

    def _write(self, row: int, sampler: JobSampler) -> None:
        """Steps in a row mostly have the same jobs in the same rows, so this is rarely needed."""
        self._written[row:] = [sampler]
        settings, sampling = self.settings, sampler.sampling
        for name in _NAMES:
            settings[name][row] = getattr(sampling, name)
        settings["seed"][row] = sampler.seed
        if not sampler.is_native:
            settings["temperature"][row] = 0.0  # cheap, and replaced by what stack.py draws


def _both(one: NDArray[np.uint32] | None, other: NDArray[np.uint32] | None) -> NDArray[np.uint32] | None:
    """The tokens that two masks allow; None allows all."""
    if one is None or other is None:
        return one if other is None else other
    return one & other
