"""What this machine has and whether it computes correctly: `python -m exllama.devices`."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from exllama import ops
from exllama.devices import Discovery, discover
from exllama.errors import ExllamaError

SHAPE = (128, 256)  # a small matrix with whole groups
TOLERANCE = 1e-5  # float32 sums of 256 products in another order


def inspect() -> dict[str, Any]:
    """The JSON object of `--json`: devices, GPUs, models loaded in this process, and a computation that was checked."""
    found = discover()
    return {
        "devices": [describe_cpu(found)],
        "gpu_stats": {"gpus": [], "reason": "; ".join(found.notes)},
        "models_loaded": 0,
        "inference_test": inference_test(),
        "notes": found.notes,
    }


def describe_cpu(found: Discovery) -> dict[str, Any]:
    cpu = found.cpu
    return {
        "device": cpu.name,
        "name": cpu.model,
        "instruction_set": instruction_set(),
        "cores": cpu.cores,
        "logical_cores": cpu.logical_cores,
        "cpu_quota": cpu.quota,
        "threads": ops.default_threads(),
        "memory_total": cpu.total,
        "memory_free": cpu.free,
    }


def instruction_set() -> str:
    """The level that kernels would use, or why there is none."""
    try:
        return ops.cpu_level()
    except ExllamaError as error:
        return f"unavailable: {error}"


def inference_test() -> dict[str, Any]:
    """Embedding, linear layer and head on the CPU, compared with numpy in float64."""
    begin = time.perf_counter()
    try:
        error = _largest_error()
    except ExllamaError as reason:
        status = f"failed: {reason}"
    else:
        wrong = f"failed: the result is off by {error:.1e}, at most {TOLERANCE:.0e} was expected"
        status = "success" if error <= TOLERANCE else wrong
    return {"status": status, "duration_seconds": round(time.perf_counter() - begin, 4)}


def _largest_error() -> float:
    """max |native - float64| / max |float64| of a toy forward pass."""
    rows, columns = SHAPE
    random = np.random.default_rng(0)
    tables = [random.standard_normal(shape, dtype=np.float32) for shape in (SHAPE, (columns, columns), SHAPE)]
    packed = []
    for table in tables:
        packer = ops.pack_dense("float32", table.shape, "cpu")
        packer.add_rows(0, table.view(np.uint8))
        packed.append(packer.finish())
    plan = ops.plan("cpu", 4, None)
    hidden, mixed = plan.buffer(columns), plan.buffer(columns)
    plan.embed(packed[0], hidden)
    plan.linear(hidden, [ops.Projection(packed[1], mixed)])
    plan.logits(mixed, packed[2], ops.Norm(torch.ones(columns), 1e-6))
    ids = np.array([1, 0, rows - 1], dtype=np.int32)
    zeros, order = np.zeros(3, dtype=np.int32), np.arange(3, dtype=np.int32)
    found = plan.run(ids, order, zeros, np.zeros((1, 1), dtype=np.int32), order).double().numpy()
    middle = tables[0][ids].astype(np.float64) @ tables[1].T.astype(np.float64)
    middle /= np.sqrt((middle**2).mean(axis=1, keepdims=True) + 1e-6)
    expected = middle @ tables[2].T.astype(np.float64)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def describe(report: dict[str, Any]) -> str:
    """The report for a person."""
    cpu = report["devices"][0]
    quota = "" if cpu["cpu_quota"] is None else f", {cpu['cpu_quota']:g} of them granted"
    test = report["inference_test"]
    return "\n".join(
        [
            f"cpu: {cpu['name']}, {cpu['cores']} cores ({cpu['logical_cores']} logical{quota})",
            f"kernels: {cpu['threads']} threads, instruction set {cpu['instruction_set']}",
            f"memory: {cpu['memory_free'] / 2**30:.1f} GiB free of {cpu['memory_total'] / 2**30:.1f} GiB",
            f"inference test: {test['status']} ({test['duration_seconds']:.3f} s)",
            *report["notes"],
        ]
    )
