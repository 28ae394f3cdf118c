"""Each sampler against its definition (naive_samplers.py), on random, tied, masked and tiny distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from exllama.errors import UsageError
from exllama.generator.sampling import Sampling, feedback, masks, penalties, stack, truncation
from exllama.generator.sampling.breakers import Breakers
from exllama.generator.sampling.dry import LONGEST, dry
from exllama.generator.sampling.job_sampler import JobSampler
from exllama.generator.sampling.logprobs import Wish
from exllama.generator.sampling.philox import uniform
from exllama.generator.sampling.temperature import dynamic, smooth, softmax, temper
from tests.generator import naive_samplers as naive

# Halves tie often and are exact in binary; the others are anything.
LOGIT = st.one_of(st.integers(-16, 16).map(lambda x: x / 2), st.floats(-12, 12, allow_nan=False, width=32))
LOGITS = st.lists(LOGIT, min_size=1, max_size=40)
SHARE = st.sampled_from([0.001, 0.05, 0.3, 0.5, 0.77, 0.9, 0.99])
HISTORY = st.lists(st.integers(0, 5), max_size=40)
patient = settings(max_examples=60, deadline=None)
ROUNDING = 1e-9  # of sums in another order; nearer than that to a limit, both sides are right


def shares_and_array(logits: list[float]) -> tuple[naive.Shares, np.ndarray]:
    shares = naive.shares_of(dict(enumerate(logits)))
    return shares, np.array([share for _, share in shares])


def kept(shares: naive.Shares, keep: np.ndarray) -> naive.Shares:
    return [each for each, stays in zip(shares, keep, strict=True) if stays]


def far(values: list[float], limit: float) -> bool:
    return all(abs(value - limit) > ROUNDING for value in values)


@patient
@given(LOGITS, HISTORY, st.sampled_from([0.5, 1.0, 1.3, 7.0]), st.integers(0, 12), st.integers(0, 6))
def test_penalties(logits: list[float], history: list[int], factor: float, sustain: int, decay: int) -> None:
    assume(len(logits) > 5)
    window = history[-(sustain + decay) :] if sustain else history
    seen = penalties.occurrences(np.array(window, np.int32), len(logits), sustain, decay)
    found = penalties.repetition(np.array(logits), seen, factor)
    found = penalties.presence(found, seen, 0.6)
    found = penalties.frequency(found, seen, -0.25)
    expected = naive.penalised(logits, history, factor, 0.6, -0.25, sustain, decay)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@patient
@given(HISTORY, st.integers(1, 5), st.sets(st.integers(0, 5), max_size=2))
@example([1] * 70, 2, set())  # longer than any match that is counted
@example([1, 2, 3, 1, 2], 2, {1})
def test_dry(history: list[int], allowed: int, breakers: set[int]) -> None:
    found = dry(np.array(history, np.int32), 0.8, 1.75, allowed, frozenset(breakers))
    expected = naive.dry_penalties(history, 0.8, 1.75, allowed, breakers, 6) if history else {}
    assert found == pytest.approx(expected)


def test_dry_by_hand() -> None:
    """After "a b c ... a b", c would repeat two tokens; a breaker between them shortens that to one."""
    history = np.array([10, 11, 12, 13, 10, 11], np.int32)
    assert dry(history, 1.0, 2.0, 2, frozenset()) == {12: 1.0}
    assert dry(history, 1.0, 2.0, 1, frozenset()) == {12: 2.0}
    assert dry(history, 1.0, 2.0, 2, frozenset([10])) == {}
    assert dry(history, 1.0, 2.0, 1, frozenset([10])) == {12: 1.0}
    assert dry(history, 1.0, 2.0, 1, frozenset([11])) == {}
    assert dry(np.zeros(500, np.int32), 1.0, 2.0, 2, frozenset()) == {0: 2.0 ** (LONGEST - 2)}


@patient
@given(LOGITS, st.sampled_from([0.05, 0.5, 3.0]), st.sampled_from([1.0, 1.7, 3.0]))
def test_smoothing(logits: list[float], factor: float, curve: float) -> None:
    expected = np.array(naive.smoothed(logits, factor, curve)) - max(logits)
    np.testing.assert_allclose(smooth(np.array(logits), factor, curve), expected, rtol=1e-9, atol=1e-9)


@patient
@given(LOGITS, st.sampled_from([0.0, 0.3]), st.sampled_from([0.5, 2.0]), st.sampled_from([0.5, 1.0, 3.0]))
def test_dynamic_temperature(logits: list[float], lowest: float, highest: float, exponent: float) -> None:
    shares, _ = shares_and_array(logits)
    expected = naive.dynamic_temperature(shares, lowest, highest, exponent)
    assert dynamic(np.array(logits), lowest, highest, exponent) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@patient
@given(LOGITS, st.sampled_from([0.1, 1.0, 4.0]))
def test_temperature(logits: list[float], temperature: float) -> None:
    expected = dict(naive.shares_of({i: x / temperature for i, x in enumerate(logits)}))
    found = softmax(temper(np.array(logits), temperature))
    np.testing.assert_allclose(found, [expected[i] for i in range(len(logits))], rtol=1e-9)


@patient
@given(LOGITS, st.sampled_from([0, 1, 2, 7, 100]))
def test_top_k(logits: list[float], k: int) -> None:
    shares, array = shares_and_array(logits)
    assert kept(shares, truncation.top_k(array, k)) == naive.top_k(shares, k)


@patient
@given(LOGITS, SHARE)
def test_top_p(logits: list[float], p: float) -> None:
    shares, array = shares_and_array(logits)
    assume(far(np.cumsum(array).tolist(), p))
    assert kept(shares, truncation.top_p(array, p)) == naive.top_p(shares, p)


@patient
@given(LOGITS, SHARE)
def test_min_p(logits: list[float], p: float) -> None:
    shares, array = shares_and_array(logits)
    assume(far((array / array[0]).tolist(), p))
    assert kept(shares, truncation.min_p(array, p)) == naive.min_p(shares, p)


@patient
@given(LOGITS, SHARE)
def test_top_a(logits: list[float], a: float) -> None:
    shares, array = shares_and_array(logits)
    assume(far((array / array[0] ** 2).tolist(), a))
    assert kept(shares, truncation.top_a(array, a)) == naive.top_a(shares, a)


@patient
@given(LOGITS, SHARE)
def test_tail_free(logits: list[float], z: float) -> None:
    shares, array = shares_and_array(logits)
    curvature = np.abs(np.diff(array, 2)) if len(array) > 2 else np.zeros(0)
    total = curvature.sum()
    assume(total == 0 or (total > 1e-6 and far((np.cumsum(curvature) / total).tolist(), z)))
    assert kept(shares, truncation.tail_free(array, z)) == naive.tail_free(shares, z)


@patient
@given(LOGITS, SHARE)
def test_typical(logits: list[float], p: float) -> None:
    shares, array = shares_and_array(logits)
    entropy = -float((array * np.log(array)).sum())
    distances = np.abs(-np.log(array) - entropy)
    gaps = np.diff(np.sort(distances))
    assume(((gaps == 0) | (gaps > ROUNDING)).all())  # whose order rounding decides
    assume(far(np.cumsum(array[np.argsort(distances, kind="stable")]).tolist(), p))
    assert kept(shares, truncation.typical(array, p)) == naive.typical(shares, p)


@patient
@given(LOGITS, st.sampled_from([0.01, 0.1, 0.3]), st.sampled_from([0.0, 0.4, 0.6, 0.999]))
def test_xtc(logits: list[float], threshold: float, u: float) -> None:
    shares, array = shares_and_array(logits)
    assume(far(array.tolist(), threshold))
    expected = naive.xtc(shares, threshold) if u < 0.5 else shares
    assert kept(shares, truncation.exclude_top(array, 0.5, threshold, u)) == expected


def test_xtc_removes_by_probability() -> None:
    """The least probable of those above stays, wherever its id stands."""
    shares = np.array([0.4, 0.3, 0.2, 0.06, 0.04])
    assert truncation.exclude_top(shares, 1.0, 0.1, 0.99).tolist() == [False, False, True, True, True]
    assert truncation.exclude_top(shares, 0.0, 0.1, 0.0).all()
    assert truncation.exclude_top(shares, 1.0, 0.35, 0.0).all()


@patient
@given(LOGITS, st.sampled_from([0.0, 0.7, 3.0, 9.0]))
def test_mirostat(logits: list[float], mu: float) -> None:
    shares, array = shares_and_array(logits)
    assume(far((-np.log2(array)).tolist(), mu))
    assert kept(shares, feedback.mirostat_keep(array, (mu, 0.0))) == naive.mirostat(shares, mu)


@patient
@given(LOGITS, st.lists(st.floats(0, 1), max_size=20), st.sampled_from([0.0, 0.2, 0.5, 0.9]))
def test_adaptive(logits: list[float], past: list[float], target: float) -> None:
    shares, array = shares_and_array(logits)
    state = feedback.adaptive_start(target, 0.8)
    for probability in past:
        state = feedback.adaptive_next(state, probability, 0.8)
    found = softmax(feedback.adaptive_logits(array, state, target))
    expected = naive.adaptive(shares, target, past, 0.8)
    np.testing.assert_allclose(found, [share for _, share in expected], rtol=1e-7, atol=1e-12)


@patient
@given(LOGITS, st.floats(0, 1, exclude_max=True), st.sampled_from([-2.0, 0.0, 0.7]))
def test_draw(logits: list[float], u: float, skew: float) -> None:
    shares, array = shares_and_array(logits)
    assume(far(np.cumsum(array).tolist(), u ** math.exp(-skew)))
    assert shares[stack.draw(array, u, skew)][0] == naive.drawn(shares, u, skew)


SAMPLINGS = st.fixed_dictionaries({
    "temperature": st.sampled_from([0.3, 1.0, 1.6]), "temperature_last": st.booleans(),
    "top_k": st.sampled_from([0, 0, 3, 12]), "top_p": st.sampled_from([1.0, 1.0, 0.6, 0.95]),
    "min_p": st.sampled_from([0.0, 0.0, 0.05]), "top_a": st.sampled_from([0.0, 0.0, 0.3]),
    "tfs": st.sampled_from([1.0, 1.0, 0.9]), "typical_p": st.sampled_from([1.0, 1.0, 0.7]),
    "xtc_probability": st.sampled_from([0.0, 0.0, 0.5, 1.0]), "smoothing_factor": st.sampled_from([0.0, 0.0, 0.3]),
    "max_temp": st.sampled_from([0.0, 0.0, 1.5]), "skew": st.sampled_from([0.0, 0.0, 0.5]),
    "dry_multiplier": st.sampled_from([0.0, 0.8]), "repetition_penalty": st.sampled_from([1.0, 1.2]),
    "frequency_penalty": st.sampled_from([0.0, 0.4]), "repetition_range": st.sampled_from([0, 3]),
    "banned_tokens": st.sampled_from([(), (0, 3)]), "logit_bias": st.sampled_from([{}, {1: 2.5, 4: -3.0}]),
})  # fmt: skip


def naive_stack(logits: list[float], history: list[int], s: Sampling, seed: int) -> tuple[naive.Shares, int]:
    """What stack.py's table says, with the functions of the oracle."""
    values = naive.penalised(
        logits, history, s.repetition_penalty, s.presence_penalty, s.frequency_penalty, s.repetition_range, 0
    )
    adjusted = {t: x + dict(s.logit_bias).get(t, 0.0) for t, x in enumerate(values)}
    if s.dry_multiplier and history:
        for token, penalty in naive.dry_penalties(history, s.dry_multiplier, 1.75, 2, set(), len(logits)).items():
            adjusted[token] -= penalty
    order = [t for t, _ in naive.shares_of({t: x for t, x in adjusted.items() if t not in s.banned_tokens})]

    def tempered(tokens: list[int]) -> naive.Shares:
        own = [adjusted[token] for token in tokens]
        if s.smoothing_factor:
            own = naive.smoothed(own, s.smoothing_factor, s.smoothing_curve)
        temperature = s.temperature
        if s.max_temp:
            shares = naive.shares_of(dict(enumerate(own)))
            temperature = max(naive.dynamic_temperature(shares, s.min_temp, s.max_temp, s.temp_exponent), 1e-30)
        peak = max(own)
        made = dict(naive.shares_of({t: (x - peak) / temperature for t, x in zip(tokens, own, strict=True)}))
        return [(token, made[token]) for token in tokens]

    def untempered(tokens: list[int]) -> naive.Shares:
        return naive.shares_of({token: adjusted[token] for token in tokens})

    shares = untempered(order) if s.temperature_last else tempered(order)
    for function, value, off in [
        (naive.top_k, s.top_k, 0), (naive.top_p, s.top_p, 1), (naive.top_a, s.top_a, 0), (naive.min_p, s.min_p, 0),
        (naive.tail_free, s.tfs, 1), (naive.typical, s.typical_p, 1),
    ]:  # fmt: skip
        if value != off:
            shares = naive.again(function(shares, value))
    if uniform(seed, len(history), 1) < s.xtc_probability:
        shares = naive.again(naive.xtc(shares, s.xtc_threshold))
    if s.temperature_last:
        shares = tempered([token for token, _ in shares])
    return shares, naive.drawn(shares, uniform(seed, len(history)), s.skew)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.integers(5, 30), SAMPLINGS)
