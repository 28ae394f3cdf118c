"""The fused sampler."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from exllama.ops.native import cpu_level, native


class SamplingParameters(Protocol):
    """Arrays with an element per row; row r's history is history[history_offsets[r] : history_offsets[r + 1]]."""

    temperature: np.ndarray[Any, np.dtype[np.float64]]
    top_k: np.ndarray[Any, np.dtype[np.int32]]
    top_p: np.ndarray[Any, np.dtype[np.float64]]
    min_p: np.ndarray[Any, np.dtype[np.float64]]
    repetition_penalty: np.ndarray[Any, np.dtype[np.float64]]
    seed: np.ndarray[Any, np.dtype[np.uint64]]
    position: np.ndarray[Any, np.dtype[np.int64]]
    history_offsets: np.ndarray[Any, np.dtype[np.int32]]

    @property
    def history(self) -> np.ndarray[Any, np.dtype[np.int32]]: ...


def sample(logits: torch.Tensor, rows: SamplingParameters) -> list[int]:
    """The next token of every row: logits (L, V) float32 on the CPU -> L ids; -1: the row holds NaN, +inf or only -inf.

    Probabilities are float32 (2 ulp), sums float64; the rules are those of generator/sampling/filters.py.
    """
    tokens: list[int] = native().sample_rows(
        cpu_level(),
        logits.numpy(),
        rows.temperature,
        rows.top_k,
        rows.top_p,
        rows.min_p,
        rows.repetition_penalty,
        rows.seed,
        rows.position,
        rows.history,
        rows.history_offsets,
    )
    return tokens
