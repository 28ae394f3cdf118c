"""Logit bias, and masks of tokens that cannot be drawn."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from exllama.errors import UsageError

Floats = NDArray[np.float64]
Mask = NDArray[np.uint32]
WORD = 32


def bias(logits: Floats, ids: NDArray[np.int32], values: Floats) -> Floats:
    """logits (V,) with values (n,) added at ids (n,), each of which occurs once."""
    changed: Floats = logits.copy()
    changed[ids] += values
    return changed


def make_mask(vocab_size: int, allowed: Collection[int] | None, banned: Collection[int]) -> Mask | None:
    """(ceil(vocab_size / 32),) uint32: bit t % 32 of word t // 32 is 1 where token t can be drawn; None: all can.

    Raises UsageError for an id outside of the vocabulary.
    """
    for name, ids in (("allowed_tokens", allowed or ()), ("banned_tokens", banned)):
        if ids and max(ids) >= vocab_size:
            raise UsageError(f"{name} holds {max(ids)}, expected token ids up to {vocab_size - 1}")
    if allowed is None and not banned:
        return None
    bits = np.full(-(-vocab_size // WORD) * WORD, allowed is None)
    bits[vocab_size:] = False
    bits[list(allowed or ())] = True
    bits[list(banned)] = False
    return np.packbits(bits, bitorder="little").view("<u4").astype(np.uint32)


def mask(logits: Floats, words: Mask) -> Floats:
    """logits (V,) with -inf where the mask says so."""
    bits = np.unpackbits(words.astype("<u4").view(np.uint8), bitorder="little", count=len(logits))
    masked: Floats = np.where(bits, logits, -np.inf)
    return masked
