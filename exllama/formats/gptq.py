"""GPTQ: codes of 2, 3, 4 or 8 bits; scales and zero points for groups along K, whose rows act-order scatters.

    key.qweight  int32 (K * bits / 32, N)   codes, a stream down each column, lowest bit first
    key.qzeros   int32 (G, N * bits / 32)   zero points, a stream along each row; version 1 stores them less one
    key.scales   fp16, bf16 or fp32 (G, N)
    key.g_idx    int32 (K,)                 group of each input feature; absent or all zero: one after the other

A weight is (code - zero) * scale, exactly. Bits follow from the shapes. The version follows from zero points that are
all the middle of their range, as symmetric files have them, else from the configuration: files exist that lie.
Format: AutoGPTQ, GPTQModel; docs/formats/gptq.md.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

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

logger = logging.getLogger("exllama")
_warned: WeakSet[TensorStore] = WeakSet()

WIDTHS = (2, 3, 4, 8)
VERSIONS = {"gptq": 1, "gptq_v2": 2}  # checkpoint_format


def quantization(store: TensorStore) -> Mapping[str, Any]:
    """The section of the configuration; empty if there is none."""
    section = store.config.get("quantization_config")
    return section if isinstance(section, dict) else {}


def read_matrix(store: TensorStore, key: str, shape: tuple[int, int]) -> GroupMatrix:
    """Finds and checks the tensors of a matrix (out_features, in_features). Raises FormatError naming the tensor."""
    config = quantization(store)
    outputs, features = shape
    words = find_part(store, key, "qweight", "I32", 2)
    bits = _bits(words, shape, config)
    scales = find_part(store, key, "scales", "F16 BF16 F32", 2)
    groups = scales.shape[0]
    check_shape(scales, (groups, outputs))
    packed_zeros = find_part(store, key, "qzeros", "I32", 2)
    check_shape(packed_zeros, (groups, outputs * bits // 32))
    stored_zeros = unpack_codes(np.ascontiguousarray(read_all(packed_zeros).view("<u4").T), bits).T.astype(np.int16)
    zeros = stored_zeros + (_version(store, stored_zeros, bits) == 1)
    order, sizes = _order(store, key, features, groups, config)
    stored: NDArray[np.uint32] = read_all(words).view("<u4")

    def unpack(start: int, stop: int) -> Bytes:
        return unpack_codes(stored[:, start:stop], bits)[order]

    middle = (zeros == 1 << (bits - 1)).all()
    widths = np.full(groups, bits)[sizes > 0]
    values = read_scales(scales)[sizes > 0]
    zeros = zeros[sizes > 0].astype(np.int16)
    return GroupMatrix("GPTQ", shape, widths, sizes[sizes > 0], order, values, None if middle else zeros, unpack)


def load(store: TensorStore, key: str, shape: tuple[int, int], device: str, expand: Expand | None) -> Weight:
    """See Composite."""
    return load_matrix(read_matrix(store, key, shape), store, device, expand)


def _bits(words: StoredTensor, shape: tuple[int, int], config: Mapping[str, Any]) -> int:
    outputs, features = shape
    found = [bits for bits in WIDTHS if words.shape == (features * bits // 32, outputs) and features * bits % 32 == 0]
    if not found or outputs * found[0] % 32:
        expected = f"(K * bits / 32, N) for K {features}, N {outputs} and 2, 3, 4 or 8 bits, all whole words"
        raise FormatError(words.file, f"shape of {words.name}", words.shape, expected)
    stated = config.get("bits", found[0])
    if stated != found[0] and not config.get("dynamic"):  # overrides for single modules
        expected = f"{stated}, as the configuration says"
        raise FormatError(words.file, f"shape of {words.name}", f"{words.shape}: {found[0]} bits", expected)
    return found[0]


def _version(store: TensorStore, zeros: NDArray[np.int16], bits: int) -> int:
    """1: what is stored is the zero point less one; 2: it is the zero point."""
    config = quantization(store)
    name = config.get("checkpoint_format", "gptq")
    if config.get("is_marlin_format") or name not in VERSIONS:
        found = "marlin" if config.get("is_marlin_format") else name
        raise FormatError(store.path, "checkpoint_format", found, " or ".join(VERSIONS), "Other layouts are not read")
    stated, middle = VERSIONS[name], 1 << (bits - 1)
    detected = 1 if (zeros == middle - 1).all() else 2 if (zeros == middle).all() else stated
    if config.get("sym") is False:
        detected = stated
    if store not in _warned and detected != stated:
        _warned.add(store)
        logger.warning("%s: zero points are those of version %d, not %d as it says", store.path, detected, stated)
    if store not in _warned and detected == 1 and (zeros == 2 * middle - 1).any():
        _warned.add(store)
        logger.warning("%s: version 1 cannot store the zero point 0; it is read as %d", store.path, 2 * middle)
    return detected


def _order(
    store: TensorStore, key: str, features: int, groups: int, config: Mapping[str, Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Input features sorted by group, and how many each group has."""
    if f"{key}.g_idx" in store.tensors:
        tensor = find_part(store, key, "g_idx", "I32", 1)
        check_shape(tensor, (features,))
        group = read_all(tensor).astype(np.int64)
        if group.min() < 0 or group.max() >= groups:
            found = f"groups {group.min()} to {group.max()}"
            raise FormatError(tensor.file, tensor.name, found, f"0 to {groups - 1}, which have scales")
        if group.any():
            return np.argsort(group, kind="stable"), np.bincount(group, minlength=groups)
    size = group_size(store, key, features, groups, config.get("group_size"))
    return np.arange(features), np.bincount(np.arange(features) // size, minlength=groups)


def group_size(store: TensorStore, key: str, features: int, groups: int, stated: Any) -> int:
    """Features of a group, from the configuration (-1: all), else the smallest power of two. Raises FormatError."""
    size = stated
    if size is None:
        size = 1 << (-(-features // groups) - 1).bit_length()
    elif size == -1:
        size = features
    if not isinstance(size, int) or isinstance(size, bool) or size < 1 or -(-features // size) != groups:
        tensor = store.tensors[f"{key}.scales"]
        expected = f"ceil({features} / group_size), where the group size is {stated or size}"
        raise FormatError(tensor.file, f"shape of {tensor.name}", f"{groups} groups", expected)
    return size


COMPOSITE = Composite(
    name="GPTQ", marker="qweight", parts=("qweight", "qzeros", "scales", "g_idx"), load=load, expanded=True
)