def test_the_whole_stack(seed: int, vocab: int, wanted: dict) -> None:
    """Random logits, so that no two are nearly equal and no limit is met by rounding alone."""
    random = np.random.default_rng(seed)
    logits = random.normal(scale=2.0, size=vocab).astype(np.float32)
    history = random.integers(0, vocab, 12).astype(np.int32)
    sampling = Sampling(**wanted)
    sampler = JobSampler(sampling, seed, vocab)
    found = stack.distribution(logits, sampler, history)
    shares, token = naive_stack(logits.astype(float).tolist(), history.tolist(), sampling, seed)
    assert found.ids.tolist() == [token for token, _ in shares]
    np.testing.assert_allclose(np.exp(found.logits), [share for _, share in shares], rtol=1e-6, atol=1e-12)
    assert stack.sample(logits, sampler, history) == token


def test_mirostat_reaches_its_surprise() -> None:
    """Over 2000 draws the mean surprise is tau, from distributions of very different entropy."""
    random = np.random.default_rng(0)
    sampler = JobSampler(Sampling(mirostat_mode=2, mirostat_tau=4.0, mirostat_eta=0.1), 5, 500)
    surprises = []
    for position in range(2000):
        logits = random.normal(scale=random.choice([2.0, 3.0]), size=500).astype(np.float32)
        token = stack.sample(logits, sampler, np.zeros(position, np.int32))
        surprises.append(-math.log2(softmax(logits.astype(float))[token]))
    assert np.mean(surprises[200:]) == pytest.approx(4.0, abs=0.1)


