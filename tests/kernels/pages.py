"""A numpy model of the GPU's cache pages (kernels/layouts/kv_page.h), and caches in device memory."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from exllama import reference
from tests.kernels import abi
from tests.kernels.library import DeviceArray, Library

Array = np.ndarray[Any, np.dtype[Any]]
PAGE, GROUP = 256, 32
# Features in the order of their slots.
FEATURES = np.array([8 * (slot % 4) + slot // 4 for slot in range(GROUP)])


def planes(bits: int) -> list[tuple[int, int]]:
    """(width, lowest bit of the code) of each plane, in their order."""
    found, low = [], 0
    for width in (8, 4, 2, 1):
        if bits & width:
            found.append((width, low))
            low += width
    return found


def rotate(x: Array) -> Array:
    """Hadamard-32 of x (..., 32) float32, additions in the order of kernels/cpu/kv_cache.h."""
    distance = GROUP // 2
    while distance:
        pairs = x.reshape(*x.shape[:-1], -1, 2, distance)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        x = np.stack((a + b, a - b), -2).reshape(x.shape)
        distance //= 2
    return x * np.float32(0.17677669529663687)


def quantize(x: Array, bits: int) -> tuple[Array, Array]:
    """reference.quantize of x (..., D) float32, whose rotation is a matrix product, to the bit as kernels do it."""
    groups = rotate(x.reshape(*x.shape[:-1], -1, GROUP))
    scales = reference.half_at_least(torch.from_numpy(np.abs(groups).max(-1))).numpy()
    m = np.float32(2 ** (bits - 1))
    inverse = np.float32(1) / np.maximum(scales.astype(np.float32), np.float32(1e-10))
    codes = np.clip(np.floor(groups * inverse[..., None] * m + m), 0, 2 * m - 1)
    return codes.astype(np.uint8).reshape(x.shape), scales


def pack(codes: Array, bits: int) -> Array:
    """Codes (..., D) uint8 in order of features -> (..., D / 32, 4 bits) uint8."""
    slots = codes.reshape(*codes.shape[:-1], -1, GROUP)[..., FEATURES]
    parts = []
    for width, low in planes(bits):
        fields = (slots >> low)[..., None] >> np.arange(width, dtype=np.uint8) & 1
        parts.append(np.packbits(fields.reshape(*slots.shape[:-1], -1), axis=-1, bitorder="little"))
    packed: Array = np.concatenate(parts, -1)
    return packed


@dataclass
class DeviceCache:
    """Pages of one layer in device memory."""

    library: Library
    num_pages: int
    num_kv_heads: int
    head_dim: int
    key_bits: int
    value_bits: int

    def __post_init__(self) -> None:
        self.geometry = abi.Geometry()
        self.library.check("exl_kv_cache_geometry", ctypes.byref(self.struct(0, 0)), ctypes.byref(self.geometry))
        self.keys = self.library.empty((self.num_pages, self.geometry.key_page_bytes), np.uint8)
        self.values = self.library.empty((self.num_pages, self.geometry.value_page_bytes), np.uint8)

    def struct(self, keys: Any = None, values: Any = None) -> abi.Cache:
        keys = self.keys if keys is None else keys
        values = self.values if values is None else values
        return abi.Cache(
            keys=keys, values=values, num_kv_heads=self.num_kv_heads, head_dim=self.head_dim,
            key_bits=self.key_bits, value_bits=self.value_bits,
        )  # fmt: skip

    @property
    def padded_dim(self) -> int:
        return int(self.geometry.padded_dim)

    def expected(self, x: Array, bits: int) -> list[Array]:
        """The bytes of keys or values x (tokens, G, D) float32, for one token each: [codes] or [codes, scales]."""
        padded = np.zeros((*x.shape[:-1], self.padded_dim), np.float32)
        padded[..., : x.shape[-1]] = x
        if bits == 16:
            with np.errstate(over="ignore"):
                return [padded.astype(np.float16).view(np.uint8)]
        codes, scales = quantize(padded, bits)
        return [pack(codes, bits).reshape(*x.shape[:-1], -1), scales.view(np.uint8)]

    def stored(self, pages: DeviceArray, bits: int) -> list[Array]:
        """What the pages hold: codes, and scales where packed, each (pages, 256, G, bytes)."""
        raw, at, parts = self.library.get(pages), 0, []
        sizes = [self.padded_dim * bits // 8] + ([] if bits == 16 else [self.padded_dim // GROUP * 2])
        for size in sizes:
            count = self.num_kv_heads * PAGE * size
            part = raw[:, at : at + count].reshape(-1, self.num_kv_heads, PAGE, size)
            parts.append(part.transpose(0, 2, 1, 3))
            at += count
        assert at == raw.shape[1]
        return parts

    def fill(self, x: Array, bits: int, pages: DeviceArray, table: Array) -> None:
        """Writes keys or values x (T, G, D) of one sequence, positions 0 .. T - 1, without the kernel."""
        raw, at = self.library.get(pages), 0
        for part in self.expected(x, bits):
            size = part.shape[-1]
            count = self.num_kv_heads * PAGE * size
            for start in range(0, len(part), PAGE):
                tokens = part[start : start + PAGE].transpose(1, 0, 2)
                room = raw[table[start // PAGE], at : at + count].reshape(self.num_kv_heads, PAGE, size)
                room[:, : tokens.shape[1]] = tokens
            at += count
        self.library.copy(pages.pointer, raw.ctypes.data, raw.nbytes)


def values_of(x: Array, bits: int) -> torch.Tensor:
    """What a cache of `bits` bits makes of x (T, G, D): float32, rotated back."""
    tensor = torch.from_numpy(np.ascontiguousarray(x, np.float32))
    if bits == 16:
        return tensor.half().float()
    dim = x.shape[-1]
    codes, scales = quantize(torch.nn.functional.pad(tensor, (0, -dim % GROUP)).numpy(), bits)
    return reference.dequantize(torch.from_numpy(codes), torch.from_numpy(scales), bits)[..., :dim]
