"""Products with GroupAffine weights: every GGUF type against float64, and rows that depend on themselves alone."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.kernels.gemm import F16, F32, Product, check_product
from tests.kernels.library import KernelError, Library
from tests.kernels.weights import GGUF_TYPES, exact_values, pack, pointer, raw_rows

OPERATION = "exl_group_affine_linear"
Load = Callable[..., Library]
Array = NDArray[Any]
# Codes are not centred before they are multiplied: a sum of code * x has up to 2^bits / |code - zero| times the terms'
# magnitude. Random codes keep that near 2, and the sums' error bound has room for it.
SLACK = 2.0**-18


def activations(rows: int, cols: int, seed: int = 1) -> Array:
    """Standard normal with a few outliers, as residual streams have them."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((rows, cols))
    x[:, random.integers(0, cols, 2)] *= 30
    return x.astype(np.float16)


def columns(name: str, wanted: int) -> int:
    """A number of columns near `wanted` that the type can have; not a whole number of records for blocks of 32."""
    return wanted if name.endswith("_K") else wanted - 96


@pytest.mark.parametrize("name", GGUF_TYPES)
def test_values_and_bits(load: Load, name: str) -> None:
    """Odd N, several slices, a part of a record: rows in any company have the bits that they have alone."""
    library, shape = load(), (133, columns(name, 1280))
    raw = raw_rows(name, shape)
    weight, exact = pack(library, name, raw, shape[1]), exact_values(name, raw)
    x = activations(70, shape[1])
    (together,) = Product([weight]).run(library, OPERATION, x)
    check_product(together, x, exact, slack=SLACK)
    for first, count in ((0, 1), (3, 2), (5, 9), (10, 17), (20, 33), (3, 64)):
        (part,) = Product([weight]).run(library, OPERATION, x[first : first + count])
        assert np.array_equal(part, together[first : first + count]), (first, count)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_K", "Q2_K"])
def test_one_block_takes_all_slices_or_one(load: Load, name: str) -> None:
    """So many rows that slices are folded by one block, against few rows whose slices meet in the workspace."""
    library, shape = load(), (16, columns(name, 1536))
    raw = raw_rows(name, shape)
    weight = pack(library, name, raw, shape[1])
    x = activations(8, shape[1])
    wide = np.tile(x, (1025, 1))  # 129 blocks of tokens
    (few,) = Product([weight]).run(library, OPERATION, x)
    (many,) = Product([weight]).run(library, OPERATION, wide)
    assert np.array_equal(many, np.tile(few, (1025, 1)))


@pytest.mark.parametrize("dtype", [F32, F16])
@pytest.mark.parametrize(("rows", "n"), [(1, 16), (1, 1), (5, 129), (12, 40), (40, 300)])
def test_shapes_and_types_of_output(load: Load, dtype: int, rows: int, n: int) -> None:
    library, cols = load(), 32 * 21
    raw = raw_rows("Q4_0", (n, cols))
    bias = np.random.default_rng(2).standard_normal(n).astype(np.float32)
    x = activations(rows, cols)
    (found,) = Product([pack(library, "Q4_0", raw, cols)], [bias], dtype=dtype).run(library, OPERATION, x)
    check_product(found, x, exact_values("Q4_0", raw), bias, SLACK)


def test_projections_share_a_launch(load: Load) -> None:
    """Queries, keys and values of different heights and formats, with and without bias, one added to a residual."""
    library, cols, random = load(), 1024, np.random.default_rng(3)
    names, heights = ("Q4_K", "Q4_K", "Q6_K", "Q8_0"), (200, 64, 72, 16)
    raws = [raw_rows(name, (n, cols), i) for i, (name, n) in enumerate(zip(names, heights, strict=True))]
    weights = [pack(library, name, raw, cols) for name, raw in zip(names, raws, strict=True)]
    x = activations(3, cols)
    biases = [random.standard_normal(200).astype(np.float32), None, None, None]
    added = [None, None, random.standard_normal((3, 72)).astype(np.float32), None]
    found = Product(weights, biases, added).run(library, OPERATION, x)
    for i, values in enumerate(found):
        extra = biases[i] if biases[i] is not None else 0.0
        extra = added[i] if added[i] is not None else extra
        check_product(values, x, exact_values(names[i], raws[i]), extra, SLACK)
        alone = Product([weights[i]], [biases[i]], [added[i]]).run(library, OPERATION, x)
        assert np.array_equal(values, alone[0]), "the company of other projections changed the bits"


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu"])
@pytest.mark.parametrize("rows", [1, 20])
def test_gate_and_up(load: Load, activation: str, rows: int) -> None:
    library, cols, n = load(), 768, 150
    raws = [raw_rows("Q4_K", (n, cols), seed) for seed in (4, 5)]
    biases = [np.linspace(-1, 1, n, dtype=np.float32), np.linspace(1, 2, n, dtype=np.float32)]
    weights = [pack(library, "Q4_K", raw, cols) for raw in raws]
    x = activations(rows, cols) * np.float16(0.01)
    (found,) = Product(weights, biases, activation=activation).run(library, OPERATION, x)
    gate, up = (
        x.astype(np.float64) @ exact_values("Q4_K", raw).T + bias for raw, bias in zip(raws, biases, strict=True)
    )
    wanted = activate(activation, gate) * up
    # Both factors are within 2^-17 of their terms' magnitude; slopes of the activations are below 1.2.
    scale = [np.abs(x.astype(np.float64)) @ np.abs(exact_values("Q4_K", raw)).T + 2 for raw in raws]
    bound = 2.0**-16 * (scale[0] * np.abs(up) + np.abs(gate) * scale[1] + 1)
    assert (np.abs(found - wanted) <= bound).all()


