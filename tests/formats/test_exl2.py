"""EXL2: the published vector, a decoder in fp16 throughout, and files that break the format's rules."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from exllama import formats
from exllama.errors import ExllamaError, FormatError, SourceError
from exllama.formats.exl2 import WIDTHS, read_matrix
from exllama.loader.safetensors_checkpoint import SafetensorsCheckpoint
from tests.formats.group_writer import Array, Tensors, decode_exl2, random_exl2, tensors, words, write


def bits_of(values: Array) -> list[str]:
    return [f"{value:04x}" for value in values.astype(np.float16).view(np.uint16)]


def test_the_published_vector(tmp_path: Path) -> None:
    parts = tensors(
        "a", q_weight=words(19, 32), q_scale=words(4, 4), q_scale_max=np.array([0.25, 0.5, 0.125, 1], np.float16),
        q_groups=np.array([8, 0, 5, 8, 4, 13, 2, 17], np.int16),
        q_invperm=((37 * np.arange(128) + 5) % 128).astype(np.int32),
    )  # fmt: skip
    with write(tmp_path, parts) as checkpoint:
        matrix = read_matrix(checkpoint, "a", (32, 128)).dequantize(0, 32).T.astype(np.float64)
    assert bits_of(matrix[0, :4]) == ["aca0", "29e0", "ad70", "2860"]
    assert bits_of(matrix[1, :4]) == ["37d0", "c148", "37a8", "c5b6"]
    assert bits_of(matrix[127, 28:]) == ["a000", "ae40", "0000", "2e40"]
    assert (matrix.sum(), np.abs(matrix).sum()) == pytest.approx((-291.053223, 6369.143066), abs=1e-6)


ALL = [(8, 32), (6, 64), (6, 32), (5, 128), (4, 128), (4, 128), (3, 32), (2, 32)]
CASES: dict[str, tuple[int, list[tuple[int, int]]]] = {
    **{f"{bits} bits": (40, [(bits, 32)] * 3) for bits in WIDTHS},
    "all widths": (71, ALL),
    "one group": (32, [(4, 160)]),
    "32 columns": (32, [(2, 32)]),
    "a short last group": (64, [(4, 128), (4, 128), (4, 32)]),
    "a short group before others": (64, [(6, 128), (6, 32), (4, 64), (4, 64), (4, 32), (3, 128)]),
    "groups that are not multiples of 32": (48, [(4, 24), (4, 8), (2, 16), (2, 48)]),
    "long groups": (48, [(5, 32), (3, 2048), (3, 96)]),
}


def columns_of(groups: list[tuple[int, int]]) -> int:
    return sum(size for _, size in groups)


@pytest.mark.parametrize("case", CASES)
def test_values(case: str, tmp_path: Path) -> None:
    """To the bit."""
    rows, groups = CASES[case]
    columns = columns_of(groups)
    parts = random_exl2("a", rows, columns, groups)
    expected = decode_exl2("a", parts)[:rows].astype(np.float32)
    with write(tmp_path, parts) as checkpoint:
        for device in ("reference", "cpu"):
            exact = formats.load_weight(checkpoint, "a", (rows, columns), device, expand="float32")
            assert np.array_equal(exact.dequantize().numpy(), expected)
            held = formats.load_weight(checkpoint, "a", (rows, columns), device)
            assert np.array_equal(held.dequantize().numpy(), expected)


@pytest.mark.parametrize("length", [40, 64])
def test_a_bias_may_be_padded(tmp_path: Path, length: int) -> None:
    bias = torch.randn(length).half()
    with write(tmp_path, random_exl2("a", 40, 64, [(4, 64)]) | {"a.bias": bias}) as checkpoint:
        assert torch.equal(formats.load_vector(checkpoint, "a.bias", 40), bias[:40].float())


def changed(**changes: Array | None) -> Tensors:
    """A matrix of 64 x 128 in 4 groups with other parts; None leaves one out."""
    parts = random_exl2("a", 64, 128, [(4, 32)] * 4)
    for part in changes:
        parts.pop(f"a.{part}", None)
    return parts | tensors("a", **changes)


def groups(*pairs: int) -> Array:
    return np.array(pairs, np.int16)


PLAIN = np.arange(128, dtype=np.int32)
BROKEN: dict[str, tuple[Tensors, str]] = {
    "no scales": (changed(q_scale=None), "a.q_scale"),
    "no maximum": (changed(q_scale_max=None), "a.q_scale_max"),
    "no groups": (changed(q_groups=None), "a.q_groups"),
    "no order": (changed(q_invperm=None), "a.q_invperm"),
    "words of another type": (changed(q_weight=np.zeros((16, 64), np.int64)), "dtype of a.q_weight"),
    "words of another width": (changed(q_weight=np.zeros((16, 32), np.int32)), "shape of a.q_weight"),
    "flat words": (changed(q_weight=np.zeros(1024, np.int32)), "shape of a.q_weight"),
    "no words": (changed(q_weight=np.zeros((0, 64), np.int32)), "shape of a.q_weight"),
    "too few words": (changed(q_weight=np.zeros((12, 64), np.int32)), "a.q_groups"),
    "too many words": (changed(q_weight=np.zeros((20, 64), np.int32)), "a.q_groups"),
    "scales of another type": (changed(q_scale=np.zeros((4, 8), np.float32)), "dtype of a.q_scale"),
    "scales of fewer groups": (changed(q_scale=np.zeros((3, 8), np.int32)), "shape of a.q_scale"),
    "a maximum more": (changed(q_scale_max=np.ones(5, np.float16)), "shape of a.q_groups"),
    "a maximum that is NaN": (changed(q_scale_max=np.full(4, np.nan, np.float16)), "a.q_scale_max"),
    "an infinite maximum": (changed(q_scale_max=np.full(4, np.inf, np.float16)), "a.q_scale_max"),
    "weights beyond fp16": (changed(q_scale_max=np.full(4, 60000, np.float16)), "a.q_scale_max"),
    "half a pair": (changed(q_groups=groups(4, 0, 4, 4, 4, 8, 4)), "shape of a.q_groups"),
    "7 bits": (changed(q_groups=groups(7, 0, 4, 4, 4, 8, 4, 12)), "a.q_groups"),
    "no bits": (changed(q_groups=groups(4, 0, 4, 4, 4, 8, 0, 12)), "a.q_groups"),
    "widths that rise": (changed(q_groups=groups(4, 0, 4, 4, 5, 8, 4, 12)), "a.q_groups"),
    "a first row that is not 0": (changed(q_groups=groups(4, 1, 4, 4, 4, 8, 4, 12)), "a.q_groups"),
    "an empty group": (changed(q_groups=groups(4, 0, 4, 4, 4, 4, 4, 12)), "a.q_groups"),
    "rows beyond the end": (changed(q_groups=groups(4, 0, 4, 4, 4, 8, 4, 16)), "a.q_groups"),
    "negative rows": (changed(q_groups=groups(4, 0, 4, 4, 4, 8, 4, -12)), "a.q_groups"),
    "half a code": (changed(q_groups=groups(5, 0, 4, 4, 4, 8, 4, 12)), "a.q_groups"),
    "other sums": (changed(q_groups=groups(8, 0, 4, 4, 4, 8, 4, 12)), "a.q_groups"),
    "an order that is too short": (changed(q_invperm=PLAIN[:127]), "shape of a.q_invperm"),
    "a row twice": (changed(q_invperm=np.where(PLAIN == 3, 4, PLAIN).astype(np.int32)), "a.q_invperm"),
    "a row beyond the end": (changed(q_invperm=PLAIN + 1), "a.q_invperm"),
    "a negative row": (changed(q_invperm=PLAIN - 1), "a.q_invperm"),
    "dense as well": (changed() | {"a.weight": torch.zeros(64, 128)}, "a"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_matrices(tmp_path: Path, case: str) -> None:
    parts, field = BROKEN[case]
    with write(tmp_path, parts) as checkpoint, pytest.raises(FormatError) as caught:
        formats.load_weight(checkpoint, "a", (64, 128), "cpu")
    assert caught.value.field == field
    assert caught.value.expected


@pytest.mark.parametrize("shape", [(64, 96), (64, 160), (32, 128), (96, 128)])
def test_matrices_of_another_size(tmp_path: Path, shape: tuple[int, int]) -> None:
    with write(tmp_path, changed()) as checkpoint, pytest.raises(FormatError):
        formats.load_weight(checkpoint, "a", shape, "cpu")


def test_a_file_that_was_cut(tmp_path: Path) -> None:
    write(tmp_path, changed()).close()
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(FormatError, match="download may be incomplete"):
        SafetensorsCheckpoint(tmp_path)


PARTS = ["q_weight", "q_scale", "q_scale_max", "q_groups", "q_invperm"]
fuzzing = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzzing
@given(part=st.sampled_from(PARTS), place=st.integers(0, 1 << 16), value=st.integers(0, 255))
def test_any_byte_of_a_part(tmp_path: Path, part: str, place: int, value: int) -> None:
    """A matrix with one byte changed is refused, or is finite and what the plain decoder says."""
    parts = random_exl2("a", 32, 96, [(5, 32), (3, 32), (3, 32)])
    raw = parts[f"a.{part}"].numpy().reshape(-1).view(np.uint8)
    raw[place % len(raw)] = value
    with write(tmp_path, parts) as checkpoint:
        try:
            found = formats.load_weight(checkpoint, "a", (32, 96), "cpu", expand="float32").dequantize().numpy()
        except FormatError:
            return
    assert np.isfinite(found).all()
    assert np.array_equal(found, decode_exl2("a", parts).astype(np.float32))


@fuzzing
@given(pairs=st.lists(st.tuples(st.sampled_from([2, 3, 4, 5, 6, 8]), st.integers(-2, 24)), min_size=1, max_size=5))
def test_any_groups(tmp_path: Path, pairs: list[tuple[int, int]]) -> None:
    count = len(pairs)
    parts = changed(
        q_groups=groups(*(number for pair in pairs for number in pair)), q_scale=np.zeros((count, 8), np.int32),
        q_scale_max=np.ones(count, np.float16),
    )  # fmt: skip
    with write(tmp_path, parts) as checkpoint:
        try:
            found = formats.load_weight(checkpoint, "a", (64, 128), "cpu").dequantize()
        except ExllamaError:
            return
    assert torch.isfinite(found).all()


def exl2_folder(folder: Path, names: list[str]) -> Path:
    """A folder whose index is that of another model, with the files named."""
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "exl2", "bits": 4.0}}))
    index = {"weight_map": {"a.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for number, name in enumerate(names):
        save_file({f"part.{number}": torch.zeros(1)}, folder / name)
    return folder


@pytest.mark.parametrize("count", [1, 3])
def test_an_index_left_by_the_source_model_is_ignored(tmp_path: Path, count: int) -> None:
    names = ["output.safetensors"]
    if count > 1:
        names = [f"output-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    with SafetensorsCheckpoint(exl2_folder(tmp_path, names)) as checkpoint:
        assert len(checkpoint.tensors) == count


def test_a_missing_part_of_the_model_is_named(tmp_path: Path) -> None:
    names = ["output-00001-of-00003.safetensors", "output-00003-of-00003.safetensors"]
    with pytest.raises(SourceError, match="output-00002-of-00003"):
        SafetensorsCheckpoint(exl2_folder(tmp_path, names))
