"""Random EXL3 matrices as a file has them: any bit stream is a legal ring, so only the scales need care."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

RATES = (1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8)
CODEBOOKS = ("3inst", "mcg", "mul1")
MARKS = {"mcg": 0xCBAC1FED - (1 << 32), "mul1": 0x83DCD12D - (1 << 32)}
Tensors = dict[str, torch.Tensor]


def padded(features: int) -> int:
    """Both sides of a matrix are stored in multiples of 128."""
    return -(-features // 128) * 128


def random_linear(
    key: str, rows: int, columns: int, bits: float = 4, codebook: str = "mul1", old_signs: bool = False, seed: int = 0
) -> Tensors:
    """The tensors of a matrix (out_features, in_features) whose values have a deviation near 1 / sqrt(columns).

    Padded outputs have the scale 0, as the format wants it.
    """
    rng = np.random.default_rng([seed, rows, columns, int(2 * bits)])
    across, down = padded(rows), padded(columns)
    words = rng.integers(-(1 << 15), 1 << 15, (down // 16, across // 16, int(16 * bits)), dtype=np.int16)
    tensors: dict[str, Any] = {f"{key}.trellis": words}
    if old_signs:
        tensors[f"{key}.su"] = rng.integers(-(1 << 15), 1 << 15, down // 16, dtype=np.int16)
        tensors[f"{key}.sv"] = rng.integers(-(1 << 15), 1 << 15, across // 16, dtype=np.int16)
    else:
        outputs = rng.choice([-1.0, 1.0], across) * rng.uniform(0.7, 1.3, across)
        outputs[rows:] = 0
        tensors[f"{key}.suh"] = (rng.choice([-1.0, 1.0], down) * rng.uniform(0.7, 1.3, down) * columns**-0.5).astype(
            "<f2"
        )
        tensors[f"{key}.svh"] = outputs.astype("<f2")
    if codebook in MARKS:
        tensors[f"{key}.{codebook}"] = np.array(MARKS[codebook], np.int32)
    return {name: torch.from_numpy(np.asarray(value)) for name, value in tensors.items()}
