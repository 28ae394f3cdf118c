"""Norm, gate and logits kernels against reference.py in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from exllama import reference
from tests.kernels import abi
from tests.kernels.library import KernelError, Library
from tests.kernels.pages import Array

SMALL = ["norm/norm", "activation/activation", "logits/logits"]
HALF = 2.0**-11  # the relative error of one rounding to fp16
TINY = 2.0**-25  # its absolute error among the subnormal numbers


def close(found: Array, expected: Array, relative: float) -> bool:
    error = np.abs(found.astype(np.float64) - expected)
    return bool((error <= np.abs(expected) * relative + TINY).all())


@pytest.mark.parametrize("width", [4, 52, 576, 1028, 2048, 4100, 8192])
@pytest.mark.parametrize("added", [False, True], ids=["", "added"])
def test_norm(kernels: Callable[..., Library], width: int, added: bool) -> None:
    library, random, rows = kernels(*SMALL), np.random.default_rng(width), 5
    x = random.standard_normal((rows, width + 4)).astype(np.float32)
    x[1] *= 1e4
    x[2] = 0.0
    delta = random.standard_normal((rows, width)).astype(np.float16)
    weight = random.uniform(0.5, 1.5, width).astype(np.float32)
    stream, out = library.put(x), library.empty((rows, width + 8), np.float16)
    abi.launch(
        library, "exl_norm",
        abi.Norm(
            x=stream, delta=library.put(delta) if added else 0, weight=library.put(weight), out=out,
            x_stride=width + 4, delta_stride=width, out_stride=width + 8, rows=rows, width=width, eps=1e-5,
        ),
    )  # fmt: skip
    if added:
        x[:, :width] += delta.astype(np.float32)
    assert np.array_equal(library.get(stream), x)
    expected = reference.rms_norm(torch.from_numpy(x[:, :width]).double(), torch.from_numpy(weight).double(), 1e-5)
    found = library.get(out)
    assert close(found[:, :width], expected.numpy(), HALF + 1e-6)
    assert np.isnan(found[:, width:]).all()


def test_norm_of_chosen_rows(kernels: Callable[..., Library]) -> None:
    library, random = kernels(*SMALL), np.random.default_rng(0)
    x, index = random.standard_normal((6, 64)).astype(np.float32), np.array([5, 0, 5], np.int32)
    arguments: dict[str, Any] = {
        "x": library.put(x), "weight": library.put(np.ones(64, np.float32)), "x_stride": 64, "out_stride": 64,
        "width": 64, "eps": 1e-5,
    }  # fmt: skip
    chosen, every = library.empty((3, 64), np.float16), library.empty((6, 64), np.float16)
    abi.launch(library, "exl_norm", abi.Norm(out=chosen, row_index=library.put(index), rows=3, **arguments))
    abi.launch(library, "exl_norm", abi.Norm(out=every, rows=6, **arguments))
    assert np.array_equal(library.get(chosen), library.get(every)[index])


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu"])
@pytest.mark.parametrize("width", [2, 510, 1538])
def test_gate(kernels: Callable[..., Library], activation: str, width: int) -> None:
    library, random, rows = kernels(*SMALL), np.random.default_rng(width), 3
    both = (random.standard_normal((rows, 2 * width)) * 4).astype(np.float16)
    both[0, :2] = 100.0, -100.0  # where exp(-x) is 0 and infinite
    memory = library.put(both)
    second = abi.pointer(memory.pointer + 2 * width)
    kinds = {"silu": 1, "gelu_tanh": 2, "gelu": 3}
    out = library.empty((rows, width), np.float16)
    arguments = abi.Gate(
        gate=memory, up=second, out=out, gate_stride=2 * width, up_stride=2 * width, out_stride=width, rows=rows,
        width=width, activation=kinds[activation],
    )  # fmt: skip
    abi.launch(library, "exl_gate", arguments)
    gate, up = torch.from_numpy(both[:, :width]).double(), torch.from_numpy(both[:, width:]).double()
    expected = (reference.activate(gate, activation) * up).numpy()
    # gelu of -4 is 1 + erf, or 1 + tanh, of nearly -1: a float32 unit of 1 over the result, times 4
    error = np.abs(library.get(out).astype(np.float64) - expected)
    assert (error <= np.abs(expected) * (HALF + 1e-5) + np.abs((gate * up).numpy()) * 2.0**-23 + TINY).all()


@pytest.mark.parametrize("softcap", [0.0, 30.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_logits(kernels: Callable[..., Library], softcap: float, dtype: Any) -> None:
    library, vocab = kernels(*SMALL), 1000
    x = (np.random.default_rng(1).standard_normal((3, vocab)) * 40).astype(dtype)
    out = library.empty((3, vocab))
    arguments = abi.Logits(
        x=library.put(x), out=out, x_stride=vocab, out_stride=vocab, rows=3, vocab=vocab,
        x_type=0 if dtype is np.float32 else 1, softcap=softcap,
    )  # fmt: skip
    abi.launch(library, "exl_logits", arguments)
    expected = reference.softcap(torch.from_numpy(x).double(), softcap).numpy()
    assert close(library.get(out), expected, 1e-6 if softcap else 0.0)


def good(library: Library) -> dict[str, Any]:
    """Arguments that each kernel accepts."""
    memory = library.put(np.zeros((2, 64), np.float32)).pointer
    strides = {"out_stride": 64, "rows": 2, "width": 64}
    return {
        "exl_norm": abi.Norm(x=memory, weight=memory, out=memory, x_stride=64, delta_stride=64, **strides),
        "exl_gate": abi.Gate(gate=memory, up=memory, out=memory, gate_stride=64, up_stride=64, **strides),
        "exl_logits": abi.Logits(x=memory, out=memory, x_stride=64, out_stride=64, rows=2, vocab=64),
    }


@pytest.mark.parametrize(
    ("name", "field", "value", "status", "argument"),
    [
        ("exl_norm", "rows", 0, "bad_shape", "rows"), ("exl_norm", "width", 62, "bad_shape", "width"),
        ("exl_norm", "width", 65536, "bad_shape", "width"), ("exl_norm", "x", 0, "bad_argument", "x"),
        ("exl_norm", "x", 8, "misaligned", "x"), ("exl_norm", "weight", 4, "misaligned", "weight"),
        ("exl_norm", "out", 4, "misaligned", "out"), ("exl_norm", "x_stride", 66, "misaligned", "x_stride"),
        ("exl_norm", "out_stride", 60, "misaligned", "out_stride"), ("exl_norm", "delta", 2, "misaligned", "delta"),
        ("exl_gate", "rows", -1, "bad_shape", "rows"), ("exl_gate", "width", 63, "bad_shape", "width"),
        ("exl_gate", "gate", 0, "bad_argument", "gate"), ("exl_gate", "up", 2, "misaligned", "up"),
        ("exl_gate", "out_stride", 62, "bad_shape", "out"), ("exl_gate", "up_stride", 65, "misaligned", "up"),
        ("exl_gate", "activation", 4, "bad_argument", "activation"),
        ("exl_logits", "rows", 0, "bad_shape", "rows"), ("exl_logits", "vocab", 0, "bad_shape", "vocab"),
        ("exl_logits", "x_type", 2, "bad_dtype", "x_type"), ("exl_logits", "x", 2, "misaligned", "x"),
        ("exl_logits", "out_stride", 63, "bad_shape", "out_stride"),
        ("exl_logits", "softcap", -1.0, "bad_argument", "softcap"),
    ],
)  # fmt: skip
def test_refused_arguments_are_named(
    kernels: Callable[..., Library], name: str, field: str, value: Any, status: str, argument: str
) -> None:
    library = kernels(*SMALL)
    arguments = good(library)[name]
    setattr(arguments, field, value)
    with pytest.raises(KernelError) as refused:
        abi.launch(library, name, arguments)
    assert (refused.value.status, refused.value.argument) == (status, argument)
