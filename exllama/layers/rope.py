"""Frequencies of rotary embeddings, for every scaling kind that Hugging Face configurations name.

Formulas: linear (position interpolation), dynamic (NTK-aware base), yarn (arXiv 2309.00071), longrope (arXiv
2402.13753), llama3 (Llama 3.1 model card), and "factors", GGUF's `rope_freqs`: explicit divisors of the frequencies.

Two kinds depend on the length of a sequence: dynamic, whose base grows with it, and longrope, which has one set of
factors for short and one for long sequences. Choosing by the current length, as transformers does, would make earlier
keys in the cache stale and results depend on how a prompt was chunked. Here both are chosen once, from the `context`
that the model is opened with: a result equals that of transformers for a prompt of just that length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from exllama.errors import UnsupportedModelError
from exllama.ops import Rope

KINDS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "factors")


@dataclass(frozen=True)
class RopeSettings:
    """A configuration's rotary embedding, in Hugging Face's terms.

    dim: how many leading features of a head are rotated. max_position: the length that the model claims to support;
    original_max_position: the length before scaling (yarn, longrope, llama3). short_factor, long_factor (longrope) and
    divisors (factors): dim / 2 numbers each.
    """

    kind: str
    theta: float
    dim: int
    max_position: int
    original_max_position: int
    factor: float = 1.0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    divisors: tuple[float, ...] = ()


def make_rope(settings: RopeSettings, context: int) -> Rope:
    """The frequencies and the scale of cos and sin, for sequences of up to `context` tokens."""
    if settings.kind == "default":
        return Rope(_inverse(settings))
    if settings.kind == "factors":
        return Rope(_inverse(settings) / torch.tensor(settings.divisors))
    if settings.kind == "linear":
        return Rope(_inverse(settings) / settings.factor)
    if settings.kind == "dynamic":
        return Rope(_inverse(settings, _dynamic_base(settings, context)))
    if settings.kind == "llama3":
        return Rope(_llama3(settings))
    if settings.kind == "yarn":
        return Rope(_yarn(settings), _yarn_scale(settings))
    if settings.kind == "longrope":
        return Rope(_longrope(settings, context), _longrope_scale(settings))
    raise UnsupportedModelError(f"rope_type is {settings.kind!r}, this version runs {', '.join(KINDS)}")


def _powers(settings: RopeSettings, base: float | None = None) -> torch.Tensor:
    """base ^ (2 i / dim), (dim / 2,) float32; torch's own float32 power, so that bits agree with transformers."""
    exponent = torch.arange(0, settings.dim, 2).float() / settings.dim
    return torch.pow(settings.theta if base is None else base, exponent)


def _inverse(settings: RopeSettings, base: float | None = None) -> torch.Tensor:
    return 1.0 / _powers(settings, base)


def _dynamic_base(settings: RopeSettings, context: int) -> float:
    length = max(context, settings.max_position)
    growth = settings.factor * length / settings.max_position - (settings.factor - 1)
    return float(settings.theta * growth ** (settings.dim / (settings.dim - 2)))


def _llama3(settings: RopeSettings) -> torch.Tensor:
    """Divides long wavelengths by factor, keeps short ones, and interpolates between the two limits."""
    inverse = _inverse(settings)
    low, high, original = settings.low_freq_factor, settings.high_freq_factor, settings.original_max_position
    wavelength = 2 * math.pi / inverse
    smooth = (original / wavelength - low) / (high - low)
    between = (1 - smooth) * inverse / settings.factor + smooth * inverse
    scaled = torch.where(wavelength > original / low, inverse / settings.factor, between)
    return torch.where(wavelength < original / high, inverse, scaled)


def _yarn(settings: RopeSettings) -> torch.Tensor:
    """Keeps frequencies that turn often within the original length, divides rare ones by factor, ramps between."""

    def index_of(rotations: float) -> float:
        """Which feature pair turns that many times within the original length."""
        ratio = settings.original_max_position / (rotations * 2 * math.pi)
        return settings.dim * math.log(ratio) / (2 * math.log(settings.theta))

    low, high = index_of(settings.beta_fast), index_of(settings.beta_slow)
    if settings.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, settings.dim - 1)
    width = high - low if high != low else 0.001
    kept = 1 - ((torch.arange(settings.dim // 2).float() - low) / width).clamp(0, 1)
    powers = _powers(settings)
    return 1.0 / (settings.factor * powers) * (1 - kept) + 1.0 / powers * kept


def _yarn_scale(settings: RopeSettings) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if settings.factor <= 1 else 0.1 * weight * math.log(settings.factor) + 1.0

    if settings.attention_factor is not None:
        return settings.attention_factor
    if settings.mscale and settings.mscale_all_dim:
        return mscale(settings.mscale) / mscale(settings.mscale_all_dim)
    return mscale(1.0)


def _longrope(settings: RopeSettings, context: int) -> torch.Tensor:
    factors = settings.long_factor if context > settings.original_max_position else settings.short_factor
    return 1.0 / (torch.tensor(factors) * _powers(settings))


def _longrope_scale(settings: RopeSettings) -> float:
    if settings.attention_factor is not None:
        return settings.attention_factor
    if settings.factor <= 1.0:
        return 1.0
    return math.sqrt(1 + math.log(settings.factor) / math.log(settings.original_max_position))