def test_adaptive_p_moves_towards_its_target() -> None:
    """The mean probability of drawn tokens lies near the target as far as the distributions have such tokens.

    It lies below: most tokens of a row have a probability near 0, at a distance that the curve does not rule out.
    """
    random = np.random.default_rng(0)
    rows = random.normal(scale=3.0, size=(600, 50)).astype(np.float32)
    means = []
    for target in (0.1, 0.3, 0.9):
        sampler = JobSampler(Sampling(adaptive_target=target), 5, 50)
        tokens = [stack.sample(row, sampler, np.zeros(p, np.int32)) for p, row in enumerate(rows)]
        means.append(np.mean([softmax(row.astype(float))[token] for row, token in zip(rows, tokens, strict=True)]))
    most = np.mean([softmax(row.astype(float)).max() for row in rows])
    assert means == sorted(means)
    assert means == pytest.approx([0.1, 0.3, most], abs=0.1)


@pytest.mark.parametrize("wanted", [{"mirostat_mode": 2, "mirostat_tau": 2.0}, {"adaptive_target": 0.5}])
def test_drawing_a_position_again_forgets_what_came_after(wanted: dict) -> None:
    random = np.random.default_rng(1)
    rows = random.normal(scale=2.0, size=(40, 60)).astype(np.float32)
    sampling = Sampling(**wanted)

    def run(sampler: JobSampler, begin: int, end: int) -> list[int]:
        return [stack.sample(rows[p], sampler, np.zeros(p, np.int32)) for p in range(begin, end)]

    straight = run(JobSampler(sampling, 3, 60), 5, 40)
    sampler = JobSampler(sampling, 3, 60)
    run(sampler, 5, 30)
    rows[20:30] += 0.5  # what was drawn there must not matter
    run(sampler, 20, 30)
    rows[20:30] -= 0.5
    assert run(sampler, 10, 40) == straight[5:]


