"""AWQ: the published vector, a plain decoder, and files that break the format's rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exllama import formats
from exllama.errors import FormatError
from exllama.formats.awq import read_matrix, unpack_nibbles
from tests.formats.group_writer import Array, Tensors, awq_pack, decode_awq, random_awq, tensors, words, write


def config(**section: Any) -> str:
    return json.dumps({"quantization_config": {"quant_method": "awq", "version": "gemm"} | section})


def test_the_published_vector(tmp_path: Path) -> None:
    assert unpack_nibbles(np.array([[0x75316420]], np.uint32)).tolist() == [list(range(8))]
    scales = ((1 + np.arange(64) % 7) / 64).reshape(2, 32).astype(np.float16)
    parts = tensors("a", qweight=words(64, 4), qzeros=words(2, 4), scales=scales)
    assert unpack_nibbles(words(64, 4))[1, :8].tolist() == [4, 13, 12, 13, 6, 8, 14, 7]
    with write(tmp_path, parts) as checkpoint:
        matrix = read_matrix(checkpoint, "a", (32, 64)).dequantize(0, 32).T.astype(np.float64)
    assert matrix[1, :4].tolist() == [0.0625, 0.40625, 0.5625, 0.8125]
    assert matrix[63, 28:].tolist() == [0.3125, 0.5625, -0.21875, 0.0625]
    assert matrix.sum() == 150.234375


@pytest.mark.parametrize("group", [32, 64, 128, 256])
def test_values(group: int, tmp_path: Path) -> None:
    """Exact on every device; 72 outputs are a block and a half, and a zero point of 0 is legal."""
    parts = random_awq("a", 72, 256, group)
    parts["a.qzeros"][0] = 0
    with write(tmp_path, parts, config(group_size=group, bits=4)) as checkpoint:
        assert formats.find_composite(checkpoint.tensors, "a").name == "AWQ"  # type: ignore[union-attr]
        for device in ("reference", "cpu"):
            weight = formats.load_weight(checkpoint, "a", (72, 256), device)
            assert np.array_equal(weight.dequantize().numpy(), decode_awq("a", parts, group))


def test_old_configurations(tmp_path: Path) -> None:
    section = {"w_bit": 4, "q_group_size": 64, "version": "GEMM", "zero_point": True}
    (tmp_path / "quant_config.json").write_text(json.dumps(section))
    parts = random_awq("a", 64, 128, 64)
    with write(tmp_path, parts) as checkpoint:
        weight = formats.load_weight(checkpoint, "a", (64, 128), "cpu")
    assert np.array_equal(weight.dequantize().numpy(), decode_awq("a", parts, 64))


def test_without_zero_points_they_are_8(tmp_path: Path) -> None:
    parts = random_awq("a", 64, 128)
    parts |= tensors("a", qzeros=awq_pack(np.full((4, 64), 8)))
    expected = decode_awq("a", parts)
    del parts["a.qzeros"]
    with write(tmp_path, parts, config(zero_point=False)) as checkpoint:
        assert np.array_equal(formats.load_weight(checkpoint, "a", (64, 128), "cpu").dequantize().numpy(), expected)


def changed(**changes: Array | None) -> Tensors:
    parts = random_awq("a", 64, 128)
    for part in changes:
        parts.pop(f"a.{part}", None)
    return parts | tensors("a", **changes)


BROKEN: dict[str, tuple[Tensors, str, str]] = {
    "no zeros": (changed(qzeros=None), "{}", "a.qzeros"),
    "words of another type": (changed(qweight=np.zeros((128, 8), np.int16)), "{}", "dtype of a.qweight"),
    "other features": (changed(qweight=np.zeros((96, 8), np.int32)), "{}", "shape of a.qweight"),
    "scales of other outputs": (changed(scales=np.ones((4, 32), np.float16)), "{}", "shape of a.scales"),
    "scales in fp32": (changed(scales=np.ones((4, 64), np.float32)), "{}", "dtype of a.scales"),
    "a scale that is infinite": (changed(scales=np.full((4, 64), np.inf, np.float16)), "{}", "a.scales"),
    "zeros of other groups": (changed(qzeros=np.zeros((2, 8), np.int32)), "{}", "shape of a.qzeros"),
    "another group size": (changed(), config(group_size=64), "shape of a.scales"),
    "gemv": (changed(), config(version="gemv"), "version"),
    "a version that is a number": (changed(), config(version=2), "version"),
    "8 bits": (changed(), config(bits=8), "bits"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_matrices(case: str, tmp_path: Path) -> None:
    parts, section, field = BROKEN[case]
    with write(tmp_path, parts, section) as checkpoint, pytest.raises(FormatError) as caught:
        formats.load_weight(checkpoint, "a", (64, 128), "cpu")
    assert caught.value.field == field


fuzzing = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzzing
@given(part=st.sampled_from(["qweight", "qzeros", "scales"]), place=st.integers(0, 4096), value=st.integers(0, 255))
def test_any_byte_of_a_part(tmp_path: Path, part: str, place: int, value: int) -> None:
    parts = random_awq("a", 32, 64)
    raw = parts[f"a.{part}"].numpy().reshape(-1).view(np.uint8)
    raw[place % len(raw)] = value
    with write(tmp_path, parts) as checkpoint:
        try:
            found = formats.load_weight(checkpoint, "a", (32, 64), "cpu").dequantize().numpy()
        except FormatError:
            return
    assert np.array_equal(found, decode_awq("a", parts))
