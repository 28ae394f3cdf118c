"""The native sampler against the definition in float64 (generator/sampling/stack.py), and draws against chi-square."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exllama import ops
from exllama.generator.sampling import Sampling, stack
from exllama.generator.sampling.job_sampler import JobSampler
from exllama.generator.sampling.philox import uniform
from exllama.generator.sampling.rows import SamplingRows
from exllama.generator.sampling.sampler import NO_TOKEN_LEFT, NOT_A_TOKEN, sample_rows

Sampler = Callable[[torch.Tensor, SamplingRows], list[int]]
SAMPLERS: list[Sampler] = [ops.sample, sample_rows]
NO_HISTORY = np.empty(0, np.int32)
# A weight computed in float32 is off by a few ulp at most; a sum of them, and so the place where a draw changes from
# one token to the next, by no more than that.
EDGE = 2e-6

pytestmark = pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda f: f.__module__)


def tokens_of(position: int, history: np.ndarray) -> np.ndarray:
    """All tokens of a sequence of this length that ends with `history`; -1, which is no token, before it."""
    return np.concatenate([np.full(max(position - len(history), 0), -1, np.int32), history]).astype(np.int32)


def rows_of(vocab: int, *rows: tuple[Sampling, int, np.ndarray]) -> SamplingRows:
    """(sampling, position, history); the history ends where the token is drawn."""
    made = SamplingRows(len(rows))
    for sampling, position, history in rows:
        tokens = tokens_of(position, history)
        made.add(JobSampler(sampling, sampling.seed or 0, vocab), tokens, len(tokens))
    return made


def draw(sampler: Sampler, logits: np.ndarray, *rows: tuple[Sampling, int, np.ndarray]) -> list[int]:
    return sampler(torch.from_numpy(logits.astype(np.float32)), rows_of(logits.shape[1], *rows))


def is_on_an_edge(logits: np.ndarray, sampling: Sampling, tokens: np.ndarray) -> bool:
    """A rounding error would change the draw or what a filter keeps: then slightly different settings change it too."""
    found = set()
    for step in (-1, 0, 1):
        for scale in (1.0, 1.0 + step * EDGE):
            moved = {name: getattr(sampling, name) * (1 + step * EDGE) for name in ("min_p", "top_a", "skew")}
            moved["top_p"] = min(sampling.top_p * (1 + step * EDGE), 1.0)
            moved["xtc_threshold"] = min(sampling.xtc_threshold * (1 + step * EDGE), 1.0)
            own = dataclasses.replace(sampling, **moved)
            made = JobSampler(own, sampling.seed or 0, len(logits))
            left = stack.distribution((logits * scale).astype(np.float64), made, tokens)
            u = uniform(made.seed, len(tokens)) ** np.exp(-sampling.skew)
            cumulative = np.cumsum(np.exp(left.logits))
            if np.abs(cumulative - u).min() < EDGE:
                return True
            found.add(left.ids.tobytes())
    return len(found) > 1


@pytest.mark.parametrize("vocab", [1, 2, 17, 300, 50_000])
def test_greedy_is_the_first_of_the_largest(sampler: Sampler, vocab: int) -> None:
    logits = np.random.default_rng(vocab).normal(size=(5, vocab))
    logits[1] = 0.5
    logits[2, vocab // 2 :] = 9.0
    logits[3] = -np.inf
    logits[3, -1] = -5.0
    greedy = Sampling(temperature=0.0)
    assert draw(sampler, logits, *[(greedy, 3, NO_HISTORY)] * 5) == logits.argmax(1).tolist()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("place", [0, 5, 98, 99])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_no_number_is_no_token(sampler: Sampler, temperature: float, place: int, bad: float) -> None:
    logits = np.random.default_rng(0).normal(size=(3, 99 + 1))
    logits[1, place] = bad
    tokens = draw(sampler, logits, *[(Sampling(temperature, seed=1), 3, NO_HISTORY)] * 3)
    assert tokens[1] == NOT_A_TOKEN
    assert min(tokens[0], tokens[2]) >= 0
    assert draw(sampler, np.full((1, 9), -np.inf), (Sampling(temperature, seed=1), 3, NO_HISTORY)) == [NO_TOKEN_LEFT]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("limits", [{"banned_tokens": [0, 2]}, {"allowed_tokens": [1]}])
def test_masks_that_leave_nothing(sampler: Sampler, temperature: float, limits: dict) -> None:
    sampling = Sampling(temperature, seed=1, **limits)
    logits = np.array([[5.0, -np.inf, 1.0], [5.0, -7.0, 1.0], [np.nan, 1.0, 1.0]])
    assert draw(sampler, logits, *[(sampling, 3, NO_HISTORY)] * 3) == [NO_TOKEN_LEFT, 1, NOT_A_TOKEN]


SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.05, 0.5, 0.8, 1.0, 1.7]),
    top_k=st.sampled_from([0, 0, 1, 2, 5, 40, 10_000]),
    top_p=st.sampled_from([1.0, 1.0, 0.01, 0.5, 0.9, 0.999]),
    min_p=st.sampled_from([0.0, 0.0, 0.001, 0.1, 0.5, 1.0]),
    top_a=st.sampled_from([0.0, 0.0, 0.01, 0.4]),
    xtc_probability=st.sampled_from([0.0, 0.0, 0.5, 1.0]),
    xtc_threshold=st.sampled_from([0.02, 0.1]),
    smoothing_factor=st.sampled_from([0.0, 0.0, 0.05, 2.0]),
    smoothing_curve=st.sampled_from([1.0, 1.5, 3.0]),
    min_temp=st.sampled_from([0.0, 0.2]),
    max_temp=st.sampled_from([0.0, 0.0, 0.6, 2.0]),
    temp_exponent=st.sampled_from([0.5, 1.0, 2.0]),
    temperature_last=st.booleans(),
    skew=st.sampled_from([0.0, 0.0, -0.5, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 0.7, 1.1, 5.0]),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.5, -1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.3, -0.2]),
    repetition_range=st.sampled_from([0, 1, 7]),
    repetition_decay=st.sampled_from([0, 0, 3]),
    dry_multiplier=st.sampled_from([0.0, 0.0, 0.8]),
    logit_bias=st.sampled_from([{}, {}, {0: 1.5}, {0: -4.0}]),
    banned_tokens=st.sampled_from([(), (), (2,)]),
    allowed_tokens=st.sampled_from([None, None, (0,), (0, 1, 2)]),
    seed=st.integers(0, 2**64 - 1),
)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_agrees_with_the_definition(sampler: Sampler, data: st.DataObject) -> None:
    """Rows with settings of their own, so a row must not see another's."""
    vocab = data.draw(st.sampled_from([3, 64, 1000]))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    rows, logits = [], []
    for _ in range(data.draw(st.integers(1, 4))):
        history = random.integers(0, vocab, random.integers(0, 12)).astype(np.int32)
        position = int(random.integers(len(history), 100))
        row = random.normal(scale=random.choice([0.1, 2.0, 8.0]), size=vocab).astype(np.float32)
        if data.draw(st.booleans()):
            row = np.round(row)  # many equal logits
        if data.draw(st.booleans()):
            row[random.integers(0, vocab, vocab // 2)] = -np.inf
            row[0] = 1.0
        rows.append((data.draw(SAMPLINGS), position, history))
        logits.append(row)
    found = draw(sampler, np.stack(logits), *rows)
    for token, row, (sampling, position, history) in zip(found, logits, rows, strict=True):
        tokens = tokens_of(position, history)
        expected = stack.sample(row, JobSampler(sampling, sampling.seed or 0, vocab), tokens)
        if token != expected:
            assert sampling.temperature > 0.0
            assert is_on_an_edge(row, sampling, tokens)


COMMON = [
    Sampling(0.8, top_k=40, top_p=0.95, min_p=0.05, repetition_penalty=1.1, repetition_range=64, seed=1),
    Sampling(1.0, seed=2), Sampling(0.7, top_p=0.9, frequency_penalty=0.3, presence_penalty=0.2, seed=3),
    Sampling(1.2, min_p=0.02, xtc_probability=0.5, dry_multiplier=0.8, temperature_last=True, seed=4),
]  # fmt: skip


def test_the_same_tokens_for_the_same_seeds(sampler: Sampler) -> None:
    """2000 rows of a real vocabulary's size and shape; a draw on an edge is one in tens of thousands."""
    random, different = np.random.default_rng(9), 0
    for begin in range(0, 500, 4):
        logits = random.standard_t(5, size=(16, 8000)).astype(np.float32) * 2.5
        rows = []
        for i in range(16):
            history = random.integers(0, 300, 100).astype(np.int32)
            rows.append((COMMON[i % 4], 100 + begin + i // 4, history))
        found = draw(sampler, logits, *rows)
        for token, row, (sampling, position, history) in zip(found, logits, rows, strict=True):
            tokens = tokens_of(position, history)
            expected = stack.sample(row, JobSampler(sampling, sampling.seed or 0, 8000), tokens)
            if token != expected:
                assert is_on_an_edge(row, sampling, tokens)
                different += 1
    assert different <= 2


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(), Sampling(temperature=0.6), Sampling(top_k=5), Sampling(top_p=0.8), Sampling(min_p=0.1),
        Sampling(temperature=1.3, top_k=12, top_p=0.9, min_p=0.02, repetition_penalty=1.2),
        Sampling(top_a=0.5, dry_multiplier=0.9, smoothing_factor=0.2, logit_bias={3: 1.0}, banned_tokens=[5]),
        Sampling(xtc_probability=1.0, max_temp=1.5, temperature_last=True, typical_p=0.9, tfs=0.98),
    ],
    ids=["plain", "temperature", "top_k", "top_p", "min_p", "all", "biased", "others"],
)  # fmt: skip
def test_distribution(sampler: Sampler, sampling: Sampling) -> None:
    """20,000 draws of as many seeds: chi-square at 1e-6, whose 99.9999 % point is near n + 5 sqrt(2 n) + 16."""
    logits = np.random.default_rng(3).normal(scale=1.5, size=24).astype(np.float32)
    history, count = np.arange(6, dtype=np.int32), 20_000 if JobSampler(sampling, 0, 24).is_native else 4000
    left = stack.distribution(logits, JobSampler(sampling, 77, 24), history)
    ids, shares = left.ids, np.exp(left.logits)
    counts = np.zeros(len(logits))
    chunk = 500
    for begin in range(0, count, chunk):
        made = SamplingRows(chunk)
        for seed in range(begin, begin + chunk):
            made.add(JobSampler(sampling, seed, 24), history, len(history))
        if not made.samplers[0].is_native and sampler is ops.sample:
            return
        counts += np.bincount(sampler(torch.from_numpy(np.tile(logits, (chunk, 1))), made), minlength=len(logits))
    assert counts.sum() == counts[ids].sum() == count, "a token was drawn that a filter removes"
    expected = shares * count
    common = expected >= 5
    freedom = max(int(common.sum()) - 1, 1)
    chi_square = ((counts[ids] - expected)[common] ** 2 / expected[common]).sum()
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom) + 16


@pytest.mark.parametrize("top_k", [0, 700, 1500, 4000])
@pytest.mark.parametrize("smoothing", [0.0, 5.0])
def test_many_equal_and_many_masked_tokens(sampler: Sampler, top_k: int, smoothing: float) -> None:
    """More ties than a band may hold, at the top, in the middle, where weights vanish, and among masked tokens."""
    logits = np.full((1, 6000), -np.inf)
    logits[0, 1000:2000], logits[0, 2000:3000], logits[0, 3000:4000] = 3.0, 1.0, -200.0
    for seed in range(20):
        sampling = Sampling(top_k=top_k, smoothing_factor=smoothing, skew=2.0, seed=seed)
        expected = stack.sample(logits[0].astype(np.float32), JobSampler(sampling, seed, 6000), NO_HISTORY)
        assert draw(sampler, logits, (sampling, 0, NO_HISTORY)) == [expected]


def test_rows_do_not_see_each_other(sampler: Sampler) -> None:
    random = np.random.default_rng(5)
    logits = random.normal(scale=2, size=(16, 500))
    rows = [
        (Sampling(0.3 + i / 10, i, repetition_penalty=1 + i % 3 / 10, seed=i), 20 + i, np.arange(i, dtype=np.int32))
        for i in range(16)
    ]  # fmt: skip
    together = draw(sampler, logits, *rows)
    assert together == [draw(sampler, logits[i : i + 1], rows[i])[0] for i in range(16)]


def test_seed_and_position_decide(sampler: Sampler) -> None:
    logits = np.zeros((1, 1000))
    first = [draw(sampler, logits, (Sampling(seed=1), p, NO_HISTORY))[0] for p in range(1, 30)]
    again = [draw(sampler, logits, (Sampling(seed=1), p, NO_HISTORY))[0] for p in range(1, 30)]
    other = [draw(sampler, logits, (Sampling(seed=2), p, NO_HISTORY))[0] for p in range(1, 30)]
    assert first == again
    assert len(set(first)) > 20
    assert sum(a == b for a, b in zip(first, other, strict=True)) < 3
    expected = [int(uniform(1, p) * 1000) for p in range(1, 30)]  # equal logits stand in order of their ids
    assert first == expected


def test_a_repeated_token_is_penalised_once(sampler: Sampler) -> None:
    logits = np.array([[2.0, 1.5, -1.0]])
    sampling = Sampling(temperature=0.0, repetition_penalty=1.3)
    assert draw(sampler, logits, (sampling, 4, np.array([0, 0, 0, 0], np.int32))) == [0]  # 2 / 1.3 > 1.5
    sampling = Sampling(temperature=0.0, repetition_penalty=1.4)
    assert draw(sampler, logits, (sampling, 4, np.array([0, 0, 0, 0], np.int32))) == [1]
    negative = np.array([[-1.0, -1.2]])
    assert draw(sampler, negative, (sampling, 1, np.array([0], np.int32))) == [1]
