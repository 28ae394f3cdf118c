"""The GGUF reader against the gguf package, which writes and reads the same files."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from exllama.errors import FormatError
from exllama.formats.gguf_types import BLOCK_TYPES, GGUF_TYPES
from exllama.loader.gguf_checkpoint import GgufCheckpoint
from exllama.loader.gguf_file import GgufFile
from tests.formats.gguf_writer import small_file

Q = gguf.GGMLQuantizationType


def write_sample(path: Path) -> Path:
    """Every kind of metadata and tensor that the package writes."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("u8", 200)
    writer.add_int8("i8", -100)
    writer.add_uint16("u16", 60000)
    writer.add_int16("i16", -30000)
    writer.add_uint32("u32", 4_000_000_000)
    writer.add_int32("i32", -2_000_000_000)
    writer.add_uint64("u64", 1 << 63)
    writer.add_int64("i64", -(1 << 62))
    writer.add_float32("f32", 1e-5)
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_string("text", "naïve\n文字")
    writer.add_array("texts", ["a", "", "\u2581the", "x" * 5000])
    writer.add_array("whole", [1, -2, 3])
    writer.add_array("floats", [0.5, -1.5])
    rng = np.random.default_rng(0)
    writer.add_tensor("f32", rng.standard_normal((3, 4, 5), np.float32))
    writer.add_tensor("f16", rng.standard_normal((7,)).astype(np.float16))
    for kind in (Q.Q4_0, Q.Q8_0, Q.Q5_1, Q.BF16):
        values = rng.standard_normal((6, 64), np.float32)
        writer.add_tensor(kind.name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_metadata_equal_what_the_package_wrote(tmp_path: Path) -> None:
    metadata = GgufFile(write_sample(tmp_path / "sample.gguf")).metadata
    whole = {"u8": 200, "i8": -100, "u16": 60000, "i16": -30000, "u32": 4_000_000_000, "i32": -2_000_000_000,
             "u64": 1 << 63, "i64": -(1 << 62)}  # fmt: skip
    assert {key: metadata.integer(key) for key in whole} == whole
    assert metadata.number("f32") == 1e-5  # the shortest decimal, as config.json has it
    assert metadata.number("f64") == 0.1
    assert metadata.boolean("yes") is True
    assert metadata.text("text") == "naïve\n文字"
    assert metadata.strings("texts") == ["a", "", "\u2581the", "x" * 5000]
    numbers, floats = metadata.numbers("whole"), metadata.numbers("floats", whole=False)
    assert numbers is not None
    assert numbers.tolist() == [1, -2, 3]
    assert floats is not None
    assert floats.tolist() == [0.5, -1.5]
    assert metadata.integer("absent") is None
    assert metadata.integer("absent", 5) == 5


def test_tensors_equal_what_the_package_reads(tmp_path: Path) -> None:
    path = write_sample(tmp_path / "sample.gguf")
    ours, theirs = GgufFile(path), gguf.GGUFReader(path)
    assert len(ours.tensors) == len(theirs.tensors) == 6
    for tensor in theirs.tensors:
        info = ours.tensors[tensor.name]
        assert info.shape == tuple(reversed(tensor.shape.tolist()))
        assert (info.block.name, info.nbytes) == (tensor.tensor_type.name, tensor.n_bytes)
        assert ours.file.read(info.offset, info.nbytes) == tensor.data.tobytes()


def test_types_equal_the_package_s() -> None:
    known = {kind.value: (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    ours = {number: (kind.name, kind.elements, kind.nbytes) for number, kind in GGUF_TYPES.items()}
    assert ours.items() <= known.items()
    missing = {name for name, _, _ in known.values()} - set(BLOCK_TYPES)
    assert missing <= {"Q8_1", "Q8_K", "Q1_0", "Q2_0"}


@pytest.mark.parametrize("version", [2, 3])
def test_versions_two_and_three(tmp_path: Path, version: int) -> None:
    sample = small_file()
    sample.version = version
    assert set(GgufFile(sample.write(tmp_path / "small.gguf")).tensors) == {"a.weight", "b.weight"}


def test_wrong_kinds_of_values_are_refused(tmp_path: Path) -> None:
    metadata = GgufFile(write_sample(tmp_path / "sample.gguf")).metadata
    for read in (metadata.integer, metadata.number, metadata.boolean, metadata.strings, metadata.numbers):
        with pytest.raises(FormatError, match="text"):
            read("text")
    with pytest.raises(FormatError, match="array of 4 string"):
        metadata.text("texts")
    with pytest.raises(FormatError, match="whole"):
        metadata.numbers("floats")


def write_model(path: Path, parts: int = 0) -> dict[str, np.ndarray]:
    """A tiny llama with random F32 weights, split into files of two tensors if asked to."""
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=2 if parts else 0)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-6)
    rng = np.random.default_rng(1)
    names = ("token_embd", "output_norm", "blk.0.attn_norm", "blk.0.attn_v", "blk.0.ffn_down")
    shapes = ((10, 32), (32,), (32,), (32, 32), (32, 48))
    sizes = zip(names, shapes, strict=True)
    tensors = {f"{name}.weight": rng.standard_normal(shape, np.float32) for name, shape in sizes}
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_split_files_are_one_model(tmp_path: Path) -> None:
    tensors = write_model(tmp_path / "model.gguf", parts=3)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [f"model-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    for file in files:  # any part means the whole
        with GgufCheckpoint(file) as checkpoint:
            assert len(checkpoint.tensors) == len(tensors)
            raw = checkpoint.tensors["model.layers.0.mlp.down_proj.weight"].read_rows(3, 30)
            assert np.array_equal(raw.view(np.float32), tensors["blk.0.ffn_down.weight"][3:30])


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    write_model(tmp_path / "model.gguf", parts=3)
    (tmp_path / "model-00002-of-00003.gguf").unlink()
    with pytest.raises(FormatError, match=r"model-00002-of-00003\.gguf.*part 2 of 3"):
        GgufCheckpoint(tmp_path / "model-00001-of-00003.gguf")


def test_parts_that_do_not_belong_together(tmp_path: Path) -> None:
    write_model(tmp_path / "model.gguf", parts=3)
    third = tmp_path / "model-00003-of-00003.gguf"
    second = tmp_path / "model-00002-of-00003.gguf"
    third.write_bytes(second.read_bytes())
    with pytest.raises(FormatError, match=r"00003.gguf: split.no, split.count: found \(1, 3\), expected \(2, 3\)"):
        GgufCheckpoint(second)
    second.rename(tmp_path / "renamed.gguf")
    with pytest.raises(FormatError, match="expected a name that ends in"):
        GgufCheckpoint(tmp_path / "renamed.gguf")
