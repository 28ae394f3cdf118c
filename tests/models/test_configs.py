"""Configurations: what every architecture reads, refuses and derives, and how architectures are found."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exllama import architectures
from exllama.architectures.common.config import ConfigReader
from exllama.architectures.common.decoder import DecoderConfig
from exllama.architectures.common.rope import read_rope
from exllama.errors import ExllamaError, FormatError, UnsupportedModelError
from exllama.layers.attention import Attention
from exllama.layers.head import Head
from exllama.layers.rope import KINDS, make_rope
from exllama.ops import Rope
from tests.models.toys import toy_config

MODEL_TYPES = ["llama", "mistral", "qwen2", "qwen3"]
ROPE_KEYS = [
    "rope_type", "rope_theta", "partial_rotary_factor", "factor", "original_max_position_embeddings",
    "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "low_freq_factor",
    "high_freq_factor", "short_factor", "long_factor", "factors",
]  # fmt: skip


def config_of(model_type: str, **changes: Any) -> dict[str, Any]:
    return json.loads(toy_config(model_type).to_json_string()) | changes


def read(values: dict[str, Any]) -> DecoderConfig:
    reader = ConfigReader("config.json", values)
    return architectures.find_architecture(reader).read_config(reader)


def test_every_file_is_a_model_type() -> None:
    assert architectures.model_types() == MODEL_TYPES


@pytest.mark.parametrize("name", ["bert", "common", "", "../llama", "os", "x" * 5000])
def test_unknown_model_types_list_the_known_ones(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match="llama, mistral, qwen2, qwen3") as caught:
        read(config_of("llama") | {"model_type": name})
    assert len(str(caught.value)) < 400


def test_a_new_file_is_found_and_imported_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = "from exllama.architectures.llama import build, read_config\n"
    (tmp_path / "novel.py").write_text(f"from __future__ import annotations\n{own}", encoding="utf-8")
    monkeypatch.setattr(architectures, "__path__", [*architectures.__path__, str(tmp_path)])
    assert "novel" in architectures.model_types()
    assert "exllama.architectures.novel" not in sys.modules
    try:
        assert read(config_of("llama") | {"model_type": "novel"}).hidden_size == 64
    finally:
        sys.modules.pop("exllama.architectures.novel", None)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize(
    "key",
    ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps",
     "max_position_embeddings"],
)  # fmt: skip
def test_required_keys(model_type: str, key: str) -> None:
    values = config_of(model_type)
    del values[key]
    with pytest.raises(FormatError) as caught:
        read(values)
    assert (caught.value.file, caught.value.field, caught.value.found) == ("config.json", key, "nothing")


IMPOSSIBLE: list[tuple[str, Any]] = [
    ("model_type", 7), ("hidden_size", 0), ("hidden_size", -64), ("hidden_size", "64"), ("hidden_size", 64.0),
    ("hidden_size", True), ("hidden_size", 10**30), ("vocab_size", 2**40), ("num_hidden_layers", 0),
    ("num_hidden_layers", 10**9), ("num_attention_heads", []), ("num_key_value_heads", 3), ("num_key_value_heads", 8),
    ("head_dim", 10**6), ("rms_norm_eps", 0), ("rms_norm_eps", float("inf")), ("rms_norm_eps", "tiny"),
    ("tie_word_embeddings", "yes"), ("hidden_act", 3), ("rope_parameters", 5),
]  # fmt: skip


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize(("key", "value"), IMPOSSIBLE)
def test_impossible_values(model_type: str, key: str, value: Any) -> None:
    with pytest.raises(FormatError) as caught:
        read(config_of(model_type) | {key: value})
    assert (caught.value.file, caught.value.field) == ("config.json", key)


UNSUPPORTED: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"hidden_act": "relu2"}),
    ("llama", {"head_dim": 40}),
    ("llama", {"sliding_window": 128}),
    ("llama", {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}),
    ("mistral", {"attention_bias": True}),
    ("mistral", {"mlp_bias": True}),
    ("qwen2", {"attention_bias": False}),
    ("qwen2", {"mlp_bias": True}),
    ("qwen3", {"mlp_bias": True}),
]


@pytest.mark.parametrize(("model_type", "changes"), UNSUPPORTED)
def test_what_would_mean_another_computation_is_refused(model_type: str, changes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match=next(iter(changes))):
        read(config_of(model_type) | changes)


@pytest.mark.parametrize(
    ("model_type", "changes", "field"),
    [
        ("mistral", {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
        ("mistral", {"sliding_window": None, "layer_types": ["sliding_attention"] * 2}, "layer_types"),
        ("mistral", {"sliding_window": 0}, "sliding_window"),
        ("mistral", {"num_key_value_heads": None}, "num_key_value_heads"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 2}, "layer_types"),
        ("qwen2", {"layer_types": ["full_attention", ["sliding_attention"]]}, "layer_types"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": None}, "sliding_window"),
        ("qwen3", {"head_dim": None}, "head_dim"),
        ("llama", {"head_dim": None, "hidden_size": 66}, "hidden_size"),
        ("llama", {"attention_bias": 1}, "attention_bias"),
    ],
)
def test_impossible_combinations(model_type: str, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(FormatError) as caught:
        read(config_of(model_type) | changes)
    assert caught.value.field == field


def test_old_llama_files_leave_heads_out() -> None:
    values = config_of("llama")
    del values["num_key_value_heads"], values["head_dim"]
    config = read(values)
    assert (config.num_kv_heads, config.head_dim) == (4, 16)


@pytest.mark.parametrize(
    ("model_type", "changes", "windows"),
    [
        ("llama", {}, (None, None)),
        ("mistral", {"sliding_window": None}, (None, None)),
        ("mistral", {"sliding_window": 8, "layer_types": ["sliding_attention"] * 2}, (8, 8)),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 8, "layer_types": None}, (None, None)),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1,
                   "layer_types": None}, (None, 8)),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 8,
                   "layer_types": ["sliding_attention", "full_attention"]}, (8, None)),
    ],
)  # fmt: skip
def test_windows(model_type: str, changes: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    config = read(config_of(model_type) | changes)
    assert config.windows == windows
    modules = architectures.find_architecture(ConfigReader("", config_of(model_type))).build(config, 100)
    assert tuple(m.shape.window for m in modules if isinstance(m, Attention)) == windows


def test_the_flat_list_names_every_tensor_of_the_checkpoint() -> None:
    values = config_of("qwen3", tie_word_embeddings=True)
    modules = architectures.find_architecture(ConfigReader("", values)).build(read(values), 100)
    assert [module.key for module in modules] == [
        "model.embed_tokens", "model.layers.0.self_attn", "model.layers.0.mlp", "model.layers.1.self_attn",
        "model.layers.1.mlp", "model.embed_tokens",
    ]  # fmt: skip
    names = [name for module in modules for name in module.tensor_names()]
    assert len(names) == len(set(names)) == 2 + 2 * 11
    assert isinstance(modules[-1], Head)
    assert modules[-1].tensor_names() == ["model.norm.weight"]
    assert all(module.nbytes == 0 for module in modules)


keys = st.sampled_from(ROPE_KEYS)
numbers = st.integers() | st.floats() | st.sampled_from([0, 1, 2, 4, 8, 64, 1e-30, 0.5, 1.0, 4.0, 1e12])
words = st.sampled_from([*KINDS, "full_attention", "sliding_attention"]) | st.text(max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=6),
    max_leaves=12,
)
rope_sections = st.fixed_dictionaries(
    {"rope_type": st.sampled_from(KINDS)},
    optional={key: numbers | st.lists(numbers, min_size=8, max_size=8) for key in ROPE_KEYS[1:]},
)


def check_finite(rope: Rope | None) -> None:
    assert rope is not None
    assert torch.isfinite(rope.inv_freq).all()
    assert math.isfinite(rope.scale)


@settings(max_examples=400, deadline=None)
@given(data=st.data(), model_type=st.sampled_from(MODEL_TYPES))
def test_any_json_is_read_or_refused(data: st.DataObject, model_type: str) -> None:
    """And what is read can be built: no value gets as far as an overflow, a division by zero or an endless list."""
    values = config_of(model_type)
    for key in data.draw(st.lists(st.sampled_from([*values, "rope_scaling"]), max_size=3)):
        values[key] = data.draw(json_values)
    try:
        architecture = architectures.find_architecture(ConfigReader("config.json", values))
        config = architecture.read_config(ConfigReader("config.json", values))
    except ExllamaError:
        return
    modules = architecture.build(dataclasses.replace(config, num_layers=1), 100)
    check_finite(next(module.rope for module in modules if isinstance(module, Attention)))


@settings(max_examples=400, deadline=None)
@given(scaling=rope_sections, length=st.integers(1, 1 << 31))
def test_any_rope_section_is_read_or_refused(scaling: dict[str, Any], length: int) -> None:
    try:
        parameters = read_rope(ConfigReader("", {"rope_scaling": scaling, "max_position_embeddings": length}), 16)
    except ExllamaError:
        return
    check_finite(make_rope(parameters, 1 << 31))


def test_errors_stay_short() -> None:
    with pytest.raises(FormatError) as caught:
        read(config_of("llama") | {"hidden_size": "x" * 10**6})
    assert len(str(caught.value)) < 500
