"""Products with Trellis weights and their rotations against the plain decoder of EXL3."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from exllama import reference
from exllama.formats.trellis import RATES2, decode_tiles, dequantize, rotate_columns
from tests.kernels import abi
from tests.kernels.gemm import F16, F32, Output, Workspace, workspace_for
from tests.kernels.library import DeviceArray, KernelError, Library

OPERATION = "exl_trellis_linear"
CODEBOOKS = {"3inst": 0, "mcg": 1, "mul1": 2}
FORMATS = [(book, rate2) for book in CODEBOOKS for rate2 in RATES2 if book == "mul1" or rate2 % 2 == 0]
Load = Callable[..., Library]
Array = NDArray[Any]


class Trellis(ctypes.Structure):
    """exl_trellis."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("svh", ctypes.c_void_p),
        ("rows", ctypes.c_int32),
        ("cols", ctypes.c_int32),
        ("rate2", ctypes.c_int32),
        ("codebook", ctypes.c_int32),
    )


class Projection(ctypes.Structure):
    """exl_trellis_projection."""

    _fields_ = (("weight", Trellis), ("output", Output))


class Args(ctypes.Structure):
    """exl_trellis_linear_args."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("x_stride", ctypes.c_int64),
        ("x_step", ctypes.c_int64),
        ("rows", ctypes.c_int32),
        ("num_projections", ctypes.c_int32),
        ("projections", Projection * 4),
        ("workspace", Workspace),
    )


class Hadamard(abi.Struct):
    """exl_hadamard_args."""

    _fields_ = (
        ("x", abi.pointer), ("x_stride", abi.int64), ("rows", abi.int32), ("cols", abi.int32),
        ("num_outputs", abi.int32), ("suh", abi.pointer * 4), ("out", abi.pointer), ("out_stride", abi.int64),
        ("out_step", abi.int64),
    )  # fmt: skip


class ExpandArgs(ctypes.Structure):
    """exl_expand_args."""

    _fields_ = (("out", ctypes.c_void_p), ("out_stride", ctypes.c_int64))


def padded(size: int) -> int:
    return -(-size // 128) * 128


@dataclass
class Matrix:
    """A random matrix as in a file, (N, K): tiles (K/16, N/16, 8 * rate2); every stream is legal."""

    shape: tuple[int, int]
    book: str = "mul1"
    rate2: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        random, (rows, cols) = np.random.default_rng(self.seed), map(padded, self.shape)
        words = (cols // 16, rows // 16, 8 * self.rate2)
        self.tiles = random.integers(-(1 << 15), 1 << 15, words).astype(np.int16)
        self.suh, self.svh = (random.uniform(0.5, 1.5, size).astype(np.float16) for size in (cols, rows))
        self.suh *= random.choice([-1, 1], cols).astype(np.float16)
        self.svh[self.shape[0] :] = 0

    def put(self, library: Library) -> Trellis:
        svh = library.put(self.svh).pointer
        return Trellis(library.put(self.tiles).pointer, svh, *self.shape, self.rate2, CODEBOOKS[self.book])

    def rotated(self) -> Array:
        """What a product of rotated activations multiplies by, (N, padded K) float64."""
        scaled = decode_tiles(self.tiles, self.book).astype(np.float64)  # type: ignore[arg-type]
        return (rotate_columns(scaled) * self.svh)[:, : self.shape[0]].T

    def dense(self) -> Array:
        """(N, K) float64."""
        whole = dequantize(self.tiles, self.suh.astype(np.float64), self.svh.astype(np.float64), self.book)  # type: ignore[arg-type]
        return whole[: self.shape[0], : self.shape[1]]


@dataclass
class Product:
    """Matrices with one K, and for each its bias and what its output is added to."""

    matrices: Sequence[Matrix]
    biases: Sequence[Array | None] = ()
    added: Sequence[Array | None] = ()
    dtype: int = F32

    def run(self, library: Library, inputs: Array) -> list[Array]:
        """inputs: (projections, rows, padded K) fp16, rotated. Outputs (rows, N)."""
        args, outputs = self.prepare(library, inputs)
        library.call(OPERATION, ctypes.byref(args))
        found = [library.get(output) for output in outputs]
        for values, matrix in zip(found, self.matrices, strict=True):
            assert np.isnan(values[:, matrix.shape[0] :]).all(), "written behind the end of a row"
        return [values[:, : matrix.shape[0]] for values, matrix in zip(found, self.matrices, strict=True)]

    def prepare(self, library: Library, inputs: Array) -> tuple[Args, list[DeviceArray]]:
        _, rows, cols = inputs.shape
        args, outputs = Args(library.put(inputs).pointer, cols, rows * cols, rows, len(self.matrices)), []
        for i, matrix in enumerate(self.matrices):
            width = matrix.shape[0]
            out = np.full((rows, width + 3), np.nan, np.float32 if self.dtype == F32 else np.float16)
            added, bias = dict(enumerate(self.added)).get(i), dict(enumerate(self.biases)).get(i)
            if added is not None:
                out[:, :width] = added
            outputs.append(library.put(out))
            bias_at = library.put(bias).pointer if bias is not None else None
            output = Output(outputs[-1].pointer, width + 3, self.dtype, int(added is not None), bias_at)
            args.projections[i] = Projection(matrix.put(library), output)
        args.workspace = workspace_for(library, OPERATION, args)
        return args, outputs


def activations(*shape: int, seed: int = 3) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16)


def check(found: Array, x: Array, matrix: Matrix, extra: Array | float = 0.0) -> None:
    """Against float64. A rotated output sums 128 columns: their errors meet in it."""
    exact = x.astype(np.float64) @ matrix.rotated().T + extra
    terms = np.linalg.norm(x.astype(np.float64), axis=1)[:, None] * 2.0  # weights are of size 1, svh up to 1.5
    bound = 2.0**-15 * terms + 2.0**-20 * np.abs(extra)
    if found.dtype == np.float16:
        bound = bound + 2.0**-11 * np.abs(exact) + 2.0**-24
    assert np.isfinite(found).all()
    assert (np.abs(found.astype(np.float64) - exact) <= bound).all(), np.max(np.abs(found - exact) / bound)


@pytest.mark.parametrize(("book", "rate2"), FORMATS)
def test_values_and_bits(load: Load, book: str, rate2: int) -> None:
    library, matrix = load(), Matrix((150, 600), book, rate2)
    x = activations(1, 37, 640)
    (together,) = Product([matrix]).run(library, x)
    check(together, x[0], matrix)
    for first, count in ((0, 1), (3, 9), (30, 7)):
        (part,) = Product([matrix]).run(library, x[:, first : first + count])
        assert np.array_equal(part, together[first : first + count]), (first, count)


def test_formats_biases_and_residuals_mix(load: Load) -> None:
    """Each projection has its own input; the bits of each are those of it alone."""
    library, random = load(), np.random.default_rng(4)
    kinds = [("mul1", 8, 300), ("mcg", 6, 128), ("mul1", 8, 17), ("mul1", 3, 129)]
    matrices = [Matrix((rows, 256), book, rate2, seed) for seed, (book, rate2, rows) in enumerate(kinds)]
    x = activations(4, 5, 256)
    biases = [
        random.standard_normal(rows).astype(np.float32) if i % 2 else None for i, (_, _, rows) in enumerate(kinds)
    ]
    added = [
        random.standard_normal((5, rows)).astype(np.float32) if i > 1 else None for i, (_, _, rows) in enumerate(kinds)
    ]
    found = Product(matrices, biases, added).run(library, x)
    for i, matrix in enumerate(matrices):
        extra = sum((part for part in (biases[i], added[i]) if part is not None), np.zeros(1))
        check(found[i], x[i], matrix, extra)
        alone = Product([matrix], [biases[i]], [added[i]]).run(library, x[i : i + 1])
        assert np.array_equal(alone[0], found[i])
    for values, matrix, part in zip(Product(matrices, dtype=F16).run(library, x), matrices, x, strict=True):
        check(values, part, matrix)


@pytest.mark.parametrize(("book", "rate2"), FORMATS)
def test_expansion_is_exact(library: Library, book: str, rate2: int) -> None:
    matrix = Matrix((200, 100), book, rate2, 1)
    out = library.empty((256, 136), np.float16)
    library.call("exl_trellis_expand", ctypes.byref(matrix.put(library)), ctypes.byref(ExpandArgs(out.pointer, 136)))
    found = library.get(out)
    assert np.array_equal(found[:, :128], decode_tiles(matrix.tiles, book).T)  # type: ignore[arg-type]
    assert np.isnan(found[:, 128:]).all()


def rotate(library: Library, x: Array, scales: Sequence[Array]) -> Array:
    """exl_hadamard of x (rows, K) for several suh (padded K): (len(scales), rows, padded K)."""
    (rows, cols), width = x.shape, len(scales[0])
    out = library.empty((len(scales), rows, width), np.float16)
    pointers = (abi.pointer * 4)(*(library.put(suh).pointer for suh in scales))
    arguments = Hadamard(
        x=library.put(x), x_stride=cols, rows=rows, cols=cols, num_outputs=len(scales), suh=pointers, out=out,
        out_stride=width, out_step=rows * width,
    )  # fmt: skip
    abi.launch(library, "exl_hadamard", arguments)
    return library.get(out)


@pytest.mark.parametrize("cols", [1, 127, 200, 640])
def test_rotated_inputs(load: Load, cols: int) -> None:
    library, x = load(), activations(3, cols)
    scales = [activations(padded(cols), seed=seed) for seed in range(4)]
    found = rotate(library, x, scales)
    wide = np.zeros((3, padded(cols)))
    wide[:, :cols] = x
    for values, suh in zip(found, scales, strict=True):
        exact = rotate_columns(wide * suh.astype(np.float64))
        assert (np.abs(values - exact) <= 2.0**-11 * np.abs(exact) + 2.0**-20).all()


@pytest.mark.parametrize("width", [4, 132, 1028])
def test_rotated_norms(load: Load, width: int) -> None:
    library, random = load(), np.random.default_rng(width)
    x = random.standard_normal((3, width)).astype(np.float32)
    weight = random.uniform(0.5, 1.5, width).astype(np.float32)
    scales = [activations(padded(width), seed=seed) for seed in range(3)]
    out = library.empty((3, 3, padded(width)), np.float16)
    pointers = (abi.pointer * 4)(*(library.put(suh).pointer for suh in scales))
    arguments = abi.Norm(
        x=library.put(x), weight=library.put(weight), out=out, x_stride=width, out_stride=padded(width), rows=3,
        width=width, eps=1e-5, num_rotations=3, out_step=3 * padded(width), suh=pointers,
    )  # fmt: skip
    abi.launch(library, "exl_norm", arguments)
    normed = reference.rms_norm(torch.from_numpy(x).double(), torch.from_numpy(weight).double(), 1e-5).numpy()
    wide = np.zeros((3, padded(width)))
    wide[:, :width] = normed
    for values, suh in zip(library.get(out), scales, strict=True):
        exact = rotate_columns(wide * suh.astype(np.float64))
        assert (np.abs(values - exact) <= 2.0**-11 * np.abs(exact) + 2.0**-18).all()


def test_a_whole_layer(load: Load) -> None:
    """Features that are no multiple of 128, bias, residual: the layer is x times the dequantized matrix."""
    library, random, matrix = load(), np.random.default_rng(5), Matrix((150, 200))
    x, bias = activations(5, 200), random.standard_normal(150).astype(np.float32)
    residual = random.standard_normal((5, 150)).astype(np.float32)
    (found,) = Product([matrix], [bias], [residual]).run(library, rotate(library, x, [matrix.suh]))
    exact = x.astype(np.float64) @ matrix.dense().T + bias + residual
    # The rotated input is rounded to fp16, 2^-11 of each term at most; the errors of 256 terms are independent.
    error = np.abs(found - exact) / np.linalg.norm(x.astype(np.float64), axis=1)[:, None]
    assert error.max() <= 2.0**-11 * 1.5 * 1.5 * 2


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        ("rate2", 3, "bad_dtype"),
        ("rate2", 18, "bad_dtype"),
        ("codebook", 3, "bad_dtype"),
        ("rows", 0, "bad_shape"),
        ("cols", -1, "bad_shape"),
        ("data", None, "bad_argument"),
        ("svh", None, "bad_argument"),
    ],
)
def test_refused_weights(library: Library, field: str, value: int | None, status: str) -> None:
    matrix = Matrix((128, 128), "mcg")
    args, _ = Product([matrix]).prepare(library, activations(1, 1, 128))
    weight = args.projections[0].weight
    setattr(weight, field, value)
    with pytest.raises(KernelError) as error:
        library.call(OPERATION, ctypes.byref(args))
    assert (error.value.status, error.value.argument) == (status, f"projections[0].weight.{field}")
    if field == "svh":
        return  # an expansion stops before it
    out = library.empty((128, 128), np.float16)
    with pytest.raises(KernelError) as error:
        library.call("exl_trellis_expand", ctypes.byref(weight), ctypes.byref(ExpandArgs(out.pointer, 128)))
    assert (error.value.status, error.value.argument) == (
        status,
        f"weight->{field}" if field == "data" else f"weight.{field}",
    )


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        ("rows", 0, "bad_shape"), ("rows", 65536, "bad_shape"), ("cols", 0, "bad_shape"),
        ("num_outputs", 5, "bad_argument"), ("x", 0, "bad_argument"), ("out", 4, "misaligned"),
        ("x_stride", 127, "bad_shape"), ("out_stride", 130, "misaligned"), ("out_stride", 124, "bad_shape"),
    ],
)  # fmt: skip
def test_refused_rotations(library: Library, field: str, value: int, status: str) -> None:
    memory = library.put(np.zeros(1024, np.float16)).pointer
    arguments = Hadamard(
        x=memory, x_stride=128, rows=1, cols=128, num_outputs=1, suh=(abi.pointer * 4)(memory), out=memory,
        out_stride=128,
    )  # fmt: skip
    setattr(arguments, field, value)
    with pytest.raises(KernelError) as error:
        abi.launch(library, "exl_hadamard", arguments)
    assert error.value.status == status
    assert error.value.argument.removeprefix("args.") == field
