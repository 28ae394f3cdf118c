"""Samplers against their definition in float64 (generator/sampling/filters.py), and that against first principles."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exllama import ops
from exllama.generator.sampling import Sampling, filters
from exllama.generator.sampling.philox import uniform
from exllama.generator.sampling.rows import SamplingRows
from exllama.generator.sampling.sampler import NOT_A_TOKEN, sample_rows

Sampler = Callable[[torch.Tensor, SamplingRows], list[int]]
SAMPLERS: list[Sampler] = [ops.sample, sample_rows]
NO_HISTORY = np.empty(0, np.int32)
# A weight computed in float32 is off by 2 ulp at most; a sum of them, and so the place where a draw changes from one
# token to the next, by no more than that.
EDGE = 1e-6

pytestmark = pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda f: f.__module__)


def rows_of(*rows: tuple[Sampling, int, np.ndarray]) -> SamplingRows:
    """(sampling, position, history); the history ends where the token is drawn."""
    made = SamplingRows(len(rows))
    for sampling, position, history in rows:
        tokens = np.zeros(max(position, len(history)), np.int32)
        tokens[len(tokens) - len(history) :] = history
        made.add(sampling, sampling.seed or 0, tokens, len(tokens))
    return made


def draw(sampler: Sampler, logits: np.ndarray, *rows: tuple[Sampling, int, np.ndarray]) -> list[int]:
    return sampler(torch.from_numpy(logits.astype(np.float32)), rows_of(*rows))


def is_on_an_edge(logits: np.ndarray, sampling: Sampling, position: int, history: np.ndarray) -> bool:
    """A rounding error would change the draw, or what a filter keeps."""
    ids, shares = filters.candidates(logits.astype(np.float64), sampling, history)
    cumulative = np.cumsum(shares)
    u = uniform(sampling.seed or 0, position)
    unfiltered = Sampling(sampling.temperature, top_k=sampling.top_k, repetition_penalty=sampling.repetition_penalty)
    all_shares = filters.candidates(logits.astype(np.float64), unfiltered, history)[1]
    edges = [np.abs(cumulative - u).min(), np.abs(np.cumsum(all_shares) - sampling.top_p).min()]
    edges.append(np.abs(all_shares / all_shares[0] - sampling.min_p).min())
    return len(ids) > 1 and min(edges) < EDGE


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
    assert draw(sampler, np.full((1, 9), -np.inf), (Sampling(temperature, seed=1), 3, NO_HISTORY)) == [NOT_A_TOKEN]


SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.05, 0.5, 0.8, 1.0, 1.7]),
    top_k=st.sampled_from([0, 0, 1, 2, 5, 40, 10_000]),
    top_p=st.sampled_from([1.0, 1.0, 0.01, 0.5, 0.9, 0.999]),
    min_p=st.sampled_from([0.0, 0.0, 0.001, 0.1, 0.5, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 0.7, 1.1, 5.0]),
    repetition_range=st.sampled_from([0, 1, 7]),
    seed=st.integers(0, 2**64 - 1),
)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_agrees_with_the_definition(sampler: Sampler, data: st.DataObject) -> None:
    """Rows with settings of their own, so a row must not see another's."""
    vocab = data.draw(st.sampled_from([1, 3, 64, 1000]))
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
        tokens = np.concatenate([np.zeros(max(position, len(history)) - len(history), np.int32), history])
        seen = tokens[-sampling.repetition_range :] if sampling.repetition_penalty != 1.0 else NO_HISTORY
        expected = filters.sample(row, sampling, len(tokens), seen)
        if token != expected:
            assert sampling.temperature > 0.0
            assert is_on_an_edge(row, sampling, len(tokens), seen)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(), Sampling(temperature=0.6), Sampling(top_k=5), Sampling(top_p=0.8), Sampling(min_p=0.1),
        Sampling(temperature=1.3, top_k=12, top_p=0.9, min_p=0.02, repetition_penalty=1.2),
    ],
    ids=["plain", "temperature", "top_k", "top_p", "min_p", "all"],
)  # fmt: skip
def test_distribution(sampler: Sampler, sampling: Sampling) -> None:
    """20,000 draws at as many positions: chi-square at 1e-6, whose 99.9999 % point is near n + 5 sqrt(2 n) + 16."""
    logits = np.random.default_rng(3).normal(scale=1.5, size=24).astype(np.float32)
    history = np.arange(6, dtype=np.int32)
    ids, shares = filters.candidates(logits.astype(np.float64), sampling, history)
    counts = np.zeros(len(logits))
    chunk = 500
    for begin in range(10, 20_010, chunk):
        made = SamplingRows(chunk)
        for position in range(begin, begin + chunk):
            made.add(sampling, 77, history, len(history))
            made.position[position - begin] = position
        counts += np.bincount(sampler(torch.from_numpy(np.tile(logits, (chunk, 1))), made), minlength=len(logits))
    assert counts.sum() == counts[ids].sum(), "a token was drawn that a filter removes"
    expected = shares * 20_000
    common = expected >= 5
    freedom = max(int(common.sum()) - 1, 1)
    chi_square = ((counts[ids] - expected)[common] ** 2 / expected[common]).sum()
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom) + 16


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
