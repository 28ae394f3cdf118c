"""One token per row of logits: the only place that knows how sampling is computed."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from exllama import ops
from exllama.generator.sampling.rows import SamplingRows

NOT_A_TOKEN = -1  # the logits hold NaN or +inf, or nothing but -inf


def sample_rows(logits: torch.Tensor, rows: SamplingRows) -> list[int]:
    """The next token of every row: logits (L, V) float32 on any device -> L ids, NOT_A_TOKEN where no number is right.

    -inf is a logit like any other (a token that cannot be drawn); NaN and +inf are not. filters.py has the definition.
    """
    if logits.device.type != "cpu":
        logits = logits.cpu()
    if rows.argmax_only:
        return [_argmax(row) for row in logits.numpy()]
    return ops.sample(logits, rows)


def _argmax(logits: NDArray[np.float32]) -> int:
    best = int(logits.argmax())  # of NaN if there is one
    return best if np.isfinite(logits[best]) else NOT_A_TOKEN
