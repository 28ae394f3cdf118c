"""The CPU: weights in the row blocks of kernels/cpu, cache pages, and a plan that one native call runs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from exllama import reference
from exllama.errors import DeviceError, UnsupportedModelError, UsageError
from exllama.ops.native import cpu_level, default_threads, native, team
from exllama.ops.native_plan import NativePlan
from exllama.ops.protocol import Buffer, LayerCache, Weight


class CpuWeight:
    """A matrix as kernels/cpu reads it; family GroupAffine for block types, Trellis for EXL3, Dense for the others."""

    def __init__(self, type_name: str, packed: Any, shape: tuple[int, int]) -> None:
        self.type = type_name
        self.packed = packed
        self.out_features, self.in_features = shape

    @property
    def nbytes(self) -> int:
        return int(self.packed.nbytes)

    def dequantize(self) -> torch.Tensor:
        """The exact values, (N, K) float32."""
        return torch.from_numpy(native().dequantize(self.packed, cpu_level(), 0, self.out_features))


class Packer:
    """Takes a matrix row by row from a file; nothing but the packed result is kept."""

    def __init__(self, type_name: str, shape: tuple[int, int], native_type: str, held_as: str) -> None:
        self._shape, self._type = shape, type_name
        try:
            self._packed = native().PackedWeight(native_type, *shape, held_as)
        except ValueError as error:
            raise UnsupportedModelError(f"a {type_name} weight of shape {shape} cannot be packed: {error}") from error

    def add_rows(self, start_row: int, raw: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        """raw: (rows, row_bytes) uint8 as in the file; start_row: a multiple of 16."""
        try:
            self._packed.add_rows(start_row, np.ascontiguousarray(raw))
        except ValueError as error:
            raise UsageError(f"rows {start_row}.. of a {self._type} weight of shape {self._shape}: {error}") from error

    def finish(self) -> CpuWeight:
        return CpuWeight(self._type, self._packed, self._shape)


class CpuLayerCache:
    """Zeroed pages of one layer; see kernels/cpu/kv_cache.h for the bytes."""

    def __init__(self, num_pages: int, num_kv_heads: int, head_dim: int, k_bits: int, v_bits: int) -> None:
        self.num_kv_heads, self.head_dim = num_kv_heads, head_dim
        try:
            self.pages = native().CachePages(num_pages, num_kv_heads, head_dim, k_bits, v_bits)
        except ValueError as error:
            raise UsageError(
                f"a cache of {num_kv_heads} heads of {head_dim} with {k_bits}/{v_bits} bits: {error}"
            ) from error

    @property
    def nbytes(self) -> int:
        return int(self.pages.nbytes)

    def copy_page(self, source: int, target: int) -> None:
        self.pages.copy_page(source, target)

    def read_page(self, page: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return np.concatenate([part[page] for part in self.pages.memory()])

    def write_page(self, page: int, data: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        reference.write_parts([part[page] for part in self.pages.memory()], data)


# Activations are int8 per 32 columns. A row that this rounds worse than usual (Gaussian rows: 2.2e-5, squared and
# relative) is one of the few with huge outliers; it keeps 12 bits, 15 where the weight is a trellis. See docs/adr/0003.
RESIDUAL_ABOVE = 6e-5


class CpuPlan(NativePlan):
    """The Plan of a CPU: a list of native operations that one call runs on a team of threads."""

    def __init__(self, max_rows: int, threads: int | None = None, level: str | None = None) -> None:
        max_pages = 1 << 13  # of one sequence: 2 Mi tokens
        self.threads = threads or default_threads()
        super().__init__(native().Plan(team(self.threads), level or cpu_level(), max_rows, max_pages), max_rows)

    def read(self, buffer: Buffer, rows: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """A copy of the first rows of a buffer; for tests."""
        values: np.ndarray[Any, np.dtype[np.float32]] = self._plan.read(buffer.index, rows)
        return values

    def write(self, buffer: Buffer, values: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        """Fills the first rows of a buffer; for tests."""
        self._plan.write(buffer.index, values)

    def _rounding(self, precise: bool) -> tuple[float, ...]:
        return (0.0 if precise else RESIDUAL_ABOVE,)

    def _typed(self) -> AbstractContextManager[None]:
        return nullcontext()

    def _packed(self, weight: Weight) -> Any:
        if not isinstance(weight, CpuWeight):
            raise DeviceError(f"a plan of the CPU needs weights on the CPU, not {type(weight).__name__}")
        return weight.packed

    def _pages(self, cache: LayerCache) -> Any:
        if not isinstance(cache, CpuLayerCache):
            raise DeviceError(f"a plan of the CPU needs a cache on the CPU, not {type(cache).__name__}")
        return cache.pages
