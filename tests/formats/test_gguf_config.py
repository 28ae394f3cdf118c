"""GGUF metadata as config.json, Hugging Face names, and rows put back into Hugging Face order."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from exllama.errors import FormatError, UnsupportedModelError
from exllama.loader.gguf_checkpoint import GgufCheckpoint
from tests.formats.gguf_writer import ARRAY, F32, STRING, U32, File, Tensor, array, llama_keys, pair, string
from tests.formats.limits import refusal


def open_config(
    path: Path, arch: str = "llama", extra: dict[str, Any] | None = None, **changes: bytes | None
) -> dict[str, Any]:
    """The configuration of a file with the metadata of llama_keys and an embedding of 10 rows."""
    keys = llama_keys(**changes)
    keys = [renamed(key, arch) for key in keys] if arch != "llama" else keys
    tensors, data = [Tensor("token_embd.weight", (64, 10))], bytes(64 * 10 * 4)
    for name, values in (extra or {}).items():
        tensors.append(Tensor(name, values.shape[::-1], 0, len(data)))
        data += values.astype("<f4").tobytes() + bytes(-values.nbytes % 32)
    with GgufCheckpoint(File(keys, tensors, data).write(path / "model.gguf")) as checkpoint:
        return checkpoint.config


def renamed(key: bytes, arch: str) -> bytes:
    """Another architecture in the place of llama, in the key or as the value."""
    length = int.from_bytes(key[:8], "little")
    name, rest = key[8 : 8 + length], key[8 + length :]
    if name == b"general.architecture":
        return pair("general.architecture", STRING, arch)
    return string(name.replace(b"llama.", arch.encode() + b".")) + rest


def test_the_plain_case(tmp_path: Path) -> None:
    config = open_config(tmp_path)
    assert config == {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "vocab_size": 10,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": True, "attention_bias": False,
        "mlp_bias": False, "rope_theta": 10000.0, "rope_scaling": None,
    }  # fmt: skip


def test_keys_that_change_it(tmp_path: Path) -> None:
    config = open_config(
        tmp_path,
        extra={"output.weight": np.zeros((10, 64)), "blk.0.attn_q.bias": np.zeros(32)},
        kv=pair("llama.attention.key_length", U32, 8),
        vl=pair("llama.attention.value_length", U32, 8),
        base=pair("llama.rope.freq_base", F32, 5e5),
        heads=pair("llama.rope.dimension_count", U32, 8),
        eos=pair("tokenizer.ggml.eos_token_id", U32, 7),
    )
    expected = {"head_dim": 8, "rope_theta": 5e5, "tie_word_embeddings": False, "attention_bias": True}
    assert (expected | {"eos_token_id": 7}).items() <= config.items()


@pytest.mark.parametrize("arch", ["qwen2", "qwen3"])
def test_other_architectures(tmp_path: Path, arch: str) -> None:
    assert open_config(tmp_path, arch)["model_type"] == arch


def test_a_window_makes_a_llama_file_a_mistral(tmp_path: Path) -> None:
    config = open_config(tmp_path, window=pair("llama.attention.sliding_window", U32, 32))
    assert (config["model_type"], config["sliding_window"]) == ("mistral", 32)


def test_equal_numbers_for_every_layer(tmp_path: Path) -> None:
    key = "llama.attention.head_count_kv"
    equal, other = (pair(key, ARRAY, array(U32, numbers)) for numbers in ([2, 2, 2], [2, 1]))
    assert open_config(tmp_path, **{"attention.head_count_kv": equal})["num_key_value_heads"] == 2
    with pytest.raises(FormatError, match="equal numbers"):
        open_config(tmp_path, **{"attention.head_count_kv": other})


def test_rope_scaling(tmp_path: Path) -> None:
    kind, factor = "llama.rope.scaling.type", pair("llama.rope.scaling.factor", F32, 4.0)
    original = pair("llama.rope.scaling.original_context_length", U32, 32)
    linear = open_config(tmp_path, kind=pair(kind, STRING, "linear"), factor=factor)
    assert linear["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    yarn = open_config(tmp_path, kind=pair(kind, STRING, "yarn"), factor=factor, original=original)
    assert yarn["rope_scaling"] == {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 32.0, "beta_slow": 1.0,
        "attention_factor": pytest.approx(0.1 * math.log(4) + 1),
    }  # fmt: skip
    assert open_config(tmp_path, kind=pair(kind, STRING, "none"), factor=factor)["rope_scaling"] is None
    with pytest.raises(FormatError, match="mystery"):
        open_config(tmp_path, kind=pair(kind, STRING, "mystery"))


def test_rope_factors_replace_every_other_scaling(tmp_path: Path) -> None:
    factors = np.linspace(1, 8, 8, dtype=np.float32)
    scaling = pair("llama.rope.scaling.type", STRING, "linear"), pair("llama.rope.scaling.factor", F32, 4.0)
    config = open_config(tmp_path, extra={"rope_freqs.weight": factors}, kind=scaling[0], factor=scaling[1])
    assert config["rope_scaling"] == {"rope_type": "factors", "factors": [float(factor) for factor in factors]}
    for broken in (factors[:-1], -factors, factors * np.inf):
        with pytest.raises(FormatError, match="rope_freqs"):
            open_config(tmp_path, extra={"rope_freqs.weight": broken})


def test_longrope(tmp_path: Path) -> None:
    long, short = np.full(8, 2.0, np.float32), np.ones(8, np.float32)
    config = open_config(
        tmp_path,
        extra={"rope_factors_long.weight": long, "rope_factors_short.weight": short},
        kind=pair("llama.rope.scaling.type", STRING, "longrope"),
        original=pair("llama.rope.scaling.original_context_length", U32, 32),
        attention=pair("llama.rope.scaling.attn_factor", F32, 1.5),
    )
    assert config["rope_scaling"] == {
        "rope_type": "longrope", "original_max_position_embeddings": 32, "attention_factor": 1.5,
        "long_factor": long.tolist(), "short_factor": short.tolist(),
    }  # fmt: skip


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another architecture": ({"architecture": pair("general.architecture", STRING, "gemma3")}, "llama, qwen2, qwen3"),
    "no architecture": ({"architecture": None}, "no general.architecture"),
    "experts": ({"experts": pair("llama.expert_count", U32, 8)}, "expert_count"),
    "soft caps": ({"cap": pair("llama.attn_logit_softcapping", F32, 50.0)}, "attn_logit_softcapping"),
    "no heads": ({"attention.head_count": pair("llama.attention.head_count", U32, 0)}, "1 to"),
    "heads that do not divide": ({"attention.head_count_kv": pair("llama.attention.head_count_kv", U32, 3)}, "divisor"),
    "no layers given": ({"block_count": None}, "llama.block_count"),
    "a billion layers": ({"block_count": pair("llama.block_count", U32, 10**9)}, "1 to 4096"),
    "text for a number": ({"block_count": pair("llama.block_count", STRING, "1")}, "whole number"),
    "an epsilon of zero": ({"eps": pair("llama.attention.layer_norm_rms_epsilon", F32, 0.0)}, "positive"),
    "an epsilon of NaN": ({"eps": pair("llama.attention.layer_norm_rms_epsilon", F32, math.nan)}, "finite"),
    "a partly rotated head": ({"dims": pair("llama.rope.dimension_count", U32, 8)}, "head size, 16"),
    "other value heads": ({"vl": pair("llama.attention.value_length", U32, 8)}, "key length"),
    "longrope without factors": ({"kind": pair("llama.rope.scaling.type", STRING, "longrope")}, "rope_factors_long"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path: Path, name: str) -> None:
    changes, expected = REFUSED[name]
    assert expected in str(refusal(lambda: open_config(tmp_path, **changes), tmp_path / "model.gguf"))


@pytest.mark.parametrize(
    "name", ["blk.0.attn_sinks.weight", "blk.0.ffn_gate_exps.weight", "mm.0.weight", "blk.x.attn_q.weight"]
)
def test_a_tensor_of_another_kind_of_model(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=name):
        open_config(tmp_path, extra={name: np.zeros(32)})


def test_a_file_without_embedding(tmp_path: Path) -> None:
    path = File(llama_keys(), [Tensor("output_norm.weight")], bytes(128)).write(tmp_path / "a.gguf")
    with pytest.raises(FormatError, match="token_embd"):
        GgufCheckpoint(path)


def stored_as_pairs(values: np.ndarray, heads: int) -> np.ndarray:
    """What converters of the llama family do to q and k."""
    return values.reshape(heads, 2, values.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(values.shape)


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_1"])
def test_q_and_k_come_back_in_hugging_face_order(tmp_path: Path, arch: str, kind: str) -> None:
    rng, path = np.random.default_rng(2), tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_block_count(1)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    qtype = gguf.GGMLQuantizationType[kind]
    writer.add_tensor("token_embd.weight", np.zeros((10, 64), np.float32))
    expected: dict[str, np.ndarray] = {}
    for name, heads in (("q", 4), ("k", 2)):
        weight, bias = rng.standard_normal((heads * 16, 64), np.float32), rng.standard_normal(heads * 16, np.float32)
        raw = gguf.quantize(weight, qtype)
        expected[f"{name}_proj.weight"] = raw.view(np.uint8)
        expected[f"{name}_proj.bias"] = bias
        permute = stored_as_pairs if arch == "llama" else lambda values, heads: values
        writer.add_tensor(f"blk.0.attn_{name}.weight", permute(raw, heads), raw_dtype=qtype)
        writer.add_tensor(f"blk.0.attn_{name}.bias", permute(bias, heads))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GgufCheckpoint(path) as checkpoint:
        for name, values in expected.items():
            tensor = checkpoint.tensors[f"model.layers.0.self_attn.{name}"]
            if values.ndim == 1:
                assert np.array_equal(tensor.read_rows(0, 1)[0].view(np.float32), values)
                continue
            assert np.array_equal(tensor.read_rows(0, len(values)), values)
            for start, stop in ((0, 1), (5, 21), (16, 32), (17, 18), (3, 3)):  # inside and across heads
                assert np.array_equal(tensor.read_rows(start, stop), values[start:stop])
            with pytest.raises(IndexError):
                tensor.read_rows(0, len(values) + 1)
