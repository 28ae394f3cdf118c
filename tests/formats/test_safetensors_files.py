"""The safetensors reader against the safetensors package, and model folders in Hugging Face form."""

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
from exllama.errors import ExllamaError, FormatError, SourceError, UnsupportedModelError
from exllama.loader.safetensors_checkpoint import INDEX, SafetensorsCheckpoint
from exllama.loader.safetensors_file import SafetensorsFile
from tests.formats.safetensors_writer import encode

TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


def raw_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def folder(path: Path, tensors: dict[str, torch.Tensor], config: dict[str, object] | None = None) -> Path:
    path.mkdir(exist_ok=True)
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"model_type": "llama"} | (config or {})))
    return path


def sharded(path: Path, parts: list[dict[str, torch.Tensor]]) -> Path:
    path.mkdir(exist_ok=True)
    weight_map = {}
    for number, tensors in enumerate(parts, 1):
        name = f"model-{number:05}-of-{len(parts):05}.safetensors"
        save_file(tensors, path / name)
        weight_map |= dict.fromkeys(tensors, name)
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (path / "config.json").write_text("{}")
    return path


def test_every_type_equals_what_the_package_wrote(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {name: (torch.randn(5, 6) * 2).to(dtype) for name, dtype in TYPES.items()}
    tensors |= {"scalar": torch.tensor(3.0), "vector": torch.randn(7), "cube": torch.randn(2, 3, 4)}
    tensors["none"] = torch.zeros(0, 4)
    save_file(tensors, tmp_path / "a.safetensors", {"format": "pt"})
    found = SafetensorsFile(tmp_path / "a.safetensors").tensors
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        rows = max(1, tensor[..., 0].numel()) if tensor.dim() > 1 else 1
        assert found[name].shape == tuple(tensor.shape)
        if name in TYPES:
            assert found[name].type == name
            assert found[name].read_rows(1, 4).tobytes() == raw_bytes(tensor[1:4])
        if tensor.numel() and tensor.dim():
            assert found[name].read_rows(0, rows).tobytes() == raw_bytes(tensor)
    assert found["scalar"].read_rows(0, 1).view(np.float32) == 3.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_and_vectors(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    tensors = {"a.weight": torch.randn(40, 24).to(dtype), "norm.weight": torch.randn(24).to(dtype)}
    with SafetensorsCheckpoint(folder(tmp_path / "model", tensors)) as checkpoint:
        exact = formats.load_weight(checkpoint, "a", (40, 24), "cpu", expand="float32").dequantize()
        packed = formats.load_weight(checkpoint, "a", (40, 24), "cpu").dequantize()
        norm = formats.load_vector(checkpoint, "norm.weight", 24)
    assert torch.equal(exact, tensors["a.weight"].float())
    assert torch.allclose(packed, tensors["a.weight"].float(), rtol=2**-8 if dtype == torch.float16 else 0, atol=0)
    assert torch.equal(norm, tensors["norm.weight"].float())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize(("suffix", "grid"), [
    ("", None), ("weight_scale_inv", (3, 2)), ("weight_scale", ()), ("weight_scale", (1,)), ("weight_scale", (300, 1)),
])  # fmt: skip
def test_float8_with_and_without_scales(
    tmp_path: Path, dtype: torch.dtype, suffix: str, grid: tuple[int, ...] | None
) -> None:
    """Blocks of 128 x 128 with partial ones at the edges, one scale for all, one for each row."""
    torch.manual_seed(2)
    weight = torch.randn(300, 200).to(dtype)
    tensors, expected = {"a.weight": weight}, weight.float()
    if grid is not None:
        scale = torch.rand(grid) + 0.5
        tensors[f"a.{suffix}"] = scale
        full = scale.reshape(grid if len(grid) == 2 else (1, 1))
        height, width = {(3, 2): (128, 128), (1, 1): (300, 200), (300, 1): (1, 200)}[tuple(full.shape)]
        expected = expected * full.repeat_interleave(height, 0)[:300].repeat_interleave(width, 1)[:, :200]
    with SafetensorsCheckpoint(folder(tmp_path / "model", tensors)) as checkpoint:
        exact = formats.load_weight(checkpoint, "a", (300, 200), "cpu", expand="float32").dequantize()
        packed = formats.load_weight(checkpoint, "a", (300, 200), "cpu").dequantize()
    assert torch.equal(exact, expected)
    assert torch.allclose(packed, expected, rtol=2**-8 + 2**-11, atol=2**-24)


def test_a_scale_of_the_wrong_shape(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.zeros(4, 4).to(torch.float8_e4m3fn), "a.weight_scale": torch.ones(9, 1)}
    with (
        SafetensorsCheckpoint(folder(tmp_path / "model", tensors)) as checkpoint,
        pytest.raises(FormatError, match=r"shape of a\.weight_scale"),
    ):
        formats.load_weight(checkpoint, "a", (4, 4), "cpu")


def test_shards_are_one_model(tmp_path: Path) -> None:
    torch.manual_seed(3)
    parts = [{"a.weight": torch.randn(4, 8)}, {"b.weight": torch.randn(4, 8), "c": torch.randn(3)}]
    with SafetensorsCheckpoint(sharded(tmp_path / "model", parts)) as checkpoint:
        assert set(checkpoint.tensors) == {"a.weight", "b.weight", "c"}
        found = formats.load_weight(checkpoint, "b", (4, 8), "cpu", expand="float32").dequantize()
    assert torch.equal(found, parts[1]["b.weight"])


def test_broken_shards(tmp_path: Path) -> None:
    model = sharded(tmp_path / "model", [{"a": torch.zeros(2)}, {"b": torch.zeros(2)}])
    index = json.loads((model / INDEX).read_text())

    def put(**weight_map: object) -> None:
        (model / INDEX).write_text(json.dumps({"weight_map": index["weight_map"] | weight_map}))

    put(c="model-00001-of-00002.safetensors")
    with pytest.raises(FormatError, match="c: found no such tensor"):
        SafetensorsCheckpoint(model)
    for hostile in ("../../secret.safetensors", "/etc/passwd", "a/b.safetensors", "x.bin", 5):
        put(c=hostile)
        with pytest.raises(FormatError, match=r"weight_map\.c"):
            SafetensorsCheckpoint(model)
    put(c="model-00009-of-00009.safetensors")
    with pytest.raises(SourceError, match="no model-00009-of-00009"):
        SafetensorsCheckpoint(model)
    put()
    save_file({"a": torch.zeros(2), "b": torch.zeros(2)}, model / "model-00002-of-00002.safetensors")
    with pytest.raises(FormatError, match="every name once"):
        SafetensorsCheckpoint(model)


def test_folders_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no config\.json"):
        SafetensorsCheckpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SourceError, match="found these safetensors files: none"):
        SafetensorsCheckpoint(tmp_path)
    for name in ("a.safetensors", "b.safetensors"):
        save_file({"x": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(SourceError, match=r"a\.safetensors, b\.safetensors"):
        SafetensorsCheckpoint(tmp_path)


BROKEN = [b"", b"[]", b"{", b"nonsense", b"\xff", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"[" * 10**5]


@pytest.mark.parametrize("content", BROKEN)
def test_broken_configurations(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(FormatError, match=r"config\.json: content"):
        SafetensorsCheckpoint(tmp_path)


@pytest.mark.parametrize("section", [{"quant_method": "hqq"}, {"quant_method": "bitsandbytes"}, "eetq",
                                     {"quant_method": "compressed-tensors", "format": "pack-quantized"}])  # fmt: skip
def test_quantized_checkpoints_of_other_kinds_are_refused_by_name(tmp_path: Path, section: object) -> None:
    model = folder(tmp_path / "model", {"a": torch.zeros(1)}, {"quantization_config": section})
    name = section["quant_method"] if isinstance(section, dict) else section
    with pytest.raises(UnsupportedModelError, match=f"{name}.*supported: fp8"):
        SafetensorsCheckpoint(model)


fuzzing = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NUMBERS = st.integers(-2, 40) | st.integers(-(1 << 70), 1 << 70) | st.none() | st.booleans() | st.floats()
ENTRIES = st.fixed_dictionaries({
    "dtype": st.sampled_from([*TYPES, "F4", "", 5]), "shape": st.lists(NUMBERS, max_size=4),
    "data_offsets": st.lists(NUMBERS, max_size=3),
})  # fmt: skip


HEADERS = st.dictionaries(st.text(max_size=4), ENTRIES | st.integers(), max_size=4) | st.binary(max_size=60)


@fuzzing
@given(header=HEADERS, size=st.integers(0, 64))
def test_any_header_is_read_or_refused(tmp_path: Path, header: object, size: int) -> None:
    path = tmp_path / "fuzzed.safetensors"
    path.write_bytes(encode(header, bytes(size)))
    try:
        opened = SafetensorsFile(path)
    except ExllamaError:
        return
    for tensor in opened.tensors.values():
        assert tensor.offset + tensor.nbytes <= path.stat().st_size
    opened.close()
