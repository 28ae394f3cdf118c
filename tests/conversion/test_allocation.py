"""The knapsack of bits against HiGHS, an exact solver of integer programs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from conversion.allocation import Option, allocate
from exllama.errors import ConversionError

Items = list[list[Option]]


def totals(items: Items, choice: list[int]) -> tuple[float, int]:
    taken = [item[k] for item, k in zip(items, choice, strict=True)]
    return sum(option.cost for option in taken), sum(option.weight for option in taken)


def highs(items: Items, budget: int) -> float:
    """The least cost: one binary variable an option, one of each item, weights within the budget."""
    options = [option for item in items for option in item]
    owner = np.repeat(np.arange(len(items)), [len(item) for item in items])
    one_each = LinearConstraint((owner[None, :] == np.arange(len(items))[:, None]).astype(float), 1, 1)
    weight = LinearConstraint(np.array([[option.weight for option in options]], float), -np.inf, budget)
    found = milp(
        [option.cost for option in options], constraints=[one_each, weight], integrality=np.ones(len(options)),
        bounds=Bounds(0, 1), options={"mip_rel_gap": 0.0},
    )  # fmt: skip
    assert found.success, found.message
    return float(found.fun)


def random_items(rng: np.random.Generator, count: int, kind: str) -> Items:
    """like a model: costs fall by about a quarter a bit, few sizes. wild: no order at all between cost and weight."""
    if kind == "wild":
        return [[Option(float(rng.random()), int(rng.integers(0, 60))) for _ in range(4)] for _ in range(count)]
    sizes = rng.choice([18, 54, 81], count)
    scales = np.exp(rng.normal(0, 1.5, count))
    rates = (1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 8)
    return [
        [Option(float(scale * 4.0**-rate * rng.uniform(0.8, 1.2)), int(size * rate * 2)) for rate in rates]
        for size, scale in zip(sizes, scales, strict=True)
    ]


@pytest.mark.parametrize("kind", ["like a model", "wild"])
@pytest.mark.parametrize("seed", range(12))
def test_costs_least(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    items = random_items(rng, int(rng.integers(1, 25)), kind)
    least, most = (sum(pick(option.weight for option in item) for item in items) for pick in (min, max))
    for budget in {least, int(rng.integers(least, most + 1)), (least + most) // 2, most + 5}:
        cost, weight = totals(items, allocate(items, budget))
        assert weight <= budget
        assert cost == pytest.approx(highs(items, budget), rel=1e-9, abs=1e-12)


def test_a_model_of_many_layers() -> None:
    """As many linears as a 135M model has; integer programming agrees to what it calls exact."""
    items = random_items(np.random.default_rng(5), 210, "like a model")
    budget = int(sum(item[3].weight for item in items) * 1.013)
    cost, weight = totals(items, allocate(items, budget))
    assert weight <= budget
    assert cost == pytest.approx(highs(items, budget), rel=1e-7)


def test_equal_items_and_free_options() -> None:
    same = [Option(1.0, 0), Option(0.5, 10), Option(0.0, 20)]
    choice = allocate([same] * 7, 70)
    assert totals([same] * 7, choice) == (3.5, 70)
    assert allocate([[Option(0.0, 3)]], 3) == [0]
    assert allocate([], 0) == []


def test_a_budget_too_small_is_told() -> None:
    with pytest.raises(ConversionError, match="take 12 bits, and the budget is 11"):
        allocate([[Option(0.1, 6), Option(0.0, 9)]] * 2, 11)
