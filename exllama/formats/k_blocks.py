"""Q2_K .. Q6_K: blocks of 256 in 8 or 16 groups, whose small integer scales are multiplied by one or two fp16 numbers.

Q4_K, 144 bytes: [ d ][ dmin ][ 12 bytes: 8 scales and 8 minimums of 6 bits ][ 128 bytes: 64 elements in each 32 ]
Q6_K, 210 bytes: [ 128: low 4 bits ][ 64: high 2 bits ][ 16 int8 scales ][ d ]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exllama.formats.blocks import crumbs, cut_blocks, half, join_rows, nibbles, signed
from exllama.formats.format import Format
from exllama.formats.stored import Bytes, Floats


def _grouped(codes: NDArray[np.integer[Any]], scales: Floats) -> Floats:
    """codes (blocks, 256) and scales (blocks, groups): their products, (blocks, groups, elements)."""
    products: Floats = codes.reshape(*scales.shape, -1).astype(np.float32) * scales[:, :, None]
    return products


def _two_bits(packed: Bytes) -> Bytes:
    """64 bytes -> 256 fields of two bits, in two halves of 128."""
    return crumbs(packed.reshape(-1, 2, 32)).reshape(-1, 256)


def _four_bits(packed: Bytes) -> Bytes:
    """128 bytes -> 256 nibbles, in four chunks of 64."""
    return nibbles(packed.reshape(-1, 4, 32)).reshape(-1, 256)


def _six_bit_pairs(packed: Bytes) -> tuple[Floats, Floats]:
    """12 bytes -> 8 scales, 8 minimums. The last four of each keep their upper two bits in the first eight bytes."""
    low, middle, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([low & 63, (high & 15) | ((low >> 6) << 4)], axis=1)
    minimums = np.concatenate([middle & 63, (high >> 4) | ((middle >> 6) << 4)], axis=1)
    return scales.astype(np.float32), minimums.astype(np.float32)


def _q2_k(blocks: Bytes) -> Floats:
    scales, minimums = half(blocks, 80) * (blocks[:, :16] & 15), half(blocks, 82) * (blocks[:, :16] >> 4)
    return _grouped(_two_bits(blocks[:, 16:80]), scales) - minimums[:, :, None]


def _q3_k(blocks: Bytes) -> Floats:
    packed = blocks[:, 96:108]
    high = np.concatenate([(packed[:, 8:12] >> shift) & 3 for shift in (0, 2, 4, 6)], axis=1)
    scales = half(blocks, 108) * ((nibbles(packed[:, :8]) | (high << 4)).astype(np.float32) - 32)
    third = np.concatenate([(blocks[:, :32] >> bit) & 1 for bit in range(8)], axis=1)
    codes = (_two_bits(blocks[:, 32:96]) | (third << 2)).view(np.int8) - np.int8(4)
    return _grouped(codes, scales)


def _q4_k(blocks: Bytes) -> Floats:
    scales, minimums = _six_bit_pairs(blocks[:, 4:16])
    products = _grouped(_four_bits(blocks[:, 16:]), half(blocks, 0) * scales)
    return products - (half(blocks, 2) * minimums)[:, :, None]


def _q5_k(blocks: Bytes) -> Floats:
    scales, minimums = _six_bit_pairs(blocks[:, 4:16])
    fifth = np.concatenate([((blocks[:, 16:48] >> group) & 1) << 4 for group in range(8)], axis=1)
    products = _grouped(_four_bits(blocks[:, 48:]) | fifth, half(blocks, 0) * scales)
    return products - (half(blocks, 2) * minimums)[:, :, None]


def _q6_k(blocks: Bytes) -> Floats:
    low = nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 256)
    codes = (low | (crumbs(blocks[:, 128:192].reshape(-1, 2, 32)).reshape(-1, 256) << 4)).view(np.int8) - np.int8(32)
    scales = half(blocks, 208) * signed(np.ascontiguousarray(blocks[:, 192:208]))
    return _grouped(codes, scales)


def _format(name: str, decode: Callable[[Bytes], Floats]) -> Format:
    return Format(name, "GroupAffine", name, lambda raw: join_rows(decode(cut_blocks(raw, name)), len(raw)))


_DECODERS = {"Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k}
FORMATS = {name: _format(name, decode) for name, decode in _DECODERS.items()}
