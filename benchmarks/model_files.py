"""GGUF files to measure with: the default model in other types, and a 1B Llama shape with random weights.

Made once from the default model and the gguf package, below the cache folder; nothing is downloaded beyond that model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from exllama import settings
from exllama.loader.sources import resolve

Array = np.ndarray[Any, np.dtype[Any]]
ONE_B = {"block_count": 16, "embedding_length": 2048, "feed_forward_length": 8192, "head_count": 32, "head_count_kv": 8}


def default_model() -> Path:
    """SmolLM2-135M-Instruct as shipped: Q4_1 with a Q8_0 embedding."""
    return resolve("default")


def smollm2(kind: Type) -> Path:
    """The default model's weights in another type; from their exact values, so Q4_0 rounds them once more."""
    target = _target(f"smollm2-{kind.name}.gguf")
    if not target.exists():
        reader = gguf.GGUFReader(str(default_model()))
        _write(target, reader, {}, lambda writer: _convert(reader, writer, kind))
    return target


def one_b_random() -> Path:
    """Llama 1B shape, Q4_0, random weights, the default model's vocabulary."""
    target = _target("llama-1b-random-Q4_0.gguf")
    if not target.exists():
        reader = gguf.GGUFReader(str(default_model()))
        _write(target, reader, ONE_B, lambda writer: _random(writer, len(reader.fields["tokenizer.ggml.tokens"].data)))
    return target


def _target(name: str) -> Path:
    folder = settings.cache_dir() / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def _write(target: Path, reader: Any, changes: dict[str, int], add_tensors: Callable[[Any], None]) -> None:
    """Copies the metadata with `changes` to llama.* keys, then the tensors; a half-written file has another name."""
    partial = target.with_suffix(".partial")
    writer = gguf.GGUFWriter(str(partial), "llama")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind, value = field.types[0], field.contents()
        if name == "llama.attention.head_count":
            value = changes.get("head_count", value)
        elif name == "llama.attention.head_count_kv":
            value = changes.get("head_count_kv", value)
        else:
            value = changes.get(name.removeprefix("llama."), value)
        writer.add_key_value(name, value, kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    add_tensors(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(target)


def _convert(reader: Any, writer: Any, kind: Type) -> None:
    for tensor in reader.tensors:
        if tensor.tensor_type == Type.F32:
            writer.add_tensor(tensor.name, np.array(tensor.data))
            continue
        values = gguf.quants.dequantize(np.array(tensor.data), tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def _random(writer: Any, vocabulary: int) -> None:
    rng = np.random.default_rng(0)

    def matrix(name: str, rows: int, columns: int) -> None:
        blocks = rng.integers(0, 256, (rows, columns // 32, 18), dtype=np.uint8)
        scale = np.full((rows, columns // 32), 0.1 / np.sqrt(columns), np.float16)
        blocks[:, :, :2] = scale.view(np.uint8).reshape(rows, -1, 2)
        writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=Type.Q4_0)

    width, inner = ONE_B["embedding_length"], ONE_B["feed_forward_length"]
    keys = width // ONE_B["head_count"] * ONE_B["head_count_kv"]
    matrix("token_embd.weight", vocabulary, width)
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for layer in range(ONE_B["block_count"]):
        prefix = f"blk.{layer}."
        writer.add_tensor(prefix + "attn_norm.weight", np.ones(width, np.float32))
        writer.add_tensor(prefix + "ffn_norm.weight", np.ones(width, np.float32))
        for name, rows, columns in [
            ("attn_q", width, width),
            ("attn_k", keys, width),
            ("attn_v", keys, width),
            ("attn_output", width, width),
            ("ffn_gate", inner, width),
            ("ffn_up", inner, width),
            ("ffn_down", width, inner),
        ]:
            matrix(f"{prefix}{name}.weight", rows, columns)
