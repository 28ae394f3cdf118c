"""Matrices that a device has no kernel for: their exact values as a Dense weight, and the warning that says so."""

from __future__ import annotations

import logging
from collections.abc import Callable
from weakref import WeakKeyDictionary

import numpy as np

from exllama import ops
from exllama.formats.stored import Floats, TensorStore
from exllama.ops import Weight

logger = logging.getLogger("exllama")
_warned: WeakKeyDictionary[TensorStore, set[str]] = WeakKeyDictionary()

_STAGING = 8 << 20  # bytes of values that exist beside the packed weight


def expand_rows(shape: tuple[int, int], device: str, rows: Callable[[int, int], Floats], dtype: str) -> Weight:
    """rows(start, stop): these rows of the matrix, (stop - start, K) float32. dtype: float32, or float16 if exact."""
    packer = ops.pack_dense(dtype, shape, device)
    step = max(16, _STAGING // (4 * shape[1]) // 16 * 16)
    for start in range(0, shape[0], step):
        values = rows(start, min(start + step, shape[0]))
        packer.add_rows(start, np.ascontiguousarray(values, dtype).view(np.uint8))
    return packer.finish()


def warn_no_kernel(store: TensorStore, name: str, reader: str, bits: int) -> None:
    """Says once for each file that matrices of a format are expanded; reader: what has no kernel for them."""
    told = _warned.setdefault(store, set())
    if name not in told:
        told.add(name)
        logger.warning("no kernel of %s reads %s: such matrices are expanded to %d bits a weight", reader, name, bits)
