"""The kernels of trellises on every level against the plain decoder in float64, and the promise on bits of a row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from exllama import ops
from exllama.errors import UsageError
from exllama.formats import trellis
from exllama.formats.trellis import Codebook
from exllama.ops.trellis import pack_trellis
from tests.formats.exl3_writer import RATES, random_linear
from tests.ops.bench_plan import LEVELS, Array, nmse, run_op
from tests.ops.blocks import dense

ROWS = (1, 2, 3, 4, 7, 8, 16, 17, 33, 50)
ACTIVATIONS_8_BIT = 1e-4  # absmax / 127 per 128 columns: 4e-5 on Gaussian rows
ACTIVATIONS_15_BIT = 2e-7  # of mul1: its values are rounded to fp16 in the file's decoder and not in the kernel, 5e-8
FLOAT32 = 1e-12
FORMATS: list[tuple[Codebook, float]] = [("mul1", bits) for bits in RATES]
FORMATS += [("mcg", bits) for bits in (1, 3, 4, 8)] + [("3inst", bits) for bits in (2, 4, 5)]


def gaussian(rows: int, columns: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def packed(rows: int, columns: int, bits: float = 4, codebook: Codebook = "mul1", seed: int = 0) -> tuple[Any, Array]:
    """A weight packed in two parts, and its values (rows, columns) float64."""
    parts = random_linear("a", rows, columns, bits, codebook, seed=seed)
    tiles, suh, svh = (parts[f"a.{part}"].numpy() for part in ("trellis", "suh", "svh"))
    suh, svh = suh.astype(np.float64), svh.astype(np.float64)
    packer = pack_trellis((rows, columns), bits, codebook, (suh, svh))
    packer.add_tiles(0, tiles[:5])
    packer.add_tiles(5, tiles[5:])
    return packer.finish(), trellis.dequantize(tiles, suh, svh, codebook)[:rows, :columns]


def project(x: Array, weight: ops.Weight, level: str, threads: int = 2, precise: bool = False) -> Array:
    def record(plan: ops.CpuPlan, source: ops.Buffer, out: ops.Buffer) -> None:
        plan.linear(source, [ops.Projection(weight, out)], precise=precise)

    return run_op(x, weight.out_features, record, level, threads)


@pytest.mark.parametrize("bits", RATES)
def test_one_tile_there_and_back(bits: float) -> None:
    """The layout header: states to words and words to weights, against the plain decoder."""
    rate2 = int(2 * bits)
    words = np.random.default_rng(rate2).integers(0, 1 << 16, 8 * rate2, dtype=np.uint16)
    states = trellis.states(words, rate2).astype(np.uint16)
    assert np.array_equal(ops.native().exl3_encode(states, rate2), words)
    for codebook in ("3inst", "mcg", "mul1"):
        expected = trellis.decode_tiles(words.view(np.int16)[None, None], codebook)  # type: ignore[arg-type]
        assert np.array_equal(ops.native().exl3_decode(words, codebook), expected.astype(np.float32))


@pytest.mark.parametrize(("codebook", "bits"), FORMATS)
def test_packed_values_are_those_of_the_file(codebook: Codebook, bits: float) -> None:
    """The plain decoder rounds sums in float64, the packed one not at all before the result."""
    weight, values = packed(200, 300, bits, codebook)
    found = weight.dequantize().numpy()
    assert np.abs(found - values).max() <= 2**-24 * np.abs(values).max()
    assert weight.nbytes == 256 * 384 * bits / 8 + 2 * (256 + 384)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("codebook", "bits"), FORMATS)
def test_products(codebook: Codebook, bits: float, level: str) -> None:
    weight, values = packed(200, 300, bits, codebook)
    x = gaussian(20, 300)
    expected = x.astype(np.float64) @ values.T
    bounds = (ACTIVATIONS_8_BIT, ACTIVATIONS_15_BIT) if codebook == "mul1" else (FLOAT32, FLOAT32)
    for rows in (1, 20):
        assert nmse(project(x[:rows], weight, level), expected[:rows]) <= bounds[0]
        assert nmse(project(x[:rows], weight, level, precise=True), expected[:rows]) <= bounds[1]


@pytest.mark.parametrize("codebook", ["mul1", "mcg"])
def test_levels_agree(codebook: Codebook) -> None:
    weight, _ = packed(128, 256, 3, codebook)
    x = gaussian(5, 256)
    results = [project(x, weight, level) for level in LEVELS]
    assert all(nmse(result, results[0]) <= FLOAT32 for result in results[1:])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("codebook", "bits"), [("mul1", 4), ("mul1", 2.5), ("mcg", 3), ("3inst", 4)])
@pytest.mark.parametrize("precise", [False, True])
def test_a_row_gives_the_same_bits_in_any_company(codebook: Codebook, bits: float, precise: bool, level: str) -> None:
    weight, _ = packed(150, 256, bits, codebook)
    x = gaussian(ROWS[-1], 256)
    x[5:7] = peaked(2, (150, 256), bits)
    expected = project(x, weight, level, precise=precise)
    for rows in ROWS[:-1]:
        for threads in (1, 3):
            assert np.array_equal(project(x[:rows], weight, level, threads, precise), expected[:rows]), (rows, threads)
    assert np.array_equal(project(x[5:6], weight, level, precise=precise), expected[5:6])


def peaked(rows: int, weight_shape: tuple[int, int], bits: float = 4) -> Array:
    """Rows that the rotation of the weight turns into one large number among small ones."""
    suh = random_linear("a", *weight_shape, bits)["a.suh"].double().numpy()[: weight_shape[1]]
    rotated: Array = ((1 + 0.01 * gaussian(rows, weight_shape[1], 2)) / suh).astype(np.float32)
    return rotated


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("codebook", ["mul1", "mcg"])
def test_more_rows_than_a_task_takes(codebook: Codebook, level: str) -> None:
    weight, values = packed(128, 128, 2, codebook)
    x = gaussian(1100, 128)
    whole = project(x, weight, level, precise=True)
    assert nmse(whole, x.astype(np.float64) @ values.T) <= ACTIVATIONS_15_BIT
    for first in (0, 511, 512, 1099):
        assert np.array_equal(project(x[first : first + 1], weight, level, precise=True), whole[first : first + 1])


@pytest.mark.parametrize("level", LEVELS)
def test_rows_with_outliers_keep_their_rounding_error(level: str) -> None:
    """ops.RESIDUAL_ABOVE: a row whose rotation is one peak among small numbers is as good as a precise one."""
    weight, values = packed(128, 128)
    x = gaussian(20, 128)
    x[[0, 3, 17]] = peaked(3, (128, 128))
    result, expected = project(x, weight, level), x.astype(np.float64) @ values.T
    errors = np.array([nmse(result[r], expected[r]) for r in range(20)])
    assert errors[[0, 3, 17]].max() <= 1e-6
    assert np.delete(errors, [0, 3, 17]).min() >= 4e-6


@pytest.mark.parametrize("level", LEVELS)
def test_norm_bias_add_and_families_side_by_side(level: str) -> None:
    x, norm, bias = gaussian(19, 256) * 3, np.abs(gaussian(1, 256, 3)[0]), gaussian(1, 72, 6)[0]
    (first, first_values), (second, second_values) = packed(130, 256, 4, "mcg"), packed(72, 256, 3.5, seed=1)
    plain = gaussian(40, 256, 5)
    outs: list[ops.Buffer] = []

    def record(plan: ops.CpuPlan, source: ops.Buffer, out: ops.Buffer) -> None:
        outs.extend([plan.buffer(130), plan.buffer(40)])
        projections = [
            ops.Projection(first, outs[0]),
            ops.Projection(dense(plain), outs[1]),
            ops.Projection(second, out, torch.from_numpy(bias)),
        ]
        plan.linear(source, projections, ops.Norm(torch.from_numpy(norm), 1e-5), precise=True)
        plan.linear(source, [ops.Projection(second, out, add=True)], precise=True)
        plan.linear(outs[0], [ops.Projection(narrow, out, add=True)])
        plan.linear(outs[1], [ops.Projection(other, out, add=True)])

    narrow_values, other_values = gaussian(72, 130, 7), gaussian(72, 40, 8)
    narrow, other = dense(narrow_values), dense(other_values)
    wide = x.astype(np.float64)
    normed = wide / np.sqrt((wide**2).mean(1, keepdims=True) + 1e-5) * norm
    expected = normed @ second_values.T + bias + wide @ second_values.T
    expected += normed @ first_values.T @ narrow_values.T + normed @ plain.T @ other_values.T
    for rows in (1, 19):
        outs.clear()
        assert nmse(run_op(x[:rows], 72, record, level), expected[:rows]) <= ACTIVATIONS_15_BIT


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("codebook", "activation"), [("mul1", "silu"), ("mcg", "gelu"), ("3inst", "gelu_tanh")])
def test_gated(codebook: Codebook, activation: str, level: str) -> None:
    x = gaussian(21, 128) * 2
    (gate, gate_values), (up, up_values) = packed(150, 128, 4, codebook), packed(150, 128, 3, codebook, seed=1)

    def record(plan: ops.CpuPlan, source: ops.Buffer, out: ops.Buffer) -> None:
        plan.gated_linear(source, ops.Projection(gate, out), ops.Projection(up, out), activation)  # type: ignore[arg-type]

    left, right = (torch.from_numpy(x).double() @ torch.from_numpy(v).T for v in (gate_values, up_values))
    functional = torch.nn.functional
    acted = {
        "silu": functional.silu(left), "gelu": functional.gelu(left),
        "gelu_tanh": functional.gelu(left, approximate="tanh"),
    }[activation]  # fmt: skip
    bound = 3 * ACTIVATIONS_8_BIT if codebook == "mul1" else 1e-11
    for rows in (1, 2, 21):
        assert nmse(run_op(x[:rows], 150, record, level), (acted * right).numpy()[:rows]) <= bound


@pytest.mark.parametrize("level", LEVELS)
def test_embedding_and_head(level: str) -> None:
    weight, values = packed(90, 160, 6)
    plan = ops.CpuPlan(4, 2, level)
    hidden = plan.buffer(160)
    plan.embed(weight, hidden, 2.0)
    plan.logits(hidden, weight, softcap=3.0)
    ids, rows = np.array([5, 89, 0], np.int32), np.arange(3, dtype=np.int32)
    logits = plan.run(ids, rows, np.zeros(3, np.int32), np.zeros((1, 1), np.int32), rows[1:])
    looked_up = 2 * values[ids]
    assert nmse(plan.read(hidden, 3), looked_up) <= FLOAT32
    assert nmse(logits.numpy(), 3 * np.tanh(looked_up[1:] @ values.T / 3)) <= ACTIVATIONS_15_BIT


@pytest.mark.parametrize("level", LEVELS)
def test_zeros(level: str) -> None:
    assert not project(np.zeros((4, 128), np.float32), packed(128, 128)[0], level).any()


def test_wrong_arguments_are_errors() -> None:
    weight, _ = packed(128, 128)
    scales = np.ones(128), np.ones(128)
    with pytest.raises(UsageError, match="rate"):
        pack_trellis((128, 128), 4.5, "mul1", scales)
    with pytest.raises(UsageError, match="codebook"):
        pack_trellis((128, 128), 4, "mul2", scales)
    with pytest.raises(UsageError, match="scales"):
        pack_trellis((129, 128), 4, "mul1", scales)
    packer = pack_trellis((128, 128), 4, "mul1", scales)
    with pytest.raises(UsageError, match="shape"):
        packer.add_tiles(0, np.zeros((8, 8, 48), np.int16))
    with pytest.raises(UsageError, match="outside"):
        packer.add_tiles(1, np.zeros((8, 8, 64), np.int16))
    plan = ops.CpuPlan(4, 1)
    source, out = plan.buffer(128), plan.buffer(128)
    with pytest.raises(UsageError, match="gate and up"):
        plan.gated_linear(source, ops.Projection(weight, out), ops.Projection(dense(gaussian(128, 128)), out), "silu")
