"""A plan around one operation: rows of given activations in, rows of a buffer out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from exllama import ops
from tests.ops.blocks import dense

Array = np.ndarray[Any, np.dtype[Any]]
LEVELS: list[str] = ops.native().levels()


def run_op(
    x: Array, width: int, record: Callable[[ops.CpuPlan, ops.Buffer, ops.Buffer], None], level: str, threads: int = 2
) -> Array:
    """Records `record(plan, x, out)` and returns out (rows, width)."""
    rows, columns = x.shape
    plan = ops.CpuPlan(max(rows, 1), threads, level)
    source, out, rest = plan.buffer(columns), plan.buffer(width), plan.buffer(16)
    plan.write(source, np.ascontiguousarray(x, dtype=np.float32))
    record(plan, source, out)
    table = dense(np.ones((16, 16), np.float32))
    plan.embed(table, rest)
    plan.logits(rest, table)
    zeros = np.zeros(rows, np.int32)
    plan.run(zeros, np.arange(rows, dtype=np.int32), zeros, np.zeros((1, rows // 256 + 1), np.int32), zeros[:1])
    return plan.read(out, rows)


def nmse(value: Array, expected: Array) -> float:
    """Mean square error over mean square."""
    return float(((value.astype(np.float64) - expected) ** 2).sum() / (expected.astype(np.float64) ** 2).sum())
