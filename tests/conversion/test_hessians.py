"""The forward pass and the second moments of every linear's input, against hooks on transformers' own modules."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from conversion.forward import run_head, run_module
from conversion.hessians import Hessians, Moments
from conversion.source import SourceModel
from tests.models.toys import VOCAB, expected_logits, relative_error, save, toy_config, toy_model

CASES = {
    "llama": ("llama", {}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "windowed": ("mistral", {"sliding_window": 16}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
}
IDS = torch.randint(0, VOCAB, (3, 40), generator=torch.Generator().manual_seed(2))


def hooked_moments(model: PreTrainedModel, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """mean x^T x of the input of every linear, float64, as transformers computes it."""
    sums: dict[str, torch.Tensor] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):

            def see(_: object, inputs: tuple[torch.Tensor], name: str = name) -> None:
                rows = inputs[0].flatten(0, -2).double()
                sums[name] = sums.get(name, torch.zeros(())) + rows.T @ rows

            hooks.append(module.register_forward_pre_hook(see))
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    return {name: total / ids.numel() for name, total in sums.items()}


@pytest.mark.parametrize("case", CASES)
def test_moments_and_logits_of_every_architecture(case: str, tmp_path: Path) -> None:
    model_type, changes = CASES[case]
    model = toy_model(toy_config(model_type, **changes))
    expected = hooked_moments(model, IDS)
    with SourceModel(save(model, tmp_path / "toy")) as source:
        found: dict[str, torch.Tensor] = {}
        hidden, modules = None, source.modules()
        for module in modules[:-1]:
            source.load(module)
            seen = Hessians()
            hidden = run_module(module, IDS, hidden, source.config.hidden_size, seen.observe)
            found |= {key: seen[key].hessian() for key in seen.names()}
        source.load(modules[-1])
        assert hidden is not None
        seen = Hessians()
        logits = run_head(modules[-1], IDS, hidden, seen.observe)
        found |= {key: seen[key].hessian() for key in seen.names()}
    assert found.keys() == expected.keys()
    for key, moments in expected.items():
        assert relative_error(found[key], moments) < 1e-5, key
    truth = torch.cat([expected_logits(model, ids) for ids in IDS])
    assert relative_error(logits, truth) < 1e-5


def test_shared_inputs_share_their_moments(tmp_path: Path) -> None:
    with SourceModel(save(toy_model(toy_config("llama")), tmp_path / "toy")) as source:
        embedding, attention, mlp = source.modules()[:3]
        for module in (embedding, attention, mlp):
            source.load(module)
        hidden = run_module(embedding, IDS, None, 64)
        seen = Hessians()
        run_module(mlp, IDS, run_module(attention, IDS, hidden, 64, seen.observe), 64, seen.observe)
    key = "model.layers.0"
    assert seen.names() == [f"{key}.self_attn.{p}_proj" for p in "qkvo"] + [
        f"{key}.mlp.{p}_proj" for p in ("gate", "up", "down")
    ]
    assert seen[f"{key}.self_attn.q_proj"] is seen[f"{key}.self_attn.v_proj"]
    assert seen[f"{key}.mlp.gate_proj"] is seen[f"{key}.mlp.up_proj"]
    assert seen[f"{key}.self_attn.q_proj"] is not seen[f"{key}.self_attn.o_proj"]


def test_rows_that_are_not_finite_are_left_out_and_counted() -> None:
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    bad = x.clone()
    bad[7, 3], bad[20, 0] = torch.nan, torch.inf
    keep = [row for row in range(50) if row not in (7, 20)]
    moments = Moments(8, torch.device("cpu"))
    for part in bad.split(13):
        moments.add(part)
    assert (moments.rows, moments.left_out) == (48, 2)
    assert torch.allclose(moments.hessian(), (x[keep].T @ x[keep]) / 48, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1e-25, 1e20])
def test_tiny_and_huge_inputs(scale: float) -> None:
    """Squares that float32 cannot hold still give finite moments, up to a factor that no quantizer sees."""
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    moments = Moments(8, torch.device("cpu"))
    moments.add(x * scale)
    found = moments.hessian()
    assert torch.isfinite(found).all()
    if scale == 1e20:
        truth = x.T @ x
        assert relative_error(found / found.diagonal().max(), truth / truth.diagonal().max()) < 1e-5
    assert Moments(8, torch.device("cpu")).hessian().abs().max() == 0
