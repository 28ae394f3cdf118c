"""Toy checkpoints in EXL3: random streams in place of every linear layer, and the same model with decoded weights."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from exllama.formats.trellis import Codebook, dequantize
from tests.formats.exl3_writer import RATES, Tensors, random_linear


def save_exl3(
    model: PreTrainedModel, folder: Path, rates: Sequence[float] = RATES, codebook: Codebook = "mul1"
) -> Path:
    """Writes `model` with random trellises for its linear layers, and gives it the weights that they decode to.

    rates: bits of one layer after the other, over and over. Norms, biases and embeddings are stored as they are.
    """
    tensors: Tensors = {}
    bits = itertools.cycle(rates)
    for seed, (name, parameter) in enumerate(model.named_parameters()):
        if parameter.ndim == 1 or "embed_tokens" in name:
            tensors[name] = parameter.data.half()
            parameter.data.copy_(tensors[name].float())
            continue
        key = name.removesuffix(".weight")
        parts = random_linear(key, *parameter.shape, next(bits), codebook, seed=seed)
        parameter.data.copy_(decoded(key, parts, codebook, parameter.shape))
        tensors |= parts
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = copy.deepcopy(model.config).to_dict() | {"tie_word_embeddings": False}
    config["quantization_config"] = {"quant_method": "exl3", "version": "1.6.5", "bits": 4.0, "head_bits": 6}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def decoded(key: str, parts: Tensors, codebook: Codebook, shape: torch.Size) -> torch.Tensor:
    """The matrix (out_features, in_features) that the tensors of a linear stand for."""
    suh, svh = (parts[f"{key}.{side}"].double().numpy() for side in ("suh", "svh"))
    matrix = dequantize(parts[f"{key}.trellis"].numpy(), suh, svh, codebook)
    return torch.from_numpy(matrix[: shape[0], : shape[1]]).float()
