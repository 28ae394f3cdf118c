"""EXL3 checkpoints of every architecture against transformers with the decoded weights.

Bounds are relative errors (root of the normalised mean square error). The reference device computes with the exact
weights in float32, so what remains is the fp16 cache. The CPU rounds activations to 8 bits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from exllama.engine.model import Model
from exllama.errors import FormatError
from exllama.formats.trellis import Codebook
from exllama.loader.sizing import model_sizes
from exllama.loader.sources import open_checkpoint
from tests.models.exl3_toys import save_exl3
from tests.models.toys import DEVICES, expected_logits, random_ids, relative_error, toy_config, toy_model

BOUNDS = {"reference": 1e-3, "cpu": 3e-2, "emu:0": 4e-3}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama wide": ("llama", {"hidden_size": 256, "intermediate_size": 400, "head_dim": 64}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "mistral": ("mistral", {"sliding_window": 9}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
}


def toy(case: str, folder: Path, **options: Any) -> PreTrainedModel:
    """A saved toy and its twin in transformers. One that is tied gets a head of its own, as quantizers write it."""
    model_type, changes = CASES[case]
    tied = changes.get("tie_word_embeddings", False)
    model = toy_model(toy_config(model_type, **changes | {"tie_word_embeddings": False}))
    save_exl3(model, folder, **options)
    if tied:
        text = (folder / "config.json").read_text()
        (folder / "config.json").write_text(text.replace('"tie_word_embeddings": false', '"tie_word_embeddings": true'))
    return model


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES)
def test_every_architecture(case: str, device: str, tmp_path: Path) -> None:
    model, ids = toy(case, tmp_path), random_ids(40)
    with Model.from_pretrained(tmp_path, device=device) as opened:
        assert relative_error(opened.logits(ids), expected_logits(model, ids)) <= BOUNDS[device]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("codebook", ["mcg", "3inst"])
def test_other_codebooks(codebook: Codebook, device: str, tmp_path: Path) -> None:
    model, ids = toy("llama", tmp_path, rates=(2, 3, 4, 6, 1), codebook=codebook), random_ids(40)
    with Model.from_pretrained(tmp_path, device=device) as opened:
        assert relative_error(opened.logits(ids), expected_logits(model, ids)) <= BOUNDS[device]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", ["llama", "mistral", "qwen2", "qwen3"])
def test_greedy_tokens(case: str, device: str, tmp_path: Path) -> None:
    """Equal to the oracle's. On the CPU two candidates of a toy may be nearer to each other than the rounding."""
    model, ids = toy(case, tmp_path), random_ids(8)
    equal = 0
    with Model.from_pretrained(tmp_path, device=device) as opened:
        for _ in range(12):
            expected, found = expected_logits(model, ids)[-1], opened.logits(ids)[-1]
            chosen = int(found.argmax())
            assert expected[chosen] >= expected.max() - 3 * BOUNDS[device] * expected.norm() / len(expected) ** 0.5
            equal += chosen == int(expected.argmax())
            ids = torch.cat((ids, expected.argmax()[None]))
    assert equal >= (12 if device == "reference" else 9)


def test_exact_weights_for_evaluation(tmp_path: Path) -> None:
    model, ids = toy("llama", tmp_path), random_ids(40)
    opened = Model.from_pretrained(tmp_path, expand="float32")
    assert relative_error(opened.logits(ids), expected_logits(model, ids)) <= BOUNDS["reference"]


def test_trellises_are_found_without_a_word_in_the_configuration(tmp_path: Path) -> None:
    model, ids = toy("llama", tmp_path), random_ids(10)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"quantization_config"', '"other_config"'))
    opened = Model.from_pretrained(tmp_path)
    assert relative_error(opened.logits(ids), expected_logits(model, ids)) <= BOUNDS["cpu"]


def test_dense_layers_among_trellises(tmp_path: Path) -> None:
    """What a quantizer left alone: here a head, and one of three layers that share an input."""
    model, ids = toy("llama", tmp_path), random_ids(10)
    tensors = load_file(tmp_path / "model.safetensors")
    for key in ("lm_head", "model.layers.0.self_attn.k_proj"):
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{key}.")}
        tensors[f"{key}.weight"] = model.get_parameter(f"{key}.weight").data.clone()
    save_file(tensors, tmp_path / "model.safetensors")
    opened = Model.from_pretrained(tmp_path)
    assert relative_error(opened.logits(ids), expected_logits(model, ids)) <= BOUNDS["cpu"]


def test_progress_counts_every_part(tmp_path: Path) -> None:
    toy("llama", tmp_path)
    calls: list[tuple[str, int, int]] = []
    Model.from_pretrained(tmp_path, progress=lambda what, done, total: calls.append((what, done, total)))
    size = sum(tensor.nbytes for tensor in load_file(tmp_path / "model.safetensors").values())
    assert calls[-1] == ("load", size, size)


def test_plans_know_the_size(tmp_path: Path) -> None:
    toy("llama", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    packed = sum(tensor.nbytes for name, tensor in tensors.items() if not name.endswith(("weight", "bias")))
    with open_checkpoint(tmp_path) as checkpoint:
        sizes = model_sizes(checkpoint).cpu
    weights = sizes.embedding + sum(sizes.blocks) + sizes.head
    assert packed <= weights <= packed + 300 * 64 * 4 + 5 * 64 * 4


@pytest.mark.parametrize("part", ["trellis", "suh", "svh"])
def test_a_missing_part_is_named(part: str, tmp_path: Path) -> None:
    toy("llama", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[f"model.layers.1.mlp.up_proj.{part}"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(FormatError, match=r"model\.layers\.1\.mlp\.up_proj"):
        Model.from_pretrained(tmp_path)
