"""The native trellis search against numpy over all states, and its way of feeding errors back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from conversion.trellis_search import TrellisSearch
from exllama import ops
from exllama.errors import ConversionError
from exllama.formats import trellis
from exllama.formats.trellis import Codebook
from tests.conversion import viterbi

Array = np.ndarray[Any, np.dtype[Any]]
RATES = (1, 1.5, 2.5, 3.5, 4, 5, 6, 8)
# Mean squared errors that specs of the format promise for N(0, 1) at the best scale, with the scale.
GAUSSIAN = {1: (0.2722, 1.0), 2: (0.0682, 1.0), 2.5: (0.0336, 0.95), 3: (0.0170, 0.94), 4: (0.0043, 0.91)}
LEVELS = [level for level in ops.native().levels() if level in ("generic", "avx2", "avx512")]
_ROW, _COLUMN = np.arange(16)[:, None], np.arange(16)[None, :]
STREAM = np.argsort(trellis._POSITION.reshape(-1))  # position -> place in the tile, row by row


def gaussian(rows: int, columns: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def states_of(tiles: Array, bits: float) -> Array:
    return trellis.states(tiles.view(np.uint16), int(2 * bits)).astype(np.int64)


@pytest.mark.parametrize(("codebook", "bits"), [*(("mul1", bits) for bits in RATES), ("mcg", 3), ("3inst", 4)])
def test_finds_what_a_search_of_all_states_finds(codebook: Codebook, bits: float) -> None:
    """Seam and ring, state by state."""
    tile = gaussian(16, 16, 3)
    rate2, targets = int(2 * bits), tile.reshape(-1)[STREAM]
    rounded = viterbi.integer_costs(targets, codebook, rate2)
    seam = viterbi.find_seam(rounded, rate2)
    expected = viterbi.find_ring(rounded, rate2, seam)
    tiles, _ = TrellisSearch(bits, codebook, level="generic").quantize(tile)
    assert np.array_equal(states_of(tiles[0, 0], bits), expected)


@pytest.mark.parametrize("bits", [2, 4])
def test_rounded_costs_cost_nothing(bits: float) -> None:
    """The same ring's seam, and then the best path with costs in float64."""
    tile = gaussian(16, 16, 4)
    tiles, values = TrellisSearch(bits).quantize(tile)
    exact = viterbi.exact_costs(tile.reshape(-1)[STREAM], "mul1")
    ring = viterbi.find_ring(exact, int(2 * bits), int(states_of(tiles[0, 0], bits)[255]))
    best = sum(exact(i)[state] for i, state in enumerate(ring))
    assert (1 - 1e-6) * best <= ((values - tile).astype(np.float64) ** 2).sum() <= 1.005 * best


@pytest.mark.parametrize("level", LEVELS[1:])
@pytest.mark.parametrize("bits", RATES)
def test_every_level_and_team_finds_the_same(bits: float, level: str) -> None:
    """Also what a tile does not see: the tiles beside it, an odd number of them."""
    targets = gaussian(32, 80, 1)
    feedback = np.tril(gaussian(32, 32, 2), -1) / 32
    tiles, values = TrellisSearch(bits, threads=1, level="generic").quantize(targets[:, 16:32], feedback)
    for threads in (1, 2, 3):
        all_tiles, all_values = TrellisSearch(bits, threads=threads, level=level).quantize(targets, feedback)
        assert np.array_equal(all_tiles[:, 1:2], tiles)
        assert np.array_equal(all_values[:, 16:32], values)


@pytest.mark.parametrize("bits", GAUSSIAN)
def test_mean_squared_error_of_gaussian_numbers(bits: float) -> None:
    """benchmarks/trellis_search.py has the whole table and more tiles."""
    expected, scale = GAUSSIAN[bits]
    targets = gaussian(16, 16 * 64) * np.float32(scale)
    _, values = TrellisSearch(bits).quantize(targets)
    assert ((targets - values) ** 2).mean() / scale**2 <= 1.05 * expected


def test_values_are_what_the_plain_decoder_says() -> None:
    tiles, values = TrellisSearch(2.5).quantize(gaussian(48, 64))
    assert tiles.shape == (3, 4, 40)
    assert np.array_equal(trellis.decode_tiles(tiles, "mul1"), values)


def test_errors_are_fed_back_to_earlier_rows() -> None:
    """Row by row of blocks: the targets of a block are those that the values of later blocks ask for."""
    targets, feedback = gaussian(48, 32), np.tril(gaussian(48, 48, 5), -1).astype(np.float32) / 16
    search = TrellisSearch(3)
    tiles, values = search.quantize(targets, feedback)
    for row in (32, 16, 0):
        fed_back = targets[row : row + 16].copy()
        for j in range(row + 16, 48):  # in the order, and with the roundings, of the kernel
            fed_back += feedback[j, row : row + 16, None] * (targets[j] - values[j])
        alone, _ = search.quantize(fed_back)
        assert np.array_equal(alone[0], tiles[row // 16])


@pytest.mark.parametrize("number", [0.0, 1e-30, 1e6, -1e30])
def test_strange_targets_give_legal_streams(number: float) -> None:
    """A constant is the hardest thing that a code of shared bits can be asked for; far ones clip."""
    for bits, distance in ((1, 2.7), (4, 1.7), (8, 1.4)):
        targets = np.full((16, 32), number, np.float32)
        tiles, values = TrellisSearch(bits).quantize(targets)
        assert np.array_equal(trellis.decode_tiles(tiles, "mul1"), values)
        assert np.abs(values - np.clip(targets, -3.4531, 3.3477)).mean() <= distance


def test_wrong_arguments_are_errors() -> None:
    for bits, codebook in ((4.5, "mul1"), (2.3, "mul1"), (9, "mul1"), (0, "mul1"), (2.5, "mcg"), (4, "mul2")):
        with pytest.raises(ConversionError, match="EXL3"):
            TrellisSearch(bits, codebook)
    search = TrellisSearch(4)
    with pytest.raises(ConversionError, match="NaN"):
        search.quantize(np.full((16, 16), np.nan, np.float32))
    with pytest.raises(ValueError, match="multiples of 16"):
        search.quantize(gaussian(16, 24))
    with pytest.raises(ValueError, match="feedback"):
        search.quantize(gaussian(16, 16), gaussian(32, 32))
