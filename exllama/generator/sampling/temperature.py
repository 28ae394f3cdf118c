"""Functions that stretch logits without changing their order: temperature, dynamic temperature, smoothing."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LOWEST = 1e-30  # a temperature below would divide beyond the range of float32


def softmax(logits: Floats) -> Floats:
    """Probabilities (n,) of logits (n,), of which one is finite at least."""
    weights: Floats = np.exp(logits - logits.max())
    return weights / float(weights.sum())


def entropy(probabilities: Floats) -> float:
    """In nats."""
    some = probabilities[probabilities > 0.0]
    return float(-(some * np.log(some)).sum())


def temper(logits: Floats, temperature: float) -> Floats:
    """Distances (n,) from the largest logit, divided by the temperature."""
    tempered: Floats = (logits - logits.max()) / max(temperature, LOWEST)
    return tempered


def dynamic(logits: Floats, lowest: float, highest: float, exponent: float) -> float:
    """The temperature of kalomaze's dynamic temperature (pull request 4972 of ggml-org/llama.cpp, 2024).

    lowest + (highest - lowest) * h ** exponent, h the entropy of the candidates' logits (n,) over the largest possible
    one, ln n; h is 0 for one candidate.
    """
    share = entropy(softmax(logits)) / math.log(len(logits)) if len(logits) > 1 else 0.0
    return float(lowest + (highest - lowest) * min(share, 1.0) ** exponent)


def smooth(logits: Floats, factor: float, curve: float) -> Floats:
    """Quadratic sampling with a cubic part, of kalomaze (pull request 5551 of oobabooga/text-generation-webui, 2024).

    With d <= 0 the distance of a logit (n,) from the largest: -factor * k * d^2 + factor * s * d^3,
    k = (3 - curve) / 2, s = (curve - 1) / 2; so curve = 1 is the parabola.
    """
    distance = logits - logits.max()
    smoothed: Floats = factor * distance**2 * ((curve - 1.0) / 2.0 * distance - (3.0 - curve) / 2.0)
    return smoothed
