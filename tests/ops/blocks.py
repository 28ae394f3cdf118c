"""Random GGUF blocks with sane scales, and weights packed from them."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from exllama import ops

Array = np.ndarray[Any, np.dtype[Any]]

# Byte offsets of the fp16 numbers in a block.
_HALVES = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
}


def random_blocks(kind: str, rows: int, columns: int, seed: int = 0) -> Array:
    """(rows, row_bytes) uint8 with every bit of codes and small scales random."""
    rng = np.random.default_rng(seed)
    elements, size = gguf.GGML_QUANT_SIZES[Type[kind]]
    raw = rng.integers(0, 256, (rows, columns // elements, size), dtype=np.uint8)
    for offset in _HALVES[kind]:
        halves = (rng.standard_normal((rows, columns // elements)) * 0.01).astype(np.float16)
        raw[:, :, offset : offset + 2] = halves.view(np.uint8).reshape(rows, -1, 2)
    return raw.reshape(rows, -1)


def packed(kind: str, raw: Array, columns: int) -> ops.Weight:
    """The weight, packed in two parts as a loader does."""
    packer = ops.pack_blocks(kind, (len(raw), columns))
    packer.add_rows(0, raw[:32])
    packer.add_rows(32, raw[32:])
    return packer.finish()


def values(kind: str, raw: Array) -> Array:
    """What the gguf package makes of the blocks, float32."""
    decoded: Array = gguf.quants.dequantize(raw, Type[kind]).astype(np.float32)
    return decoded


def dense(matrix: Array, dtype: str = "float32") -> ops.Weight:
    """A dense weight of a float32 matrix, or of 16-bit patterns as uint16."""
    packer = ops.pack_dense(dtype, (matrix.shape[0], matrix.shape[1]))
    packer.add_rows(0, np.ascontiguousarray(matrix).view(np.uint8).reshape(len(matrix), -1))
    return packer.finish()
