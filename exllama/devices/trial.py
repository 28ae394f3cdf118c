"""`python -m exllama.devices.trial DEVICE`: computes a little on a device and compares it with plain torch.

A process of its own for each device: a GPU that hangs, aborts or computes wrong is found out before a model is on it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from exllama import ops, settings
from exllama.devices import visible
from exllama.devices.device import Device
from exllama.devices.discovery import Discovery, time_limit
from exllama.devices.tools import ToolFailure, run_tool
from exllama.errors import BuildError, ExllamaError

COMMAND = (sys.executable, "-m", "exllama.devices.trial")
TOLERANCE = 2e-2  # activations of 8 to 11 bits on the way; a kernel that is wrong is off by about 1
_HIDDEN, _HEADS, _DIM, _VOCAB, _ROWS = 64, 2, 32, 48, 5


def validated(found: Discovery, seconds: float | None = None, command: Sequence[str] = COMMAND) -> Discovery:
    """Without the GPUs that crash, hang or compute wrong. seconds: for all together, None for discovery's limit."""
    failed = try_devices(found.gpus, seconds or time_limit(), command)
    notes = [f"filtering device which didn't fully initialize: {name}: {reason}" for name, reason in failed.items()]
    kept = [device for device in found.devices if device.name not in failed]
    return Discovery(kept, [*found.notes, *notes], {**found.dropped, **failed})


def try_devices(devices: Sequence[Device], seconds: float, command: Sequence[str] = COMMAND) -> dict[str, str]:
    """Runs `command NAME` for every device at once and returns the names of those that failed, with the reason.

    Each child sees one device alone, so its name there has the number 0; emulated GPUs keep theirs.
    """
    variables, failed = settings.visible_devices(), _without_kernels(devices)

    def fate(device: Device) -> str:
        assert device.gpu is not None, "the CPU needs no trial"
        changes = visible.only(device.gpu, variables, sys.platform == "linux")
        name = f"{device.name.split(':')[0]}:0" if changes else device.name
        try:
            run_tool([*command, name], seconds, changes)
        except ToolFailure as failure:
            return str(failure)
        return ""

    able = [device for device in devices if device.name not in failed]
    with ThreadPoolExecutor(max(1, len(able))) as pool:
        fates = zip([device.name for device in able], pool.map(fate, able), strict=True)
    return failed | {name: reason for name, reason in fates if reason}


def _without_kernels(devices: Sequence[Device]) -> dict[str, str]:
    """Devices whose kernels cannot be built. Built here, once: a trial has no time for it."""
    failed: dict[str, str] = {}
    for backend in sorted({device.name.split(":")[0] for device in devices}):
        try:
            ops.build_gpu_library(backend)
        except BuildError as error:
            failed |= {device.name: str(error) for device in devices if device.name.startswith(f"{backend}:")}
    return failed


def largest_error(device: str) -> float:
    """max |device - torch| / max |torch| over the logits of one attention layer."""
    found, expected = (_forward(name) for name in (device, "reference"))
    return float((found - expected).abs().max() / expected.abs().max())


def _forward(device: str) -> torch.Tensor:
    """Embedding, q/k/v with a norm, attention over a cache page, output projection, head: (rows, vocab) float32."""
    random, width = np.random.default_rng(0), _HEADS * _DIM
    shapes: Mapping[str, tuple[int, int]] = {
        "table": (_VOCAB, _HIDDEN), "q": (width, _HIDDEN), "k": (_DIM, _HIDDEN), "v": (_DIM, _HIDDEN),
        "o": (_HIDDEN, width), "head": (_VOCAB, _HIDDEN),
    }  # fmt: skip
    weights = {name: _weight(random.standard_normal(shape), device) for name, shape in shapes.items()}
    plan = ops.plan(device, _ROWS, 1)
    hidden, q, k, v, mixed = (plan.buffer(size) for size in (_HIDDEN, width, _DIM, _DIM, width))
    norm, cache = ops.Norm(torch.ones(_HIDDEN), 1e-5), ops.layer_cache(device, 1, 1, _DIM)
    plan.embed(weights["table"], hidden)
    plan.linear(hidden, [ops.Projection(weights[n], out) for n, out in (("q", q), ("k", k), ("v", v))], norm, True)
    plan.rope_and_store(q, k, v, cache, ops.Rope(torch.ones(_DIM // 2)))
    plan.attention(q, mixed, cache, _DIM**-0.5)
    plan.linear(mixed, [ops.Projection(weights["o"], hidden, add=True)])
    plan.logits(hidden, weights["head"], norm)
    rows = np.arange(_ROWS, dtype=np.int32)
    return plan.run(rows * 7, rows, 0 * rows, np.zeros((1, 1), np.int32), rows).clone()


def _weight(values: np.ndarray, device: str) -> ops.Weight:
    packer = ops.pack_dense("float32", values.shape, device)
    packer.add_rows(0, (values / values.shape[1] ** 0.5).astype(np.float32).view(np.uint8))
    return packer.finish()


def main(arguments: Sequence[str]) -> int:
    """Exit code 0 when the device computes; else 1 and one line that says what is wrong."""
    try:
        error = largest_error(arguments[0])
    except ExllamaError as reason:
        sys.stderr.write(f"{reason}\n")
        return 1
    if not error <= TOLERANCE:
        sys.stderr.write(f"the result is off by {error:.1e}, at most {TOLERANCE:.0e} was expected\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
