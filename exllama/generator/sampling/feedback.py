"""Samplers that steer by what they drew: mirostat 2 and adaptive-p. Their state is a number or two per draw.

Probabilities (n,) float64 come in falling order and sum to 1.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Keep = NDArray[np.bool_]
State = tuple[float, float]

# The constants of the reference implementation of adaptive-p.
_WIDTH, _PEAK, _SHARPNESS = 0.3, 5.0, 10.0


def mirostat_start(tau: float) -> State:
    """(mu, nothing) before the first draw."""
    return 2.0 * tau, 0.0


def mirostat_keep(probabilities: Floats, state: State) -> Keep:
    """Those with a surprise of at most mu bits, and the first (Basu et al., "Mirostat", ICLR 2021, algorithm 2)."""
    keep: Keep = probabilities >= 2.0 ** -state[0]
    keep[0] = True
    return keep


def mirostat_next(state: State, probability: float, tau: float, eta: float) -> State:
    """mu after a token was drawn whose probability, before mirostat removed any, is given."""
    surprise = -math.log2(max(probability, 1e-300))
    return state[0] - eta * (surprise - tau), 0.0


def adaptive_start(target: float, decay: float) -> State:
    """(weighted sum of probabilities, sum of weights), as if the target had been met for ever."""
    return target / (1.0 - decay), 1.0 / (1.0 - decay)


def adaptive_logits(probabilities: Floats, state: State, target: float) -> Floats:
    """New logits (n,), highest for probabilities near what brings the average to the target.

    Source: adaptive-p of MrJackSpade and ddh0, pull request 17927 of ggml-org/llama.cpp.
    """
    aim = min(max(2.0 * target - state[0] / state[1], 0.0), 1.0)
    distance = np.abs(probabilities - aim) / _WIDTH
    logits: Floats = _PEAK - _SHARPNESS * distance**2 / (1.0 + distance)
    return logits


def adaptive_next(state: State, probability: float, decay: float) -> State:
    """After a token was drawn whose probability, before adaptive_logits, is given."""
    return probability + decay * state[0], 1.0 + decay * state[1]
