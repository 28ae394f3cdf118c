"""Matrix kernels of every level against float64, and the promise that a row's bits depend on that row alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from exllama import ops
from exllama.errors import UnsupportedModelError, UsageError
from tests.ops.bench_plan import LEVELS, Array, nmse, run_op
from tests.ops.blocks import dense, packed, random_blocks, values

ROWS = (1, 2, 3, 4, 8, 12, 16, 17, 31, 33, 70)
ACTIVATIONS_8_BIT = 1e-4  # absmax / 127 per 32 columns: relative RMS 0.5 %, squared 2.5e-5 on Gaussian rows
ACTIVATIONS_12_BIT = 4e-7  # absmax / 2032 per 32 columns
OUTLIER_12_BIT = (
    2e-6  # one column is nearly all of the row: 32 / 12 / 2032^2 = 6.5e-7, times what its weight is smaller
)
ACTIVATIONS_BF16 = 1e-5  # 2^-9 at most, squared and averaged; the fp16 weights are rounded alike
FLOAT32 = 1e-12


def gaussian(rows: int, columns: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def project(x: Array, weight: ops.Weight, level: str, threads: int = 2, precise: bool = False) -> Array:
    def record(plan: ops.CpuPlan, source: ops.Buffer, out: ops.Buffer) -> None:
        plan.linear(source, [ops.Projection(weight, out)], precise=precise)

    return run_op(x, weight.out_features, record, level, threads)


def columns_of(kind: str) -> int:
    return 512 if kind.endswith("K") else 288


@pytest.mark.parametrize("kind", ops.BLOCK_TYPES)
def test_packed_values_are_those_of_the_file(kind: str) -> None:
    raw = random_blocks(kind, 71, columns_of(kind))
    assert np.array_equal(packed(kind, raw, columns_of(kind)).dequantize().numpy(), values(kind, raw))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ops.BLOCK_TYPES)
@pytest.mark.parametrize("precise", [False, True])
def test_products(kind: str, level: str, precise: bool) -> None:
    raw, x = random_blocks(kind, 71, columns_of(kind)), gaussian(70, columns_of(kind))
    result = project(x, packed(kind, raw, columns_of(kind)), level, precise=precise)
    bound = ACTIVATIONS_12_BIT if precise else ACTIVATIONS_8_BIT
    assert nmse(result, x.astype(np.float64) @ values(kind, raw).T) <= bound


@pytest.mark.parametrize("kind", ops.BLOCK_TYPES)
def test_levels_agree(kind: str) -> None:
    """The integer parts are equal; floats differ by fused or separate rounding alone."""
    raw, x = random_blocks(kind, 48, columns_of(kind)), gaussian(33, columns_of(kind))
    weight = packed(kind, raw, columns_of(kind))
    results = [project(x, weight, level) for level in LEVELS]
    assert all(nmse(result, results[0]) <= FLOAT32 for result in results[1:])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", [*ops.BLOCK_TYPES, "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("precise", [False, True])
def test_a_row_gives_the_same_bits_in_any_company(kind: str, level: str, precise: bool) -> None:
    columns = columns_of(kind)
    if kind in ops.BLOCK_TYPES:
        weight = packed(kind, random_blocks(kind, 40, columns), columns)
    else:
        weight = dense_of(gaussian(40, columns), kind)
    x = gaussian(ROWS[-1], columns)
    expected = project(x, weight, level, precise=precise)
    for rows in ROWS[:-1]:
        for threads in (1, 2, 5):
            assert np.array_equal(project(x[:rows], weight, level, threads, precise), expected[:rows]), (rows, threads)


def test_rows_beyond_one_chunk_of_the_cache() -> None:
    """Wide rows are cut into chunks; 150 rows of 8192 columns make two."""
    raw, x = random_blocks("Q4_0", 32, 8192), gaussian(150, 8192)
    weight = packed("Q4_0", raw, 8192)
    for level in LEVELS[1:]:
        whole = project(x, weight, level, precise=True)
        assert np.array_equal(project(x[97:98], weight, level, precise=True), whole[97:98])
        assert nmse(whole, x.astype(np.float64) @ values("Q4_0", raw).T) <= ACTIVATIONS_12_BIT


def dense_of(matrix: Array, dtype: str) -> ops.Weight:
    if dtype == "float32":
        return dense(matrix)
    return dense(torch.from_numpy(matrix).to(getattr(torch, dtype)).view(torch.int16).numpy(), dtype)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("columns", [64, 90])
def test_dense_products(dtype: str, level: str, columns: int) -> None:
    matrix, x = gaussian(71, columns, 2), gaussian(70, columns)
    stored = torch.from_numpy(matrix).to(getattr(torch, dtype)).float().numpy()
    bound = FLOAT32 if dtype == "float32" else ACTIVATIONS_BF16
    assert nmse(project(x, dense_of(matrix, dtype), level), x.astype(np.float64) @ stored.T) <= bound


@pytest.mark.parametrize("level", LEVELS)
def test_norm_bias_add_and_several_outputs(level: str) -> None:
    x, norm = gaussian(19, 64) * 3, np.abs(gaussian(1, 64, 3)[0])
    first, second = gaussian(48, 64, 4), gaussian(20, 64, 5)
    bias = gaussian(1, 20, 6)[0]

    def record(plan: ops.CpuPlan, source: ops.Buffer, out: ops.Buffer) -> None:
        ignored = plan.buffer(48)
        projections = [
            ops.Projection(dense(first), ignored),
            ops.Projection(dense(second), out, torch.from_numpy(bias)),
        ]
        plan.linear(source, projections, ops.Norm(torch.from_numpy(norm), 1e-5))
        plan.linear(source, [ops.Projection(dense(second), out, add=True)])

    wide = x.astype(np.float64)
    normed = wide / np.sqrt((wide**2).mean(1, keepdims=True) + 1e-5) * norm
    assert nmse(run_op(x, 20, record, level), normed @ second.T + bias + wide @ second.T) <= FLOAT32


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu"])
def test_gated(level: str, activation: str) -> None:
    x, gate, up = gaussian(21, 64) * 2, gaussian(50, 64, 7) / 4, gaussian(50, 64, 8) / 4

    def record(plan: ops.CpuPlan, source: ops.Buffer, out: ops.Buffer) -> None:
        plan.gated_linear(source, ops.Projection(dense(gate), out), ops.Projection(dense(up), out), activation)  # type: ignore[arg-type]

    wide = torch.from_numpy(x).double()
    left, right = wide @ torch.from_numpy(gate).double().T, wide @ torch.from_numpy(up).double().T
    functional = torch.nn.functional
    acted = {
        "silu": functional.silu(left),
        "gelu": functional.gelu(left),
        "gelu_tanh": functional.gelu(left, approximate="tanh"),
    }[activation]
    assert nmse(run_op(x, 50, record, level), (acted * right).numpy()) <= 1e-11


@pytest.mark.parametrize("level", LEVELS)
def test_zeros_and_outliers(level: str) -> None:
    raw = random_blocks("Q4_1", 32, 64)
    weight, x = packed("Q4_1", raw, 64), gaussian(5, 64)
    x[0] = 0
    x[1, 7] *= 1e4
    result = project(x, weight, level, precise=True)
    assert not result[0].any()
    assert nmse(result[1:], x[1:].astype(np.float64) @ values("Q4_1", raw).T) <= OUTLIER_12_BIT


@pytest.mark.parametrize("level", LEVELS)
def test_rows_with_outliers_have_12_bits(level: str) -> None:
    """ops.RESIDUAL_ABOVE: such a row is as good as a precise one, an ordinary row beside it stays at 8 bits."""
    raw, x = random_blocks("Q4_0", 32, 288), gaussian(20, 288)
    x[3, 5] *= 300
    x[17, 100] *= 300
    result = project(x, packed("Q4_0", raw, 288), level)
    expected = x.astype(np.float64) @ values("Q4_0", raw).T
    errors = np.array([nmse(result[r], expected[r]) for r in range(20)])
    assert errors[[3, 17]].max() <= OUTLIER_12_BIT
    assert np.delete(errors, [3, 17]).min() >= 5e-6


def test_wrong_arguments_are_errors() -> None:
    weight = packed("Q8_0", random_blocks("Q8_0", 48, 64), 64)
    plan = ops.CpuPlan(4, 1)
    narrow, out = plan.buffer(32), plan.buffer(48)
    with pytest.raises((UsageError, ValueError), match="input width"):
        plan.linear(narrow, [ops.Projection(weight, out)])
    with pytest.raises(UnsupportedModelError, match="Q9_9"):
        ops.pack_blocks("Q9_9", (16, 32))
    with pytest.raises(UnsupportedModelError, match="block size"):
        ops.pack_blocks("Q4_K", (16, 32))
    with pytest.raises(UsageError, match="rows"):
        ops.pack_blocks("Q8_0", (16, 32)).add_rows(8, np.zeros((1, 34), np.uint8))
    with pytest.raises(UsageError, match="length"):
        ops.pack_blocks("Q8_0", (16, 32)).add_rows(0, np.zeros((1, 33), np.uint8))
