"""GGUF metadata -> the dictionary that the same model's config.json holds.

Rope settings become `rope_theta` and `rope_scaling`, with one form that Hugging Face does not have: the tensor
`rope_freqs.weight` turns into

    "rope_scaling": {"rope_type": "factors", "factors": [f_0, ..., f_(D/2 - 1)]}

whose factors divide the inverse frequencies: inv_freq_i = theta^(-2i/D) / f_i. No other scaling applies then.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from exllama.errors import UnsupportedModelError
from exllama.formats.stored import Floats
from exllama.loader.gguf_metadata import Metadata
from exllama.loader.gguf_names import ARCHITECTURES, PERMUTED

MAX_LAYERS = 1 << 12
MAX_WIDTH = 1 << 20

# Keys that change what the model computes in ways that these architectures do not have.
_FOREIGN = ("expert_count", "attention.max_alibi_bias", "attention.clamp_kqv", "attn_logit_softcapping",
            "final_logit_softcapping", "logit_scale", "residual_scale", "embedding_scale", "attention.scale",
            "nextn_predict_layers", "pooling_type")  # fmt: skip


class Hyperparameters:
    """The `{arch}.*` keys of a model."""

    def __init__(self, metadata: Metadata) -> None:
        self.metadata = metadata
        self.arch = metadata.text("general.architecture") or ""
        if self.arch not in ARCHITECTURES:
            found, supported = self.arch or "no general.architecture", ", ".join(ARCHITECTURES)
            raise UnsupportedModelError(f"GGUF architecture {found!r} is not supported; supported: {supported}")
        for name in _FOREIGN:
            if metadata.number(f"{self.arch}.{name}", 0):
                message = f"{self.arch}.{name} is set in this GGUF file"
                raise UnsupportedModelError(f"{message}, and this version does not run such models")

    def size(self, name: str, default: int | None = None, limit: int = MAX_WIDTH) -> int:
        """A positive number, given once or equal for all layers."""
        key = f"{self.arch}.{name}"
        if self.metadata.is_array(key):
            values = self.metadata.numbers(key)
            if values is None or values.size == 0 or (values != values[0]).any():
                hint = "Layers of different shapes are not supported"
                raise self.metadata.error(key, values, "one number, or equal numbers for all layers", hint)
            value: int | None = int(values[0])
        else:
            value = self.metadata.integer(key, default)
        if value is None:
            raise self.metadata.error(key, "nothing", "a number")
        if not 1 <= value <= limit:
            raise self.metadata.error(key, value, f"1 to {limit}")
        return value

    def positive(self, name: str, default: float | None = None) -> float:
        """A positive finite number."""
        value = self.metadata.number(f"{self.arch}.{name}", default)
        if value is None or not value > 0:
            raise self.metadata.error(f"{self.arch}.{name}", value, "a positive number")
        return value


def read_config(
    metadata: Metadata, tensors: set[str], vocab_rows: int, rope_factors: Callable[[str], Floats]
) -> dict[str, Any]:
    """The configuration of a model.

    tensors: names in the file. vocab_rows: rows of token_embd. rope_factors: reads one of ROPE_TENSORS.
    Raises UnsupportedModelError for an architecture or option that this version does not run, FormatError for nonsense.
    """
    values = Hyperparameters(metadata)
    hidden, heads = values.size("embedding_length"), values.size("attention.head_count")
    head_dim = values.size("attention.key_length", max(1, hidden // heads))
    config: dict[str, Any] = {
        "model_type": values.arch,
        "hidden_size": hidden,
        "intermediate_size": values.size("feed_forward_length"),
        "num_hidden_layers": values.size("block_count", limit=MAX_LAYERS),
        "num_attention_heads": heads,
        "num_key_value_heads": values.size("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab_size": vocab_rows,
        "max_position_embeddings": values.size("context_length", limit=1 << 31),
        "rms_norm_eps": values.positive("attention.layer_norm_rms_epsilon"),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": any(f"blk.0.attn_{part}.bias" in tensors for part in ("q", "k", "v", "output")),
        "mlp_bias": any(f"blk.0.ffn_{part}.bias" in tensors for part in ("gate", "up", "down")),
        "rope_theta": values.positive("rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(values, tensors, rope_factors, head_dim),
    }
    _check_heads(values, config)
    config |= _rotary(values, head_dim) | _sliding_window(values) | _token_ids(metadata)
    return config


def _check_heads(values: Hyperparameters, config: dict[str, Any]) -> None:
    heads, groups, head_dim = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    if heads % groups:
        key = f"{values.arch}.attention.head_count_kv"
        raise values.metadata.error(key, groups, f"a divisor of {heads} query heads")
    if values.size("attention.value_length", head_dim) != head_dim:
        found = values.size("attention.value_length")
        raise values.metadata.error(f"{values.arch}.attention.value_length", found, f"the key length, {head_dim}")


def _rotary(values: Hyperparameters, head_dim: int) -> dict[str, Any]:
    """How much of a head is rotated; nothing to say when it is the whole head."""
    rotated = values.size("rope.dimension_count", head_dim)
    if rotated == head_dim:
        return {}
    key = f"{values.arch}.rope.dimension_count"
    if values.arch in PERMUTED or rotated > head_dim or rotated % 2:
        raise values.metadata.error(key, rotated, f"the head size, {head_dim}")
    return {"partial_rotary_factor": rotated / head_dim}


def _sliding_window(values: Hyperparameters) -> dict[str, Any]:
    """Mistral models are written with architecture llama; the window tells the ones that have it apart."""
    window = values.metadata.integer(f"{values.arch}.attention.sliding_window", 0)
    if not window:
        return {}
    if values.arch != "llama" or window < 0:
        key, hint = f"{values.arch}.attention.sliding_window", "Windowed layers are known for llama files only"
        raise values.metadata.error(key, window, "no window", hint)
    return {"model_type": "mistral", "sliding_window": window}


def _token_ids(metadata: Metadata) -> dict[str, Any]:
    keys = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    found = {name: metadata.integer(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}
    return {name: value for name, value in found.items() if value is not None}


def _rope_scaling(
    values: Hyperparameters, tensors: set[str], rope_factors: Callable[[str], Floats], head_dim: int
) -> dict[str, Any] | None:
    if "rope_freqs.weight" in tensors:
        return {"rope_type": "factors", "factors": _factors(values, rope_factors, "rope_freqs.weight", head_dim)}
    kind = values.metadata.text(f"{values.arch}.rope.scaling.type", "linear") or "none"
    legacy = values.metadata.number(f"{values.arch}.rope.scale_linear", 1.0)
    factor = values.positive("rope.scaling.factor", legacy or 1.0)
    if kind == "longrope":
        return _longrope(values, rope_factors, tensors, head_dim)
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        return _yarn(values, factor)
    key = f"{values.arch}.rope.scaling.type"
    raise values.metadata.error(key, kind, "none, linear, yarn or longrope")


def _yarn(values: Hyperparameters, factor: float) -> dict[str, Any]:
    attention = values.positive("rope.scaling.attn_factor", values.positive("rope.scaling.yarn_attn_factor", 1.0))
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": _original_context(values),
        "beta_fast": values.positive("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": values.positive("rope.scaling.yarn_beta_slow", 1.0),
        "attention_factor": attention * (0.1 * math.log(factor) + 1.0) if factor > 1 else attention,
    }


def _longrope(
    values: Hyperparameters, rope_factors: Callable[[str], Floats], tensors: set[str], head_dim: int
) -> dict[str, Any]:
    names = {"long_factor": "rope_factors_long.weight", "short_factor": "rope_factors_short.weight"}
    for name in names.values():
        if name not in tensors:
            raise values.metadata.error(f"{values.arch}.rope.scaling.type", "longrope", f"a tensor {name}")
    factors = {key: _factors(values, rope_factors, name, head_dim) for key, name in names.items()}
    attention = values.positive("rope.scaling.attn_factor", 1.0)
    scaling = {"original_max_position_embeddings": _original_context(values), "attention_factor": attention}
    return {"rope_type": "longrope"} | scaling | factors


def _original_context(values: Hyperparameters) -> int:
    return values.size("rope.scaling.original_context_length", values.size("context_length", limit=1 << 31), 1 << 31)


def _factors(values: Hyperparameters, read: Callable[[str], Floats], name: str, head_dim: int) -> list[float]:
    factors = read(name)
    pairs = values.size("rope.dimension_count", head_dim) // 2
    if factors.shape != (pairs,) or not (np.isfinite(factors).all() and (factors > 0).all()):
        raise values.metadata.error(name, f"shape {factors.shape}, {factors[:4]}...", f"{pairs} positive numbers")
    return [float(factor) for factor in factors]
