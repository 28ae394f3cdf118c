"""How near the EXL3 encoder comes to Gaussian numbers, and how fast: one JSON line a rate.

    python benchmarks/trellis_search.py [--bits 2,3,4] [--tiles 512] [--codebook mul1] [--levels amx,avx2]

mse: mean squared error of N(0, 1) at the best of some scales, found on other numbers. ratio: to that of the format's
description. ms_per_tile: of 256 weights, the processor time of one thread. vector_share: vector operations of the inner
loop a second, over how many dot products of bytes the same core does a second (AVX-512 levels; their operations alone
are counted, loads, broadcasts and the way back are not).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from conversion.trellis_search import TrellisSearch
from exllama import ops

# Of the format's description: independent numbers, rings of 256, the best scale.
EXPECTED = {1: 0.2722, 1.5: 0.1357, 2: 0.0682, 2.5: 0.0336, 3: 0.0170, 3.5: 0.0085, 4: 0.0043}
SCALES = (0.86, 0.88, 0.90, 0.92, 0.94, 0.96, 0.98, 1.0, 1.02)
SPREAD = {"mul1": 1.0003, "mcg": 1.2441, "3inst": 1.2437}
STEPS = 256 + 254  # of both passes
VECTORS = 65536 // 32


def gaussian(tiles: int, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((16, 16 * tiles)).astype(np.float32)


def squared_error(search: TrellisSearch, numbers: np.ndarray[Any, np.dtype[np.float32]], scale: float) -> float:
    _, values = search.quantize(numbers * np.float32(scale))
    return float(((values.astype(np.float64) / scale - numbers) ** 2).mean())


def seconds_per_tile(bits: float, codebook: str, level: str, tiles: int = 32) -> float:
    search, numbers, best = TrellisSearch(bits, codebook, 1, level), gaussian(tiles, 2), float("inf")
    for _ in range(4):
        start = time.thread_time()
        search.quantize(numbers)
        best = min(best, time.thread_time() - start)
    return best / tiles


def figures(bits: float, codebook: str, tiles: int, levels: list[str]) -> dict[str, Any]:
    search, probe = TrellisSearch(bits, codebook), gaussian(max(16, tiles // 4), 1)
    scale = min((squared_error(search, probe, scale * SPREAD[codebook]), scale) for scale in SCALES)[1]
    error = squared_error(search, gaussian(tiles, 0), scale * SPREAD[codebook])
    line: dict[str, Any] = {"bits": bits, "codebook": codebook, "tiles": tiles, "scale": scale, "mse": round(error, 6)}
    if bits in EXPECTED:
        line["ratio"] = round(error / EXPECTED[bits], 3)
    for level in levels:
        seconds = seconds_per_tile(bits, codebook, level)
        line[f"{level}_ms_per_tile"] = round(1e3 * seconds, 3)
        if level not in ("generic", "avx2"):
            operations = STEPS * VECTORS * (4 + max(0, int(bits) - 5)) / seconds
            peak = ops.native().int8_peak(ops.native().Team(1), "avx512") / 128
            line[f"{level}_vector_share"] = round(operations / peak, 2)
    return line


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", default="1,1.5,2,2.5,3,3.5,4,5,6,7,8")
    parser.add_argument("--tiles", type=int, default=512)
    parser.add_argument("--codebook", default="mul1", choices=list(SPREAD))
    parser.add_argument("--levels", default=ops.native().best_level())
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    lines = []
    for bits in map(float, arguments.bits.split(",")):
        lines.append(figures(bits, arguments.codebook, arguments.tiles, arguments.levels.split(",")))
        print(json.dumps(lines[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
