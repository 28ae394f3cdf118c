"""GGUF files, written by the gguf package as llama.cpp's converter does, against transformers with the same values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from exllama.engine.model import Model
from tests.models.toys import (
    DEVICES,
    HALF_BOUND,
    expected_logits,
    random_ids,
    relative_error,
    save,
    toy_config,
    toy_model,
)

TOKENS = 40
Q = gguf.GGMLQuantizationType

_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def gguf_name(name: str) -> str:
    stem, kind = name.rsplit(".", 1)
    if not stem.startswith("model.layers."):
        return f"{_NAMES[stem]}.{kind}"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{_NAMES[rest]}.{kind}"


def permuted(values: np.ndarray, heads: int) -> np.ndarray:
    """Half-split rows of q or k (weight or bias) in interleaved order, as converters of the llama family store them."""
    return values.reshape(heads, 2, values.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(values.shape)


def write_metadata(writer: gguf.GGUFWriter, model: PreTrainedModel) -> None:
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    head_dim = getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


# Where d (and dmin) stand in a block, and how many d make one dmin when values shall have a mean of about zero.
_K_SCALES: dict[Q, tuple[int, int, float]] = {
    Q.Q2_K: (80, 82, 1.5), Q.Q3_K: (108, -1, 0.0), Q.Q4_K: (0, 2, 7.5), Q.Q5_K: (0, 2, 15.5), Q.Q6_K: (208, -1, 0.0),
}  # fmt: skip


def encode(values: np.ndarray, kind: Q) -> np.ndarray:
    """values as raw rows of a type; k-quants, which the package cannot write, become random blocks of equal spread."""
    if kind not in _K_SCALES:
        return gguf.quantize(values, kind)
    d_at, dmin_at, ratio = _K_SCALES[kind]
    num_blocks, size = values.size // 256, gguf.GGML_QUANT_SIZES[kind][1]
    raw = np.random.default_rng(values.size).integers(0, 256, (num_blocks, size), dtype=np.uint8)
    d = 1.0
    for _ in range(2):  # once to see the spread, once to set it
        raw[:, d_at : d_at + 2] = np.array([d], "<f2").view(np.uint8)
        if dmin_at >= 0:
            raw[:, dmin_at : dmin_at + 2] = np.array([d * ratio], "<f2").view(np.uint8)
        d = values.std() / gguf.dequantize(raw, kind).std()
    return raw.reshape(values.shape[0], -1)


def write(
    model: PreTrainedModel,
    path: Path,
    types: dict[str, Q] | None = None,
    arch: str = "",
    metadata: dict[str, Any] | None = None,
    extra: dict[str, np.ndarray] | None = None,
) -> Path:
    """types: of matrices by the end of their GGUF name, "" for the others; `model` gets the values they decode to."""
    arch = arch or model.config.model_type
    writer = gguf.GGUFWriter(path, arch)
    write_metadata(writer, model)
    for key, value in (metadata or {}).items():
        writer.add_key_value(f"{arch}.{key}", value, _value_type(value))
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    for name, parameter in model.named_parameters():
        values, stored = parameter.detach().numpy().copy(), gguf_name(name)
        permuted_heads = next((n for k, n in heads.items() if f".{k}." in name), 0) if arch == "llama" else 0
        values = permuted(values, permuted_heads) if permuted_heads else values
        matching = (kind for end, kind in (types or {}).items() if stored.endswith(end))
        kind = next(matching, Q.F32) if values.ndim == 2 else Q.F32
        raw = encode(values, kind)
        writer.add_tensor(stored, raw, raw_dtype=kind)
        decoded = gguf.dequantize(raw, kind).reshape(values.shape)
        decoded = unpermuted(decoded, permuted_heads) if permuted_heads else decoded
        parameter.data.copy_(torch.from_numpy(decoded.copy()))
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def unpermuted(values: np.ndarray, heads: int) -> np.ndarray:
    return values.reshape(heads, values.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(values.shape)


def _value_type(value: object) -> gguf.GGUFValueType:
    kinds = {str: gguf.GGUFValueType.STRING, float: gguf.GGUFValueType.FLOAT32, int: gguf.GGUFValueType.UINT32}
    return kinds[type(value)]


def check(path: Path, model: PreTrainedModel, device: str, bound: float = 0.0) -> None:
    ids = random_ids(TOKENS)
    assert relative_error(Model.from_pretrained(path, device=device).logits(ids), expected_logits(model, ids)) <= max(
        bound, HALF_BOUND[device]
    )


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama mqa head_dim 80": ("llama", {"num_key_value_heads": 1, "head_dim": 80}),
    "qwen2": ("qwen2", {}),
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True, "rope_parameters": {"rope_theta": 1e6}}),
    "qwen3": ("qwen3", {"head_dim": 64}),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES)
def test_float32_files(case: str, device: str, tmp_path: Path) -> None:
    model_type, changes = CASES[case]
    model = toy_model(toy_config(model_type, **changes))
    check(write(model, tmp_path / "toy.gguf"), model, device)


@pytest.mark.parametrize("device", DEVICES)
def test_a_gguf_file_and_its_folder_give_equal_bits(device: str, tmp_path: Path) -> None:
    model, ids = toy_model(toy_config("llama")), random_ids(TOKENS)
    path, folder = write(model, tmp_path / "toy.gguf"), save(model, tmp_path / "folder")
    one, other = (Model.from_pretrained(source, device=device).logits(ids) for source in (path, folder))
    assert torch.equal(one, other)


@pytest.mark.parametrize("device", DEVICES)
def test_mistral_is_written_as_llama_with_a_window(device: str, tmp_path: Path) -> None:
    model = toy_model(toy_config("mistral", sliding_window=9))
    path = write(model, tmp_path / "toy.gguf", arch="llama", metadata={"attention.sliding_window": 9})
    check(path, model, device)


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
def test_rope_freqs(device: str, tmp_path: Path) -> None:
    """The divisors are what the model itself divides by."""
    model = toy_model(toy_config("llama", rope_parameters=LLAMA3))
    plain = 10000.0 ** -(np.arange(0, 32, 2) / 32)
    divisors = (plain / model.model.rotary_emb.inv_freq.double().numpy()).astype(np.float32)
    assert divisors[-1] == pytest.approx(8.0)
    check(write(model, tmp_path / "toy.gguf", extra={"rope_freqs.weight": divisors}), model, device)


SCALINGS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"rope_type": "linear", "factor": 4.0}, {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
    ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
     {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 256}),
]  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("scaling", "metadata"), SCALINGS, ids=["linear", "yarn"])
def test_rope_scaling_keys(scaling: dict[str, Any], metadata: dict[str, Any], device: str, tmp_path: Path) -> None:
    model = toy_model(toy_config("qwen2", rope_parameters={"rope_theta": 10000.0, **scaling}))
    check(write(model, tmp_path / "toy.gguf", metadata=metadata), model, device)


# The oracle has the decoded weights. Codes are multiplied with activations of 8 bits per 32 columns (15 for q, k, v and
# the head), relative error about 0.5 % a matrix; 16-bit weights with bf16 activations where the processor has such
# instructions.
QUANTIZED = [Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q8_0, *_K_SCALES, Q.F16, Q.BF16]
ROUNDED_ACTIVATIONS = 3e-2


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
def test_quantized_files(kind: Q, device: str, tmp_path: Path) -> None:
    """All matrices, embedding and head among them, and permuted q and k."""
    changes = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "tie_word_embeddings": True}
    model = toy_model(toy_config("llama", **changes))
    bound = ROUNDED_ACTIVATIONS if device == "cpu" else 0.0
    check(write(model, tmp_path / "toy.gguf", {"": kind}), model, device, bound)


@pytest.mark.parametrize("device", DEVICES)
def test_a_mix_of_types(device: str, tmp_path: Path) -> None:
    types = {"token_embd.weight": Q.Q8_0, "ffn_down.weight": Q.F16, "attn_v.weight": Q.Q5_1, "output.weight": Q.F32}
    types[""] = Q.Q4_0
    model = toy_model(toy_config("qwen3", hidden_size=128))
    bound = ROUNDED_ACTIVATIONS if device == "cpu" else 0.0
    check(write(model, tmp_path / "toy.gguf", types), model, device, bound)


def test_expanded_weights_compute_in_float32(tmp_path: Path) -> None:
    model, ids = toy_model(toy_config("llama", hidden_size=128)), random_ids(TOKENS)
    path = write(model, tmp_path / "toy.gguf", {"": Q.Q4_1})
    opened = Model.from_pretrained(path, expand="float32")
    assert relative_error(opened.logits(ids), expected_logits(model, ids)) <= HALF_BOUND["cpu"]
