"""EXL2, GPTQ and AWQ checkpoints of every architecture against transformers with the decoded weights.

Bounds are relative errors, as in test_exl3_models.py: the reference device computes with exact weights in float32 and
an fp16 cache; the CPU may hold embedding and head as bf16 instead of fp16; GPUs round activations to fp16.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from exllama.engine.model import Model
from exllama.errors import FormatError
from exllama.loader.sizing import model_sizes
from exllama.loader.sources import open_checkpoint
from tests.models.group_toys import KINDS, save_groups
from tests.models.toys import DEVICES, expected_logits, random_ids, relative_error, toy_config, toy_model

BOUNDS = {"reference": 1e-3, "cpu": 2e-2, "emu:0": 4e-3}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {"sliding_window": 9}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture(kind: str, architecture: str, device: str, tmp_path: Path) -> None:
    model_type, changes = ARCHITECTURES[architecture]
    model, ids = toy_model(toy_config(model_type, **changes)), random_ids(40)
    save_groups(model, kind, tmp_path)
    with Model.from_pretrained(tmp_path, device=device) as opened:
        assert relative_error(opened.logits(ids), expected_logits(model, ids)) <= BOUNDS[device]


@pytest.mark.parametrize("kind", KINDS)
def test_exact_weights_for_evaluation(kind: str, tmp_path: Path) -> None:
    model, ids = toy_model(toy_config("llama")), random_ids(40)
    save_groups(model, kind, tmp_path)
    opened = Model.from_pretrained(tmp_path, expand="float32")
    assert relative_error(opened.logits(ids), expected_logits(model, ids)) <= BOUNDS["reference"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_expanded_is_told_once(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_groups(toy_model(toy_config("llama")), kind, tmp_path)
    with caplog.at_level(logging.WARNING):
        Model.from_pretrained(tmp_path, device="cpu").close()
    assert caplog.text.count("expanded to 32 bits") == 1


def test_a_head_of_its_own_though_tied(tmp_path: Path) -> None:
    """EXL2 files have one, whatever the configuration says."""
    model, ids = toy_model(toy_config("llama")), random_ids(10)
    save_groups(model, "exl2", tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"tie_word_embeddings": false', '"tie_word_embeddings": true'))
    opened = Model.from_pretrained(tmp_path)
    assert relative_error(opened.logits(ids), expected_logits(model, ids)) <= BOUNDS["cpu"]


def test_plans_know_the_size(tmp_path: Path) -> None:
    save_groups(toy_model(toy_config("llama")), "gptq", tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        blocks = model_sizes(checkpoint).cpu.blocks
    layer = 64 * (128 + 64 + 64) + 128 * 64 + 3 * 96 * 64  # weights of q, k, v, o and the MLP
    assert all(4 * layer <= block <= 4 * layer + 4 * 1024 for block in blocks)


@pytest.mark.parametrize(
    ("kind", "part"), [("exl2", "q_invperm"), ("exl2", "q_scale"), ("gptq", "scales"), ("awq", "qzeros")]
)
def test_a_missing_part_is_named(kind: str, part: str, tmp_path: Path) -> None:
    save_groups(toy_model(toy_config("llama")), kind, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    del stored[f"model.layers.1.mlp.up_proj.{part}"]
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(FormatError, match=rf"model\.layers\.1\.mlp\.up_proj\.{part}"):
        Model.from_pretrained(tmp_path)
