"""Every block type against the gguf package's dequantizer and the vectors of the format's description."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from exllama import formats
from exllama.errors import FormatError, UnsupportedModelError
from exllama.formats.gguf_types import BLOCK_TYPES
from exllama.formats.registry import TYPES, find_format
from exllama.loader.gguf_checkpoint import GgufCheckpoint
from tests.formats.gguf_writer import File, Tensor, llama_keys

GGUF = [name for name in TYPES if not name.startswith("F8")]
GROUP_AFFINE = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
HALF = 2**-8 + 2**-11  # rounding to float16 (11 bits), and once more to bfloat16 (8 bits) where that is held
EXPANDED = [name for name in GGUF if find_format(name).expanded]
# Where the fp16 fields (d, then dmin or m) of a block lie.
HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,), "TQ1_0": (52,), "TQ2_0": (64,),
    "IQ2_XXS": (0,), "IQ2_XS": (0,), "IQ2_S": (0,), "IQ3_XXS": (0,), "IQ3_S": (0,), "IQ1_S": (0,),
}  # fmt: skip
# Block bytes (37 i + 11) & 255, then d = 0.0625 and dmin or m = 0.03125: first four values, last two, sum, sum of |x|.
VECTORS = {
    "Q4_0": ([-0.1875, 0.125, 0.4375, -0.25], [-0.1875, 0], -1.3125, 7.6875),
    "Q4_1": ([0.96875, 0.28125, 0.59375, 0.90625], [0.65625, 0.78125], 16.3125, 16.3125),
    "Q5_0": ([0.5625, -0.125, 0.1875, -0.5], [0.875, 0.0625], 0.9375, 15.4375),
    "Q5_1": ([1.21875, 1.53125, 1.84375, 1.15625], [0.21875, 0.34375], 32.5625, 32.5625),
    "Q8_0": ([5.3125, 7.625, -6.0625, -3.75], [-5.3125, -3], -11, 135.75),
    "Q2_K": ([2.0625, 0, 0.6875, 1.375], [0.28125, 0.28125], 128.6875, 160.25),
    "Q3_K": ([5.0625, -6.75, 1.6875, -3.375], [-1.75, 2.625], 59.875, 575.625),
    "Q4_K": ([19.71875, -1.59375, 8.09375, 17.78125], [2.28125, 3.03125], 3402.5, 3439.25),
    "Q5_K": ([50.71875, -1.59375, 39.09375, 17.78125], [6.03125, 6.78125], 7263.5, 7284.9375),
    "Q6_K": ([-89.4375, 106, 36.4375, -33.125], [-2.5, -3.75], 288.25, 16656.375),
    "IQ4_NL": ([-2.1875, 1.5625, 7.0625, -3.0625], [-2.1875, 0.0625], -16.0625, 106.5625),
    "IQ4_XS": ([4.0625, -0.0625, -4.3125, 5.1875], [22, -1], -687.8125, 10416.4375),
    "TQ1_0": ([-0.0625, -0.0625, -0.0625, 0], [-0.0625, -0.0625], -0.125, 10.875),
    "TQ2_0": ([0.125, -0.0625, 0, 0.0625], [-0.0625, -0.0625], 8.0625, 16.1875),
}


def random_rows(name: str, rows: int, columns: int) -> np.ndarray:
    """Random blocks whose fp16 fields are such numbers as models have."""
    block = BLOCK_TYPES[name]
    rng = np.random.default_rng(len(name) * 1000 + columns)
    if block.elements == 1:
        values = (rng.standard_normal((rows, columns)) * 0.05).astype(np.float32)
        return gguf.quantize(values, gguf.GGMLQuantizationType[name]).view(np.uint8)
    raw = rng.integers(0, 256, (rows * columns // block.elements, block.nbytes), dtype=np.uint8)
    for offset in HALVES.get(name, ()):
        raw[:, offset : offset + 2] = rng.uniform(-0.01, 0.02, (len(raw), 1)).astype("<f2").view(np.uint8)
    if name == "IQ1_M":  # its fp16 is spread over the top nibbles of four 16-bit words
        raw[:, 49::2] = (raw[:, 49::2] & 15) | np.array([0x10, 0x20, 0x00, 0x20], np.uint8)
    if name == "MXFP4":
        raw[:, 0] = rng.integers(110, 126, len(raw))
    return raw.reshape(rows, -1)


def expected_values(name: str, raw: np.ndarray) -> np.ndarray:
    if name == "F32":
        return raw.view("<f4")
    if name == "F16":
        return raw.view("<f2").astype(np.float32)
    return gguf.dequantize(raw, gguf.GGMLQuantizationType[name])


def write(path: Path, name: str, raw: np.ndarray, columns: int) -> Path:
    rows = len(raw)
    numbers = {kind.name: kind.value for kind in gguf.GGMLQuantizationType}
    weight = Tensor("blk.0.ffn_up.weight", (columns, rows), numbers[name], 1280)
    return File(llama_keys(), [Tensor("token_embd.weight", (32, 10)), weight], bytes(1280) + raw.tobytes()).write(path)


def load(path: Path, **options: str) -> np.ndarray:
    key = "model.layers.0.mlp.up_proj"
    with GgufCheckpoint(path) as checkpoint:
        rows, columns = checkpoint.tensors[f"{key}.weight"].shape
        weight = formats.load_weight(checkpoint, key, (rows, columns), "cpu", **options)  # type: ignore[arg-type]
        return weight.dequantize().numpy()


@pytest.mark.parametrize("name", GGUF)
def test_values_equal_the_package_s_to_the_bit(name: str) -> None:
    raw = random_rows(name, 40, 1024)
    ours, theirs = find_format(name).dequantize(raw), expected_values(name, raw)
    assert ours.dtype == np.float32
    assert np.isfinite(theirs).all()
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("name", VECTORS)
def test_vectors(name: str) -> None:
    raw = (37 * np.arange(BLOCK_TYPES[name].nbytes) + 11).astype(np.uint8)[None]
    for offset, value in zip(HALVES[name], (0.0625, 0.03125), strict=False):
        raw[0, offset : offset + 2] = np.array([value], "<f2").view(np.uint8)
    values = find_format(name).dequantize(raw)[0]
    first, last, total, magnitude = VECTORS[name]
    assert values[:4].tolist() == first
    assert values[-2:].tolist() == last
    assert (values.sum(dtype=np.float64), np.abs(values).sum(dtype=np.float64)) == (total, magnitude)


@pytest.mark.parametrize("rows", [1, 16, 40])
@pytest.mark.parametrize("name", GROUP_AFFINE)
def test_packed_weights_hold_the_exact_values(tmp_path: Path, name: str, rows: int) -> None:
    """Codes times scales are exact in fp32. The addition of an offset rounds, with or without FMA: one last bit."""
    raw = random_rows(name, rows, 512)
    expected = expected_values(name, raw)
    found = load(write(tmp_path / "model.gguf", name, raw, 512))
    rounding = np.spacing(np.abs(expected).max()) if name in ("Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K") else 0
    assert np.abs(found - expected).max() <= rounding


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_dense_weights(tmp_path: Path, name: str) -> None:
    """float16 may be held as bfloat16 where the processor multiplies that."""
    raw = random_rows(name, 24, 96)
    expected = expected_values(name, raw)
    assert np.array_equal(load(write(tmp_path / "model.gguf", name, raw, 96), expand="float32"), expected)
    found = load(write(tmp_path / "model.gguf", name, raw, 96))
    assert (np.abs(found - expected) <= np.abs(expected) * (HALF if name == "F16" else 0)).all()


@pytest.mark.parametrize("name", EXPANDED)
def test_types_without_kernel_are_expanded_with_a_warning(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """MXFP4 and NVFP4 are exact in bfloat16. The others are rounded to float16, which may be held as bfloat16."""
    raw = random_rows(name, 20, 512)
    expected = expected_values(name, raw)
    with caplog.at_level(logging.WARNING, "exllama"):
        found = load(write(tmp_path / "model.gguf", name, raw, 512))
    assert f"no kernel reads {name}: 1 tensors are expanded" in caplog.text
    bound = 0.0 if name in ("MXFP4", "NVFP4") else HALF
    assert (np.abs(found - expected) <= np.abs(expected) * bound + 2**-24).all()
    assert np.array_equal(load(tmp_path / "model.gguf", expand="float32"), expected)


@pytest.mark.parametrize("name", [*GROUP_AFFINE, "IQ4_XS"])
def test_expansion_to_float32_is_exact(tmp_path: Path, name: str) -> None:
    raw = random_rows(name, 70, 768)
    found = load(write(tmp_path / "model.gguf", name, raw, 768), expand="float32")
    assert np.array_equal(found, expected_values(name, raw))


def test_large_weights_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, and the last one not full."""
    monkeypatch.setattr("exllama.formats.load.STAGING", 16 * 4096)
    for name in ("Q4_0", "IQ4_NL"):
        raw = random_rows(name, 150, 512)
        path = write(tmp_path / "model.gguf", name, raw, 512)
        assert np.array_equal(load(path, expand="float32"), expected_values(name, raw))
        assert np.allclose(load(path), expected_values(name, raw), rtol=HALF, atol=2**-24)


