"""The estimate of what rounding a linear costs, against the divergence that such an error really makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from conversion.forward import run_head, run_module
from conversion.hessians import Hessians
from conversion.measurement import Sensitivity, _unit_factor, distortions, measure
from conversion.source import EMBEDDING, SourceModel
from tests.conversion.toys import RoundToNearest, toy
from tests.models.toys import random_ids

NOISE = 1e-4  # relative square error: small enough that the second order is all there is


def logits_and_moments(
    source: SourceModel, ids: torch.Tensor, change: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, Hessians]:
    """The logits with some matrices replaced, log-softmax in float64; and the second moments."""
    hidden, seen, modules = None, Hessians(), source.modules()
    for module in modules:
        for key, matrix in source.load(module).items():
            matrix.values = change.get(key, matrix.values)
        if module is not modules[-1]:
            hidden = run_module(module, ids, hidden, source.config.hidden_size, seen.observe)
    assert hidden is not None
    return run_head(modules[-1], ids, hidden, seen.observe).double().log_softmax(-1), seen


def test_against_the_divergence_of_random_errors(tmp_path: Path) -> None:
    """Noise N L^-1 on one linear at a time, several draws; sampled labels and draws leave some 10 % of chance."""
    folder, _ = toy(tmp_path / "toy", "qwen3")
    ids = random_ids(24 * 32).reshape(24, 32)
    generator = torch.Generator().manual_seed(3)
    with SourceModel(folder) as source, torch.no_grad():
        truth, seen = logits_and_moments(source, ids, {})
        matrices = {key: m.values for module in source.modules() for key, m in source.load(module).items()}
        actual = {}
        for key in [key for key in matrices if key != EMBEDDING]:
            factor, weight = _unit_factor(seen[key].hessian()), matrices[key]
            kl = []
            for _ in range(6):
                white = torch.randn(weight.shape, generator=generator) * weight.square().mean(1, keepdim=True).sqrt()
                error = torch.linalg.solve_triangular(factor.T, white.T * NOISE**0.5, upper=True, unitriangular=True).T
                other, _ = logits_and_moments(source, ids, {key: weight + error})
                kl.append(float((truth.exp() * (truth - other)).sum(-1).mean()))
            actual[key] = np.mean(kl) / NOISE
    with SourceModel(folder) as source:
        found = measure(source, ids, {}, lambda _: None)
    assert found.keys() == actual.keys()
    ratios = np.array([found[key].kl / actual[key] for key in actual])
    assert 0.75 < np.exp(np.log(ratios).mean()) < 1.33
    assert np.all((ratios > 0.5) & (ratios < 2)), dict(zip(actual, ratios, strict=True))
    ranks = [
        np.argsort(np.argsort([values[key] for key in actual]))
        for values in ({k: v.kl for k, v in found.items()}, actual)
    ]
    assert np.corrcoef(*ranks)[0, 1] > 0.9


def test_what_is_known_is_not_measured_again(tmp_path: Path) -> None:
    folder, _ = toy(tmp_path / "toy")
    ids = random_ids(64).reshape(2, 32)
    saved: list[dict[str, Sensitivity]] = []
    with SourceModel(folder) as source:
        whole = measure(source, ids, {}, lambda found: saved.append(dict(found)))
        assert [len(found) for found in saved] == [1, 4, 8, 11, 15]
        assert measure(source, ids, saved[2], lambda _: None) == whole
        marked = {key: Sensitivity(1, 1, -1.0) for key in saved[1]}
        again = measure(source, ids, marked, lambda _: None)
    assert {key for key, value in again.items() if value.kl == -1.0} == set(marked)
    assert {key: again[key] for key in again if key not in marked} == {
        k: v for k, v in whole.items() if k not in marked
    }


def test_distortion_of_a_uniform_grid() -> None:
    """A grid of 2^b points over the range of a row of Gaussian numbers: step^2 / 12."""
    found = distortions(RoundToNearest())
    numbers = torch.randn(128, 256, generator=torch.Generator().manual_seed(0))
    for rate in (6.0, 8.0):
        step = 2 * numbers.abs().amax(1) / (2**rate - 1)
        assert found[rate] == pytest.approx(float((step**2 / 12).mean()), rel=0.05)
    assert list(found) == [2.0, 3.0, 4.0, 6.0, 8.0]
