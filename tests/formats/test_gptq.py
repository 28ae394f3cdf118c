"""GPTQ: the published vectors, a plain decoder, versions of zero points, and files that break the format's rules."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exllama import formats
from exllama.errors import FormatError, UnsupportedModelError
from exllama.formats.gptq import WIDTHS, read_matrix
from exllama.loader.safetensors_checkpoint import SafetensorsCheckpoint
from tests.formats.group_writer import Array, Tensors, decode_gptq, random_gptq, tensors, words, write

VECTORS = {
    2: ([-0.015625, 0, 0.046875, 0.125], [-0.078125, -0.1875, 0.109375, -0.046875], -104.03125, 22.46875),
    3: ([-0.015625, 0, 0.046875, 0.125], [-0.078125, -0.09375, -0.328125, -0.015625], -84.765625, 41.734375),
    4: ([-0.015625, 0, 0.046875, 0.125], [0.46875, -0.375, 1.203125, 0.046875], 31.609375, 158.109375),
    8: ([-0.015625, 5.5, 4.546875, 1.125], [11.71875, 10.6875, -1.640625, 2.15625], 587.015625, 713.515625),
}


def config(**section: Any) -> str:
    return json.dumps({"quantization_config": {"quant_method": "gptq"} | section})


@pytest.mark.parametrize("bits", WIDTHS)
def test_published_vectors(bits: int, tmp_path: Path) -> None:
    scales = ((1 + np.arange(64) % 7) / 64).reshape(2, 32).astype(np.float16)
    parts = tensors("a", qweight=words(2 * bits, 32), qzeros=words(2, bits), scales=scales)
    first, last, *sums = VECTORS[bits]
    for version, total in zip(("gptq", "gptq_v2"), sums, strict=True):
        with write(tmp_path, parts, config(checkpoint_format=version)) as checkpoint:
            matrix = read_matrix(checkpoint, "a", (32, 64)).dequantize(0, 32).T.astype(np.float64)
        assert matrix.sum() == pytest.approx(total, abs=1e-6)
        if version == "gptq":
            assert matrix[0, :4].tolist() == first
            assert matrix[63, 28:].tolist() == last


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "symmetric": {"symmetric": True},
    "act-order": {"act_order": True},
    "act-order, symmetric, version 2": {"act_order": True, "symmetric": True, "version": 2},
    "version 2": {"version": 2},
    "one group": {"group": -1},
    "groups of 128 and a rest": {"group": 128},
    "groups of 24": {"group": 24, "act_order": True},
    "groups of 16": {"group": 16},
}


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("case", CASES)
def test_values(bits: int, case: str, tmp_path: Path) -> None:
    """(code - zero) * scale is exact in fp32, so all devices hold the very numbers of the file."""
    options = CASES[case]
    version = options.get("version", 1)
    parts = random_gptq("a", 96, 288, bits, **options)
    text = config(bits=bits, group_size=options.get("group", 32), checkpoint_format=["gptq", "gptq_v2"][version - 1])
    with write(tmp_path, parts, text) as checkpoint:
        for device in ("reference", "cpu"):
            weight = formats.load_weight(checkpoint, "a", (96, 288), device)
            assert np.array_equal(weight.dequantize().numpy(), decode_gptq("a", parts, bits, version))


@pytest.mark.parametrize("index", ["absent", "zeros"])
def test_groups_follow_each_other_without_an_index(index: str, tmp_path: Path) -> None:
    """An index of zeros alone is a defect of some writers."""
    parts = random_gptq("a", 64, 128)
    expected = decode_gptq("a", parts, 4)
    del parts["a.g_idx"]
    if index == "zeros":
        parts["a.g_idx"] = torch.zeros(128, dtype=torch.int32)
    for section in (config(group_size=32), "{}"):
        with write(tmp_path, parts, section) as checkpoint:
            assert formats.find_composite(checkpoint.tensors, "a").name == "GPTQ"  # type: ignore[union-attr]
            found = formats.load_weight(checkpoint, "a", (64, 128), "cpu").dequantize().numpy()
        assert np.array_equal(found, expected)


@pytest.mark.parametrize(("stated", "stored"), [("gptq", 2), ("gptq_v2", 1)])
def test_the_version_follows_from_symmetric_zeros(
    stated: str, stored: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = random_gptq("a", 64, 128, symmetric=True, version=stored)
    text = config(checkpoint_format=stated, sym=True)
    with write(tmp_path, parts, text) as checkpoint, caplog.at_level(logging.WARNING):
        found = formats.load_weight(checkpoint, "a", (64, 128), "cpu").dequantize().numpy()
    assert np.array_equal(found, decode_gptq("a", parts, 4, stored))
    assert f"those of version {stored}" in caplog.text


def test_a_zero_point_that_version_1_cannot_store_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    parts = random_gptq("a", 64, 128)
    parts["a.qzeros"][0, 0] = -1
    with write(tmp_path, parts) as checkpoint, caplog.at_level(logging.WARNING):
        found = formats.load_weight(checkpoint, "a", (64, 128), "cpu").dequantize().numpy()
    assert np.array_equal(found, decode_gptq("a", parts, 4))
    assert "version 1 cannot store the zero point 0" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scales_of_other_types_are_not_rounded(dtype: torch.dtype, tmp_path: Path) -> None:
    parts = random_gptq("a", 64, 128)
    for scale in (0.01, 1e-9):
        parts["a.scales"] = torch.full((4, 64), scale).to(dtype)
        expected = decode_gptq("a", parts | {"a.scales": parts["a.scales"].float()}, 4)
        with write(tmp_path, parts) as checkpoint:
            weight = formats.load_weight(checkpoint, "a", (64, 128), "cpu")
        assert np.array_equal(weight.dequantize().numpy(), expected)


def changed(**changes: Array | None) -> Tensors:
    parts = random_gptq("a", 64, 128)
    for part in changes:
        parts.pop(f"a.{part}", None)
    return parts | tensors("a", **changes)


INDEX = (np.arange(128) // 32).astype(np.int32)
BROKEN: dict[str, tuple[Tensors, str, str]] = {
    "no zeros": (changed(qzeros=None), "{}", "a.qzeros"),
    "no scales": (changed(scales=None), "{}", "a.scales"),
    "words of another type": (changed(qweight=np.zeros((16, 64), np.int16)), "{}", "dtype of a.qweight"),
    "5 bits": (changed(qweight=np.zeros((20, 64), np.int32)), "{}", "shape of a.qweight"),
    "other outputs": (changed(qweight=np.zeros((16, 32), np.int32)), "{}", "shape of a.qweight"),
    "flat scales": (changed(scales=np.ones(64, np.float16)), "{}", "shape of a.scales"),
    "scales of other outputs": (changed(scales=np.ones((4, 32), np.float16)), "{}", "shape of a.scales"),
    "scales that are whole": (changed(scales=np.ones((4, 64), np.int32)), "{}", "dtype of a.scales"),
    "a scale that is NaN": (changed(scales=np.full((4, 64), np.nan, np.float16)), "{}", "a.scales"),
    "zeros of other groups": (changed(qzeros=np.zeros((3, 8), np.int32)), "{}", "shape of a.qzeros"),
    "an index that is too short": (changed(g_idx=INDEX[:96]), "{}", "shape of a.g_idx"),
    "an index beyond the groups": (changed(g_idx=INDEX + 1), "{}", "a.g_idx"),
    "a negative index": (changed(g_idx=INDEX - 1), "{}", "a.g_idx"),
    "other bits": (changed(), config(bits=8), "shape of a.qweight"),
    "another group size": (changed(g_idx=None), config(group_size=64), "shape of a.scales"),
    "no group size": (changed(g_idx=None), config(group_size=0), "shape of a.scales"),
    "a group size that is text": (changed(g_idx=None), config(group_size="32"), "shape of a.scales"),
    "groups that do not come out": (changed(g_idx=None, scales=np.ones((3, 64), np.float16),
                                            qzeros=np.zeros((3, 8), np.int32)), "{}", "shape of a.scales"),
    "marlin": (changed(), config(is_marlin_format=True), "checkpoint_format"),
    "an unknown version": (changed(), config(checkpoint_format="gptq_v3"), "checkpoint_format"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_matrices(case: str, tmp_path: Path) -> None:
    parts, section, field = BROKEN[case]
    with write(tmp_path, parts, section) as checkpoint, pytest.raises(FormatError) as caught:
        formats.load_weight(checkpoint, "a", (64, 128), "cpu")
    assert caught.value.field == field
    assert caught.value.expected


def test_a_configuration_of_its_own(tmp_path: Path) -> None:
    """Older files have quantize_config.json."""
    (tmp_path / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 32}))
    with write(tmp_path, random_gptq("a", 64, 128)) as checkpoint:
        assert checkpoint.config["quantization_config"] == {"quant_method": "gptq", "bits": 4, "group_size": 32}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "hqq"}}))
    with pytest.raises(UnsupportedModelError, match="hqq"):
        SafetensorsCheckpoint(tmp_path)


fuzzing = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PARTS = ["qweight", "qzeros", "scales", "g_idx"]


@fuzzing
@given(part=st.sampled_from(PARTS), place=st.integers(0, 1 << 16), value=st.integers(0, 255))
def test_any_byte_of_a_part(tmp_path: Path, part: str, place: int, value: int) -> None:
    """A matrix with one byte changed is refused, or is what the plain decoder says."""
    parts = random_gptq("a", 32, 96, act_order=True)
    raw = parts[f"a.{part}"].numpy().reshape(-1).view(np.uint8)
    raw[place % len(raw)] = value
    with write(tmp_path, parts) as checkpoint:
        try:
            found = formats.load_weight(checkpoint, "a", (32, 96), "cpu").dequantize().numpy()
        except FormatError:
            return
    assert np.array_equal(found, decode_gptq("a", parts, 4))


SHAPES = st.lists(st.integers(0, 40), max_size=3)
DTYPES = st.sampled_from([np.int32, np.int16, np.float16, np.float32])
CHANGES = st.dictionaries(st.sampled_from(PARTS), st.none() | st.tuples(DTYPES, SHAPES), max_size=3)


@fuzzing
@given(changes=CHANGES, rows=st.integers(1, 80), columns=st.integers(1, 160))
def test_any_parts(tmp_path: Path, changes: dict[str, tuple[Any, list[int]] | None], rows: int, columns: int) -> None:
    made = {part: None if change is None else np.ones(change[1], change[0]) for part, change in changes.items()}
    with write(tmp_path, changed(**made)) as checkpoint:
        try:
            found = formats.load_weight(checkpoint, "a", (rows, columns), "cpu").dequantize()
        except FormatError:
            return
    assert found.shape == (rows, columns)
    assert torch.isfinite(found).all()
