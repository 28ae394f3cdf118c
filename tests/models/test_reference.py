"""The reference operations against numpy in float64, torch's own attention, and the tables of the cache's design."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from exllama import ops, reference
from exllama.errors import UsageError
from tests.models.toys import relative_error


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_page_size_is_that_of_ops() -> None:
    assert reference.PAGE_SIZE == ops.PAGE_SIZE


def test_rms_norm() -> None:
    x, weight = normal(5, 48), normal(48, seed=1)
    a = x.numpy()
    expected = a / np.sqrt((a**2).mean(-1, keepdims=True) + 1e-5) * weight.numpy()
    np.testing.assert_allclose(reference.rms_norm(x, weight, 1e-5).numpy(), expected, rtol=1e-12)


def test_linear_and_embedding() -> None:
    x, weight, bias = normal(5, 48), normal(7, 48, seed=1), normal(7, seed=2)
    expected = x.numpy() @ weight.numpy().T + bias.numpy()
    np.testing.assert_allclose(reference.linear(x, weight, bias), expected, rtol=1e-10)
    assert torch.equal(reference.embedding(weight, torch.tensor([6, 0]), 3.0), weight[[6, 0]] * 3.0)


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh"])
def test_activations(name: str) -> None:
    def formula(x: float) -> float:
        if name == "silu":
            return x / (1 + math.exp(-x))
        if name == "gelu":
            return x / 2 * (1 + math.erf(x / math.sqrt(2)))
        return x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    x = normal(50) * 3
    np.testing.assert_allclose(reference.activate(x, name), [formula(v) for v in x.tolist()], rtol=1e-12)


def test_unknown_activation() -> None:
    with pytest.raises(UsageError, match="relu"):
        reference.activate(normal(2), "relu")


@pytest.mark.parametrize("rotated", [64, 32])
def test_rope_turns_pairs_as_complex_numbers(rotated: int) -> None:
    x, positions = normal(6, 3, 64), torch.tensor([0, 1, 2, 77, 500, 8191])
    inv_freq = (10000.0 ** -(torch.arange(0, rotated, 2).double() / rotated)).float()
    half = rotated // 2
    angles = (positions.float()[:, None] * inv_freq).double().numpy()
    pairs = (x[..., :half].numpy() + 1j * x[..., half:rotated].numpy()) * (1.5 * np.exp(1j * angles))[:, None]
    expected = np.concatenate((pairs.real, pairs.imag, x[..., rotated:].numpy()), -1)
    np.testing.assert_allclose(reference.rope(x, positions, inv_freq, 1.5), expected, atol=1e-12)


@pytest.mark.parametrize("window", [None, 1, 7])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2), (3, 1)])
def test_attention_equals_torch(heads: int, groups: int, window: int | None) -> None:
    k, v = normal(20, groups, 16, seed=1), normal(20, groups, 16, seed=2)
    positions = torch.tensor([0, 3, 7, 8, 19])
    q = normal(len(positions), heads, 16)
    distance = positions[:, None] - torch.arange(20)[None, :]
    mask = (distance >= 0) & (distance < (window or 20))
    expected = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(0, 1)[None], k.transpose(0, 1)[None], v.transpose(0, 1)[None], mask, scale=0.3, enable_gqa=True
    )[0].transpose(0, 1)
    found = reference.attention(q, k, v, positions, 0.3, window)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_softcap_limits_scores() -> None:
    q, k, v = normal(1, 1, 16) * 10, normal(4, 1, 16, seed=1), normal(4, 1, 16, seed=2)
    scores = 5 * np.tanh((q[0, 0] @ k[:, 0].T).numpy() / 5)
    weights = np.exp(scores - scores.max())
    expected = (weights / weights.sum()) @ v[:, 0].numpy()
    found = reference.attention(q, k, v, torch.tensor([3]), 1.0, cap=5.0)
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-12)


def test_rotation_is_orthonormal_and_its_own_inverse() -> None:
    h = reference.hadamard()
    torch.testing.assert_close(h @ h, torch.eye(32, dtype=torch.float64))
    assert torch.equal(h, h.T)
    x = normal(3, 96)
    torch.testing.assert_close(reference.rotate(reference.rotate(x)), x)


@pytest.mark.parametrize("head_dim", [32, 64, 96, 128, 192, 256])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 1)])
def test_rotating_query_and_output_is_plain_attention(head_dim: int, heads: int, groups: int) -> None:
    q, k, v = normal(9, heads, head_dim), normal(9, groups, head_dim, seed=1), normal(9, groups, head_dim, seed=2)
    positions, rotate = torch.arange(9), reference.rotate
    plain = reference.attention(q, k, v, positions, head_dim**-0.5)
    rotated = rotate(reference.attention(rotate(q), rotate(k), rotate(v), positions, head_dim**-0.5))
    torch.testing.assert_close(rotated, plain, rtol=1e-12, atol=1e-12)


# Relative RMSE on N(0, 1), and on the same with 3 of 128 channels twelve times larger; from the design of the cache.
GAUSSIAN = {2: 0.355, 3: 0.178, 4: 0.0889, 5: 0.0445, 6: 0.0222, 7: 0.0111, 8: 0.0056}
OUTLIERS = {2: 0.259, 3: 0.131, 4: 0.0655, 5: 0.0328, 6: 0.0164, 7: 0.0082, 8: 0.0041}


@pytest.mark.parametrize("bits", range(2, 9))
def test_error_of_quantized_values(bits: int) -> None:
    gaussian = normal(4000, 128).float()
    outliers = gaussian.clone()
    outliers[:, [5, 40, 100]] *= 12
    for x, table in ((gaussian, GAUSSIAN), (outliers, OUTLIERS)):
        codes, scales = reference.quantize(x, bits)
        assert relative_error(reference.dequantize(codes, scales, bits), x) == pytest.approx(table[bits], rel=0.03)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("head_dim", [32, 96, 128])
def test_codes_and_scales_follow_the_definition(bits: int, head_dim: int) -> None:
    """The definition once more, value by value in numpy float64."""
    x = normal(6, head_dim).float()
    codes, scales = reference.quantize(x, bits)
    h = np.array([[(-1.0) ** bin(i & j).count("1") for j in range(32)] for i in range(32)]) / np.sqrt(32)
    rotated = (x.double().numpy().reshape(6, -1, 32) @ h).reshape(6, -1, 32)
    m = 2 ** (bits - 1)
    for row in range(6):
        for group in range(head_dim // 32):
            w, s = rotated[row, group], float(scales[row, group])
            assert np.abs(w).max() <= s * (1 + 1e-6)
            assert s <= np.abs(w).max() * (1 + 2.0**-10)
            exact = w / s * m + m
            clear = np.abs(exact - np.round(exact)) > 1e-4  # float32 may fall to either side of a boundary
            expected = np.clip(np.floor(exact), 0, 2 * m - 1)
            assert (codes[row, 32 * group : 32 * group + 32].numpy() == expected)[clear].all()
    decoded = ((codes.double().numpy().reshape(6, -1, 32) - m + 0.5) / m * scales.double().numpy()[..., None]) @ h
    np.testing.assert_allclose(reference.dequantize(codes, scales, bits), decoded.reshape(6, -1), atol=1e-5)


def test_scale_is_the_smallest_half_that_is_not_below() -> None:
    x = [0.0, 1.0, 1.0 + 2.0**-11, 1.0 + 2.0**-10, 1e-9, 2.0**-24, 65504.0, 65510.0, 1e9]
    expected = [0.0, 1.0, 1.0 + 2.0**-10, 1.0 + 2.0**-10, 2.0**-24, 2.0**-24, 65504.0, 65504.0, 65504.0]
    assert reference.half_at_least(torch.tensor(x, dtype=torch.float64)).tolist() == expected


def test_zeros_stay_zeros_and_one_huge_element_survives() -> None:
    x = torch.zeros(2, 64)
    x[1, 7] = 65504.0
    decoded = reference.dequantize(*reference.quantize(x, 8), 8)
    assert torch.equal(decoded[0], torch.zeros(64))
    assert torch.equal(decoded[1, 32:], torch.zeros(32))
    assert relative_error(decoded[1], x[1]) < 0.01


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_seen_and_stored_as_one(bad: float) -> None:
    x = torch.zeros(3, 2, 32)
    x[1, 1, 3] = bad
    x[2, 0, 3] = 65504.0
    for bits in (4, 16, 32):
        assert reference.fits(x, bits).tolist() == [True, False, True]
    assert torch.isfinite(reference.dequantize(*reference.quantize(x, 4), 4)).all()


@pytest.mark.parametrize("bits", range(2, 9))
def test_packed_codes_come_back(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (3, 2, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    packed = reference.pack_codes(codes, bits)
    assert packed.shape == (3, 2, 64 * bits // 8)
    assert torch.equal(reference.unpack_codes(packed, bits), codes)


@pytest.mark.parametrize("bits", [2, 4, 5, 8, 16])
def test_storing_a_token_leaves_the_others_alone(bits: int) -> None:
    pages = reference.Pages(3, 2, 32, bits)
    rows = normal(300, 2, 32).float()
    index = torch.arange(300)
    pages.write(index // 256 + 1, index % 256, rows)
    together = [part.clone() for part in pages.parts]
    one_by_one = reference.Pages(3, 2, 32, bits)
    for i in reversed(range(300)):
        one_by_one.write(index[i : i + 1] // 256 + 1, index[i : i + 1] % 256, rows[i : i + 1])
    assert all(torch.equal(a, b) for a, b in zip(together, one_by_one.parts, strict=True))
    one_by_one.copy_page(1, 0)
    assert torch.equal(one_by_one.read(torch.tensor([0])), pages.read(torch.tensor([1])))


@pytest.mark.parametrize("head_dim", [16, 48, 80, 112])
def test_padded_heads_are_stored_as_with_zeros_behind_them(head_dim: int) -> None:
    width = -(-head_dim // 32) * 32
    rows, index = normal(9, 2, head_dim).float(), torch.arange(9)
    narrow, wide = reference.Pages(1, 2, head_dim, 5), reference.Pages(1, 2, width, 5)
    narrow.write(0 * index, index, rows)
    wide.write(0 * index, index, torch.cat((rows, torch.zeros(9, 2, width - head_dim)), -1))
    assert all(torch.equal(a, b) for a, b in zip(narrow.parts, wide.parts, strict=True))
    assert torch.equal(narrow.read(torch.tensor([0])), wide.read(torch.tensor([0]))[..., :head_dim])


def test_pages_refuse_what_they_cannot_hold() -> None:
    with pytest.raises(UsageError, match="9 bits"):
        reference.Pages(1, 1, 64, 9)


def test_plan_refuses_too_many_rows_and_foreign_caches() -> None:
    plan = reference.ReferencePlan(2, ops.Buffer)
    rows = np.zeros(3, np.int32)
    with pytest.raises(UsageError, match="3 rows"):
        plan.run(rows, rows, rows, rows[None], rows)
    q = plan.buffer(32)
    with pytest.raises(UsageError, match="object"):
        plan.attention(q, q, object(), 1.0)
