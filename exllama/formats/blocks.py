"""What block formats share: cutting rows into blocks and reading fields out of them."""

from __future__ import annotations

import numpy as np

from exllama.formats.gguf_types import BLOCK_TYPES
from exllama.formats.stored import Bytes, Floats


def cut_blocks(raw: Bytes, name: str) -> Bytes:
    """(rows, row_bytes) -> (blocks, block_bytes)."""
    return np.ascontiguousarray(raw).reshape(-1, BLOCK_TYPES[name].nbytes)


def join_rows(values: Floats, rows: int) -> Floats:
    """(blocks, elements) -> (rows, K)."""
    return values.reshape(rows, -1)


def half(blocks: Bytes, offset: int) -> Floats:
    """The fp16 field at `offset` of every block, (blocks, 1) float32."""
    return np.ascontiguousarray(blocks[:, offset : offset + 2]).view("<f2").astype(np.float32)


def nibbles(packed: Bytes) -> Bytes:
    """(..., n) bytes -> (..., 2n): all low nibbles, then all high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def crumbs(packed: Bytes) -> Bytes:
    """(..., n) bytes -> (..., 4n) two-bit fields: the lowest of all bytes, then the next."""
    return np.concatenate([(packed >> shift) & 3 for shift in (0, 2, 4, 6)], axis=-1)


def signed(values: Bytes) -> Floats:
    """Bytes as int8."""
    return values.view(np.int8).astype(np.float32)
