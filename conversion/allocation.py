"""Which rate every linear gets: the exact multiple-choice knapsack, least cost within a budget of bits.

Lagrangian bounds fix nearly all choices (Sinha & Zoltners, "The multiple-choice knapsack problem", 1979; Kellerer,
Pferschy & Pisinger, "Knapsack Problems", 2004, chapter 11), and dynamic programming over undominated partial sums
(Nemhauser & Ullmann, 1969) settles the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from exllama.errors import ConversionError

_BISECTIONS = 200
_SLACK = 1e-12  # of the bounds: what float64 sums may be off


@dataclass(frozen=True)
class Option:
    """One rate of one item. cost: what it adds to the divergence, finite; weight: what it takes of the budget, bits."""

    cost: float
    weight: int


def allocate(items: Sequence[Sequence[Option]], budget: int) -> list[int]:
    """The option of every item whose costs add up to least among all choices that weigh at most `budget`.

    The same input gives the same choice. Raises ConversionError when not even the lightest options fit.
    """
    lightest = [min(range(len(item)), key=lambda k: (item[k].weight, item[k].cost)) for item in items]
    least = _weight(items, lightest)
    if least > budget:
        raise ConversionError(f"the lightest options take {least} bits, and the budget is {budget}: ask for more bits")
    price = _price(items, budget)
    best = _improve(items, _at_price(items, price), budget)
    bound = _Bound(items, price, budget)
    return _settle(items, bound, best, budget)


def _cost(items: Sequence[Sequence[Option]], choice: Sequence[int]) -> float:
    return math.fsum(item[k].cost for item, k in zip(items, choice, strict=True))


def _weight(items: Sequence[Sequence[Option]], choice: Sequence[int]) -> int:
    return sum(item[k].weight for item, k in zip(items, choice, strict=True))


def _at_price(items: Sequence[Sequence[Option]], price: float) -> list[int]:
    """What every item chooses for itself when a bit costs `price`; of equals the lightest."""
    return [
        min(range(len(item)), key=lambda k: (item[k].cost + price * item[k].weight, item[k].weight)) for item in items
    ]


def _price(items: Sequence[Sequence[Option]], budget: int) -> float:
    """The least price of a bit, found by bisection, at which what the items choose fits the budget."""
    if _weight(items, _at_price(items, 0.0)) <= budget:
        return 0.0
    low, high = 0.0, 1.0
    while _weight(items, _at_price(items, high)) > budget:
        high *= 2
    while _weight(items, _at_price(items, high / 2)) <= budget and high > 1e-300:
        high /= 2
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        if _weight(items, _at_price(items, middle)) > budget:
            low = middle
        else:
            high = middle
    return high


def _improve(items: Sequence[Sequence[Option]], choice: list[int], budget: int) -> list[int]:
    """Spends what is left, best gain for a bit first: a good choice, from which bounds can exclude bad ones."""
    left = budget - _weight(items, choice)
    while True:
        best = (0.0, 0, 0)
        for index, item in enumerate(items):
            now = item[choice[index]]
            for k, option in enumerate(item):
                more = option.weight - now.weight
                gain = (now.cost - option.cost) / max(more, 1)
                if more <= left and option.cost < now.cost and gain > best[0]:
                    best = (gain, index, k)
        if best[0] == 0.0:
            return choice
        _, index, k = best
        left -= items[index][k].weight - items[index][choice[index]].weight
        choice[index] = k


class _Bound:
    """What no choice within the budget can undercut, at a price of a bit.

    least: sum of the items' priced costs minus price * budget. excess[i][k]: by how much option k of item i lies above
    the item's cheapest at this price, so that `least` plus the excesses chosen is a lower bound of the cost.
    """

    def __init__(self, items: Sequence[Sequence[Option]], price: float, budget: int) -> None:
        priced = [[option.cost + price * option.weight for option in item] for item in items]
        self.excess = [[value - min(values) for value in values] for values in priced]
        self.least = math.fsum(min(values) for values in priced) - price * budget
        self.scale = math.fsum(min(map(abs, values)) for values in priced) + abs(price * budget)


def _settle(items: Sequence[Sequence[Option]], bound: _Bound, best: list[int], budget: int) -> list[int]:
    """Tries all that the bound does not exclude, item by item; keeps partial sums that no other one dominates."""
    room = _cost(items, best) - bound.least + _SLACK * bound.scale
    lightest_rest = [0]
    for item in reversed(items):
        lightest_rest.append(lightest_rest[-1] + min(option.weight for option in item))
    lightest_rest.reverse()
    states: list[tuple[int, float, float, tuple[int, ...] | None]] = [(0, 0.0, 0.0, None)]
    steps: list[list[tuple[int, int]]] = []  # per item and state: the state before and the option taken
    for index, item in enumerate(items):
        kept = [k for k in range(len(item)) if bound.excess[index][k] <= room]
        grown = sorted(
            (weight + item[k].weight, cost + item[k].cost, excess + bound.excess[index][k], (parent, k))
            for parent, (weight, cost, excess, _) in enumerate(states)
            for k in kept
            if excess + bound.excess[index][k] <= room and weight + item[k].weight + lightest_rest[index + 1] <= budget
        )
        states, least = [], math.inf
        for state in grown:
            if state[1] < least:
                least = state[1]
                states.append(state)
        if not states:
            return best
        steps.append([(state[3][0], state[3][1]) for state in states if state[3] is not None])
    return _better(items, _trace(steps, min(range(len(states)), key=lambda k: states[k][1])), best)


def _trace(steps: list[list[tuple[int, int]]], at: int) -> list[int]:
    choice = []
    for step in reversed(steps):
        at, k = step[at]
        choice.append(k)
    return choice[::-1]


def _better(items: Sequence[Sequence[Option]], found: list[int], best: list[int]) -> list[int]:
    return found if _cost(items, found) < _cost(items, best) else best
