"""Weights for the kernel tests: raw GGUF rows, their exact values, and their tiles in device memory."""

from __future__ import annotations

import ctypes
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from exllama.formats.registry import find_format
from tests.kernels.gemm import GroupAffine
from tests.kernels.library import Library

GGUF_TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
# Where the fp16 numbers of a block stand.
_HALVES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}


def raw_rows(name: str, shape: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    """Random blocks, every code and small scale possible; fp16 numbers of either sign, some of them subnormal."""
    random = np.random.default_rng(seed)
    elements, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    blocks = random.integers(0, 256, (shape[0] * shape[1] // elements, size)).astype(np.uint8)
    for offset in _HALVES[name]:
        numbers = (random.standard_normal((len(blocks), 1)) * 0.01).astype(np.float16)
        numbers[random.random(len(blocks)) < 0.05] *= np.float16(1e-4)
        blocks[:, offset : offset + 2] = numbers.view(np.uint8)
    return blocks.reshape(shape[0], -1)


def exact_values(name: str, raw: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What the rows stand for, (N, K), by the engine's own reader."""
    return np.asarray(find_format(name).dequantize(raw), np.float64)


def pack(library: Library, name: str, raw: NDArray[np.uint8], cols: int) -> GroupAffine:
    """The rows as tiles in device memory."""
    weight, tile_bytes, row_bytes = GroupAffine(), ctypes.c_int64(), ctypes.c_int64()
    kind = ctypes.c_char_p(name.encode())
    out = (ctypes.byref(weight), ctypes.byref(tile_bytes), ctypes.byref(row_bytes))
    library.check("exl_group_affine_describe", kind, len(raw), cols, *out)
    assert row_bytes.value == raw.shape[1]
    tiles = np.empty((-(-len(raw) // 16), tile_bytes.value), np.uint8)
    for start in range(0, len(raw), 32):  # as a loader streams
        part = np.ascontiguousarray(raw[start : start + 32])
        to = tiles[start // 16 :].ctypes.data
        library.check("exl_group_affine_pack", kind, cols, pointer(part), len(part), ctypes.c_void_p(to))
    weight.data = library.put(tiles).pointer
    return weight


def pointer(values: NDArray[Any]) -> ctypes.c_void_p:
    """Host memory as an argument."""
    return ctypes.c_void_p(values.ctypes.data)
