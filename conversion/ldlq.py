"""Feedback of rounding errors along a Hessian (LDLQ: Chee et al. 2023, QuIP; in blocks: Tseng et al. 2024, QuIP#).

H = L D L^T with blocks of 16 and ones on the diagonal of L. The error E of a quantized matrix costs
tr(E^T H E) = sum over blocks b of tr((L^T E)_b^T D_b (L^T E)_b). Quantizing blocks from the last to the first, each
after adding L^T times the errors of those before it, makes (L^T E)_b the error of its own rounding alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from exllama import ops
from exllama.errors import ConversionError

from .trellis_search import team

Doubles = NDArray[np.float64]

DAMPING = 0.025  # of the mean of the diagonal, as exllamav3 has it
ATTEMPTS = 30  # doublings: more than enough to drown any indefinite part of a matrix of moments


def damped(hessian: Doubles) -> Doubles:
    """The Hessian plus DAMPING times the mean of its diagonal; the identity for one without energy."""
    mean = float(np.diagonal(hessian).mean())
    if mean < 1e-30:
        return np.eye(len(hessian))
    scaled: Doubles = hessian / mean
    np.einsum("ii->i", scaled)[:] += DAMPING
    return scaled


def feedback(hessian: Doubles, threads: int) -> NDArray[np.float32]:
    """L without its diagonal, (n, n), lower triangle. hessian: (n, n), n a multiple of 16.

    While it is not positive definite, its diagonal grows by 2, 4, 8, ... times DAMPING of its mean.
    """
    work = np.array(hessian, np.float64, order="C")
    mean = float(np.diagonal(hessian).mean())
    for attempt in range(ATTEMPTS):
        factor: Any = ops.native().block_ldl(team(threads), work)
        if factor is not None:
            result: NDArray[np.float32] = factor
            return result
        work[:] = hessian
        np.einsum("ii->i", work)[:] += DAMPING * 2 ** (attempt + 1) * mean
    raise ConversionError("a Hessian cannot be factored: is it symmetric and finite?")
