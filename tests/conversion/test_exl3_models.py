"""Whole conversions to EXL3 of toy models, run by the engine's own kernels beside the model that they came from."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from conversion.pipeline import convert
from conversion.source import SourceModel
from exllama.engine.model import Model
from tests.conversion.toys import SMALL, toy
from tests.models.toys import expected_logits, relative_error
from tests.unit.tree import ROOT

SHAPE: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4}
SQUARE_ERROR = 0.0045  # of EXL3 at 4 bits on Gaussian weights, relative: the table of docs/formats/exl3.md


def with_noise(model: PreTrainedModel) -> PreTrainedModel:
    """The model with errors in all linears but the head that are as large as those of 4 bits, and know of nothing."""
    noisy = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for name, linear in noisy.named_modules():
        if isinstance(linear, torch.nn.Linear) and name != "lm_head":
            weight = linear.weight.data
            scale = (SQUARE_ERROR * weight.square().mean()).sqrt()
            weight += scale * torch.randn(weight.shape, generator=generator)
    return noisy


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_every_architecture_at_four_bits(model_type: str, tmp_path: Path) -> None:
    """On text, the logits are nearer to the model's than errors of that size that know nothing of the inputs.

    Measured: half to 0.6 of those.
    """
    source, model = toy(tmp_path / "toy", model_type, **SHAPE)
    rates = tmp_path / "rates.json"
    rates.write_text('{"default": 4}')
    out = tmp_path / "out"
    convert(source, out, replace(SMALL, format="exl3", head_bits=6.0, recipe=rates))
    text = (ROOT / "conversion" / "texts" / "heldout.txt").read_text(encoding="utf-8")
    with SourceModel(source) as opened:
        ids = torch.tensor(opened.tokenizer.encode(text)[:64])
    right = expected_logits(model, ids)
    with Model.from_pretrained(out, device="cpu") as made:
        found = relative_error(made.logits(ids), right)
    assert found < 0.8 * relative_error(expected_logits(with_noise(model), ids), right)
