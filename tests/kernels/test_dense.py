"""Products with dense weights: three types against float64, and rows that depend on themselves alone."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.kernels.gemm import BF16, F16, F32, Dense, Product, check_product
from tests.kernels.library import KernelError, Library

OPERATION = "exl_dense_linear"
Load = Callable[..., Library]
Array = NDArray[Any]


def put(library: Library, dtype: int, shape: tuple[int, int], seed: int = 0) -> tuple[Dense, Array]:
    """A matrix with rows of NaN-padded memory, and its exact values."""
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    values[0, 0] = 1e-6  # bf16 and fp32 hold it, fp16 almost
    stored = values
    if dtype == F16:
        stored = values.astype(np.float16)
    elif dtype == BF16:
        stored = (values.view(np.uint32) >> 16).astype(np.uint16)
    wide = np.full((shape[0], shape[1] + 8), 0x7FC0 if dtype == BF16 else np.nan, stored.dtype)
    wide[:, : shape[1]] = stored
    exact = (stored.astype(np.uint32) << 16).view(np.float32) if dtype == BF16 else stored.astype(np.float64)
    weight = Dense(library.put(wide).pointer, *shape, dtype, shape[1] + 8)
    return weight, exact.astype(np.float64)


def activations(rows: int, cols: int) -> Array:
    return np.random.default_rng(9).standard_normal((rows, cols)).astype(np.float16)


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
@pytest.mark.parametrize("shape", [(1, 8), (37, 72), (133, 1352)])
def test_values_and_bits(load: Load, dtype: int, shape: tuple[int, int]) -> None:
    library = load()
    weight, exact = put(library, dtype, shape)
    x = activations(70, shape[1])
    (together,) = Product([weight]).run(library, OPERATION, x)
    check_product(together, x, exact)
    for first, count in ((0, 1), (5, 9), (10, 17), (3, 64)):
        (part,) = Product([weight]).run(library, OPERATION, x[first : first + count])
        assert np.array_equal(part, together[first : first + count]), (first, count)


def test_types_mix(load: Load) -> None:
    library, cols = load(), 520
    pairs = [put(library, dtype, (n, cols), n) for dtype, n in ((F16, 40), (BF16, 16), (F32, 9), (F16, 3))]
    x = activations(4, cols)
    found = Product([weight for weight, _ in pairs], dtype=F16).run(library, OPERATION, x)
    for values, (_, exact) in zip(found, pairs, strict=True):
        check_product(values, x, exact)


@pytest.mark.parametrize(
    ("field", "value", "status", "argument"),
    [
        ("dtype", 3, "bad_dtype", "projections[0].weight.dtype"),
        ("cols", 60, "bad_shape", "projections[0].weight.cols"),
        ("stride", 56, "bad_shape", "projections[0].weight.stride"),
        ("stride", 68, "misaligned", "projections[0].weight.stride"),
        ("data", None, "bad_argument", "projections[0].weight.data"),
    ],
)
def test_refused_arguments(library: Library, field: str, value: int | None, status: str, argument: str) -> None:
    weight, _ = put(library, F16, (16, 64))
    args: Any = Product([weight]).prepare(library, OPERATION, activations(1, 64))[0]
    setattr(args.projections[0].weight, field, value)
    with pytest.raises(KernelError) as error:
        library.call(OPERATION, ctypes.byref(args))
    assert (error.value.status, error.value.argument) == (status, argument)
