"""Filters: which candidates stay. Probabilities come in falling order and sum to 1; the first is never removed.

Each returns keep (n,) bool for probabilities (n,) float64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from exllama.generator.sampling.temperature import entropy

Floats = NDArray[np.float64]
Keep = NDArray[np.bool_]


def _first(count: int, of: int) -> Keep:
    keep: Keep = np.arange(of) < max(count, 1)
    return keep


def top_k(probabilities: Floats, k: int) -> Keep:
    """The k most probable ones (Fan et al. 2018); 0: all."""
    return _first(k if k else len(probabilities), len(probabilities))


def top_p(probabilities: Floats, p: float) -> Keep:
    """The fewest that together reach p: nucleus sampling (Holtzman et al. 2020)."""
    if p >= 1.0:
        return np.ones(len(probabilities), np.bool_)
    return _first(int(np.searchsorted(np.cumsum(probabilities), p, side="left")) + 1, len(probabilities))


def min_p(probabilities: Floats, p: float) -> Keep:
    """Those at least p times as probable as the first (Nguyen et al. 2024)."""
    return _first(int(np.count_nonzero(probabilities >= p * probabilities[0])), len(probabilities))


def top_a(probabilities: Floats, a: float) -> Keep:
    """Those at least as probable as a times the square of the largest probability (BlinkDL, RWKV-LM, 2022)."""
    return _first(int(np.count_nonzero(probabilities >= a * probabilities[0] ** 2)), len(probabilities))


def tail_free(probabilities: Floats, z: float) -> Keep:
    """Cuts where the curve flattens: tail-free sampling (Bricken 2019).

    The absolute second differences of the probabilities, as shares of their sum, are added up; candidate i + 1 stays
    while the sum up to difference i is at most z. The last two candidates have no difference and go with the tail.
    """
    if z >= 1.0 or len(probabilities) < 3:
        return np.ones(len(probabilities), np.bool_)
    curvature = np.abs(np.diff(probabilities, 2))
    total = float(curvature.sum())
    if total == 0.0:  # a straight line has no tail
        return np.ones(len(probabilities), np.bool_)
    return _first(1 + int(np.count_nonzero(np.cumsum(curvature / total) <= z)), len(probabilities))


def typical(probabilities: Floats, p: float) -> Keep:
    """The fewest that together reach p, those whose surprise is closest to the entropy first (Meister et al. 2022).

    Of two equally close ones the more probable goes first. The most probable candidate may go.
    """
    keep: Keep = np.ones(len(probabilities), np.bool_)
    if p >= 1.0:
        return keep
    with np.errstate(divide="ignore"):
        distance = np.abs(-np.log(probabilities) - entropy(probabilities))
    nearest = np.argsort(distance, kind="stable")
    count = int(np.searchsorted(np.cumsum(probabilities[nearest]), p, side="left")) + 1
    keep[nearest[count:]] = False
    return keep


def exclude_top(probabilities: Floats, probability: float, threshold: float, u: float) -> Keep:
    """XTC: with `probability`, all but the least probable one of those that reach the threshold go; u in [0, 1).

    Source: p-e-w, pull request 6335 of oobabooga/text-generation-webui (2024).
    """
    above = int(np.count_nonzero(probabilities >= threshold))
    if above < 2 or u >= probability:
        return np.ones(len(probabilities), np.bool_)
    keep: Keep = np.arange(len(probabilities)) >= above - 1
    return keep
