"""The EXL3 quantizer: what the reader makes of its tensors, what LDLQ gains, and inputs that are hard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from conversion.exl3 import Exl3Quantizer
from conversion.ldlq import damped, feedback
from conversion.quantizer import Quantized
from exllama import formats
from exllama.errors import ConversionError
from exllama.loader.safetensors_checkpoint import SafetensorsCheckpoint


def gaussian(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def moments(features: int, rank: int, seed: int = 1) -> torch.Tensor:
    """Of inputs that a few directions dominate, some features a hundred times larger than others."""
    scales = torch.logspace(-1, 1, features)[torch.randperm(features, generator=torch.Generator().manual_seed(seed))]
    inputs = gaussian(2 * features, rank, seed) @ gaussian(rank, features, seed + 1) / rank**0.5 * scales
    return inputs.T @ inputs / len(inputs)


def loss(weight: torch.Tensor, found: Quantized, hessian: torch.Tensor) -> float:
    """tr(E H E^T) / tr(W H W^T)"""
    error, original, wide = (found.weight - weight).double(), weight.double(), hessian.double()
    return float(((error @ wide) * error).sum() / ((original @ wide) * original).sum())


def read_back(folder: Path, found: Quantized, shape: tuple[int, int]) -> torch.Tensor:
    folder.mkdir()
    save_file(
        {f"a.{key}": torch.from_numpy(array) for key, array in found.tensors.items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text("{}")
    with SafetensorsCheckpoint(folder) as store:
        return formats.load_weight(store, "a", shape, "reference", "float32").dequantize()


@pytest.mark.parametrize(
    ("codebook", "rate", "shape"),
    [("mul1", 2.5, (130, 100)), ("mul1", 4, (1, 1)), ("mcg", 3, (100, 130)), ("3inst", 2, (128, 256))],
)
def test_the_reader_finds_what_was_meant(tmp_path: Path, codebook: str, rate: float, shape: tuple[int, int]) -> None:
    quantizer = Exl3Quantizer(codebook)
    weight, hessian = gaussian(*shape) / 30, moments(shape[1], 8)
    found = quantizer.quantize(weight, hessian, rate, 7)
    assert torch.equal(read_back(tmp_path / "model", found, shape), found.weight)
    assert found.bits == quantizer.bits(*shape, rate)
    assert all(array.flags.c_contiguous for array in found.tensors.values())
    svh = found.tensors["svh"]
    assert not svh[shape[0] :].any()
    assert loss(weight, found, hessian) <= 1.1 * 4.0**-rate


def test_markers_are_those_of_the_format() -> None:
    """Specs of the format: the multipliers as signed int32."""
    for codebook, marker in (("mul1", -2082680531), ("mcg", -877912083)):
        tensors = Exl3Quantizer(codebook).quantize(gaussian(8, 8), torch.eye(8), 1, 0).tensors
        assert tensors[codebook].dtype == np.int32
        assert tensors[codebook].shape == ()
        assert int(tensors[codebook]) == marker


def test_feedback_pays() -> None:
    """Under correlated inputs the loss is far below that of rounding each weight for itself."""
    weight, hessian = gaussian(128, 256) / 16, moments(256, 32)
    for rate, gaussian_error in ((2, 0.0682), (4, 0.0043)):  # the yardstick of test_exl3_search.py
        with_feedback = Exl3Quantizer().quantize(weight, hessian, rate, 0)
        without = Exl3Quantizer().quantize(weight, torch.zeros(256, 256), rate, 0)
        assert loss(weight, with_feedback, hessian) <= 0.5 * loss(weight, without, hessian)
        assert loss(weight, without, torch.eye(256)) <= 1.05 * gaussian_error


def test_the_same_arguments_give_the_same_bytes() -> None:
    weight, hessian = gaussian(200, 256), moments(256, 100)
    first, second, other = (
        Exl3Quantizer(threads=threads).quantize(weight, hessian, 3.5, seed)
        for threads, seed in ((1, 5), (3, 5), (2, 6))
    )
    for key, array in first.tensors.items():
        assert array.tobytes() == second.tensors[key].tobytes()
    assert torch.equal(first.weight, second.weight)
    assert first.tensors["trellis"].tobytes() != other.tensors["trellis"].tobytes()


@pytest.mark.parametrize("kind", ["zero", "tiny", "huge", "one row", "dead inputs", "indefinite"])
def test_hard_hessians(kind: str) -> None:
    """Whatever it is, the result is no worse than a nearest path's by more than damping explains."""
    full = moments(128, 64)
    dead = torch.arange(128) % 3 == 0
    hessian = {
        "zero": torch.zeros(128, 128), "tiny": full * 1e-28, "huge": full * 1e30, "one row": moments(128, 1),
        "dead inputs": full.masked_fill(dead[:, None] | dead[None, :], 0), "indefinite": full - 0.3 * torch.eye(128),
    }[kind]  # fmt: skip
    weight = gaussian(64, 128)
    found = Exl3Quantizer().quantize(weight, hessian, 3, 0)
    assert bool(torch.isfinite(found.weight).all())
    if kind in ("tiny", "huge"):
        assert loss(weight, found, full) <= 0.5 * 4.0**-3
    error = float(((found.weight - weight) ** 2).sum() / (weight**2).sum())
    assert error <= {"one row": 0.5, "dead inputs": 0.2}.get(kind, 0.1)


