"""The rule of speculative sampling keeps the distribution, and accepts as much as can be."""

from __future__ import annotations

import numpy as np
import pytest

from exllama.cache.pages import PagePool
from exllama.generator import GREEDY, Job, Sampling
from exllama.generator.drafting.model import OtherModelDrafter
from exllama.generator.drafting.rejection import Distribution, keep_or_replace
from exllama.generator.sampling.philox import uniform
from tests.generator.drafters import always
from tests.generator.fake_model import logits_of, make
from tests.generator.test_scheduler import finish, prompt_of
from tests.generator.test_speculation import Nearly

__all__ = ["always"]

DRAWS = 20_000


def chi_square_bound(freedom: int) -> float:
    """Exceeded once in a million times; Wilson and Hilferty (1931)."""
    return freedom * (1 - 2 / (9 * freedom) + 4.753 * (2 / (9 * freedom)) ** 0.5) ** 3


def distribution(weights: dict[int, float]) -> Distribution:
    values = np.array(list(weights.values()))
    return Distribution(np.array(list(weights)), values / values.sum())


def drawn(source: Distribution, seed: int, position: int) -> int:
    """As the sampler does it."""
    cumulative = np.cumsum(source.probabilities)
    return int(source.ids[np.searchsorted(cumulative, uniform(seed, position) * cumulative[-1], side="right")])


PAIRS = {
    "equal": ({1: 0.5, 2: 0.3, 3: 0.2}, {1: 0.5, 2: 0.3, 3: 0.2}),
    "alike": ({5: 0.4, 2: 0.3, 9: 0.2, 1: 0.1}, {2: 0.5, 5: 0.2, 9: 0.2, 1: 0.1}),
    "filtered apart": ({7: 0.6, 3: 0.3, 8: 0.1}, {3: 0.5, 4: 0.3, 7: 0.2}),
    "nothing in common": ({1: 0.7, 2: 0.3}, {3: 0.7, 4: 0.3}),
    "a sure guess": ({1: 0.2, 2: 0.3, 3: 0.5}, {3: 1.0}),
    "a sure token": ({3: 1.0}, {1: 0.2, 2: 0.3, 3: 0.5}),
    "many": ({i: 1 / (i + 1) for i in range(40)}, {i: 1 / (45 - i) for i in range(3, 44)}),
}


@pytest.mark.parametrize("name", PAIRS)
def test_tokens_follow_the_real_distribution(name: str) -> None:
    real, guessed = map(distribution, PAIRS[name])
    kept, counts = 0, dict.fromkeys(real.ids.tolist(), 0)
    for position in range(DRAWS):
        guess = drawn(guessed, 7, position)
        token = keep_or_replace(guess, guessed, real, 7, position)
        kept += token == guess
        counts[token] += 1  # a KeyError: it cannot be drawn
    expected = real.probabilities * DRAWS
    found = np.array([counts[token] for token in real.ids.tolist()])
    freedom = len(expected) - 1
    if freedom:
        assert float(((found - expected) ** 2 / expected).sum()) < chi_square_bound(freedom)
    overlap = sum(min(real.of(token), guessed.of(token)) for token in real.ids.tolist())
    assert abs(kept / DRAWS - overlap) < 5 * (0.25 / DRAWS) ** 0.5 + 1e-9, "not the most that can be kept"


def test_a_wrong_rule_is_noticed() -> None:
    """Drawing a rejected token from p itself, instead of from what is left of it, is the usual mistake."""
    real, guessed = map(distribution, PAIRS["alike"])
    counts = dict.fromkeys(real.ids.tolist(), 0)
    for position in range(DRAWS):
        guess = drawn(guessed, 7, position)
        token = keep_or_replace(guess, guessed, real, 7, position)
        counts[token if token == guess else drawn(real, 8, position)] += 1
    expected = real.probabilities * DRAWS
    found = np.array(list(counts.values()))
    assert float(((found - expected) ** 2 / expected).sum()) > chi_square_bound(3)


@pytest.mark.usefixtures("always")
def test_answers_follow_the_distribution_of_the_model() -> None:
    """Three tokens, of which two were guessed by a model that differs after a third of all histories."""
    prompt, sampling, count = prompt_of(20, 3), Sampling(temperature=1.5, top_k=3), 1600
    drafter = OtherModelDrafter(Nearly(64, 64, 16), PagePool(64), 8192, 128, lambda: None, rejection=True)
    generator, _ = make(drafter=drafter)
    jobs = [Job(prompt, 4, sampling, seed=seed) for seed in range(count)]
    for begin in range(0, count, 200):
        finish(generator, jobs[begin : begin + 200])
    counts: dict[tuple[int, ...], int] = {}
    for job in jobs:
        start = tuple(job.text.encode()[:3])
        counts[start] = counts.get(start, 0) + 1
    expected = {start: share * count for start, share in shares(prompt, 3, sampling).items()}
    assert counts.keys() <= expected.keys()
    square = sum((counts.get(start, 0) - mean) ** 2 / mean for start, mean in expected.items())
    assert square < chi_square_bound(len(expected) - 1)
    assert sum(job.finished.accepted_drafts for job in jobs) > count
    assert sum(job.finished.rejected_drafts for job in jobs) > count // 4


def shares(tokens: list[int], length: int, sampling: Sampling) -> dict[tuple[int, ...], float]:
    """How probable every answer of that length is."""
    if length == 0:
        return {(): 1.0}
    logits = logits_of(tokens).astype(np.float64)
    best = np.argsort(-logits)[: sampling.top_k]
    weights = np.exp(logits[best] / sampling.temperature)
    found = {}
    for token, weight in zip(best.tolist(), weights / weights.sum(), strict=True):
        for rest, share in shares([*tokens, token], length - 1, sampling).items():
            found[(token, *rest)] = weight * share
    return found


@pytest.mark.usefixtures("always")
def test_who_cannot_follow_the_rule_draws() -> None:
    """Greedy, steered and recorded answers stay the same as without drafts."""
    for wishes in (
        {"sampling": GREEDY},
        {"sampling": Sampling(mirostat_mode=2, seed=4)},
        {"sampling": Sampling(seed=4), "logprobs": 2},
    ):
        plain, _ = make()
        drafter = OtherModelDrafter(Nearly(64, 64, 16), PagePool(64), 8192, 128, lambda: None, rejection=True)
        guessing, _ = make(drafter=drafter)
        jobs = [Job(prompt_of(20, 3), 60, **wishes) for _ in range(2)]
        finish(plain, jobs[:1])
        finish(guessing, jobs[1:])
        assert jobs[0].text == jobs[1].text
        assert jobs[1].finished.rejected_drafts + jobs[1].finished.accepted_drafts > 20
