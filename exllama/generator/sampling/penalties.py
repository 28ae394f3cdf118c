"""Penalties on tokens that the sequence holds: repetition, presence, frequency.

An occurrence `distance` tokens back (the last token is 1 back) counts with a strength of 1 up to `range`, from there
falling in a straight line to 0 at `range + decay + 1`. A range of 0 is the whole sequence, and there is no decay then.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Tokens = NDArray[np.int32]


class Occurrences(NamedTuple):
    """ids (n,) int64, each once; nearest (n,): strength of the last occurrence; total (n,): sum over all of them."""

    ids: NDArray[np.int64]
    nearest: Floats
    total: Floats


def occurrences(history: Tokens, vocab_size: int, sustain: int, decay: int) -> Occurrences:
    """What history (n,), of which the last entry is the last token, comes to; sustain is the range.

    Ids outside of the vocabulary count for nothing.
    """
    distance = np.arange(len(history), 0, -1)
    strength = np.ones(len(history))
    if sustain:
        strength = np.clip(1.0 - (distance - sustain) / (decay + 1.0), 0.0, 1.0)
    kept = (strength > 0.0) & (history >= 0) & (history < vocab_size)
    ids, inverse = np.unique(history[kept], return_inverse=True)
    nearest = np.zeros(len(ids))
    np.maximum.at(nearest, inverse, strength[kept])
    total: Floats = np.bincount(inverse, strength[kept], len(ids)).astype(np.float64)
    return Occurrences(ids.astype(np.int64), nearest, total)


def repetition(logits: Floats, seen: Occurrences, penalty: float) -> Floats:
    """Keskar et al., "CTRL" (2019): positive logits are divided, negative ones multiplied; once per token.

    logits: (V,). At a strength s the factor is 1 + s * (penalty - 1).
    """
    changed: Floats = logits.copy()
    factor, old = 1.0 + seen.nearest * (penalty - 1.0), logits[seen.ids]
    changed[seen.ids] = np.where(old > 0, old / factor, old * factor)
    return changed


def presence(logits: Floats, seen: Occurrences, penalty: float) -> Floats:
    """OpenAI's presence penalty: subtracted once from the logit of every token that occurs. logits: (V,)."""
    changed: Floats = logits.copy()
    changed[seen.ids] -= penalty * seen.nearest
    return changed


def frequency(logits: Floats, seen: Occurrences, penalty: float) -> Floats:
    """OpenAI's frequency penalty: subtracted from the logit for every occurrence. logits: (V,)."""
    changed: Floats = logits.copy()
    changed[seen.ids] -= penalty * seen.total
    return changed
