"""The fused sampler."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from exllama.ops.native import cpu_level, native

# One row; the layout of SampleSettings in kernels/cpu/exl_cpu.h, which says what the fields mean.
_DOUBLES = (
    "temperature min_temp max_temp temp_exponent smoothing_factor smoothing_curve top_p top_a min_p xtc_probability "
    "xtc_threshold skew repetition_penalty presence_penalty frequency_penalty"
)
_INTEGERS = "repetition_range repetition_decay top_k temperature_last position"
SAMPLE_SETTINGS = np.dtype(
    [(name, "f8") for name in _DOUBLES.split()] + [(name, "i8") for name in _INTEGERS.split()] + [("seed", "u8")]
)


class SamplingParameters(Protocol):
    """An element per row. histories: (n,) int32; biases: (ids int32, values float64) or None; masks: bits or None."""

    settings: np.ndarray[Any, Any]  # of SAMPLE_SETTINGS
    histories: list[np.ndarray[Any, np.dtype[np.int32]]]
    biases: list[tuple[np.ndarray[Any, np.dtype[np.int32]], np.ndarray[Any, np.dtype[np.float64]]] | None]
    masks: list[np.ndarray[Any, np.dtype[np.uint32]] | None]


def sample(logits: torch.Tensor, rows: SamplingParameters) -> list[int]:
    """The next token of every row: logits (L, V) float32 on the CPU -> L ids.

    -1: the row holds NaN or +inf; -2: every logit is -inf or masked. Probabilities are float32 (2 ulp), sums float64;
    the rules are those of generator/sampling/stack.py, without tail-free, typical and feedback samplers.
    """
    tokens: list[int] = native().sample_rows(
        cpu_level(), logits.numpy(), rows.settings, rows.histories, rows.biases, rows.masks
    )
    return tokens
