"""Drafters whose guesses are known beforehand, over the fake model."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from exllama.generator.drafting import speculation
from exllama.generator.drafting.drafter import Guess
from exllama.generator.sampling import stack
from exllama.generator.sampling.job_sampler import JobSampler
from exllama.generator.sequence import Sequence
from tests.generator.fake_model import MASK, logits_from, mix


class Foresight:
    """Guesses what will be drawn, and something else at `wrong` per cent of all positions."""

    priors: tuple[float, ...] = (0.6,)

    def __init__(self, wrong: int = 0, ends: bool = False, longest: int = 8) -> None:
        self.wrong, self.ends, self.longest = wrong, ends, longest
        self.sums: dict[Sequence, list[tuple[int, int]]] = {}  # after n tokens: state of the fake model, sum of states
        self.dropped: list[Sequence] = []

    def guess_seconds(self, sequences: int) -> float:
        return 0.0

    def look(self, sequence: Sequence) -> Guess:
        return Guess(0, self.longest)

    def write(self, sequences: list[Sequence], counts: list[int]) -> None:
        for sequence, count in zip(sequences, counts, strict=True):
            n = sequence.num_tokens
            sequence.reserve(n + count)
            sampler = copy.deepcopy(sequence.sampler)  # a guess must not move the state of the job's own
            for position in range(n, n + count):
                sequence.buffer[position] = self.guess(sequence, sampler, position)
            sequence.num_drafts = count

    def guess(self, sequence: Sequence, sampler: JobSampler, position: int) -> int:
        sums = self.sums.setdefault(sequence, [(0, 0)])
        del sums[sequence.num_tokens :]  # made from drafts
        for token in sequence.buffer[len(sums) - 1 : position].tolist():
            state, total = sums[-1]
            state = mix(state ^ (token + 1))
            sums.append((state, (total + state) & MASK))
        right = stack.sample(logits_from(sums[position][1], self.ends), sampler, sequence.buffer[:position])
        assert right >= 0
        return 3 + right % 120 if mix(position) % 100 < self.wrong else right

    def settle(self, sequence: Sequence) -> None:
        if sequence in self.sums:
            del self.sums[sequence][sequence.num_tokens :]

    def drop(self, sequence: Sequence) -> None:
        self.sums.pop(sequence, None)

    def close(self) -> None:
        pass

    def check_integrity(self) -> None:
        pass


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many drafts as there is room for, whatever they cost."""
    monkeypatch.setattr(speculation, "choose_counts", lambda chances, longest, *costs: longest)


def wrong_positions(begin: int, end: int, wrong: int) -> np.ndarray:
    """Whether Foresight(wrong) guesses wrong, for positions begin .. end - 1."""
    return np.array([mix(position) % 100 < wrong for position in range(begin, end)])
