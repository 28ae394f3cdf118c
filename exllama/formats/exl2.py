"""EXL2: codes of 2 to 8 bits in groups along K, the widest first, rows sorted by importance.

    key.q_weight     int32 (R, N)     codes; each column is a stream of its own in each group, lowest bit first
    key.q_scale      int32 (G, N/8)   4-bit c: the scale of (group, column) is fp16((c + 1)^2) * fp16(q_scale_max / 256)
    key.q_scale_max  fp16 (G,)
    key.q_groups     int16 (2 G,)     bits and first row of q_weight, of each group
    key.q_invperm    int32 (K,)       input feature r is stored as row q_invperm[r]

A weight is fp16((code - 2^(bits-1)) * scale), its only rounding beside that of the scale. N is padded to a multiple of
32. Format: exllamav2 (turboderp); docs/formats/exl2.md has a picture.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from exllama.errors import FormatError
from exllama.formats.composite import Composite, Expand
from exllama.formats.groups import (
    GroupMatrix,
    check_shape,
    find_part,
    load_matrix,
    read_all,
    read_scales,
    unpack_codes,
)
from exllama.formats.stored import Bytes, StoredTensor, TensorStore
from exllama.ops import Weight

WIDTHS = (2, 3, 4, 5, 6, 8)
PADDING = 32
_HALF_MAX = 65504.0


def read_matrix(store: TensorStore, key: str, shape: tuple[int, int]) -> GroupMatrix:
    """Finds and checks the tensors of a matrix (out_features, in_features). Raises FormatError naming the tensor."""
    columns = COMPOSITE.padded(shape[0])
    largest = find_part(store, key, "q_scale_max", "F16", 1)
    groups = find_part(store, key, "q_groups", "I16", 1)
    check_shape(groups, (2 * largest.shape[0],))
    words = find_part(store, key, "q_weight", "I32", 2)
    check_shape(words, (words.shape[0], columns))
    bits, starts = _groups(groups, words.shape[0])
    sizes = _sizes(groups, bits, np.diff(np.append(starts, words.shape[0])), shape[1])
    codes = find_part(store, key, "q_scale", "I32", 2)
    check_shape(codes, (len(bits), columns // 8))
    scales = decode_scales(read_all(codes).view("<u4"), read_scales(largest))
    _check_range(largest, bits, scales)
    order = _order(store, key, shape[1])
    stored: NDArray[np.uint32] = read_all(words).view("<u4")

    edges = [0, *(np.flatnonzero(np.diff(bits)) + 1)]  # where the width changes: groups of one width are one stream
    rows = [*starts[edges], words.shape[0]]

    def unpack(start: int, stop: int) -> Bytes:
        runs = zip(bits[edges], rows[:-1], rows[1:], strict=True)
        return np.concatenate([unpack_codes(stored[a:b, start:stop], int(width)) for width, a, b in runs])

    return GroupMatrix("EXL2", shape, bits, sizes, order, scales, None, unpack, rounded=True)


def decode_scales(codes: NDArray[np.uint32], largest: NDArray[np.float16]) -> NDArray[np.float16]:
    """(G, N/8) words of 4-bit codes and (G,) maximums -> (G, N) scales: a product of fp16 numbers, rounded to fp16."""
    nibbles = (codes[:, :, None] >> (4 * np.arange(8, dtype=np.uint32))) & np.uint32(15)
    steps = (nibbles.reshape(len(codes), -1) + 1) ** 2
    with np.errstate(over="ignore"):
        scales: NDArray[np.float16] = steps.astype(np.float16) * (largest * np.float16(1 / 256))[:, None]
    return scales


def load(store: TensorStore, key: str, shape: tuple[int, int], device: str, expand: Expand | None) -> Weight:
    """See Composite."""
    return load_matrix(read_matrix(store, key, shape), store, device, expand)


def _groups(tensor: StoredTensor, rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Bits and first rows of all groups."""
    pairs: NDArray[Any] = read_all(tensor).reshape(-1, 2).astype(np.int64)
    bits, starts = pairs[:, 0], pairs[:, 1]
    if not np.isin(bits, WIDTHS).all():
        found = f"{bits[~np.isin(bits, WIDTHS)][0]} bits"
        raise FormatError(tensor.file, tensor.name, found, f"one of {', '.join(map(str, WIDTHS))}")
    if (np.diff(bits) > 0).any():
        raise FormatError(tensor.file, tensor.name, "a group wider than the one before", "widths that descend")
    if starts[0] != 0 or (np.diff(starts) <= 0).any() or starts[-1] >= rows:
        expected = f"first rows that ascend from 0 and stay below the {rows} of q_weight"
        raise FormatError(tensor.file, tensor.name, f"first rows {starts[:8].tolist()} ..", expected)
    return bits, starts


def _sizes(
    tensor: StoredTensor, bits: NDArray[np.int64], counts: NDArray[np.int64], features: int
) -> NDArray[np.int64]:
    """Input features of all groups."""
    if (counts * 32 % bits != 0).any():
        raise FormatError(tensor.file, tensor.name, "a group that ends within a code", "whole codes in whole words")
    sizes = counts * 32 // bits
    if sizes.sum() != features:
        raise FormatError(tensor.file, tensor.name, f"groups of {sizes.sum()} features in all", features)
    return sizes


def _check_range(tensor: StoredTensor, bits: NDArray[np.int64], scales: NDArray[np.float16]) -> None:
    with np.errstate(invalid="ignore", over="ignore"):
        peaks = np.abs(scales).max(axis=1).astype(np.float64) * 2.0 ** (bits - 1)
    if not (peaks <= _HALF_MAX).all():
        raise FormatError(tensor.file, tensor.name, f"weights of up to {peaks.max():g}", f"up to {_HALF_MAX:g}")


def _order(store: TensorStore, key: str, features: int) -> NDArray[np.int64]:
    """The input feature of each stored row."""
    tensor = find_part(store, key, "q_invperm", "I32", 1)
    check_shape(tensor, (features,))
    inverse = read_all(tensor).astype(np.int64)
    if not np.array_equal(np.sort(inverse), np.arange(features)):
        raise FormatError(tensor.file, tensor.name, "a number twice or out of range", f"each of 0..{features - 1} once")
    return np.argsort(inverse)


COMPOSITE = Composite(
    name="EXL2",
    marker="q_weight",
    parts=("q_weight", "q_scale", "q_scale_max", "q_groups", "q_invperm", "q_perm"),
    load=load,
    expanded=True,
    padding=PADDING,
)
