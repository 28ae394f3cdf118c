"""Paged attention against reference.attention in float64, and exactness: a row alone, in a batch, in any split."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.kernels import abi
from tests.kernels.attend import ATTENTION, Sequences, Shape
from tests.kernels.library import ORDERS, KernelError, Library

# Squared and relative. Probabilities, codes times their scales (keys and values) and the result are rounded to fp16: an
# error of at most 2^-11 each, whose square is 2^-22 / 3 on average. Of all of them at most 2^-22.
BOUND = 2.0**-22
LENGTHS = [600, 1, 256, 300]
# The last rows of two sequences, single rows, padding in the middle, a first token.
ROWS = [(0, 597), (0, 598), (0, 599), (1, 0), (0, -1), (2, 255), (3, 127), (3, 128)]
REAL = [row for row in ROWS if row[1] >= 0]

SHAPES = {
    "head_dim-16": Shape(4, 2, 16),
    "head_dim-32": Shape(4, 1, 32),
    "head_dim-64": Shape(6, 2, 64),
    "head_dim-80": Shape(3, 3, 80),
    "head_dim-96": Shape(2, 1, 96),
    "head_dim-128": Shape(8, 2, 128),
    "head_dim-256": Shape(2, 1, 256),
    "window-40": Shape(4, 2, 64, window=40),
    "window-300-softcap": Shape(8, 1, 64, window=300, softcap=5.0),
    "20-heads-a-kv-head": Shape(20, 1, 32),
    "40-heads-a-kv-head": Shape(40, 1, 16),
    "sinks": Shape(4, 2, 64, sinks=True),
    "sinks-window-softcap": Shape(4, 2, 80, sinks=True, window=100, softcap=3.0),
    "q4": Shape(6, 2, 64, 4, 4),
    "q4-128": Shape(4, 1, 128, 4, 4),
    "q8": Shape(6, 2, 64, 8, 8),
    "q6-window": Shape(6, 2, 64, 6, 6, window=100),
    "k3v5-96": Shape(6, 2, 96, 3, 5),
    "k2v7-128": Shape(4, 2, 128, 2, 7),
    "k5v2-32": Shape(2, 2, 32, 5, 2),
    "k7v3-80": Shape(2, 2, 80, 7, 3),
    "k16v4-80": Shape(2, 2, 80, 16, 4),
    "k8v16-64": Shape(4, 2, 64, 8, 16),
    "k6v8-256": Shape(2, 1, 256, 6, 8),
    "k16v5-256": Shape(2, 1, 256, 16, 5),
    "q8-sinks-softcap": Shape(4, 2, 64, 8, 8, softcap=5.0, sinks=True),
}
# Every shape in two of the six ways to run a block; these in all of them.
CORE = ["head_dim-80", "head_dim-128", "window-300-softcap", "sinks", "q4", "k3v5-96"]
RUNS = [
    (warp_size, order, name)
    for name in SHAPES
    for warp_size in (32, 64)
    for order in ORDERS
    if name in CORE or (warp_size, order) in ((32, "random"), (64, "reverse"))
]


@pytest.mark.parametrize(("warp_size", "order", "name"), RUNS, indirect=["warp_size", "order"])
def test_against_the_reference(kernels: Callable[..., Library], name: str) -> None:
    sequences = Sequences(kernels(*ATTENTION), SHAPES[name], LENGTHS)
    found = sequences.attend(ROWS)
    assert np.isnan(found[4]).all(), "padding was written"
    rows = found[[r for r, row in enumerate(ROWS) if row[1] >= 0]]
    assert sequences.error(REAL, rows) <= BOUND
    # Nobody's bits depend on who else is there, or on how many blocks share the pages.
    assert np.array_equal(sequences.attend(ROWS, splits=2)[:4], found[:4])
    assert np.array_equal(sequences.attend(REAL[3:], splits=5), rows[3:])
    for i in (1, 4):
        assert np.array_equal(sequences.attend([REAL[i]]), rows[i : i + 1])


@pytest.mark.parametrize(("warp_size", "order"), [(32, "random"), (64, "forward")], indirect=True)
@pytest.mark.parametrize("name", ["head_dim-64", "window-40", "q4", "20-heads-a-kv-head"])
def test_any_chunks_give_the_same_bits(kernels: Callable[..., Library], name: str) -> None:
    """A prompt at once, in chunks of any size, and its last tokens beside other sequences."""
    sequences = Sequences(kernels(*ATTENTION), SHAPES[name], [300, 260])
    every = [(0, position) for position in range(300)]
    whole = sequences.attend(every)
    assert sequences.error(every, whole) <= BOUND
    for size, splits in ((7, 1), (100, 3)):
        chunks = [sequences.attend(every[at : at + size], splits) for at in range(0, 300, size)]
        assert np.array_equal(np.concatenate(chunks), whole), (size, splits)
    mixed = sequences.attend([(1, 258), (1, 259), *every[290:]], splits=2)
    assert np.array_equal(mixed[2:], whole[290:])


@pytest.mark.parametrize(("warp_size", "order"), [(32, "random"), (64, "forward")], indirect=True)
@pytest.mark.parametrize("name", ["head_dim-64", "q4", "k16v4-80"])
def test_what_no_row_sees_is_not_read(kernels: Callable[..., Library], name: str) -> None:
    """NaN and infinity behind the last token, and in pages of nobody, change nothing."""
    shape = SHAPES[name]
    long, short = (Sequences(kernels(*ATTENTION), shape, [600]) for _ in range(2))
    rows = [(0, 270), (0, 271)]
    expected = long.attend(rows)
    for cache, x, pages, bits in (
        (short.cache, short.k, short.cache.keys, shape.key_bits),
        (short.cache, short.v, short.cache.values, shape.value_bits),
    ):
        raw = np.full(pages.shape, 0xFF, np.uint8)
        short.library.copy(pages.pointer, raw.ctypes.data, raw.nbytes)
        cache.fill(x[0][:272], bits, pages, short.table[0])
    assert np.array_equal(short.attend(rows), expected)
    assert np.array_equal(short.attend(rows, splits=3), expected)


@pytest.mark.parametrize(("warp_size", "order"), [(32, "forward")], indirect=True)
@pytest.mark.parametrize(
    ("field", "value", "status", "argument"),
    [
        ("q", 0, "bad_argument", "q"), ("out", 0, "bad_argument", "out"), ("q", 2, "misaligned", "q"),
        ("q_stride", 385, "misaligned", "q_stride"), ("q_stride", 128, "bad_shape", "q_stride"),
        ("out_stride", 128, "bad_shape", "out_stride"), ("num_heads", 5, "bad_shape", "num_heads"),
        ("window", -1, "bad_argument", "window"), ("softcap", -1.0, "bad_argument", "softcap"),
        ("splits", 0, "bad_argument", "splits"), ("workspace", 0, "bad_argument", "workspace"),
        ("tickets", 0, "bad_argument", "tickets"), ("workspace", 8, "misaligned", "workspace"),
        ("cache.head_dim", 112, "bad_shape", "head_dim"), ("cache.key_bits", 12, "bad_dtype", "key_bits"),
        ("cache.values", 0, "bad_argument", "cache.values"), ("rows.count", -1, "bad_shape", "rows.count"),
        ("rows.page_table", 0, "bad_argument", "rows.page_table"),
    ],
)  # fmt: skip
def test_refused_arguments_are_named(
    kernels: Callable[..., Library], field: str, value: Any, status: str, argument: str
) -> None:
    sequences = Sequences(kernels(*ATTENTION), SHAPES["head_dim-64"], [3])
    arguments: Any = sequences.arguments([(0, 2)], splits=2)
    *inner, name = field.split(".")
    setattr(getattr(arguments, inner[0]) if inner else arguments, name, value)
    with pytest.raises(KernelError) as refused:
        abi.launch(sequences.library, "exl_attention", arguments)
    assert (refused.value.status, refused.value.argument) == (status, argument)


@pytest.mark.parametrize(("warp_size", "order"), [(32, "forward")], indirect=True)
def test_splits_fill_the_device(kernels: Callable[..., Library]) -> None:
    sequences = Sequences(kernels(*ATTENTION), Shape(8, 2, 64), [256 * 9])
    for rows, processors, expected in ((1, 132, 10), (1, 2, 4), (16, 132, 10), (200, 132, 2), (2000, 132, 1)):
        arguments: Any = sequences.arguments([(0, 5)])
        arguments.rows.count = rows
        splits = abi.int32()
        sequences.library.check("exl_attention_splits", ctypes.byref(arguments), processors, ctypes.byref(splits))
        assert splits.value == expected, rows
