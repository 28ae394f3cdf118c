"""Every function of kernels/include/exl against numpy, for both widths of a wave and three orders of threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.kernels.library import Library

Load = Callable[..., Library]
Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(3)
UINT32 = np.iinfo(np.uint32)


def words(*shape: int) -> Array:
    return RNG.integers(0, UINT32.max, shape, dtype=np.uint32, endpoint=True)


def signed_bytes(x: Array) -> Array:
    return x.view(np.int8).reshape(*x.shape, 4).astype(np.int64)


def unsigned_bytes(x: Array) -> Array:
    return x.view(np.uint8).reshape(*x.shape, 4).astype(np.int64)


def table(code: int, a: Array, b: Array, c: Array) -> Array:
    """Any function of three bits, bit by bit from its truth table."""
    out = np.zeros_like(a)
    for bit in range(32):
        index = (a >> bit & 1) << 2 | (b >> bit & 1) << 1 | (c >> bit & 1)
        out |= (np.uint32(code) >> index & 1) << np.uint32(bit)
    return out


def test_bits(load: Load) -> None:
    library, n = load("wrappers"), 128
    a, b, c = words(3, n)
    out = library.empty((12, n), np.uint32)
    library.call("test_bits", library.put(a), library.put(b), library.put(c), out, n)
    found = library.get(out)
    octets = np.concatenate([a.view(np.uint8).reshape(n, 4), b.view(np.uint8).reshape(n, 4)], axis=1)
    picked = np.stack([octets[np.arange(n), c >> np.uint32(4 * i) & 7] for i in range(4)], axis=1)
    funnel = (b.astype(np.uint64) << np.uint64(32) | a) >> (c & 31).astype(np.uint64)
    dots = [(kind(a) * signed_bytes(b)).sum(1) + c.view(np.int32) for kind in (signed_bytes, unsigned_bytes)]
    shifted = a >> (c & 31)
    expected = [
        a & b | c, table(0xEA, a, b, c), table(0x96, a, b, c), table(0x1B, a, b, c), a,
        picked.copy().view(np.uint32)[:, 0], funnel.astype(np.uint32), a >> 5 & 127,
        *(dot.astype(np.uint32) for dot in dots),
        np.array([int(x).bit_count() for x in a]), np.array([32 - int(x).bit_length() for x in shifted]),
    ]  # fmt: skip
    for row, values in enumerate(expected):
        assert np.array_equal(found[row], values), row


def test_half_arithmetic_rounds_once(load: Load) -> None:
    """Against float64, in which products and sums of halves are exact but for what no rounding to half can see."""
    library, n = load("wrappers"), 4096
    a, b, c = words(3, n)
    # Products that cancel or nearly tie against the addend: where two roundings would differ from one.
    with np.errstate(all="ignore"):
        near = (-(a[:2048].view(np.float16).astype(np.float64) * b[:2048].view(np.float16))).astype(np.float16)
    c[:2048] = near.view(np.uint32) ^ (words(2048) & 0x00010001)
    out = library.empty((8, n), np.uint32)
    library.call("test_half", library.put(a), library.put(b), library.put(c), out, n)
    found = library.get(out)
    x, y, z = (value.view(np.float16).astype(np.float64) for value in (a, b, c))
    with np.errstate(all="ignore"):
        expected = [x * y + z, x + y, x - y, x * y, np.fmax(x, y), np.fmin(x, y)]
        expected = [value.astype(np.float16) for value in expected]
    for row, values in enumerate(expected):
        assert np.array_equal(found[row].view(np.float16), values, equal_nan=True), row
    assert np.array_equal(found[6], a >> 16 | a << 16)
    assert np.array_equal(found[7], (a & 0xFFFF) * np.uint32(0x10001))


def bfloat16(x: Array) -> Array:
    """To nearest even, as 16 bits; a NaN becomes 0x7fc0 with its sign. From the definition: the nearer neighbour."""
    bits = x.view(np.uint32).astype(np.uint64)
    below = bits >> np.uint64(16)
    rest = bits & np.uint64(0xFFFF)
    up = (rest > 0x8000) | ((rest == 0x8000) & (below & np.uint64(1) == 1))
    return (below + up).astype(np.uint32)


def test_conversions(load: Load) -> None:
    """All 65536 patterns of both 16-bit types widened; floats near ties, subnormals and infinities narrowed."""
    library, n = load("wrappers"), 65536
    bits = np.arange(n, dtype=np.uint32) | RNG.permutation(n).astype(np.uint32) << 16
    halves = np.arange(n, dtype=np.uint16).view(np.float16).astype(np.float32)
    with np.errstate(invalid="ignore"):
        ties = ((halves[:-1].astype(np.float64) + halves[1:]) / 2).astype(np.float32)
    tie_words = np.append(ties, np.float32(np.inf))
    for x in (bits.view(np.float32), tie_words, np.nextafter(tie_words, np.float32(0))):
        narrow, widened = library.empty((4, n), np.uint32), library.empty((4, n))
        library.call("test_convert", library.put(x), narrow, widened, n)
        found, wide = library.get(narrow), library.get(widened)
        word, number = x.view(np.uint32), ~np.isnan(x)
        with np.errstate(all="ignore"):
            half = x.astype(np.float16)
        assert np.array_equal(found[0].astype(np.uint16).view(np.float16), half, equal_nan=True)
        assert np.array_equal((found[2] >> 16).astype(np.uint16).view(np.float16), -half, equal_nan=True)
        assert np.array_equal(found[1][number], bfloat16(x)[number])
        assert np.array_equal(found[3][number] >> 16, bfloat16(x)[number] ^ 0x8000)
        assert np.all((found[1][~number] & 0x7FFF) > 0x7F80)
        with np.errstate(all="ignore"):
            low, high = (
                part.astype(np.uint16).view(np.float16).astype(np.float32) for part in (word & 0xFFFF, word >> 16)
            )
        assert np.array_equal(wide[0], low, equal_nan=True)
        assert np.array_equal(wide[2], high, equal_nan=True)
        assert np.array_equal(wide[1].view(np.uint32), word << 16)
        assert np.array_equal(wide[3].view(np.uint32), word & 0xFFFF0000)
        library.free()


def test_math(load: Load) -> None:
    """Fast functions stay within 4 units in the last place on [-20, 20], as the vendors promise."""
    library, n = load("wrappers"), 128
    x = RNG.uniform(-20, 20, n).astype(np.float32)
    x[0], x[1] = 0.375, -0.625  # times 4: ties
    out = library.empty((6, n))
    library.call("test_math", library.put(x), out, n)
    found, wide = library.get(out), x.astype(np.float64)
    close = [np.exp2(wide), np.exp(wide), 1 / wide, 1 / np.sqrt(np.abs(wide))]
    for row, values in enumerate(close):
        # exp multiplies its argument, which costs up to 20 * log2(e) / 2 further units
        units = 40 if row == 1 else 4
        assert np.all(np.abs(found[row] - values) <= units * np.spacing(np.abs(values).astype(np.float32))), row
    assert np.array_equal(found[4], (wide * wide - 1).astype(np.float32))
    assert np.array_equal(found[5], np.rint(wide * 4))


@pytest.mark.parametrize("n", [32, 64, 96])
def test_warp(load: Load, n: int) -> None:
    library = load("wrappers")
    x = words(n) >> 8
    out, wide, sums = library.empty((13, n), np.uint32), library.empty(n, np.uint64), library.empty(n)
    library.call("test_warp", library.put(x), out, wide, sums, n)
    found = library.get(out)
    lane = np.arange(32)
    for first in range(0, n, 32):
        v, got = x[first : first + 32], found[:, first : first + 32]
        assert np.array_equal(got[0], np.full(32, v[5]))
        assert np.array_equal(got[1], v[(lane & ~7) | (lane + 3 & 7)])
        assert np.array_equal(got[2], v[lane ^ 9])
        assert np.array_equal(got[3], v[np.where(lane + 4 < 32, lane + 4, lane)])
        assert np.array_equal(got[4], v[np.where(lane % 16 + 4 < 16, lane + 4, lane)])
        assert np.array_equal(got[5], v[np.where(lane >= 3, lane - 3, lane)])
        assert np.array_equal(got[6], v[np.where(lane % 8 >= 3, lane - 3, lane)])
        assert set(got[7]) == {sum(int(bit) << i for i, bit in enumerate(v & 1))}
        assert set(got[8]) == {int((v % 32 == 7).any())}
        assert set(got[9]) == {int((v % 1024 != 7).all())}
        assert set(got[10]) == {v.max()}
        assert np.array_equal(got[11], np.repeat(v.reshape(4, 8).sum(1, dtype=np.uint32), 8))
        assert np.array_equal(got[12], lane + 100 * (first // 32))
        pairs = v[lane ^ 1].astype(np.uint64)
        assert np.array_equal(library.get(wide)[first : first + 32], pairs << np.uint64(32) | pairs)
        tree = v.astype(np.float32)
        while len(tree) > 1:  # the documented order: halves onto halves
            tree = tree[: len(tree) // 2] + tree[len(tree) // 2 :]
        assert set(library.get(sums)[first : first + 32]) == {tree[0]}


@pytest.mark.parametrize(("stages", "valid"), [(1, 64), (2, 128), (5, 300), (5, 0)])
def test_async_copies(load: Load, stages: int, valid: int) -> None:
    library = load("wrappers")
    x = RNG.standard_normal((stages, 64, 4)).astype(np.float32)
    out = library.empty(x.shape)
    library.call("test_copy", library.put(x), out, stages, valid)
    x.reshape(-1, 4)[valid:] = 0
    assert np.array_equal(library.get(out), 2 * x[:, ::-1])


@pytest.mark.parametrize("plain", [1, 0], ids=["instruction", "shuffles"])
def test_load_matrix(load: Load, plain: int) -> None:
    library = load("wrappers")
    x = RNG.permutation(65536).astype(np.uint16)[:256].reshape(4, 8, 8)
    out = library.empty((14, 64), np.uint32)
    library.call("test_load_matrix", library.put(x), out, plain)
    found = library.get(out)
    assert np.array_equal(found[:, :32], found[:, 32:])
    pairs = found[:, :32, None].view(np.uint16).reshape(14, 8, 4, 2)  # (register, g, t, element)
    for first, source in ((0, x), (7, x.transpose(0, 2, 1))):
        fragments = source.reshape(4, 8, 4, 2)
        for register, matrix in enumerate([0, 0, 1, 0, 1, 2, 3]):
            assert np.array_equal(pairs[first + register], fragments[matrix]), (first, register)


def product_case(kind: str, groups: int) -> tuple[Array, Array, Array, Array, float]:
    """Operands as stored, the exact result, and the relative error allowed."""
    if kind in ("f16", "bf16"):
        a, b = (RNG.standard_normal((groups, rows, 16)).astype(np.float32) for rows in (16, 8))
        c = RNG.standard_normal((groups, 16, 8)).astype(np.float32)
        if kind == "f16":
            stored = [x.astype(np.float16) for x in (a, b)]
            wide = [x.astype(np.float64) for x in stored]
        else:
            stored = [(x.view(np.uint32) >> 16).astype(np.uint16) for x in (a, b)]
            wide = [(x.view(np.uint32) & 0xFFFF0000).view(np.float32).astype(np.float64) for x in (a, b)]
        # 17 terms of about 1 each; hardware may cut the addends at 24 bits below the greatest
        return stored[0], stored[1], c, wide[0] @ wide[1].transpose(0, 2, 1) + c, 2e-5
    low, high, left = (-128, 128, np.int8) if kind == "s8" else (0, 256, np.uint8)
    first = RNG.integers(low, high, (groups, 16, 32)).astype(left)
    second = RNG.integers(-128, 128, (groups, 8, 32)).astype(np.int8)
    sums = RNG.integers(-(2**20), 2**20, (groups, 16, 8)).astype(np.int32)
    exact = first.astype(np.int64) @ second.astype(np.int64).transpose(0, 2, 1) + sums
    return first, second, sums, exact, 0.0


@pytest.mark.parametrize("plain", [1, 0], ids=["instruction", "shuffles"])
@pytest.mark.parametrize("kind", ["f16", "bf16", "s8", "u8s8"])
@pytest.mark.parametrize("groups", [1, 2])
def test_products(load: Load, kind: str, plain: int, groups: int) -> None:
    library = load("wrappers")
    a, b, c, exact, bound = product_case(kind, groups)
    sums = library.put(c)
    code = ["f16", "bf16", "s8", "u8s8"].index(kind)
    library.call("test_product", code, library.put(a), library.put(b), sums, groups, plain)
    assert np.all(np.abs(library.get(sums) - exact) <= bound)


def test_atomics(load: Load) -> None:
    library = load("wrappers")
    counts, wide = library.put(np.zeros(3, np.uint32)), library.put(np.zeros(2, np.uint64))
    total, greatest = library.put(np.zeros(1, np.float32)), library.put(np.full(1, -9, np.int64))
    library.call("test_atomics", counts, wide, total, greatest)
    threads = 8 * 128
    assert list(library.get(counts)) == [3 * threads, 100, threads]
    assert list(library.get(wide)) == [threads << 33, 2 * threads]
    assert library.get(total)[0] == threads / 2
    assert library.get(greatest)[0] == (127 << 32) - 5


@pytest.mark.parametrize("blocks", [1, 2, 37])
def test_the_last_block_sums_in_order(load: Load, blocks: int) -> None:
    """Equal bits whatever order the blocks come in, and again on a second launch with the same ticket."""
    library, slice_ = load("wrappers"), 300
    x = RNG.standard_normal((blocks, slice_)).astype(np.float32)
    partial, out = library.empty(blocks), library.empty(1)
    ticket = library.put(np.zeros(1, np.uint32))
    data = library.put(x)
    for _ in range(2):
        library.call("test_sum", data, partial, ticket, out, slice_, blocks)
        total = np.float32(0)
        for value in library.get(partial):
            total += value
        assert library.get(out)[0] == total
        assert library.get(ticket)[0] == 0
    assert abs(library.get(out)[0] - x.astype(np.float64).sum()) < 1e-3


@pytest.mark.parametrize("n", [32, 1024])
def test_dynamic_shared_memory_and_counting_barrier(load: Load, n: int) -> None:
    library = load("wrappers")
    x = RNG.standard_normal(n).astype(np.float32)
    out, count = library.empty(n), library.empty(1, np.uint32)
    library.call("test_reverse", library.put(x), out, count, n)
    assert np.array_equal(library.get(out), x[::-1])
    assert library.get(count)[0] == (x < 0).sum()
