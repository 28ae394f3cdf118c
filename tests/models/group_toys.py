"""Toy checkpoints in EXL2, GPTQ and AWQ: random codes in place of every linear layer, and the model they decode to."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from tests.formats.group_writer import (
    Tensors,
    decode_awq,
    decode_exl2,
    decode_gptq,
    random_awq,
    random_exl2,
    random_gptq,
)

KINDS: dict[str, dict[str, Any]] = {
    "exl2": {"quant_method": "exl2", "version": "0.3.2", "bits": 4.0, "head_bits": 6},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True, "sym": False},
    "gptq 8 bits": {"quant_method": "gptq", "bits": 8, "group_size": -1, "desc_act": False, "sym": True},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"},
}


def save_groups(model: PreTrainedModel, kind: str, folder: Path) -> Path:
    """Writes `model` with random codes for its linear layers, and gives it the weights that they decode to.

    The head is one of them in EXL2 and dense in the others, as their writers have it.
    """
    stored: Tensors = {}
    for seed, (name, parameter) in enumerate(model.named_parameters()):
        if parameter.ndim == 1 or "embed_tokens" in name or ("lm_head" in name and kind != "exl2"):
            stored[name] = parameter.data.half()
            parameter.data.copy_(stored[name].float())
            continue
        parts, matrix = random_matrix(kind, name.removesuffix(".weight"), parameter.shape[0], parameter.shape[1], seed)
        parameter.data.copy_(matrix)
        stored |= parts
    folder.mkdir(exist_ok=True)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    config = copy.deepcopy(model.config).to_dict() | {"quantization_config": KINDS[kind]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def random_matrix(kind: str, key: str, rows: int, columns: int, seed: int) -> tuple[Tensors, torch.Tensor]:
    """The tensors of a linear layer and the matrix (out_features, in_features) that they stand for."""
    if kind == "exl2":
        widths = [8, 5, 4, 3, 3, 3, 3] if seed % 2 else [6] * 7
        parts = random_exl2(key, rows, columns, [(widths[i], 32) for i in range(columns // 32)], seed)
        matrix = decode_exl2(key, parts)[:rows]
    elif kind == "awq":
        parts = random_awq(key, rows, columns, seed=seed)
        matrix = decode_awq(key, parts)
    elif kind == "gptq":
        parts = random_gptq(key, rows, columns, act_order=True, seed=seed)
        matrix = decode_gptq(key, parts, 4)
    else:
        parts = random_gptq(key, rows, columns, 8, -1, symmetric=True, seed=seed)
        matrix = decode_gptq(key, parts, 8)
    return parts, torch.from_numpy(matrix.astype("<f4"))
