"""AWQ, version "gemm": codes of 4 bits, packed along N in an order of their own.

    key.qweight  int32 (K, N/8)   bits 4 i .. 4 i + 3 of word j belong to column 8 j + (0, 2, 4, 6, 1, 3, 5, 7)[i]
    key.qzeros   int32 (G, N/8)   zero points, packed alike
    key.scales   fp16 (G, N)      columns in their plain order

A weight is (code - zero) * scale, exactly; group of row r: r // group size. The tensors are named as those of GPTQ, and
told apart by their shapes. Format: AutoAWQ; docs/formats/gptq.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exllama.errors import FormatError
from exllama.formats.composite import Composite, Expand
from exllama.formats.gptq import group_size, quantization
from exllama.formats.groups import GroupMatrix, check_shape, find_part, load_matrix, read_all, read_scales
from exllama.formats.stored import Bytes, StoredTensor, TensorStore
from exllama.ops import Weight

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
BITS = 4


def is_awq(tensors: Mapping[str, StoredTensor], key: str) -> bool:
    """Whether `key.qweight` is packed along N: GPTQ packs it along K, and has as many columns as the scales."""
    words, scales = tensors[f"{key}.qweight"], tensors.get(f"{key}.scales")
    if scales is None or len(words.shape) != 2 or len(scales.shape) != 2 or f"{key}.g_idx" in tensors:
        return False
    return words.shape[1] != scales.shape[1]


def read_matrix(store: TensorStore, key: str, shape: tuple[int, int]) -> GroupMatrix:
    """Finds and checks the tensors of a matrix (out_features, in_features). Raises FormatError naming the tensor."""
    config = quantization(store)
    _check_version(store, config)
    outputs, features = shape
    words = find_part(store, key, "qweight", "I32", 2)
    check_shape(words, (features, -(-outputs // 8)))
    scales = find_part(store, key, "scales", "F16", 2)
    groups = scales.shape[0]
    check_shape(scales, (groups, 8 * words.shape[1]))
    stated = config.get("group_size", config.get("q_group_size"))
    size = group_size(store, key, features, groups, stated)
    sizes = np.bincount(np.arange(features) // size, minlength=groups)
    stored: NDArray[np.uint32] = read_all(words).view("<u4")

    def unpack(start: int, stop: int) -> Bytes:
        return unpack_nibbles(stored[:, start // 8 : -(-stop // 8)])[:, : stop - start]

    zeros = _zeros(store, key, words, groups, config)
    widths = np.full(groups, BITS)
    return GroupMatrix("AWQ", shape, widths, sizes, np.arange(features), read_scales(scales), zeros, unpack)


def unpack_nibbles(words: NDArray[np.uint32]) -> Bytes:
    """(R, n / 8) -> (R, n) codes in plain order."""
    codes = np.empty((*words.shape, 8), np.uint8)
    for i, column in enumerate(ORDER):
        codes[:, :, column] = (words >> np.uint32(4 * i)) & np.uint32(15)
    return codes.reshape(len(words), -1)


def load(store: TensorStore, key: str, shape: tuple[int, int], device: str, expand: Expand | None) -> Weight:
    """See Composite."""
    return load_matrix(read_matrix(store, key, shape), store, device, expand)


def _check_version(store: TensorStore, config: Mapping[str, Any]) -> None:
    version, bits = config.get("version", "gemm"), config.get("bits", config.get("w_bit", BITS))
    if not isinstance(version, str) or version.lower() != "gemm":
        raise FormatError(store.path, "version", version, "gemm", "Other layouts of AWQ are not read")
    if bits != BITS:
        raise FormatError(store.path, "bits", bits, BITS)


def _zeros(
    store: TensorStore, key: str, words: StoredTensor, groups: int, config: Mapping[str, Any]
) -> NDArray[np.int16] | None:
    if f"{key}.qzeros" not in store.tensors and config.get("zero_point") is False:
        return None
    tensor = find_part(store, key, "qzeros", "I32", 2)
    check_shape(tensor, (groups, words.shape[1]))
    return unpack_nibbles(read_all(tensor).view("<u4")).astype(np.int16)


COMPOSITE = Composite(
    name="AWQ",
    marker="qweight",
    parts=("qweight", "qzeros", "scales"),
    load=load,
    expanded=True,
    padding=8,
    accepts=is_awq,
)