def test_vectors_of_any_type(tmp_path: Path) -> None:
    for name in ("F32", "F16", "BF16", "Q8_0"):
        raw = random_rows(name, 1, 256)
        with GgufCheckpoint(write_vector(tmp_path / "model.gguf", name, raw)) as checkpoint:
            found = formats.load_vector(checkpoint, "model.norm.weight", 256).numpy()
        assert np.array_equal(found, expected_values(name, raw)[0])


def write_vector(path: Path, name: str, raw: np.ndarray) -> Path:
    number = gguf.GGMLQuantizationType[name].value
    tensors = [Tensor("token_embd.weight", (32, 10)), Tensor("output_norm.weight", (256,), number, 1280)]
    return File(llama_keys(), tensors, bytes(1280) + raw.tobytes()).write(path)


def test_values_beyond_float16_are_refused_not_made_infinite(tmp_path: Path) -> None:
    raw = random_rows("IQ4_NL", 16, 64)
    raw.reshape(-1, 18)[5, :2] = np.array([60000], "<f2").view(np.uint8)
    with pytest.raises(FormatError, match=r"up_proj.weight: found a value of"):
        load(write(tmp_path / "model.gguf", "IQ4_NL", raw, 64))
    assert load(tmp_path / "model.gguf", expand="float32").max() > 65504


def test_without_the_gguf_package_iq_types_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "model.gguf", "IQ2_XS", random_rows("IQ2_XS", 16, 256), 256)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UnsupportedModelError, match="pip install gguf"):
        load(path)


def test_types_that_are_no_weights(tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", "I32", np.zeros((16, 256), np.uint8), 64)
    with pytest.raises(UnsupportedModelError, match=r"I32 .*Q4_0"):
        load(path)


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    with GgufCheckpoint(write(tmp_path / "model.gguf", "F32", random_rows("F32", 4, 32), 32)) as checkpoint:
        with pytest.raises(FormatError, match=r"lm_head.weight: found no such tensor"):
            formats.load_weight(checkpoint, "lm_head", (4, 32), "cpu")
        with pytest.raises(FormatError, match=r"model.norm.weight"):
            formats.load_vector(checkpoint, "model.norm.weight", 32)
