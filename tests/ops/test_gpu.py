"""GPU devices through the door: what they refuse and how, and that a replayed graph computes what a first run does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from exllama import ops
from exllama.errors import DeviceError, UnsupportedModelError, UsageError
from exllama.formats import trellis
from exllama.formats.trellis import Codebook
from exllama.ops import gpu
from tests.formats.exl3_writer import random_linear

ROOT = Path(__file__).resolve().parents[2]
WIDTH, VOCAB = 64, 40
DEVICE = os.environ.get("EXL_TEST_BACKEND", "emu") + ":0"  # "cuda:0" in make gpu-check


def dense(rows: int, columns: int, device: str, seed: int) -> ops.Weight:
    values = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float16)
    packer = ops.pack_dense("float16", (rows, columns), device)
    packer.add_rows(0, values.view(np.uint8))
    return packer.finish()


def small_plan(device: str = DEVICE, max_rows: int = 4) -> ops.Plan:
    """embed -> one gated pair -> head."""
    plan = ops.plan(device, max_rows)
    hidden, inner = plan.buffer(WIDTH), plan.buffer(96)
    norm = ops.Norm(torch.ones(WIDTH), 1e-5)
    plan.embed(dense(VOCAB, WIDTH, device, 0), hidden)
    gate, up = (ops.Projection(dense(96, WIDTH, device, seed), inner) for seed in (1, 2))
    plan.gated_linear(hidden, gate, up, "silu", norm)
    plan.linear(inner, [ops.Projection(dense(WIDTH, 96, device, 3), hidden, add=True)])
    plan.logits(hidden, dense(VOCAB, WIDTH, device, 4), norm)
    return plan


def run(plan: ops.Plan, tokens: list[int]) -> torch.Tensor:
    rows = np.arange(len(tokens), dtype=np.int32)
    return plan.run(np.array(tokens, np.int32), rows, 0 * rows, np.zeros((1, 1), np.int32), rows)


def test_a_graph_computes_what_the_first_run_did() -> None:
    """A bucket runs plainly, then as it is recorded, then from the record; other buckets in between change nothing."""
    plan = small_plan()
    first = run(plan, [5, 7, 9])
    for tokens in ([1], [2, 3], [1], [4], [2, 2]):
        run(plan, tokens)
    for _ in range(3):
        assert torch.equal(run(plan, [5, 7, 9]), first)
    assert torch.equal(run(plan, [5])[0], first[0])
    assert not torch.equal(run(plan, [6])[0], first[0])


def test_what_a_plan_refuses() -> None:
    with pytest.raises(UsageError, match="vocabulary"):
        run(small_plan(), [VOCAB])
    with pytest.raises(UsageError, match="exceed max_rows"):
        run(small_plan(), [0] * 5)
    plan = ops.plan(DEVICE, 4)
    with pytest.raises(DeviceError, match=f"plan of {DEVICE} needs its weights there, not on the CPU"):
        plan.embed(dense(VOCAB, WIDTH, "cpu", 0), plan.buffer(WIDTH))
    cache = ops.layer_cache("cpu", 1, 1, WIDTH)
    with pytest.raises(DeviceError, match=f"plan of {DEVICE} needs its cache there, not on the CPU"):
        plan.attention(plan.buffer(WIDTH), plan.buffer(WIDTH), cache, 1.0)


def test_devices_that_are_not_there() -> None:
    with pytest.raises(DeviceError, match="there is no emu:7: 1 emu device was found"):
        ops.plan("emu:7", 1)
    with pytest.raises(DeviceError, match="expected emu:0"):
        ops.plan("emu:x", 1)
    with pytest.raises(DeviceError, match="'tpu', expected 'cpu', 'cuda:0'"):
        ops.plan("tpu", 1)


def test_caches_that_no_kernel_reads() -> None:
    with pytest.raises(UnsupportedModelError, match="head_dim"):
        ops.layer_cache(DEVICE, 1, 1, 1000)


def test_weights_are_what_the_file_held() -> None:
    values = np.random.default_rng(0).standard_normal((21, 40)).astype(np.float32)
    packer = ops.pack_dense("float32", values.shape, DEVICE)
    packer.add_rows(0, values[:16].view(np.uint8))
    packer.add_rows(16, values[16:].view(np.uint8))
    weight = packer.finish()
    assert np.array_equal(weight.dequantize().numpy(), values)
    assert weight.nbytes >= values.nbytes


@pytest.mark.parametrize(("codebook", "bits"), [("mul1", 2.5), ("mcg", 4), ("3inst", 3)])
def test_trellises_stay_as_the_file_has_them(codebook: Codebook, bits: float) -> None:
    parts = random_linear("a", 130, 200, bits, codebook)
    tiles, suh, svh = (parts[f"a.{part}"].numpy() for part in ("trellis", "suh", "svh"))
    packer = ops.pack_trellis((130, 200), bits, codebook, (suh, svh), DEVICE)
    packer.add_tiles(0, tiles[:5])
    packer.add_tiles(5, tiles[5:])
    weight = packer.finish()
    exact = trellis.dequantize(tiles, suh.astype(np.float64), svh.astype(np.float64), codebook)[:130, :200]
    assert np.array_equal(weight.dequantize().numpy(), exact.astype(np.float32))
    assert weight.nbytes == 256 * 256 * bits / 8 + 2 * (256 + 256)


def test_trellises_that_are_refused() -> None:
    scales = np.ones(128, np.float16), np.ones(256, np.float16)
    with pytest.raises(UsageError, match="scales have the wrong length"):
        ops.pack_trellis((130, 200), 4, "mul1", scales, DEVICE)
    packer = ops.pack_trellis((130, 100), 4, "mul1", scales, DEVICE)
    for start, words in ((0, 56), (8, 64), (-1, 64)):
        with pytest.raises(UsageError, match="tiles"):
            packer.add_tiles(start, np.zeros((1, 16, words), np.int16))


SHORT_OF_MEMORY = """
from exllama import ops
from exllama.errors import DeviceError
try:
    ops.layer_cache("emu:1", 64, 8, 128)
except DeviceError as error:
    print(error)
print(ops.gpu_free_bytes("emu:0"))
"""


def test_out_of_memory_is_told(tmp_path: Path) -> None:
    environment = {**os.environ, "EXLLAMA_EMU_DEVICES": "3MiB,1MiB", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY], env=environment, capture_output=True, text=True, timeout=300
    )
    told, free = done.stdout.splitlines()
    assert "emu:1: out of memory" in told, done.stderr
    assert int(free) == 3 << 20


def test_names_of_gpus() -> None:
    assert [gpu.is_gpu(name) for name in ("cuda", "hip:1", "emu:0", "cpu", "reference", "cud")] == [True] * 3 + [
        False
    ] * 3
