"""The trellis search in plain numpy, all 65536 states a position: slow, and obviously what it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from exllama.formats.trellis import Codebook, codebook_values

Array = np.ndarray[Any, np.dtype[Any]]
STATES = np.arange(1 << 16)
DEAR = 0x7FFF


def symbol_bits(rate2: int, position: int) -> int:
    position %= 256
    return (position + 1) * rate2 // 2 - position * rate2 // 2


def exact_costs(targets: Array, codebook: Codebook) -> Callable[[int], Array]:
    """Squared errors of all states at a position, float64. targets: (256,) in the order of the stream."""
    values = codebook_values(STATES, codebook).astype(np.float64)
    return lambda position: (values - targets[position]) ** 2


def integer_costs(targets: Array, codebook: Codebook, rate2: int) -> Callable[[int], Array]:
    """The same as kernels/cpu/trellis_search.h rounds it."""
    values = codebook_values(STATES, codebook).astype(np.float32)
    limit = np.abs(values).max() + np.float32(0.1)
    scale = np.float32(32767) / limit
    levels = np.rint(values * scale).astype(np.int64)
    wanted = np.rint(np.clip(targets.astype(np.float32), -limit, limit) * scale).astype(np.int64)

    def costs(position: int) -> Array:
        difference = np.clip(levels - wanted[position], -0x8000, 0x7FFF)
        for _ in range(symbol_bits(rate2, position) - 5):
            difference = np.clip(2 * difference, -0x8000, 0x7FFF)
        return (difference * difference + (1 << 14)) >> 15

    return costs


def pass_through(costs: Callable[[int], Array], rate2: int, first: int, count: int, before: Array) -> list[Array]:
    """Costs of the cheapest ways into the groups of states before each position, and after the last."""
    rows = [before]
    for position in range(first, first + count):
        total = rows[-1][STATES >> symbol_bits(rate2, position)] + costs(position % 256)
        after = total.reshape(1 << symbol_bits(rate2, position + 1), -1).min(0) - rows[-1].min()
        rows.append(np.minimum(after, DEAR))
    return rows


def trace(costs: Callable[[int], Array], rate2: int, first: int, rows: list[Array], group: int) -> dict[int, int]:
    """States of the positions from first on, the last of which leads to `group`."""
    path = {}
    for i in reversed(range(len(rows))):
        position = (first + i) % 256
        before, after = symbol_bits(rate2, position), symbol_bits(rate2, position + 1)
        states = group + (np.arange(1 << after) << (16 - after))
        best = int(states[np.argmin(rows[i][states >> before] + costs(position)[states])])
        path[position], group = best, best >> before
    return path


def find_seam(costs: Callable[[int], Array], rate2: int) -> int:
    """The state of position 255 on the best path once around from position 128, with free ends."""
    rows = pass_through(costs, rate2, 128, 256, np.zeros(65536 >> symbol_bits(rate2, 128), np.int64))
    return trace(costs, rate2, 128, rows[:-1], int(np.argmin(rows[-1])))[255]


def find_ring(costs: Callable[[int], Array], rate2: int, seam: int) -> Array:
    """The cheapest ring (256,) through the state `seam` at position 255."""
    before = np.full(65536 >> symbol_bits(rate2, 0), DEAR)
    before[seam % len(before)] = 0
    rows = pass_through(costs, rate2, 0, 254, before)
    path = trace(costs, rate2, 0, rows, seam >> symbol_bits(rate2, 255)) | {255: seam}
    return np.array([path[position] for position in range(256)])
