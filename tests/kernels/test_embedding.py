"""Embedding rows and expanded matrices against the engine's own reader."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.kernels.gemm import BF16, F16, F32, Dense
from tests.kernels.library import KernelError, Library
from tests.kernels.weights import GGUF_TYPES, exact_values, pack, raw_rows

Load = Callable[..., Library]


class EmbedArgs(ctypes.Structure):
    """exl_embed_args."""

    _fields_ = (
        ("ids", ctypes.c_void_p),
        ("rows", ctypes.c_int32),
        ("out", ctypes.c_void_p),
        ("out_stride", ctypes.c_int64),
        ("multiplier", ctypes.c_float),
    )


class ExpandArgs(ctypes.Structure):
    """exl_expand_args."""

    _fields_ = (("out", ctypes.c_void_p), ("out_stride", ctypes.c_int64))


def embed(library: Library, operation: str, table: ctypes.Structure, ids: list[int], cols: int) -> Any:
    out = library.empty((len(ids), cols + 4))
    args = EmbedArgs(library.put(np.array(ids, np.int32)).pointer, len(ids), out.pointer, cols + 4, 1.5)
    library.call(operation, ctypes.byref(table), ctypes.byref(args))
    found = library.get(out)
    assert np.isnan(found[:, cols:]).all()
    return found[:, :cols]


@pytest.mark.parametrize("name", GGUF_TYPES)
def test_rows_by_id(load: Load, name: str) -> None:
    library, cols = load(), 512 if name.endswith("_K") else 352
    raw = raw_rows(name, (45, cols))
    ids = [0, 44, 7, 8, 15, 16, -1, 45]
    found = embed(library, "exl_group_affine_embed", pack(library, name, raw, cols), ids, cols)
    # The engine's reader rounds products and sums apart; the kernel rounds once.
    exact = exact_values(name, raw)[ids[:6]]
    np.testing.assert_allclose(found[:6], 1.5 * exact, rtol=2e-6, atol=2e-6 * np.abs(exact).max())
    assert np.isnan(found[6:]).all(), "ids outside the table"


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
def test_dense_rows_by_id(load: Load, dtype: int) -> None:
    library = load()
    values = np.random.default_rng(0).standard_normal((9, 300)).astype(np.float32)
    stored = {F32: values, F16: values.astype(np.float16), BF16: (values.view(np.uint32) >> 16).astype(np.uint16)}[
        dtype
    ]
    exact = (stored.astype(np.uint32) << 16).view(np.float32) if dtype == BF16 else stored.astype(np.float32)
    wide = np.zeros((9, 304), stored.dtype)
    wide[:, :300] = stored
    table = Dense(library.put(wide).pointer, 9, 300, dtype, 304)
    found = embed(library, "exl_dense_embed", table, [8, 0, 3, 9], 300)
    assert np.array_equal(found[:3], np.float32(1.5) * exact[[8, 0, 3]])
    assert np.isnan(found[3]).all()


@pytest.mark.parametrize("name", GGUF_TYPES)
def test_expansion(load: Load, name: str) -> None:
    library, shape = load(), (37, 1280 if name.endswith("_K") else 1120)
    raw = raw_rows(name, shape)
    out = library.empty((shape[0] + 1, shape[1] + 8), np.float16)
    args = ExpandArgs(out.pointer, shape[1] + 8)
    library.call("exl_group_affine_expand", ctypes.byref(pack(library, name, raw, shape[1])), ctypes.byref(args))
    found, exact = library.get(out), exact_values(name, raw)
    assert np.isnan(found[:, shape[1] :]).all()
    assert np.isnan(found[shape[0]]).all()
    # Rounded to fp32, then to fp16; the smallest step of fp16 is 2^-24.
    np.testing.assert_allclose(found[:37, : shape[1]], exact, rtol=2.0**-11 * 1.01, atol=2.0**-24)


@pytest.mark.parametrize(
    ("owner", "field", "value", "status", "argument"),
    [
        ("table", "data", None, "bad_argument", "data"),
        ("table", "bits", 7, "bad_dtype", "bits"),
        ("table", "cols", 40, "bad_shape", "cols"),
        ("table", "rows", 0, "bad_shape", "rows"),
        ("args", "out", None, "bad_argument", "out"),
        ("args", "out", 4, "misaligned", "out"),
        ("args", "out_stride", 66, "misaligned", "out_stride"),
        ("args", "out_stride", 56, "bad_shape", "out_stride"),
    ],
)
def test_refused_arguments(
    library: Library, owner: str, field: str, value: int | None, status: str, argument: str
) -> None:
    out, ids = library.empty((16, 64), np.float16), library.put(np.zeros(1, np.int32))
    for operation, args in (
        ("exl_group_affine_expand", ExpandArgs(out.pointer, 64)),
        ("exl_group_affine_embed", EmbedArgs(ids.pointer, 1, out.pointer, 64, 1.0)),
    ):
        table = pack(library, "Q4_0", raw_rows("Q4_0", (16, 64)), 64)
        setattr(table if owner == "table" else args, field, value)
        with pytest.raises(KernelError) as error:
            library.call(operation, ctypes.byref(table), ctypes.byref(args))
        assert (error.value.status, error.value.argument) == (status, argument)
