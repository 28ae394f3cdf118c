"""How many tokens to guess: what a row costs, how often guesses are right, and what follows from both.

A step that verifies k drafts of a sequence brings 1 + p + p^2 + ... + p^k tokens on average when each is right with
probability p (Leviathan et al. 2023, section 3.1). It is worth its time when tokens per second go up, so both the times
of steps by number of rows and p are measured while running.
"""

from __future__ import annotations

from collections import deque
from statistics import median

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_KEPT = 9  # latest times per number of rows; their median counts, so that a busy moment changes nothing
_FRESH = 8  # observations after which the curve is drawn anew
_SLOPE = 0.15  # until it is measured, one row more costs this much of the shortest step
_HIGHEST = 0.98  # a guess is never sure
_PRIOR_WEIGHT = 2.0  # the prior counts like so many trials
_MEMORY = 0.95  # what a trial counts after another one
_MARGIN = 1.03  # tokens per second must go up by this factor, else times are too alike to tell


class StepCosts:
    """Seconds of a step by its number of rows, learned from the steps that ran."""

    def __init__(self) -> None:
        self._times: dict[int, deque[float]] = {}
        self._curve = np.empty(0)
        self._news = 0

    @property
    def known(self) -> bool:
        """Something was measured."""
        return bool(self._times)

    def observe(self, rows: int, seconds: float) -> None:
        """A step of so many rows took so long."""
        times = self._times.setdefault(rows, deque(maxlen=_KEPT))
        self._news += _FRESH if not times else 1
        times.append(seconds)

    def curve(self, most: int) -> Floats:
        """(most + 1,) seconds by number of rows, never falling; in steps' own units before anything was measured."""
        if self._news >= _FRESH or len(self._curve) <= most:
            self._news, self._curve = 0, self._draw(max(most, len(self._curve) - 1))
        return self._curve[: most + 1]

    def _draw(self, most: int) -> Floats:
        known = sorted(rows for rows in self._times if rows <= most)
        values = np.maximum.accumulate([median(self._times[rows]) for rows in known]) if known else np.ones(1)
        rows = np.arange(most + 1)
        slope = _SLOPE * values[0]
        if len(known) > 1 and values[-1] > values[0]:
            slope = (values[-1] - values[0]) / (known[-1] - known[0])
        last = known[-1] if known else 1
        between: Floats = np.interp(rows, known or [1], values) + slope * np.maximum(rows - last, 0)
        return between


class Rate:
    """How often a guess of one kind was right lately, believed only as far as there were trials."""

    def __init__(self, prior: Rate | float) -> None:
        self._prior = prior
        self._hits = self._trials = 0.0

    @property
    def value(self) -> float:
        """The probability that the next one is right."""
        prior = self._prior if isinstance(self._prior, float) else self._prior.value
        return min((self._hits + _PRIOR_WEIGHT * prior) / (self._trials + _PRIOR_WEIGHT), _HIGHEST)

    def learn(self, hits: int, trials: int) -> None:
        """So many of so many guesses were right."""
        fading = _MEMORY**trials
        self._hits = self._hits * fading + hits
        self._trials = self._trials * fading + trials
        if isinstance(self._prior, Rate):
            self._prior.learn(hits, trials)


def choose_counts(
    chances: list[float], longest: list[int], step: StepCosts, guess_seconds: float, rows: int
) -> list[int]:
    """How many drafts each of some sequences should get, so that tokens per second are highest.

    chances: that a guess is right; longest: most drafts of each. step: costs of verifying. guess_seconds: of making one
    guess for all sequences together. rows: those of the step without drafts, one per sequence and more.
    """
    depths = np.arange(1, max(longest, default=0) + 1)
    gains = np.array(chances)[:, None] ** depths  # that the d-th draft of a sequence is right, and all before it
    gains[depths > np.array(longest)[:, None]] = 0.0
    order = np.argsort(-gains, axis=None, kind="stable")[: np.count_nonzero(gains)]  # (n,) the best drafts first
    deepest = np.maximum.accumulate(order % len(depths) + 1) if len(order) else order
    tokens = rows + np.cumsum(gains.ravel()[order])
    curve = step.curve(rows + len(order))
    speeds = tokens / (curve[rows + 1 :] + deepest * guess_seconds)
    if not len(order) or speeds.max() < _MARGIN * rows / curve[rows]:
        return [0] * len(chances)
    chosen = order[: int(speeds.argmax()) + 1] // len(depths)
    return [int(count) for count in np.bincount(chosen, minlength=len(chances))]
