"""One token per row of logits: the only place that knows how sampling is computed."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from exllama import ops
from exllama.errors import NumericsError
from exllama.generator.sampling.job_sampler import JobSampler
from exllama.generator.sampling.rows import SamplingRows
from exllama.generator.sampling.stack import NO_TOKEN_LEFT, NOT_A_TOKEN, distribution, sample

__all__ = ["NOT_A_TOKEN", "NO_TOKEN_LEFT", "sample_rows", "sampling_error"]


def sample_rows(logits: torch.Tensor, rows: SamplingRows) -> list[int]:
    """The next token of every row: logits (L, V) float32 on any device -> L ids, negative where there is none.

    -inf is a logit like any other (a token that cannot be drawn); NaN and +inf are not: NOT_A_TOKEN. NO_TOKEN_LEFT:
    every token is -inf or masked. stack.py has the definition; one native call does all rows that it can do.
    """
    if logits.device.type != "cpu":
        logits = logits.cpu()
    tokens = ops.sample(logits, rows)
    for row, sampler in enumerate(rows.samplers):
        if tokens[row] >= 0 and not (sampler.is_native and sampler.records is None):
            tokens[row] = _draw(logits[row], tokens[row], sampler, rows.tokens[row])
    return tokens


def sampling_error(token: int, position: int) -> NumericsError:
    """Why there is no token at `position`; token: NOT_A_TOKEN or NO_TOKEN_LEFT."""
    if token == NOT_A_TOKEN:
        found = f"the logits at position {position} are not finite"
    else:
        found = f"no token can be drawn at position {position}: all logits are -inf, by themselves or by a mask"
    return NumericsError(f"{found}: this job ends, others go on")


def _draw(logits: torch.Tensor, native: int, sampler: JobSampler, tokens: NDArray[np.int32]) -> int:
    """The token of a row that needs more than the native call, which found `native`; logits: (V,)."""
    values, records, filtered = logits.numpy(), sampler.records, None
    if records is not None and records.wish.filtered:
        filtered = distribution(values, sampler, tokens)  # before the state of the sampler moves on
    token = native if sampler.is_native else sample(values, sampler, tokens)
    if records is not None:
        records.add(logits, token, filtered)
    return token
