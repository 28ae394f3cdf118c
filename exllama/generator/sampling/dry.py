"""DRY ("don't repeat yourself"): a token is penalised by the length of the repetition that it would continue.

Source: p-e-w, pull request 5677 of oobabooga/text-generation-webui (2024).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LONGEST = 50  # a match is counted no further; the penalty has grown beyond any logit long before
HIGHEST = 1e30  # of a penalty; float32 holds it


def dry(
    history: NDArray[np.int32], multiplier: float, base: float, allowed_length: int, breakers: frozenset[int]
) -> dict[int, float]:
    """{token: what is subtracted from its logit}.

    For every earlier place whose tokens equal the end of history (n,) over as many as `length` tokens, the token that
    came next there gets multiplier * base ** (length - allowed_length), if length reaches allowed_length; the longest
    match counts. A match ends before a token in `breakers`.
    """
    if len(history) < 2 or int(history[-1]) in breakers:
        return {}
    ends = np.flatnonzero(history[:-1] == history[-1])
    longest: dict[int, int] = {}
    length = 1
    while len(ends):
        if length >= allowed_length:
            longest.update(dict.fromkeys(history[ends + 1].tolist(), length))
        if length >= min(LONGEST, len(history) - 1) or int(history[-1 - length]) in breakers:
            break
        ends = ends[ends >= length]
        ends = ends[history[ends - length] == history[-1 - length]]
        length += 1
    return {token: min(multiplier * base ** (length - allowed_length), HIGHEST) for token, length in longest.items()}
