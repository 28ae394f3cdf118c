"""What sampling means, step by step, in float64: the definition that every faster implementation is compared with.

Logits become candidates: token ids ordered by (-logit, id) with their probabilities. Each filter shortens that list.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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


def softmax(logits: Floats, temperature: float) -> Floats:
    """exp(logits / temperature) / sum, (n,)."""
    weights: Floats = np.exp((logits - logits.max()) / temperature)
    return weights / float(weights.sum())


def top_k_count(count: int, k: int) -> int:
    """How many of `count` ordered candidates top-k keeps."""
    return min(count, k) if k else count


def top_p_count(probabilities: Floats, p: float) -> int:
    """How many ordered candidates top-p keeps: the fewest whose share of the sum reaches p, at least one."""
    if p >= 1.0:
        return len(probabilities)
    cumulative = np.cumsum(probabilities)
    return int(np.searchsorted(cumulative, p * cumulative[-1], side="left")) + 1


def min_p_count(probabilities: Floats, p: float) -> int:
    """How many ordered candidates are at least p times as probable as the first."""
    return int(np.count_nonzero(probabilities >= p * probabilities[0]))


def draw(probabilities: Floats, u: float) -> int:
    """The index of the first candidate whose cumulative probability exceeds u times the sum; u in [0, 1)."""
    cumulative = np.cumsum(probabilities)
    return min(int(np.searchsorted(cumulative, u * cumulative[-1], side="right")), len(probabilities) - 1)
