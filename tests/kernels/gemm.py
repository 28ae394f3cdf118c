"""What the tests of matrix products share: the C structs, calls, and the error that a product may have."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.kernels.library import DeviceArray, Library

F32, F16, BF16 = 0, 1, 2
ACTIVATIONS = {"": 0, "silu": 1, "gelu_tanh": 2, "gelu": 3}
Array = NDArray[Any]


class GroupAffine(ctypes.Structure):
    """exl_group_affine."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("rows", ctypes.c_int32),
        ("cols", ctypes.c_int32),
        ("bits", ctypes.c_int32),
        ("scheme", ctypes.c_int32),
    )


class Dense(ctypes.Structure):
    """exl_dense."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("rows", ctypes.c_int32),
        ("cols", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("stride", ctypes.c_int64),
    )


class Output(ctypes.Structure):
    """exl_output."""

    _fields_ = (
        ("out", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
        ("add", ctypes.c_int32),
        ("bias", ctypes.c_void_p),
    )


class Workspace(ctypes.Structure):
    """exl_workspace."""

    _fields_ = (
        ("partials", ctypes.c_void_p),
        ("partial_bytes", ctypes.c_int64),
        ("tickets", ctypes.c_void_p),
        ("num_tickets", ctypes.c_int64),
    )


def linear_args(weight: type[ctypes.Structure]) -> type[ctypes.Structure]:
    """The arguments of a product with weights described by the struct `weight`."""

    class Projection(ctypes.Structure):
        _fields_ = (("weight", weight), ("output", Output))

    class Args(ctypes.Structure):
        _fields_ = (
            ("x", ctypes.c_void_p),
            ("x_stride", ctypes.c_int64),
            ("rows", ctypes.c_int32),
            ("num_projections", ctypes.c_int32),
            ("activation", ctypes.c_int32),
            ("projections", Projection * 4),
            ("workspace", Workspace),
        )

    return Args


@dataclass
class Product:
    """A product to run: x (rows, K) fp16 and for each weight its struct, bias, and the start of what is added to."""

    weights: Sequence[ctypes.Structure]
    biases: Sequence[Array | None] = ()
    added: Sequence[Array | None] = ()
    dtype: int = F32
    activation: str = ""

    def run(self, library: Library, operation: str, x: Array, padding: int = 8) -> list[Array]:
        """The outputs, (rows, N) float32 or float16; `padding` columns of NaN stand behind each row of x and out."""
        args, outputs = self.prepare(library, operation, x, padding)
        library.call(operation, ctypes.byref(args))
        count = 1 if self.activation else len(self.weights)
        found = [library.get(output) for output in outputs[:count]]
        for values, weight in zip(found, self.weights, strict=False):
            assert np.isnan(values[:, weight.rows :]).all(), "written behind the end of a row"
        return [values[:, : weight.rows] for values, weight in zip(found, self.weights, strict=False)]

    def prepare(
        self, library: Library, operation: str, x: Array, padding: int = 8
    ) -> tuple[ctypes.Structure, list[DeviceArray]]:
        """Arguments in device memory, with the workspace that the library asks for."""
        rows, cols = x.shape
        wide = np.full((rows, cols + padding), np.nan, np.float16)
        wide[:, :cols] = x
        args: Any = linear_args(type(self.weights[0]))()
        args.x, args.x_stride, args.rows = library.put(wide).pointer, cols + padding, rows
        args.num_projections, args.activation = len(self.weights), ACTIVATIONS[self.activation]
        outputs = []
        for i, weight in enumerate(self.weights):
            out = np.full((rows, weight.rows + padding), np.nan, np.float32 if self.dtype == F32 else np.float16)
            added, bias = dict(enumerate(self.added)).get(i), dict(enumerate(self.biases)).get(i)
            if added is not None:
                out[:, : weight.rows] = added
            outputs.append(library.put(out))
            bias_at = library.put(bias).pointer if bias is not None else None
            output = Output(outputs[-1].pointer, weight.rows + padding, self.dtype, int(added is not None), bias_at)
            args.projections[i].weight, args.projections[i].output = weight, output
        args.workspace = workspace_for(library, operation, args)
        return args, outputs


def workspace_for(library: Library, operation: str, args: ctypes.Structure) -> Workspace:
    """Exactly as much as the operation asks for; the tickets are zeros."""
    partial_bytes, tickets = ctypes.c_int64(), ctypes.c_int64()
    library.check(f"{operation}_workspace", ctypes.byref(args), ctypes.byref(partial_bytes), ctypes.byref(tickets))
    workspace = Workspace(None, partial_bytes.value, None, tickets.value)
    if partial_bytes.value:
        workspace.partials = library.empty(partial_bytes.value, np.uint8).pointer
    if tickets.value:
        workspace.tickets = library.put(np.zeros(tickets.value, np.uint32)).pointer
    return workspace


def check_product(found: Array, x: Array, weight: Array, extra: Array | float = 0.0, slack: float = 0.0) -> None:
    """Compares with float64.

    A sum of K products in fp32 errs by at most K * 2^-24 of the sum of magnitudes, far less in practice: tensor cores
    and slices add in short runs, so 2^-17 is generous for K of a few thousand; fp16 outputs are rounded once more.
    slack: what codes add that stand for more than their weight, relative to |x| |weight|.
    """
    exact = x.astype(np.float64) @ weight.astype(np.float64).T + extra
    magnitude = np.abs(x.astype(np.float64)) @ np.abs(weight.astype(np.float64)).T + np.abs(extra)
    bound = (2.0**-17 + slack) * magnitude + 1e-30
    if found.dtype == np.float16:
        bound = bound + 2.0**-11 * np.abs(exact) + 2.0**-24
    error = np.abs(found.astype(np.float64) - exact)
    assert np.isfinite(found).all()
    assert (error <= bound).all(), f"error is up to {np.max(error / bound):.3g} of what is allowed"
