"""What sampling means, step by step, in float64: the definition that every faster implementation is compared with.

Logits become candidates: token ids ordered by (-logit, id) with weights in proportion to their probabilities. Each
filter says how many of them, from the first, stay.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from exllama.generator.sampling.philox import uniform
from exllama.generator.sampling.settings import Sampling

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]


def penalize(logits: Floats, history: NDArray[np.int32], penalty: float) -> Floats:
    """Repetition penalty of Keskar et al. (2019): logits (V,), history (n,) ids, of which repeated ones count once."""
    penalized: Floats = logits.copy()
    seen = logits[history]
    penalized[history] = np.where(seen > 0, seen / penalty, seen * penalty)
    return penalized


def order(logits: Floats) -> Ids:
    """All token ids (V,), the largest logit first, equal ones by id."""
    ids: Ids = np.argsort(-logits, kind="stable")
    return ids


def top_k_count(count: int, k: int) -> int:
    """How many of `count` ordered candidates top-k keeps."""
    return min(count, k) if k else count


def top_p_count(weights: Floats, p: float) -> int:
    """How many ordered candidates top-p keeps: the fewest whose share of the sum reaches p, at least one."""
    if p >= 1.0:
        return len(weights)
    cumulative = np.cumsum(weights)
    return int(np.searchsorted(cumulative, p * cumulative[-1], side="left")) + 1


def min_p_count(weights: Floats, p: float) -> int:
    """How many ordered candidates are at least p times as probable as the first."""
    return int(np.count_nonzero(weights >= p * weights[0]))


def draw(weights: Floats, u: float) -> int:
    """The index of the first candidate whose cumulative probability exceeds u times the sum; u in [0, 1)."""
    cumulative = np.cumsum(weights)
    return min(int(np.searchsorted(cumulative, u * cumulative[-1], side="right")), len(weights) - 1)


def candidates(logits: Floats, sampling: Sampling, history: NDArray[np.int32]) -> tuple[Ids, Floats]:
    """The token ids (n,) that can be drawn after all filters, in order, and their probabilities; temperature > 0."""
    logits = penalize(logits, history, sampling.repetition_penalty)
    ids = order(logits)
    weights: Floats = np.exp((logits[ids] - logits[ids[0]]) / sampling.temperature)
    weights = weights[: top_k_count(len(weights), sampling.top_k)]
    weights = weights[: top_p_count(weights, sampling.top_p)]
    weights = weights[: min_p_count(weights, sampling.min_p)]
    return ids[: len(weights)], weights / float(weights.sum())


def sample(logits: NDArray[np.float32], sampling: Sampling, position: int, history: NDArray[np.int32]) -> int | None:
    """The token at `position`, or None: logits (V,) are no numbers. history (n,): tokens that the penalty looks at."""
    if not np.isfinite(logits.max()):  # the largest of several is NaN if one is
        return None
    values: Floats = logits.astype(np.float64)
    if sampling.is_greedy:
        return int(order(penalize(values, history, sampling.repetition_penalty))[0])
    assert sampling.seed is not None, "a draw needs a seed"
    ids, weights = candidates(values, sampling, history)
    return int(ids[draw(weights, uniform(sampling.seed, position))])
