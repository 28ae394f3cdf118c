"""Rotary embedding and cache pages: fp16 and packed bytes equal to a numpy model, rows of padding untouched, faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from exllama import reference
from tests.kernels import abi
from tests.kernels.library import KernelError, Library
from tests.kernels.pages import PAGE, Array, DeviceCache, quantize

ROPE = ["cache/cache", "rope/rope"]
# Rows of three sequences and two of padding; the third sequence starts in the middle of a page.
POSITIONS = np.array([0, 1, 2, -1, 255, 256, 10**6, 77], np.int32)
SEQUENCES = np.array([0, 0, 0, 0, 1, 1, 1, 2], np.int32)
TABLE = np.array([[3, 9], [0, 5], [1, 9]], np.int32)
REAL = [0, 1, 2, 4, 5, 7]  # a position beyond the page table is padding, as a negative one
EPS = 1e-5


def halves(random: np.random.Generator, *shape: int) -> Array:
    return random.standard_normal(shape).astype(np.float16)


def rows_of(library: Library, positions: Array = POSITIONS, sequences: Array = SEQUENCES) -> abi.Rows:
    return abi.Rows(
        count=len(positions), pages_per_sequence=TABLE.shape[1], positions=library.put(positions),
        sequences=library.put(sequences), page_table=library.put(TABLE),
    )  # fmt: skip


def inv_freq(rotary_dim: int) -> Array:
    return (1.0 / 10000.0 ** (np.arange(0, rotary_dim, 2, dtype=np.float32) / rotary_dim)).astype(np.float32)


def table_of(library: Library, positions: Array, rotary_dim: int, scale: float = 1.0) -> Any:
    table = library.empty((len(positions), rotary_dim))
    abi.launch(
        library, "exl_rope_table",
        abi.RopeTable(
            positions=library.put(positions), inv_freq=library.put(inv_freq(rotary_dim)), table=table,
            rows=len(positions), rotary_dim=rotary_dim, scale=scale,
        ),
    )  # fmt: skip
    return table


@pytest.mark.parametrize("rotary_dim", [2, 80, 256, 512])
def test_table(kernels: Callable[..., Library], rotary_dim: int) -> None:
    library = kernels(*ROPE)
    positions = np.array([0, 1, -1, 4095, 131071, 10**7, 2**31 - 1], np.int32)
    found = library.get(table_of(library, positions, rotary_dim, 1.25)).astype(np.float64)
    angle = (positions.astype(np.float32)[:, None] * inv_freq(rotary_dim)).astype(np.float64)
    expected = 1.25 * np.concatenate((np.cos(angle), np.sin(angle)), 1)
    real = positions >= 0
    assert np.abs(found - expected)[real].max() <= 1.25 * 2.0**-23  # rounded twice: to float32, then by the scale
    assert np.isnan(found[~real]).all()


class Case:
    """One launch of exl_rope_and_store on random input, and what the reference makes of it."""

    def __init__(
        self, library: Library, heads: int, kv_heads: int, head_dim: int, key_bits: int, value_bits: int,
        rotary_dim: int = 0, norms: bool = False,
    ) -> None:  # fmt: skip
        self.library, self.heads, self.head_dim, self.rotary_dim = library, heads, head_dim, rotary_dim
        random = np.random.default_rng(heads + head_dim)
        self.q, self.k, self.v = (halves(random, len(POSITIONS), n, head_dim) for n in (heads, kv_heads, kv_heads))
        self.norm = random.uniform(0.5, 1.5, head_dim).astype(np.float32) if norms else None
        self.cache = DeviceCache(library, 10, kv_heads, head_dim, key_bits, value_bits)
        self.q_out = library.empty((len(POSITIONS), heads, self.cache.padded_dim), np.float16)
        self.faults = library.put(np.full(len(POSITIONS), -1, np.int32))

    def arguments(self) -> abi.RopeAndStore:
        library, (kv_heads, dim) = self.library, self.k.shape[1:]
        norm = None if self.norm is None else library.put(self.norm)
        table = table_of(library, POSITIONS, self.rotary_dim) if self.rotary_dim else None
        return abi.RopeAndStore(
            q=library.put(self.q), k=library.put(self.k), v=library.put(self.v), q_out=self.q_out,
            q_stride=self.heads * dim, k_stride=kv_heads * dim, v_stride=kv_heads * dim,
            q_out_stride=self.heads * self.cache.padded_dim, num_heads=self.heads,
            q_norm=norm or 0, k_norm=norm or 0, q_eps=EPS, k_eps=EPS, table=table or 0, rotary_dim=self.rotary_dim,
            cache=self.cache.struct(), rows=rows_of(library), faults=self.faults, layer=7,
        )  # fmt: skip

    def run(self) -> None:
        abi.launch(self.library, "exl_rope_and_store", self.arguments())

    def prepared(self, x: Array) -> torch.Tensor:
        """Normalised and turned, (R, heads, D) float64."""
        value = torch.from_numpy(x).double()
        if self.norm is not None:
            value = reference.rms_norm(value, torch.from_numpy(self.norm).double(), EPS)
        if self.rotary_dim:
            frequencies = torch.from_numpy(inv_freq(self.rotary_dim))
            value = reference.rope(value, torch.from_numpy(np.maximum(POSITIONS, 0)), frequencies)
        return value

    def stored_rows(self, keys: bool) -> list[Array]:
        """The bytes of the real rows, and that no others were written."""
        pages, bits = (self.cache.keys, self.cache.key_bits) if keys else (self.cache.values, self.cache.value_bits)
        rows = []
        for part in self.cache.stored(pages, bits):
            untouched = np.ones(part.shape[:2], bool)
            places = [(TABLE[SEQUENCES[r], POSITIONS[r] // PAGE], POSITIONS[r] % PAGE) for r in REAL]
            for place in places:
                untouched[place] = False
            assert (part[untouched] == 0xFF).all(), "a token that no row has was written"
            rows.append(np.stack([part[place] for place in places]))
        return rows


SHAPES = [(1, 1, 16), (4, 2, 32), (6, 2, 64), (3, 3, 80), (2, 1, 96), (8, 2, 128), (2, 2, 256)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("norms", [False, True], ids=["", "norms"])
def test_fp16_pages(kernels: Callable[..., Library], shape: tuple[int, int, int], norms: bool) -> None:
    case = Case(kernels(*ROPE), *shape, 16, 16, rotary_dim=shape[2] // 2 if norms else shape[2], norms=norms)
    case.run()
    for found, x in ((case.stored_rows(True)[0], case.prepared(case.k)), (case.stored_rows(False)[0], case.v)):
        expected = np.asarray(x, np.float64)[REAL]
        # Half a unit of fp16, and float32 errors of the norm and the turn before it.
        error = np.abs(found.view(np.float16).astype(np.float64) - expected)
        assert (error <= np.maximum(np.abs(expected), 2.0**-14) * 2.0**-11 + 2e-6).all()
    q = case.library.get(case.q_out)[REAL].astype(np.float64)
    expected = case.prepared(case.q).numpy()[REAL]
    assert (np.abs(q - expected) <= np.maximum(np.abs(expected), 2.0**-14) * 2.0**-11 + 2e-6).all()
    assert (case.library.get(case.faults) == -1).all()
    assert np.isnan(case.library.get(case.q_out)[[3, 6]]).all(), "padding was written"


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_model_quantizes_as_the_reference(bits: int) -> None:
    """Rotated values may differ in the last place, and then fall on the other side of a border between codes."""
    x = np.random.default_rng(bits).standard_normal((500, 4, 64)).astype(np.float32)
    codes, scales = reference.quantize(torch.from_numpy(x), bits)
    mine = quantize(x, bits)
    assert np.mean(mine[1] != scales.numpy()) <= 1e-3
    difference = np.abs(mine[0].astype(int) - codes.numpy())
    assert difference.max() <= 1
    assert difference.mean() <= 1e-3


@pytest.mark.parametrize("bits", [(2, 8), (3, 7), (4, 4), (5, 6), (16, 4), (8, 16)], ids=str)
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_packed_bytes_equal_the_model(
    kernels: Callable[..., Library], shape: tuple[int, int, int], bits: tuple[int, int]
) -> None:
    case = Case(kernels(*ROPE), *shape, *bits)
    case.k[5, 0, :] = 0.0  # a group of zeros
    case.v[2] *= np.float16(1e-7)  # scales below the smallest normal fp16
    case.v[4, 0, 1] = 60000.0
    case.run()
    for keys, x, width in ((True, case.k, bits[0]), (False, case.v, bits[1])):
        for found, expected in zip(case.stored_rows(keys), case.cache.expected(x[REAL], width), strict=True):
            assert np.array_equal(found, expected), keys
    rotated = case.prepared(case.q)[REAL]
    if bits[0] != 16:
        rotated = reference.rotate(torch.nn.functional.pad(rotated, (0, -shape[2] % 32)))
    found_q = case.library.get(case.q_out)[REAL].astype(np.float64)[..., : rotated.shape[-1]]
    assert (np.abs(found_q - rotated.numpy()) <= np.maximum(np.abs(rotated.numpy()), 2.0**-14) * 2.0**-11 + 2e-6).all()


@pytest.mark.parametrize("bits", [(16, 16), (4, 4), (16, 3), (8, 16)], ids=str)
def test_what_no_cache_can_hold_is_told_by_row(kernels: Callable[..., Library], bits: tuple[int, int]) -> None:
    case = Case(kernels(*ROPE), 2, 2, 64, *bits)
    case.k[1, 0, 5] = np.nan
    case.v[4, 1, 63] = -np.inf
    case.v[3, 0, 0] = np.nan  # padding
    case.k[5, 1, :32] = 60000.0  # 32 equal features rotate into one of 339,000
    already = np.full(len(POSITIONS), -1, np.int32)
    already[1] = 2
    case.faults = case.library.put(already)
    case.run()
    expected = np.full(len(POSITIONS), -1)
    expected[[1, 4]] = 2, 7
    if bits[0] != 16:
        expected[5] = 7
    assert case.library.get(case.faults).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("field", "value", "status", "argument"),
    [
        ("q", 0, "bad_argument", "q"), ("q_out", 0, "bad_argument", "q_out"), ("faults", 0, "bad_argument", "faults"),
        ("num_heads", 3, "bad_shape", "num_heads"), ("rotary_dim", 63, "bad_shape", "rotary_dim"),
        ("rotary_dim", 66, "bad_shape", "rotary_dim"), ("k_stride", 127, "bad_shape", "k_stride"),
        ("q_out_stride", 127, "bad_shape", "q_out_stride"), ("layer", -1, "bad_argument", "layer"),
        ("cache.head_dim", 48, "bad_shape", "head_dim"), ("cache.head_dim", 16, "bad_shape", "head_dim"),
        ("cache.key_bits", 9, "bad_dtype", "key_bits"), ("cache.value_bits", 1, "bad_dtype", "value_bits"),
        ("cache.num_kv_heads", 0, "bad_shape", "num_kv_heads"), ("cache.keys", 8, "misaligned", "cache.keys"),
        ("rows.count", 0, "bad_shape", "rows.count"), ("rows.positions", 0, "bad_argument", "rows.positions"),
        ("rows.pages_per_sequence", 0, "bad_shape", "rows.pages_per_sequence"),
    ],
)  # fmt: skip
def test_refused_arguments_are_named(
    kernels: Callable[..., Library], field: str, value: int, status: str, argument: str
) -> None:
    case = Case(kernels(*ROPE), 2, 2, 64, 4, 4, rotary_dim=64)
    arguments: Any = case.arguments()
    *inner, name = field.split(".")
    setattr(getattr(arguments, inner[0]) if inner else arguments, name, value)
    with pytest.raises(KernelError) as refused:
        abi.launch(case.library, "exl_rope_and_store", arguments)
    assert (refused.value.status, refused.value.argument) == (status, argument)


def test_q_in_place(kernels: Callable[..., Library]) -> None:
    """q_out may be q, but not where heads grow."""
    case = Case(kernels(*ROPE), 3, 3, 80, 16, 16)
    arguments: Any = case.arguments()
    arguments.q_out = arguments.q
    abi.launch(case.library, "exl_rope_and_store", arguments)
    case = Case(case.library, 3, 3, 80, 4, 4)
    arguments = case.arguments()
    arguments.q_out = arguments.q
    with pytest.raises(KernelError, match="heads of 80 become heads of 96"):
        abi.launch(case.library, "exl_rope_and_store", arguments)


@pytest.mark.parametrize("bits", [(16, 16), (4, 3)], ids=str)
def test_copied_pages(kernels: Callable[..., Library], bits: tuple[int, int]) -> None:
    library = kernels(*ROPE)
    cache = DeviceCache(library, 6, 2, 64, *bits)
    before = np.random.default_rng(0).integers(0, 256, cache.keys.shape, np.uint8)
    cache.keys = library.put(before)
    pairs = library.put(np.array([[0, 4], [2, 1]], np.int32))
    copy = abi.CopyPages(pages=cache.keys, page_bytes=cache.geometry.key_page_bytes, pairs=pairs, num_pairs=2)
    abi.launch(library, "exl_copy_pages", copy)
    expected = before.copy()
    expected[4], expected[1] = before[0], before[2]
    assert np.array_equal(library.get(cache.keys), expected)
    for field, value in (("num_pairs", 0), ("page_bytes", 24), ("pairs", 0), ("pages", 8)):
        wrong: Any = abi.CopyPages(pages=cache.keys, page_bytes=cache.geometry.key_page_bytes, pairs=pairs, num_pairs=2)
        setattr(wrong, field, value)
        with pytest.raises(KernelError) as refused:
            abi.launch(library, "exl_copy_pages", wrong)
        assert refused.value.argument == field
