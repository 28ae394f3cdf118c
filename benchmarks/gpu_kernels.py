"""Speeds of single operations and of whole models on one device, as lines for benchmarks/gpu_check.py.

Operations are recorded many times over distinct buffers and replayed as one plan, so that what a GPU's cache holds from
the last use is gone, and the time of a launch from Python is shared by all.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.random_model import RandomModel, RandomSource, step
from exllama import ops

ROTATE_BYTES = 256 << 20  # of weights or cache in one plan: more than any GPU's last-level cache


@dataclass(frozen=True)
class Sizes:
    """What is measured: full on a GPU, tiny where a CPU emulates one."""

    matrices: tuple[tuple[int, int], ...]  # (K, N)
    rows: tuple[int, ...]
    depths: tuple[int, ...]
    models: tuple[str, ...]
    batches: tuple[int, ...]
    prefill: int
    rotate_bytes: int
    repeats: int


FULL = Sizes(
    matrices=((4096, 4096), (4096, 14336), (14336, 4096), (8192, 8192), (8192, 28672), (28672, 8192)),
    rows=(1, 2, 4, 8, 16, 32, 64, 256), depths=(4096, 32768), models=("1B", "8B", "70B"), batches=(1, 4, 16),
    prefill=2048, rotate_bytes=ROTATE_BYTES, repeats=5,
)  # fmt: skip
TINY = Sizes(((64, 64),), (1, 8), (300,), ("tiny",), (1, 2), 64, 1 << 12, 1)


def _time(run: Callable[[], Any], repeats: int) -> float:
    """Median seconds, after two runs that record and warm up."""
    run(), run()
    samples = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)


def _line(test: str, seconds: float, read_bytes: float, bandwidth: float, **more: Any) -> dict[str, Any]:
    rate = read_bytes / seconds
    share = round(rate / bandwidth, 3) if bandwidth else None
    return {"test": test, "us": round(seconds * 1e6, 2), "gb_per_s": round(rate / 1e9, 1), "of_copy": share, **more}


class Replay:
    """A plan of operations over random buffers, run with any number of rows."""

    def __init__(self, device: str, rows: int) -> None:
        self.plan, self.rows = ops.plan(device, rows), rows
        source = RandomSource(device, "float16")
        self.table = source.weight("embedding", (256, 64))
        self.plan.embed(self.table, self.plan.buffer(64))

    def run(self, first: int, pages: int) -> None:
        rows = np.arange(self.rows, dtype=np.int32)
        table = np.arange(self.rows * pages, dtype=np.int32).reshape(self.rows, pages)
        self.plan.run(rows % 256, np.full_like(rows, first), rows, table, rows[:0])


def products(device: str, sizes: Sizes, bandwidth: float) -> Iterator[dict[str, Any]]:
    """Matrix products of few rows: bytes of weights a second against the device's copy."""
    for kind in ("Q4_0", "Q8_0", "float16"):
        for columns, width in sizes.matrices:
            source = RandomSource(device, kind)
            first = source.weight("0", (width, columns))
            count = max(4, min(64, int(sizes.rotate_bytes / first.nbytes)))
            weights = [RandomSource(device, kind).weight(str(i), (width, columns)) for i in range(count - 1)] + [first]
            for rows in sizes.rows:
                replay = Replay(device, rows)
                plan = replay.plan
                stream, x, y = plan.buffer(64), plan.buffer(columns), plan.buffer(width)
                plan.embed(replay.table, stream)
                norm = ops.Norm(torch.ones(64), 1e-5)
                enter = RandomSource(device, "float16").weight("enter", (columns, 64))
                plan.linear(stream, [ops.Projection(enter, x)], norm)
                for weight in weights:
                    plan.linear(x, [ops.Projection(weight, y)])
                seconds = _time(partial(replay.run, 0, 1), sizes.repeats) / count
                shape = {"kind": kind, "k": columns, "n": width, "rows": rows}
                yield _line("linear", seconds, first.nbytes, bandwidth, **shape)


def attention(device: str, sizes: Sizes, bandwidth: float) -> Iterator[dict[str, Any]]:
    """Decode attention, 8 kv heads of 128, 32 query heads: bytes of keys and values a second."""
    for bits in (16, 8, 4):
        for depth in sizes.depths:
            pages = -(-depth // ops.PAGE_SIZE)
            layers = [ops.layer_cache(device, pages, 8, 128, bits, bits)]
            while sum(layer.nbytes for layer in layers) < sizes.rotate_bytes:
                layers.append(ops.layer_cache(device, pages, 8, 128, bits, bits))
            replay = Replay(device, 1)
            plan = replay.plan
            stream, q, k, out = plan.buffer(64), plan.buffer(4096), plan.buffer(1024), plan.buffer(4096)
            plan.embed(replay.table, stream)
            norm = ops.Norm(torch.ones(64), 1e-5)
            for buffer in (q, k):
                enter = RandomSource(device, "float16").weight("enter", (buffer.width, 64))
                plan.linear(stream, [ops.Projection(enter, buffer)], norm)
            for layer in layers:
                plan.rope_and_store(q, k, k, layer, None)
                plan.attention(q, out, layer, 128**-0.5)
            seconds = _time(partial(replay.run, depth - 1, pages), sizes.repeats) / len(layers)
            read = sum(layer.nbytes for layer in layers) / len(layers) * depth / (pages * ops.PAGE_SIZE)
            yield _line("attention", seconds, read, bandwidth, bits=bits, depth=depth)


def models(device: str, sizes: Sizes, bandwidth: float) -> Iterator[dict[str, Any]]:
    """Decode and prefill of whole models with random 4-bit weights."""
    for name in sizes.models:
        model = RandomModel(name, device, "Q4_0")
        most = max(sizes.batches)
        tokens = sizes.prefill + ops.PAGE_SIZE
        pages = -(-tokens // ops.PAGE_SIZE)
        runner = model.runner(max(sizes.prefill, most), most, tokens)
        for batch in sizes.batches:
            seconds = _time(partial(step, runner, batch, 200, 1, pages), 4 * sizes.repeats)
            speed = {"tokens_per_second": round(batch / seconds, 1), "batch": batch, "model": name}
            yield _line("decode", seconds, model.step_bytes, bandwidth, **speed)
        seconds = _time(partial(step, runner, 1, 0, sizes.prefill, pages), sizes.repeats)
        speed = {"tokens_per_second": round(sizes.prefill / seconds, 1), "tokens": sizes.prefill, "model": name}
        yield _line("prefill", seconds, model.step_bytes, 0, **speed)