@pytest.mark.parametrize("kind", ["zero", "zero columns", "zero rows", "tiny", "huge", "an outlier"])
def test_hard_weights(kind: str) -> None:
    weight = gaussian(128, 100)
    weight = {
        "zero": weight * 0, "zero columns": weight * (torch.arange(100) % 2), "tiny": weight * 1e-9,
        "zero rows": weight * (torch.arange(128) % 2)[:, None], "huge": weight * 1e4,
        "an outlier": weight.index_put((torch.tensor(3), torch.tensor(4)), torch.tensor(300.0)),
    }[kind]  # fmt: skip
    found = Exl3Quantizer().quantize(weight, torch.eye(100), 4, 0)
    assert float(((found.weight - weight) ** 2).sum()) <= 0.01 * float((weight**2).sum())
    if kind == "zero rows":  # of the output: exactly zero
        assert not found.weight[::2].any()


def test_wrong_arguments_are_errors() -> None:
    quantizer, weight, hessian = Exl3Quantizer(), gaussian(16, 16), torch.eye(16)
    with pytest.raises(ConversionError, match="codebook"):
        Exl3Quantizer("mul2")
    for codebook, rate in (("mul1", 4.5), ("mcg", 2.5), ("mul1", 0)):
        with pytest.raises(ConversionError, match="rate"):
            Exl3Quantizer(codebook).quantize(weight, hessian, rate, 0)
        with pytest.raises(ConversionError, match="rate"):
            Exl3Quantizer(codebook).bits(16, 16, rate)
    with pytest.raises(ConversionError, match="expected"):
        quantizer.quantize(weight, torch.eye(17), 4, 0)
    with pytest.raises(ConversionError, match="weight is NaN"):
        quantizer.quantize(weight.masked_fill(weight > 1, float("nan")), hessian, 4, 0)
    with pytest.raises(ConversionError, match="Hessian is NaN"):
        quantizer.quantize(weight, hessian * float("inf"), 4, 0)
    with pytest.raises(ConversionError, match="65504"):
        quantizer.quantize(weight * 1e30, hessian, 4, 0)


def test_what_config_says() -> None:
    config = Exl3Quantizer().config(3.512, 6.06)
    expected = {"quant_method": "exl3", "bits": 3.51, "head_bits": 6, "codebook": "mul1"}
    assert {key: config[key] for key in expected} == expected
    assert Exl3Quantizer("mcg").rates == (1, 2, 3, 4, 5, 6, 7, 8)


def test_factors_of_a_hessian() -> None:
    """L D L^T with blocks of 16, from the Cholesky factor of numpy."""
    hessian = damped(moments(96, 50).double().numpy())
    cholesky = np.linalg.cholesky(hessian)
    expected = np.zeros((96, 96))
    for block in range(0, 96, 16):
        inner = slice(block, block + 16)
        expected[block + 16 :, inner] = cholesky[block + 16 :, inner] @ np.linalg.inv(cholesky[inner, inner])
    for threads in (1, 3):
        assert np.abs(feedback(hessian, threads) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_damping_grows_until_a_factor_exists() -> None:
    hessian = np.full((32, 32), 1.0)
    hessian[0, 1] = hessian[1, 0] = 3.0  # indefinite by far more than 0.025
    assert np.isfinite(feedback(hessian, 1)).all()
    with pytest.raises(ConversionError, match="factored"):
        feedback(np.full((32, 32), np.nan), 1)