def activate(kind: str, x: Array) -> Array:
    """The activations as their papers have them, in float64."""
    if kind == "silu":
        return x / (1 + np.exp(-x))
    if kind == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    from math import erf

    return 0.5 * x * (1 + np.vectorize(erf)(x / np.sqrt(2)))


@pytest.mark.parametrize("name", GGUF_TYPES)
def test_tiles_take_what_the_file_takes(library: Library, name: str) -> None:
    raw = raw_rows(name, (32, 512))
    weight, tile_bytes, row_bytes = pack(library, name, raw, 512), ctypes.c_int64(), ctypes.c_int64()
    kind = ctypes.c_char_p(name.encode())
    out = ctypes.byref(weight), ctypes.byref(tile_bytes), ctypes.byref(row_bytes)
    library.check("exl_group_affine_describe", kind, 32, 512, *out)
    assert 2 * tile_bytes.value == raw.nbytes
    assert np.array_equal(exact_values(name, raw), gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name]))


def refused(library: Library, change: Callable[[Any], None]) -> tuple[str, str]:
    """Status and argument of a call that `change` spoils, which must launch nothing."""
    raw = raw_rows("Q4_0", (16, 1024))
    weight = pack(library, "Q4_0", raw, 1024)
    args, outputs = Product([weight, weight]).prepare(library, OPERATION, activations(2, 1024))
    change(args)
    with pytest.raises(KernelError) as error:
        library.call(OPERATION, ctypes.byref(args))
    assert all(np.isnan(library.get(output)).all() for output in outputs)
    return error.value.status, error.value.argument


def set_field(path: str, value: Any) -> Callable[[Any], None]:
    def change(args: Any) -> None:
        *owners, name = path.split(".")
        for owner in owners:
            args = args.projections[1] if owner == "second" else getattr(args, owner)
        setattr(args, name, value(getattr(args, name)) if callable(value) else value)

    return change


@pytest.mark.parametrize(
    ("path", "value", "status", "argument"),
    [
        ("x", None, "bad_argument", "x"),
        ("x", lambda x: x + 2, "misaligned", "x"),
        ("x_stride", 1028, "misaligned", "x_stride"),
        ("x_stride", 1016, "bad_shape", "x_stride"),
        ("rows", 0, "bad_shape", "rows"),
        ("num_projections", 5, "bad_argument", "num_projections"),
        ("num_projections", 0, "bad_argument", "num_projections"),
        ("activation", 9, "bad_argument", "activation"),
        ("second.weight.data", None, "bad_argument", "projections[1].weight.data"),
        ("second.weight.data", lambda data: data + 8, "misaligned", "projections[1].weight.data"),
        ("second.weight.rows", -1, "bad_shape", "projections[1].weight.rows"),
        ("second.weight.cols", 992, "bad_shape", "projections[1].weight.cols"),
        ("second.weight.bits", 7, "bad_dtype", "projections[1].weight.bits"),
        ("second.weight.scheme", 9, "bad_dtype", "projections[1].weight.bits"),
        ("second.output.out", None, "bad_argument", "projections[1].output.out"),
        ("second.output.out", lambda out: out + 4, "misaligned", "projections[1].output.out"),
        ("second.output.stride", 15, "bad_shape", "projections[1].output.stride"),
        ("second.output.dtype", 2, "bad_dtype", "projections[1].output.dtype"),
        ("second.output.add", 2, "bad_argument", "projections[1].output.add"),
        ("second.output.bias", 6, "misaligned", "projections[1].output.bias"),
        ("workspace.partials", None, "bad_argument", "workspace.partials"),
        ("workspace.partial_bytes", lambda size: size - 1, "bad_argument", "workspace.partial_bytes"),
        ("workspace.tickets", None, "bad_argument", "workspace.tickets"),
        ("workspace.num_tickets", lambda count: count - 1, "bad_argument", "workspace.num_tickets"),
    ],
)
def test_refused_arguments(library: Library, path: str, value: Any, status: str, argument: str) -> None:
    assert refused(library, set_field(path, value)) == (status, argument)


def test_refused_pairs(library: Library) -> None:
    """With an activation: two matrices of one shape and format, and no residual."""
    gated = set_field("activation", 1)

    def both(*changes: Callable[[Any], None]) -> tuple[str, str]:
        return refused(library, lambda args: [change(args) for change in (gated, *changes)] and None)

    assert both(set_field("num_projections", 1)) == ("bad_argument", "num_projections")
    assert both(set_field("second.weight.rows", 8)) == ("bad_shape", "projections[1].weight.rows")
    assert both(set_field("second.weight.bits", 5)) == ("bad_dtype", "projections[1].weight.bits")


def test_refused_rows_to_pack(library: Library) -> None:
    raw = raw_rows("Q4_0", (1, 64))
    kind, out = ctypes.c_char_p(b"Q4_0"), np.zeros(4096, np.uint8)
    for arguments, status, argument in (
        ((ctypes.c_char_p(b"IQ4_NL"), 64, pointer(raw), 1, pointer(out)), "bad_dtype", "type"),
        ((kind, 40, pointer(raw), 1, pointer(out)), "bad_shape", "cols"),
        ((kind, 64, None, 1, pointer(out)), "bad_argument", "rows"),
        ((kind, 64, pointer(raw), 0, pointer(out)), "bad_shape", "count"),
        ((kind, 64, pointer(raw), 1, None), "bad_argument", "tiles"),
    ):
        with pytest.raises(KernelError) as error:
            library.check("exl_group_affine_pack", *arguments)
        assert (error.value.status, error.value.argument) == (status, argument)