def test_two_jobs_with_the_same_settings_share_no_state() -> None:
    random = np.random.default_rng(1)
    rows = random.normal(scale=2.0, size=(50, 60)).astype(np.float32)
    sampling = Sampling(mirostat_mode=2, mirostat_tau=1.0, mirostat_eta=0.5)
    alone = JobSampler(sampling, 3, 60)
    expected = [stack.sample(row, alone, np.zeros(p, np.int32)) for p, row in enumerate(rows)]
    one, other, found = JobSampler(sampling, 3, 60), JobSampler(sampling, 4, 60), []
    for position, row in enumerate(rows):
        stack.sample(row, other, np.zeros(position, np.int32))
        found.append(stack.sample(row, one, np.zeros(position, np.int32)))
    assert found == expected


IDS = st.sets(st.integers(0, 99), max_size=20)


@patient
@given(st.integers(1, 100), IDS, IDS, st.booleans())
def test_masks(vocab: int, allowed: set[int], banned: set[int], limited: bool) -> None:
    allowed, banned = {t for t in allowed if t < vocab}, {t for t in banned if t < vocab}
    words = masks.make_mask(vocab, allowed if limited else None, banned)
    if words is None:
        assert not limited
        assert not banned
        return
    assert (words.dtype, len(words)) == (np.uint32, -(-vocab // 32))
    bits = [int(words[t // 32]) >> t % 32 & 1 for t in range(len(words) * 32)]
    stays = [t < vocab and t not in banned and (not limited or t in allowed) for t in range(len(bits))]
    assert bits == stays
    masked = masks.mask(np.zeros(vocab), words)
    assert [x == 0 for x in masked] == stays[:vocab]


@pytest.mark.parametrize("name", ["allowed_tokens", "banned_tokens", "logit_bias"])
def test_ids_outside_of_the_vocabulary_are_refused(name: str) -> None:
    value = {10: 1.0} if name == "logit_bias" else [10]
    JobSampler(Sampling(**{name: value}), 0, 11)
    with pytest.raises(UsageError, match=f"^{name} .*10, expected .*up to 9"):
        JobSampler(Sampling(**{name: value}), 0, 10)


def test_logits_that_are_no_numbers() -> None:
    sampler = JobSampler(Sampling(banned_tokens=[1], seed=1), 1, 3)
    none = np.empty(0, np.int32)
    for bad in ([1, np.nan, 1], [np.inf, 0, 0], [np.nan] * 3, [-np.inf, np.nan, 0]):
        assert stack.sample(np.array(bad, np.float32), sampler, none) == stack.NOT_A_TOKEN
    for masked in ([-np.inf] * 3, [-np.inf, 5, -np.inf]):
        assert stack.sample(np.array(masked, np.float32), sampler, none) == stack.NO_TOKEN_LEFT
    assert stack.sample(np.array([-np.inf, 5, -9], np.float32), sampler, none) == 2


@pytest.mark.parametrize("limits", [{}, {"banned_tokens": [3, 9]}, {"allowed_tokens": [3, 9]}, {"allowed_tokens": [9]}])
def test_guesses_leave_no_trace(limits: dict) -> None:
    """A drafter of 8 tokens guesses for a job of 10 that has state, records and masks."""
    sampling = Sampling(mirostat_mode=2, mirostat_tau=1.0, logit_bias={2: 1.0, 9: 1.0}, **limits)
    sampler = JobSampler(sampling, 3, 10, wish=Wish(logprobs=0))
    before = sampler.state_at(5)
    guess = sampler.guessing(8)
    token = stack.sample(np.arange(8, dtype=np.float32), guess, np.zeros(5, np.int32))
    assert 0 <= token < 8
    assert token != 3 or "banned_tokens" not in limits
    assert token == 3 or limits != {"allowed_tokens": [3, 9]}
    assert (guess.is_native, guess.records, guess.seed) == (True, None, 3)
    assert sampler.guessing(8) is guess
    assert sampler.state_at(5) == before


class Words:
    """A vocabulary of words."""

    pieces = (b"a", b"\n", b" b\n", b"User", b":", b"?:!", b"\xc3")

    def id_to_piece(self, token_id: int) -> bytes:
        return self.pieces[token_id]

    def encode(self, text: str, add_special_tokens: bool = True, parse_special: bool = False) -> list[int]:
        assert not add_special_tokens
        return [0, 3, 4] if text == "aUser:" else [0, 1]


def test_breakers_are_tokens_that_hold_the_string() -> None:
    breakers = Breakers(Words(), 7)
    assert breakers.ids(["\n", 6]) == {1, 2, 6}
    assert breakers.ids([":"]) == {1, 4, 5}
    assert breakers.ids(["User:"]) == {4}
    assert breakers.ids([]) == frozenset()
