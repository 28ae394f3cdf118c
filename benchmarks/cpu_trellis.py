"""The trellis kernels of one core: gigabytes of weights a second for one row, operations a second for many.

    python benchmarks/cpu_trellis.py [--levels amx,avx512,avx2] [--bits 4,3,2] [--codebooks mul1] [--rows 1,512]

Processor time of one thread is measured, so that other work on the machine costs less than wall-clock time would show.
"cache": one matrix again and again, 4096 x 512; "memory": 256 MB of different matrices 4096 x 4096, one after the
other. Q4_0, the GroupAffine type of 4.5 bits, is measured beside them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from exllama import ops
from exllama.ops.trellis import pack_trellis

COLUMNS, SMALL, LARGE = 4096, 512, 4096
MEMORY = 256 << 20
SECONDS = 1.0  # of measuring, for each figure


def trellis(out_features: int, bits: float, codebook: str, rng: np.random.Generator) -> ops.Weight:
    scales = rng.uniform(0.5, 1.5, COLUMNS) / 64, rng.uniform(0.5, 1.5, out_features)
    packer = pack_trellis((out_features, COLUMNS), bits, codebook, scales)
    shape = COLUMNS // 16, out_features // 16, int(16 * bits)
    packer.add_tiles(0, rng.integers(-(1 << 15), 1 << 15, shape, dtype=np.int16))
    return packer.finish()


def q4_0(out_features: int, rng: np.random.Generator) -> ops.Weight:
    raw = rng.integers(0, 256, (out_features, COLUMNS // 32, 18), dtype=np.uint8)
    raw[:, :, :2] = np.array([0.01], "<f2").view(np.uint8)
    packer = ops.pack_blocks("Q4_0", (out_features, COLUMNS))
    packer.add_rows(0, raw.reshape(out_features, -1))
    return packer.finish()


def ones(out_features: int) -> ops.Weight:
    packer = ops.pack_dense("float32", (out_features, 16))
    packer.add_rows(0, np.ones((out_features, 16), "<f4").view(np.uint8))
    return packer.finish()


def seconds_per_pass(weights: list[ops.Weight], rows: int, level: str) -> float:
    """Processor time of one thread for `rows` rows times every weight once: the best of what fits into SECONDS."""
    plan = ops.CpuPlan(rows, 1, level)
    x, out, rest = plan.buffer(COLUMNS), plan.buffer(weights[0].out_features), plan.buffer(16)
    plan.write(x, np.random.default_rng(0).standard_normal((rows, COLUMNS)).astype(np.float32))
    table = ones(16)
    plan.embed(table, rest)
    for weight in weights:
        plan.linear(x, [ops.Projection(weight, out)])
    plan.logits(rest, table)
    ids, pages = np.zeros(rows, np.int32), np.zeros((1, rows // 256 + 1), np.int32)
    best, begin = float("inf"), time.monotonic()
    while time.monotonic() - begin < SECONDS:
        start = time.thread_time()
        plan.run(ids, np.arange(rows, dtype=np.int32), ids, pages, ids[:1])
        best = min(best, time.thread_time() - start)
    return best


def figures(name: str, small: ops.Weight, many: list[ops.Weight], rows: int, level: str) -> dict[str, Any]:
    """One line of the table. Repeats of the small matrix make the costs of a run vanish."""
    line: dict[str, Any] = {"weights": name, "level": level, "rows": rows}
    repeats = 64 if rows == 1 else 1
    cached = seconds_per_pass([small] * repeats, rows, level) / repeats
    line["cache_gb_per_s"] = small.nbytes / cached / 1e9
    line["cache_gops"] = 2 * small.in_features * small.out_features * rows / cached / 1e9
    if rows == 1:
        line["memory_gb_per_s"] = sum(weight.nbytes for weight in many) / seconds_per_pass(many, rows, level) / 1e9
    return {key: round(value, 2) if isinstance(value, float) else value for key, value in line.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levels", default=ops.native().best_level())
    parser.add_argument("--bits", default="1,1.5,2,2.5,3,3.5,4,5,6,7,8")
    parser.add_argument("--codebooks", default="mul1")
    parser.add_argument("--rows", default="1,512")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rates = [float(bits) for bits in arguments.bits.split(",")]
    kinds = [(codebook, bits) for codebook in arguments.codebooks.split(",") for bits in rates]
    lines, rng = [], np.random.default_rng(0)

    def add(name: str, make: Callable[[int], ops.Weight]) -> None:
        rows = [int(count) for count in arguments.rows.split(",")]
        many = [make(LARGE)]
        many += [make(LARGE) for _ in range(MEMORY // many[0].nbytes if 1 in rows else 0)]
        small = make(SMALL)
        for level in arguments.levels.split(","):
            for count in rows:
                lines.append(figures(name, small, many, count, level))
                print(json.dumps(lines[-1]), flush=True)

    add("Q4_0", lambda size: q4_0(size, rng))
    for codebook, bits in kinds:
        if bits % 1 and codebook != "mul1":
            continue
        add(f"{codebook} {bits:g} bits", partial(trellis, bits=bits, codebook=codebook, rng=rng))
    if arguments.json:
        arguments.json.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
