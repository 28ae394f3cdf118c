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

_UNITS, _SLOPES = 9, 31  # latest measurements whose median counts, so that a busy moment changes little
_SLOPE, _SURE = 0.15, 5  # until it is measured, a row more costs this much of a step of one row; counts so many times
_STEEPEST = 1.0
_HIGHEST = 0.98  # a guess is never sure
_PRIOR_WEIGHT = 2.0  # the prior counts like so many trials
_MEMORY = 0.95  # what a trial counts after another one
_MARGIN = 1.03  # tokens per second must go up by this factor, else times are too alike to tell


class StepCosts:
    """Seconds of a step by its number of rows: a straight line, which is what steps of few rows are near to.

    Its slope comes from steps that follow each other, so that a machine that is slower for a while does not bend it.
    """

    def __init__(self) -> None:
        self._slopes = deque([_SLOPE] * _SURE, maxlen=_SLOPES)  # of the line, as a share of a step of one row
        self._units: deque[float] = deque(maxlen=_UNITS)  # seconds of a step of one row
        self._last = (0, 0.0)

    @property
    def known(self) -> bool:
        """Something was measured."""
        return bool(self._units)

    def observe(self, rows: int, seconds: float) -> None:
        """A step of so many rows took so long."""
        before, self._last = self._last, (rows, seconds)
        if before[0] not in (0, rows):
            self._slopes.append(_slope(*sorted((before, self._last))))
        self._units.append(seconds / (1.0 + median(self._slopes) * (rows - 1)))

    def curve(self, most: int) -> Floats:
        """(most + 1,) seconds by number of rows; before anything was measured, a step of one row takes 1."""
        unit = median(self._units) if self._units else 1.0
        seconds: Floats = np.arange(-1.0, most) * (unit * median(self._slopes)) + unit
        return seconds


def _slope(fewer: tuple[int, float], more: tuple[int, float]) -> float:
    """What a row adds, as a share of a step of one row, from two steps (rows, seconds)."""
    ratio = more[1] / fewer[1]
    below = (more[0] - 1) - ratio * (fewer[0] - 1)
    return min(max((ratio - 1.0) / below, 0.0), _STEEPEST) if below > 0 else _STEEPEST


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
