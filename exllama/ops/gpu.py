"""GPUs, real ones and emulated: weights, cache pages and plans on `cuda:N`, `hip:N` or `emu:N`.

The kernels live in a library with a plain C ABI (kernels/include/exl/runtime.h), opened when a device is first
asked for. A plan runs as one graph per bucket of rows. The residual stream is float32, what runs between kernels
float16.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exllama import reference, settings
from exllama.errors import BuildError, DeviceError, UnsupportedModelError, UsageError
from exllama.ops.native import native
from exllama.ops.native_plan import NativePlan
from exllama.ops.protocol import LayerCache, Weight

BACKENDS = ("cuda", "hip", "emu")
_TRELLIS_BLOCK = 128  # features that one Hadamard matrix of a trellis mixes


def is_gpu(device: str) -> bool:
    """Whether a device's name means a GPU, there or not: "cuda", "cuda:1", "emu:0"."""
    return device.split(":")[0] in BACKENDS


def build_gpu_library(backend: str) -> Path:
    """The file of the library of "cuda", "hip" or "emu", built if need be, which takes minutes. Raises BuildError."""
    from exllama_ext import gpu_library as find

    try:
        return find(backend, settings.cache_dir())
    except ImportError as error:
        raise BuildError(f"no {backend} kernels: {error}") from error


@functools.cache
def gpu_library(backend: str) -> Any:
    """The library of "cuda", "hip" or "emu", opened. Raises BuildError when it is absent and cannot be built."""
    try:
        found = native().GpuLibrary(str(build_gpu_library(backend)))
    except RuntimeError as error:
        raise BuildError(f"no {backend} kernels: {error}") from error
    if backend == "emu":
        with _typed("EXLLAMA_EMU_DEVICES"):
            found.emulate(settings.emu_devices())
    return found


@functools.cache
def gpu_device(name: str) -> Any:
    """A device by its name, `cuda:0`; without a number the first. Raises DeviceError when there is none."""
    backend, _, number = name.partition(":")
    if not (number or "0").isdecimal():
        raise DeviceError(f"the device is {name!r}, expected {backend}:0, {backend}:1, ...")
    with _typed(name):
        count = gpu_library(backend).device_count()
    if int(number or 0) >= count:
        raise DeviceError(f"there is no {name}: {count} {backend} device{'s were' if count != 1 else ' was'} found")
    with _typed(name):
        return native().GpuDevice(gpu_library(backend), int(number or 0))


def gpu_free_bytes(device: str) -> int:
    """Free memory of a GPU now, other processes counted."""
    with _typed(device):
        return int(gpu_device(device).describe()["free_bytes"])


@contextmanager
def _typed(what: str) -> Iterator[None]:
    """Turns what the library refuses into an error of exllama; `what` names the device or the thing at hand."""
    try:
        yield
    except native().GpuFailure as failure:
        status, text = failure.args
        if status in ("bad_shape", "bad_dtype"):
            raise UnsupportedModelError(f"{what}: {text}") from failure
        if status in ("bad_argument", "misaligned", "not_permitted"):
            raise UsageError(f"{what}: {text}") from failure
        raise DeviceError(f"{what}: {status.replace('_', ' ')}: {text}") from failure


class GpuWeight:
    """A matrix in the layout of its family's kernels (kernels/layouts/group_affine.h, or rows as in the file)."""

    def __init__(self, type_name: str, packed: Any, shape: tuple[int, int], device: str) -> None:
        self.type, self.packed, self.device = type_name, packed, device
        self.out_features, self.in_features = shape

    @property
    def nbytes(self) -> int:
        return int(self.packed.nbytes)

    def dequantize(self) -> torch.Tensor:
        """(N, K) float32 on the CPU, as the device's kernels see it: code * scale + offset in float32."""
        with _typed(self.device):
            return torch.from_numpy(self.packed.expand())


