"""Packing of EXL3 matrices; kernels/cpu/trellis.h and kernels/gemm/trellis.h have the layouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from exllama.errors import DeviceError, UsageError
from exllama.ops.cpu import CpuWeight
from exllama.ops.gpu import GpuTrellisPacker, is_gpu
from exllama.ops.native import native


class TrellisPacker:
    """Takes an EXL3 matrix, rows of tiles after rows of tiles; arguments as those of pack_trellis."""

    def __init__(self, shape: tuple[int, int], bits: float, codebook: str, scales: Sequence[np.ndarray]) -> None:
        self._shape = shape
        words = [np.ascontiguousarray(side, np.float16).view(np.uint16) for side in scales]
        try:
            self._packed = native().PackedTrellis(*shape, int(2 * bits), codebook, *words)
        except ValueError as error:
            raise UsageError(f"a trellis of shape {shape} with {bits} bits cannot be packed: {error}") from error

    def add_tiles(self, start: int, tiles: np.ndarray[Any, np.dtype[np.int16]]) -> None:
        """tiles: (count, padded N / 16, 16 * bits) int16 as in the file, rows start .. start + count - 1 of tiles."""
        try:
            self._packed.add_tiles(start, np.ascontiguousarray(tiles).view(np.uint16))
        except ValueError as error:
            raise UsageError(f"rows {start}.. of tiles of a trellis of shape {self._shape}: {error}") from error

    def finish(self) -> CpuWeight:
        return CpuWeight("EXL3", self._packed, self._shape)


def pack_trellis(
    shape: tuple[int, int], bits: float, codebook: str, scales: Sequence[np.ndarray], device: str = "cpu"
) -> TrellisPacker | GpuTrellisPacker:
    """Trellis, every bit as in the file. shape: (N, K), padded by the kernels to multiples of 128.

    bits: 1 to 8 or 1.5, 2.5, 3.5; codebook: "3inst", "mcg" or "mul1"; scales: suh and svh, both padded.
    """
    if is_gpu(device):
        return GpuTrellisPacker(shape, bits, codebook, scales, device)
    if device != "cpu":
        raise DeviceError(f"the device {device!r} has no kernels for EXL3 weights; there are 'cpu' and GPUs")
    return TrellisPacker(shape, bits, codebook, scales)
