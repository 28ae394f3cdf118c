"""What EXL2, GPTQ and AWQ have in common: integer codes, and a scale for each group along K and each output.

A reader checks the tensors of a file and describes the matrix as a `GroupMatrix`; here it becomes a weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exllama.errors import FormatError
from exllama.formats.composite import Expand
from exllama.formats.expansion import expand_rows, warn_no_kernel
from exllama.formats.stored import Bytes, Floats, StoredTensor, TensorStore
from exllama.ops import Weight

_TYPES = {"I16": "<i2", "I32": "<i4", "F16": "<f2", "F32": "<f4"}


@dataclass(frozen=True)
class GroupMatrix:
    """(N, K) weights: (code - zero) * scale. Columns are as stored: group after group.

    name: of the format. shape: (N, K). bits, sizes: (G,) of each group: width of its codes, columns. order: (K,) the
    input feature of each column. scales: (G, N) float. zeros: (G, N) whole numbers up to 256; None: 2 ** (bits - 1).
    codes(start, stop): of outputs start .. stop - 1, (K, stop - start) uint8. rounded: a value is rounded to fp16.
    """

    name: str
    shape: tuple[int, int]
    bits: NDArray[np.int64]
    sizes: NDArray[np.int64]
    order: NDArray[np.int64]
    scales: NDArray[Any]
    zeros: NDArray[np.int16] | None
    codes: Callable[[int, int], Bytes]
    rounded: bool = False

    def dequantize(self, start: int, stop: int) -> Floats:
        """Exact values of rows start .. stop - 1, (stop - start, K) float32, features in their own order."""
        group = np.repeat(np.arange(len(self.sizes)), self.sizes)
        zeros = (1 << (self.bits[:, None] - 1)) if self.zeros is None else self.zeros[:, start:stop]
        steps = self.codes(start, stop).astype(np.float32) - zeros.astype(np.float32)[group]
        values = steps * self.scales[:, start:stop].astype(np.float32)[group]
        if self.rounded:
            values = values.astype(np.float16).astype(np.float32)
        result = np.empty((stop - start, self.shape[1]), np.float32)
        result[:, self.order] = values.T
        return result


def load_matrix(matrix: GroupMatrix, store: TensorStore, device: str, expand: Expand | None) -> Weight:
    """The matrix on a device, by its exact values; no kernel reads codes in such groups yet."""
    if not expand and device != "reference":
        warn_no_kernel(store, matrix.name, device, 32)
    return expand_rows(matrix.shape, device, matrix.dequantize, "float32")


def unpack_codes(words: NDArray[np.uint32], bits: int) -> Bytes:
    """Streams of codes, least significant bit first, one down each column: (R, n) -> (R * 32 / bits, n) uint8."""
    unit = bits // gcd(bits, 32)  # words after which a code begins with a word again
    units = words.reshape(-1, unit, words.shape[1])
    codes = np.empty((len(units), 32 * unit // bits, words.shape[1]), np.uint8)
    for i in range(codes.shape[1]):
        word, shift = divmod(i * bits, 32)
        value = units[:, word] >> np.uint32(shift)
        if shift + bits > 32:
            value |= units[:, word + 1] << np.uint32(32 - shift)
        codes[:, i] = value & np.uint32((1 << bits) - 1)
    return codes.reshape(-1, words.shape[1])


def find_part(store: TensorStore, key: str, part: str, types: str, dimensions: int) -> StoredTensor:
    """A tensor of a matrix, of one of the types ("F16 F32") and so many dimensions, none of them empty."""
    name = f"{key}.{part}"
    if name not in store.tensors:
        raise FormatError(store.path, name, "no such tensor", "one, as the other parts of the matrix are there")
    tensor = store.tensors[name]
    if tensor.type not in types.split():
        raise FormatError(tensor.file, f"dtype of {name}", tensor.type, types.replace(" ", " or "))
    if len(tensor.shape) != dimensions or 0 in tensor.shape:
        raise FormatError(tensor.file, f"shape of {name}", tensor.shape, f"{dimensions} dimensions, none of them 0")
    return tensor


def check_shape(tensor: StoredTensor, shape: tuple[int, ...]) -> None:
    """Raises FormatError when a tensor has another shape."""
    if tensor.shape != shape:
        raise FormatError(tensor.file, f"shape of {tensor.name}", tensor.shape, shape)


def read_all(tensor: StoredTensor) -> NDArray[Any]:
    """The whole tensor, shaped; bf16 as float32."""
    rows = int(np.prod(tensor.shape[:-1]))
    raw = tensor.read_rows(0, rows)
    values: NDArray[Any]
    if tensor.type == "BF16":
        values = (raw.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        values = raw.view(_TYPES[tensor.type])
    return values.reshape(tensor.shape)


def read_scales(tensor: StoredTensor) -> NDArray[Any]:
    """read_all, and every number is finite. Raises FormatError."""
    values = read_all(tensor)
    if not np.isfinite(values).all():
        raise FormatError(tensor.file, tensor.name, "a scale that is not finite", "finite scales")
    return values
