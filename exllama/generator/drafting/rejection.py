"""The rule of speculative sampling: the same distribution, and more guesses accepted than by drawing anew.

A guess x, drawn from q, stays with probability min(1, p(x) / q(x)); else the token is drawn from max(p - q, 0), made
to sum to 1 (Leviathan et al. 2023, "Fast inference from transformers via speculative decoding"; Chen et al. 2023,
algorithm 2). What comes out follows p exactly, but is another draw than the sampler's, so a seed repeats only with the
same drafts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from exllama.generator.sampling import stack
from exllama.generator.sampling.job_sampler import JobSampler
from exllama.generator.sampling.philox import uniform

if TYPE_CHECKING:
    from exllama.generator.sequence import Sequence

KEEP, REPLACE = 2, 3  # streams of random numbers; 0 is the sampler's draw, which made the guess


def follow_rule(sequence: Sequence, logits: torch.Tensor) -> int | None:
    """The next token of a sequence whose next draft came from a known distribution; logits: (V,) float32.

    None where there is none, which the sampler can explain.
    """
    values = logits.cpu()
    if not np.isfinite(float(values.max())):
        return None
    real = distribution_of(values, sequence.sampler, sequence.tokens)
    if len(real.ids) == 0:
        return None
    guessed = sequence.guessed_from[len(sequence.guessed_from) - sequence.num_drafts]
    guess = int(sequence.buffer[sequence.num_tokens])
    return keep_or_replace(guess, guessed, real, sequence.sampler.seed, sequence.num_tokens)


def distribution_of(logits: torch.Tensor, sampler: JobSampler, tokens: NDArray[np.int32]) -> Distribution:
    """What the token after `tokens` (n,) is drawn from; logits: (V,) float32, numbers with a token left."""
    candidates = stack.distribution(logits.numpy(), sampler, tokens)
    return Distribution(candidates.ids, np.exp(candidates.logits))


def allows(sampler: JobSampler) -> bool:
    """Whether the rule can be followed: no sampler that steers by its own draws, and nothing to record of a draw.

    A greedy job gains nothing by it: one token has all the probability, and drawing is faster.
    """
    sampling = sampler.sampling
    return sampler.records is None and not (sampling.is_greedy or sampling.is_stateful or sampling.skew)


class Distribution(NamedTuple):
    """Probabilities (n,) float64, above 0 and summing to 1, of different token ids (n,) int64."""

    ids: NDArray[np.int64]
    probabilities: NDArray[np.float64]

    def of(self, token: int) -> float:
        """The probability of one token."""
        return float(self.probabilities[self.ids == token].sum())


def keep_or_replace(guess: int, guessed: Distribution, real: Distribution, seed: int, position: int) -> int:
    """The token at `position`: the guess, drawn from `guessed`, or another one, so that it follows `real`."""
    if uniform(seed, position, KEEP) * guessed.of(guess) < real.of(guess):
        return guess
    left = real.probabilities.copy()
    order = np.argsort(guessed.ids)
    at = np.searchsorted(guessed.ids, real.ids, sorter=order)
    at = order[np.minimum(at, len(order) - 1)]
    left -= np.where(guessed.ids[at] == real.ids, guessed.probabilities[at], 0.0)
    cumulative = np.cumsum(np.maximum(left, 0.0))
    chosen = np.searchsorted(cumulative, uniform(seed, position, REPLACE) * cumulative[-1], side="right")
    return int(real.ids[min(int(chosen), len(real.ids) - 1)])
