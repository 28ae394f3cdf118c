"""Toy checkpoints of every architecture: tiny, random in every parameter, written by transformers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

VOCAB = 300
DEVICES = ["reference", "cpu", "emu:0"]
# Relative errors of an fp16 cache; on a GPU what runs between kernels is rounded to 11 bits too (measured 0.0013).
HALF_BOUND = {"reference": 1e-3, "cpu": 1e-3, "emu:0": 4e-3}

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}  # fmt: skip
_CLASSES = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}


def toy_config(model_type: str, **changes: Any) -> PretrainedConfig:
    """A configuration with the usual toy shape; changes are Hugging Face keys."""
    values = {**_SHAPE, **({"sliding_window": None} if model_type == "mistral" else {}), **changes}
    return _CLASSES[model_type](**copy.deepcopy(values))


def toy_model(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """Random weights, biases and norms, large enough that attention is far from uniform and no term is trivial."""
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="eager").eval().float()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 2:
                parameter.copy_(noise * (1.0 if "embed_tokens" in name else 1.25 * parameter.shape[1] ** -0.5))
            else:
                parameter.copy_(noise * 0.3 + (0.0 if name.endswith("bias") else 1.0))
    return model


def save(model: PreTrainedModel, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Writes config.json and safetensors, and leaves `model` with the values that were written, in float32."""
    copy.deepcopy(model).to(dtype).save_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():  # and not model.to(dtype), which would round the rope frequencies too
            parameter.copy_(parameter.to(dtype).float())
    return folder


def random_ids(count: int, seed: int = 1) -> torch.Tensor:
    """(count,) int64."""
    return torch.randint(0, VOCAB, (count,), generator=torch.Generator().manual_seed(seed))


def expected_logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """What transformers says, (T, vocab) float32."""
    with torch.no_grad():
        return model(ids[None]).logits[0].float()


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Root of the normalised mean square error."""
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).norm() / expected.double().norm())
