"""One token per row of logits: the only place that knows how sampling is computed."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from exllama import ops
from exllama.generator.sampling import filters
from exllama.generator.sampling.filters import Floats, Ids
from exllama.generator.sampling.philox import uniform
from exllama.generator.sampling.rows import SamplingRows

NOT_A_TOKEN = -1  # the logits hold NaN or +inf, or nothing but -inf


def sample_rows(logits: torch.Tensor, rows: SamplingRows) -> list[int]:
    """The next token of every row: logits (L, V) float32 on any device -> L ids, NOT_A_TOKEN where no number is right.

    -inf is a logit like any other (a token that cannot be drawn); NaN and +inf are not.
    """
    values: NDArray[np.float32] = logits.numpy() if logits.device.type == "cpu" else logits.cpu().numpy()
    if rows.argmax_only:
        return [_argmax(row) for row in values]
    return ops.sample(logits.cpu(), rows)


def sample_row(logits: NDArray[np.float32], rows: SamplingRows, row: int) -> int:
    """Row `row` with parameters of its own: logits (V,) float32. In float64: the definition that ops.sample is tested with."""
    if not np.isfinite(logits.max()):  # max of NaN is NaN
        return NOT_A_TOKEN
    values = logits.astype(np.float64)
    penalty = float(rows.repetition_penalty[row])
    if penalty != 1.0:
        values = filters.penalize(values, rows.history_of(row), penalty)
    temperature = float(rows.temperature[row])
    if temperature == 0.0:
        return int(values.argmax())
    ids, weights = _candidates(values, rows, row, temperature)
    weights = weights[: filters.top_p_count(weights, float(rows.top_p[row]))]
    weights = weights[: filters.min_p_count(weights, float(rows.min_p[row]))]
    return int(ids[filters.draw(weights, uniform(int(rows.seed[row]), int(rows.position[row])))])


def _argmax(logits: NDArray[np.float32]) -> int:
    best = int(logits.argmax())  # of NaN if there is one
    return best if np.isfinite(logits[best]) else NOT_A_TOKEN


def _candidates(values: Floats, rows: SamplingRows, row: int, temperature: float) -> tuple[Ids, Floats]:
    """Ordered ids and their unnormalised probabilities, as many as the later steps can make use of.

    Ordering a whole vocabulary takes longer than all the rest, and the first few hundred tokens nearly always hold
    what top-k, min-p or the draw itself asks for. With top-p the sum of all is needed, so all are ordered.
    """
    k, min_p = int(rows.top_k[row]), float(rows.min_p[row])
    if k == 0 and min_p > 0 and rows.top_p[row] >= 1.0:
        k = int(np.count_nonzero(values >= values.max() + temperature * np.log(min_p) - 1e-9))  # never too few
    ids = _largest(values, k) if 0 < k < len(values) else filters.order(values)
    return ids, np.exp((values[ids] - values[ids[0]]) / temperature)


def _largest(values: Floats, k: int) -> Ids:
    """The first k of filters.order(values)."""
    least = np.partition(values, len(values) - k)[len(values) - k]
    ids = np.flatnonzero(values >= least)  # more than k when the k-th has equals
    return ids[np.argsort(-values[ids], kind="stable")[:k]]