class GpuPacker:
    """Takes a matrix row by row from a file and leaves it on the device; nothing but the packed result is kept."""

    def __init__(self, type_name: str, shape: tuple[int, int], is_dense: bool, device: str) -> None:
        self._type, self._shape, self._device = type_name, shape, device
        with _typed(f"a {type_name} weight of shape {shape} on {device}"):
            self._packed = native().GpuWeight(gpu_device(device), type_name, *shape, is_dense)

    def add_rows(self, start_row: int, raw: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        """raw: (rows, row_bytes) uint8 as in the file; start_row: a multiple of 16."""
        try:
            with _typed(f"rows {start_row}.. of a {self._type} weight of shape {self._shape}"):
                self._packed.add_rows(start_row, np.ascontiguousarray(raw))
        except ValueError as error:
            raise UsageError(f"rows {start_row}.. of a {self._type} weight of shape {self._shape}: {error}") from error

    def finish(self) -> GpuWeight:
        return GpuWeight(self._type, self._packed, self._shape, self._device)


class GpuTrellis(GpuWeight):
    """An EXL3 matrix as its file has it (kernels/gemm/trellis.h). scales: suh and svh, fp16, padded."""

    def __init__(self, packed: Any, shape: tuple[int, int], scales: Sequence[np.ndarray], device: str) -> None:
        super().__init__("EXL3", packed, shape, device)
        self._scales = scales

    def dequantize(self) -> torch.Tensor:
        """(N, K) float32 on the CPU: tiles as the device's kernels decode them, rotated and scaled here in float64."""
        with _typed(self.device):
            tiles = self.packed.expand()
        values = torch.from_numpy(tiles.view(np.float16)).double()  # (padded N, padded K)
        suh, svh = (torch.from_numpy(side).double() for side in self._scales)
        block = reference.hadamard(_TRELLIS_BLOCK)
        columns = (values.T.reshape(-1, _TRELLIS_BLOCK) @ block).reshape(values.T.shape) * svh
        rows = (columns.T.reshape(-1, _TRELLIS_BLOCK) @ block).reshape(values.shape) * suh
        return rows[: self.out_features, : self.in_features].float()


class GpuTrellisPacker:
    """Takes an EXL3 matrix, rows of tiles after rows of tiles; arguments as those of pack_trellis."""

    def __init__(
        self, shape: tuple[int, int], bits: float, codebook: str, scales: Sequence[np.ndarray], device: str
    ) -> None:
        self._shape, self._device = shape, device
        self._scales = [np.ascontiguousarray(side, np.float16) for side in scales]
        words = [side.view(np.uint16) for side in self._scales]
        with self._told(f"a trellis of shape {shape} with {bits} bits cannot be packed"):
            self._packed = native().GpuTrellis(gpu_device(device), *shape, int(2 * bits), codebook, *words)

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            with _typed(f"a trellis of shape {self._shape} on {self._device}"):
                yield
        except ValueError as error:
            raise UsageError(f"{what}: {error}") from error

    def add_tiles(self, start: int, tiles: np.ndarray[Any, np.dtype[np.int16]]) -> None:
        """tiles: (count, padded N / 16, 16 * bits) int16 as in the file, rows start .. start + count - 1 of tiles."""
        with self._told(f"rows {start}.. of tiles of a trellis of shape {self._shape}"):
            self._packed.add_tiles(start, np.ascontiguousarray(tiles).view(np.uint16))

    def finish(self) -> GpuTrellis:
        return GpuTrellis(self._packed, self._shape, self._scales, self._device)


class GpuLayerCache:
    """Zeroed pages of one layer; see kernels/layouts/kv_page.h for the bytes."""

    def __init__(self, device: str, num_pages: int, num_kv_heads: int, head_dim: int, k_bits: int, v_bits: int) -> None:
        self.num_kv_heads, self.head_dim, self.device = num_kv_heads, head_dim, device
        with _typed(f"a cache of {num_pages} pages on {device}"):
            self.pages = native().GpuCachePages(gpu_device(device), num_pages, num_kv_heads, head_dim, k_bits, v_bits)

    @property
    def nbytes(self) -> int:
        return int(self.pages.nbytes)

    def copy_page(self, source: int, target: int) -> None:
        with _typed(self.device):
            self.pages.copy_page(source, target)

    def read_page(self, page: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        with _typed(self.device):
            data: np.ndarray[Any, np.dtype[np.uint8]] = self.pages.read_page(page)
        return data

    def write_page(self, page: int, data: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        with _typed(self.device):
            self.pages.write_page(page, np.ascontiguousarray(data))


class GpuPlan(NativePlan):
    """The Plan of a GPU: launches over static buffers, one graph per bucket of rows."""

    def __init__(self, device: str, max_rows: int) -> None:
        self.device = device
        with _typed(device):
            super().__init__(native().GpuPlan(gpu_device(device), max_rows), max_rows)

    def _rounding(self, precise: bool) -> tuple[float, ...]:
        """None: activations are float16 everywhere."""
        return ()

    def _typed(self) -> AbstractContextManager[None]:
        return _typed(self.device)

    def _packed(self, weight: Weight) -> Any:
        if not isinstance(weight, GpuWeight) or weight.device != self.device:
            place = weight.device if isinstance(weight, GpuWeight) else "the CPU"
            raise DeviceError(f"a plan of {self.device} needs its weights there, not on {place}")
        return weight.packed

    def _pages(self, cache: LayerCache) -> Any:
        if not isinstance(cache, GpuLayerCache) or cache.device != self.device:
            place = cache.device if isinstance(cache, GpuLayerCache) else "the CPU"
            raise DeviceError(f"a plan of {self.device} needs its cache there, not on {place}")
        return cache.pages
