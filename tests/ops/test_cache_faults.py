"""Keys and values that no cache can hold: told row by row with the layer, and harmless to every other row."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from exllama import ops, reference
from tests.ops.bench_plan import LEVELS, Array, nmse
from tests.ops.blocks import dense

HEADS, HEAD_DIM, ROWS = 2, 64, 20
WIDTH = HEADS * HEAD_DIM
KINDS = [(16, 16), (16, 4), (4, 16), *((bits, bits) for bits in range(2, 9))]
NAN, INF = float("nan"), float("inf")

# row -> (which of k0, v0, k1, v1, feature, value): layer 0 stores k0 and v0, layer 1 k1 and v1
BAD = {2: (0, 5, NAN), 4: (1, 127, -INF), 7: (2, 0, INF), 9: (3, 64, NAN), 11: (2, 70, 1e6), 13: (1, 33, -3e38)}
EXPECTED = {2: 0, 4: 0, 7: 1, 9: 1, 11: 1, 13: 0}


def tables() -> list[Array]:
    """k0, v0, k1, v1: (ROWS, WIDTH) float32 that every kind of cache can hold, some only just."""
    made = [np.random.default_rng(seed).standard_normal((ROWS, WIDTH)).astype(np.float32) for seed in range(4)]
    for table in made:
        table[1] *= 1e4  # a large key and value
        table[3, 40] = 65504.0  # the largest fp16
        table[5] = 0.0
        table[6] = 1e-30
    return made


def spoiled() -> list[Array]:
    made = tables()
    for row, (table, feature, value) in BAD.items():
        made[table][row, feature] = value
    return made


def run(device: str, inputs: list[Array], kind: tuple[int, int]) -> tuple[Array, dict[int, int]]:
    """Attention of both layers, (ROWS, 2 * WIDTH), every row a sequence of its own; and the faults."""
    name, _, level = device.partition(" ")
    plan = reference.ReferencePlan(ROWS, ops.Buffer) if name == "reference" else ops.CpuPlan(ROWS, 2, level)
    outputs = []
    for k_table, v_table in (inputs[:2], inputs[2:]):
        q, k, v, out = (plan.buffer(WIDTH) for _ in range(4))
        plan.embed(dense(np.ones_like(k_table)), q)
        plan.embed(dense(k_table), k)
        plan.embed(dense(v_table), v)
        cache = ops.layer_cache(name, ROWS, HEADS, HEAD_DIM, *kind)
        plan.rope_and_store(q, k, v, cache, None)
        plan.attention(q, out, cache, HEAD_DIM**-0.5)
        outputs.append(out)
    both = plan.buffer(2 * WIDTH)
    parts = np.eye(2 * WIDTH, dtype=np.float32)
    plan.linear(outputs[0], [ops.Projection(dense(np.ascontiguousarray(parts[:, :WIDTH])), both)])
    plan.linear(outputs[1], [ops.Projection(dense(np.ascontiguousarray(parts[:, WIDTH:])), both, add=True)])
    plan.logits(both, dense(parts))
    rows = np.arange(ROWS, dtype=np.int32)
    logits = plan.run(rows, 0 * rows, rows, rows[:, None].copy(), rows)
    return logits.numpy().copy(), plan.faults


@pytest.mark.parametrize("device", ["reference", *(f"cpu {level}" for level in LEVELS)])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_faulty_rows_are_named_and_others_keep_their_bits(kind: tuple[int, int], device: str) -> None:
    clean, faults = run(device, tables(), kind)
    assert faults == {}
    found, faults = run(device, spoiled(), kind)
    assert faults == EXPECTED
    others = [row for row in range(ROWS) if row not in BAD]
    assert np.isfinite(found[others]).all()
    assert np.array_equal(found[others], clean[others])


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_huge_values_are_stored_as_in_the_reference(kind: tuple[int, int]) -> None:
    """One token is its own attention, so the outputs are the stored values."""
    expected, _ = run("reference", tables(), kind)
    for level in LEVELS:
        found, _ = run(f"cpu {level}", tables(), kind)
        for row in range(ROWS):
            if expected[row].any():
                assert nmse(found[row], expected[row]) <= 1e-6, (level, row)


@pytest.mark.parametrize(("value", "fits"), [(65504.0, True), (65519.9, True), (65520.0, False), (-65520.0, False)])
@pytest.mark.parametrize("device", ["reference", *(f"cpu {level}" for level in LEVELS)])
def test_the_limit_of_fp16(device: str, value: float, fits: bool) -> None:
    inputs = tables()
    inputs[1][8, 17] = value
    assert run(device, inputs, (16, 16))[1] == ({} if fits else {8: 0})


@pytest.mark.parametrize(("value", "fits"), [(65504.0, True), (65505.0, False), (65519.0, False), (1e38, False)])
@pytest.mark.parametrize("device", ["reference", *(f"cpu {level}" for level in LEVELS)])
def test_the_limit_of_packed_scales(device: str, value: float, fits: bool) -> None:
    """32 equal features rotate into one of sqrt(32) times their size, which is the scale."""
    inputs = tables()
    inputs[0][8, 32:64] = np.float32(value / 32**0.5)
    rotated = float(reference.rotate(torch.from_numpy(inputs[0][8, 32:64])).abs().max())
    assert rotated == pytest.approx(value, rel=1e-6)
    assert run(device, inputs, (4, 4))[1] == ({} if rotated <= 65504.0 else {8: 0})
    assert (rotated <= 65504.0) == fits or value == 65504.0  # which rounding may push over the limit
