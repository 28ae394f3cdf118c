"""Weights and vectors out of an open checkpoint, a few megabytes at a time."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from weakref import WeakKeyDictionary

import numpy as np
import torch

from exllama import ops
from exllama.errors import FormatError
from exllama.formats.composite import Expand
from exllama.formats.format import Format
from exllama.formats.registry import find_composite, find_format
from exllama.formats.stored import Bytes, Floats, StoredTensor, TensorStore

logger = logging.getLogger("exllama")

STAGING = 8 << 20  # bytes, of raw rows and of their values, that exist beside the packed weight
_ROWS = 16  # the packers take rows in tiles of this height
_MAX_VECTOR = 1 << 24
_HALF_MAX = 65504.0
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_SCALES = (".weight_scale_inv", ".weight_scale")

_warned: WeakKeyDictionary[TensorStore, set[str]] = WeakKeyDictionary()


def load_weight(
    checkpoint: TensorStore, key: str, shape: tuple[int, int], device: str, expand: Expand | None = None
) -> ops.Weight:
    """The matrix `key`, (out_features, in_features), packed for a device: `key.weight`, or the parts of a composite.

    An F8 matrix is read with its `weight_scale_inv` or `weight_scale`. expand: "float32" holds the exact values
    instead, for evaluation. A type that no kernel reads is expanded with a warning. Raises FormatError for a tensor
    that is missing or of another shape, UnsupportedModelError for an unknown type.
    """
    composite = find_composite(checkpoint.tensors, key)
    if composite is not None:
        if f"{key}.weight" in checkpoint.tensors:
            found = f"{key}.{composite.marker} and {key}.weight"
            raise FormatError(checkpoint.path, key, found, "one of them, a matrix is stored once")
        return composite.load(checkpoint, key, shape, device, expand)
    tensor = _find(checkpoint, f"{key}.weight")
    if tensor.shape != shape:
        raise FormatError(tensor.file, f"shape of {tensor.name}", tensor.shape, shape)
    form, scale = find_format(tensor.type), _block_scale(checkpoint, key, tensor)
    if expand:
        return _pack_values(tensor, form, scale, expand, device)
    if form.expanded:
        _warn_expanded(checkpoint, form)
        return _pack_values(tensor, form, scale, form.held, device)
    pack = ops.pack_blocks if form.family == "GroupAffine" else ops.pack_dense
    packer = pack(form.held, shape, device)
    for start, raw in _chunks(tensor, tensor.nbytes // shape[0]):
        packer.add_rows(start, raw)
    return packer.finish()


def load_vector(checkpoint: TensorStore, name: str, size: int) -> torch.Tensor:
    """A bias or norm, (size,) float32; the bias of a matrix with padded features may be as long as these."""
    tensor = _find(checkpoint, name)
    composite = find_composite(checkpoint.tensors, name.removesuffix(".bias"))
    if tensor.shape not in {(size,), (composite.padded(size) if composite else size,)}:
        raise FormatError(tensor.file, f"shape of {name}", tensor.shape, (size,))
    return _values(tensor)[:size]


def _values(tensor: StoredTensor) -> torch.Tensor:
    """All values of a small tensor, (n,) float32."""
    count = math.prod(tensor.shape)
    if count > _MAX_VECTOR:
        raise FormatError(tensor.file, f"shape of {tensor.name}", tensor.shape, f"at most {_MAX_VECTOR} elements")
    rows = count // tensor.shape[-1] if len(tensor.shape) > 1 else 1
    values = find_format(tensor.type).dequantize(tensor.read_rows(0, rows))
    return torch.from_numpy(values.reshape(-1).astype(np.float32, copy=True))


def _find(checkpoint: TensorStore, name: str) -> StoredTensor:
    if name not in checkpoint.tensors:
        raise FormatError(checkpoint.path, name, "no such tensor", "one of this name")
    return checkpoint.tensors[name]


def _chunks(tensor: StoredTensor, row_cost: int) -> Iterator[tuple[int, Bytes]]:
    """Raw rows in order, as many at a time as cost STAGING bytes."""
    step = max(_ROWS, STAGING // max(1, row_cost) // _ROWS * _ROWS)
    for start in range(0, tensor.shape[0], step):
        yield start, tensor.read_rows(start, min(start + step, tensor.shape[0]))


def _pack_values(tensor: StoredTensor, form: Format, scale: Floats | None, dtype: str, device: str) -> ops.Weight:
    rows, columns = tensor.shape
    packer = ops.pack_dense(dtype, (rows, columns), device)
    for start, raw in _chunks(tensor, 8 * columns):
        values = form.dequantize(raw)
        if scale is not None:
            values = values * _expand_scale(scale, start, start + len(values), tensor.shape)
        packer.add_rows(start, _encode(values, dtype, tensor))
    return packer.finish()


def _encode(values: Floats, dtype: str, tensor: StoredTensor) -> Bytes:
    if dtype == "float32":
        return np.ascontiguousarray(values, np.float32).view(np.uint8)
    if dtype == "float16":
        largest = float(np.abs(values).max(initial=0.0))
        if not largest <= _HALF_MAX:
            raise FormatError(tensor.file, tensor.name, f"a value of {largest:g}", f"finite values up to {_HALF_MAX:g}")
        return values.astype("<f2").view(np.uint8)
    return torch.from_numpy(values).to(torch.bfloat16).view(torch.uint8).numpy()


def _block_scale(checkpoint: TensorStore, key: str, tensor: StoredTensor) -> Floats | None:
    """The scale of an 8-bit matrix, (row blocks, column blocks); None when it has none of its own."""
    name = next((key + suffix for suffix in _SCALES if key + suffix in checkpoint.tensors), None)
    if name is None or not tensor.type.startswith("F8"):
        return None
    stored = checkpoint.tensors[name]
    scale = _values(stored).numpy()
    blocks = (stored.shape[0] if stored.shape else 1, stored.shape[1] if len(stored.shape) > 1 else 1)
    if len(stored.shape) > 2 or any(count > size for count, size in zip(blocks, tensor.shape, strict=True)):
        raise FormatError(stored.file, f"shape of {name}", stored.shape, f"a grid over {tensor.shape}")
    if not np.isfinite(scale).all():
        raise FormatError(stored.file, name, "a scale that is not finite", "finite scales")
    return scale.reshape(blocks)


def _expand_scale(scale: Floats, start: int, stop: int, shape: tuple[int, ...]) -> Floats:
    """The scales of rows start .. stop - 1, element by element. The sides of blocks are powers of two.

    So the number of blocks along a side tells how long they are.
    """
    sides = [1 << (-(-size // count) - 1).bit_length() for size, count in zip(shape, scale.shape, strict=True)]
    rows = scale[np.arange(start, stop) // sides[0]]
    return np.repeat(rows, sides[1], axis=1)[:, : shape[1]]


def _warn_expanded(checkpoint: TensorStore, form: Format) -> None:
    """Says once for each file and type what the expansion costs."""
    types = _warned.setdefault(checkpoint, set())
    if form.name in types:
        return
    types.add(form.name)
    tensors = [tensor for tensor in checkpoint.tensors.values() if tensor.type == form.name]
    before = sum(tensor.nbytes for tensor in tensors)
    after = sum(math.prod(tensor.shape) for tensor in tensors) * _BYTES[form.held]
    logger.warning(
        "no kernel reads %s: %d tensors are expanded to %s, and %.1f MiB become %.1f MiB, which costs memory and speed",
        form.name, len(tensors), form.held, before / 2**20, after / 2**20,
    )  # fmt: skip
