"""Sampling settings, and the random numbers against the published vectors."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from exllama.errors import UsageError
from exllama.generator.sampling import GREEDY, Sampling, stack
from exllama.generator.sampling.job_sampler import JobSampler
from exllama.generator.sampling.philox import philox4x32, uniform
from exllama.generator.sampling.rows import SamplingRows
from exllama.generator.sampling.settings import RANGES


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)  # fmt: skip
def test_philox_known_answers(counter: Any, key: Any, expected: Any) -> None:
    """The kat_vectors of the authors' Random123 library."""
    assert philox4x32(counter, key) == expected


def test_philox_agrees_with_numpy_on_the_multiplication_rounds() -> None:
    """Against 64-bit arithmetic written another way, on random inputs."""
    random = np.random.default_rng(0)
    for _ in range(50):
        c, k = [int(x) for x in random.integers(0, 2**32, 4)], [int(x) for x in random.integers(0, 2**32, 2)]
        x = list(c)
        for i in range(10):
            keys = [(k[0] + i * 0x9E3779B9) % 2**32, (k[1] + i * 0xBB67AE85) % 2**32]
            a, b = divmod(0xD2511F53 * x[0], 2**32), divmod(0xCD9E8D57 * x[2], 2**32)
            x = [b[0] ^ x[1] ^ keys[0], b[1], a[0] ^ x[3] ^ keys[1], a[1]]
        assert philox4x32(tuple(c), tuple(k)) == tuple(x)  # type: ignore[arg-type]


def test_uniform_is_uniform_and_independent_of_order() -> None:
    values = np.array([uniform(5, position) for position in range(20_000)])
    assert 0 <= values.min() < 0.001
    assert 0.999 < values.max() < 1
    counts = np.bincount((values * 50).astype(int), minlength=50)
    assert ((counts - 400) ** 2 / 400).sum() < 49 + 5 * math.sqrt(98) + 16
    assert uniform(5, 1234) == values[1234]
    assert uniform(5, 1234, stream=1) != values[1234]
    assert uniform(2**64 - 1, 2**40) != uniform(2**64 - 1, 0)


def test_defaults_are_neutral() -> None:
    logits = np.random.default_rng(1).normal(size=100)
    history = np.arange(50, dtype=np.int32)
    found = stack.distribution(logits, JobSampler(Sampling(), 0, 100), history)
    ids, shares = found.ids, np.exp(found.logits)
    expected = np.exp(logits) / np.exp(logits).sum()
    assert len(ids) == 100
    np.testing.assert_allclose(shares, expected[ids], rtol=1e-12)
    assert Sampling(temperature=0) == GREEDY
    assert stack.sample(logits.astype(np.float32), JobSampler(GREEDY, 0, 100), history) == logits.argmax()


def test_steps_of_the_definition_by_hand() -> None:
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.05, 0.25]))
    none = np.empty(0, np.int32)

    def kept(**settings: float) -> dict[int, float]:
        found = stack.distribution(logits, JobSampler(Sampling(**settings), 0, 5), none)  # type: ignore[arg-type]
        return {int(i): round(math.exp(s), 6) for i, s in zip(*found, strict=True)}

    assert kept(top_k=2) == {1: round(0.4 / 0.65, 6), 4: round(0.25 / 0.65, 6)}
    assert list(kept(top_p=0.39)) == [1]
    assert list(kept(top_p=0.41)) == [1, 4]
    assert list(kept(top_k=2, top_p=0.62)) == [1, 4]  # 0.4 / 0.65 = 0.615: shares are taken after top-k
    assert list(kept(min_p=0.5)) == [1, 4, 2]
    assert list(kept(min_p=0.51)) == [1, 4]
    assert list(kept(temperature=0.5, min_p=0.5)) == [1]  # 0.25^2 / 0.4^2 = 0.39: after temperature
    assert list(kept(top_p=1e-9)) == list(kept(min_p=1.0)) == list(kept(top_k=1)) == [1]


NUMBERS = [field.name for field in dataclasses.fields(Sampling) if field.name in RANGES]
OTHERS = ["logit_bias", "allowed_tokens", "banned_tokens", "dry_sequence_breakers", "temperature_last"]


def test_every_field_is_checked() -> None:
    assert {field.name for field in dataclasses.fields(Sampling)} == {*NUMBERS, *OTHERS}
    assert set(RANGES) <= set(NUMBERS)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1000, True, "1", [1], 1e300])
def test_nonsense_is_refused_by_name(name: str, value: Any) -> None:
    """S15: NaN, infinity, numbers out of range, bool for int."""
    with pytest.raises(UsageError, match=f"^{name} is .*expected"):
        Sampling(**{name: value})


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("value", [5, 0.5, "1", [1.5], [-1], [True], [None], [2**31], {-1: 1}, [[1]], [""]])
def test_nonsense_in_lists_is_refused_by_name(name: str, value: Any) -> None:
    """S15: the same within lists."""
    with pytest.raises(UsageError, match=f"^{name} .*expected"):
        Sampling(**{name: value})


@pytest.mark.parametrize("bias", [math.nan, math.inf, 1001, "1", None, True])
def test_bias_is_a_number(bias: Any) -> None:
    """S15: biases are finite and small."""
    with pytest.raises(UsageError, match=r"^logit_bias is .* for token 7, expected a number"):
        Sampling(logit_bias={7: bias})


@pytest.mark.parametrize(
    ("name", "value"),
    [("top_p", 0), ("top_p", 1.1), ("min_p", 1.5), ("repetition_penalty", 0), ("top_k", 1.0), ("seed", 2**64),
     ("seed", 1.5), ("repetition_range", 2.0), ("temperature", None), ("top_k", None), ("mirostat_mode", 1),
     ("smoothing_curve", 0.5), ("dry_base", 0.9), ("adaptive_decay", 1.0), ("mirostat_tau", 0)],
)  # fmt: skip
def test_ranges(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=name):
        Sampling(**{name: value})


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        ({"allowed_tokens": []}, "allowed_tokens"),
        ({"allowed_tokens": [1, 2], "banned_tokens": [1, 2, 3]}, "allowed_tokens"),
        ({"min_temp": 2.0, "max_temp": 1.0}, "min_temp"),
        ({"mirostat_mode": 2, "adaptive_target": 0.5}, "adaptive_target"),
        ({"dry_sequence_breakers": ["x"] * 65}, "dry_sequence_breakers"),
    ],
)
def test_fields_that_contradict_each_other(wanted: dict[str, Any], name: str) -> None:
    with pytest.raises(UsageError, match=f"^{name} .*expected"):
        Sampling(**wanted)


def test_lists_are_kept_sorted_and_hashable() -> None:
    one = Sampling(logit_bias={5: 1, 2: -1.0}, banned_tokens=[3, 1, 3], allowed_tokens={9, 1})
    other = Sampling(logit_bias=((2, -1), (5, 1.0)), banned_tokens=(1, 3), allowed_tokens=[1, 9])
    assert one == other
    assert hash(one) == hash(other)
    assert dataclasses.replace(one, seed=3).banned_tokens == (1, 3)


def test_limits_are_accepted() -> None:
    Sampling(temperature=0, top_k=0, top_p=1, min_p=1, repetition_penalty=1, repetition_range=0, seed=2**64 - 1)
    Sampling(temperature=100.0, top_p=1e-300, repetition_penalty=0.01, seed=0)


def test_settings_cannot_change_and_copies_are_equal() -> None:
    sampling = Sampling(0.5, 1, 0.5, 0.5, 1.5, 5, 5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        sampling.top_k = 3  # type: ignore[misc]
    copy = dataclasses.replace(sampling, top_k=9)
    changed = [f.name for f in dataclasses.fields(Sampling) if getattr(copy, f.name) != getattr(sampling, f.name)]
    assert changed == ["top_k"]


def test_rows_are_rewritten_when_they_change_hands() -> None:
    rows, tokens = SamplingRows(3), np.arange(10, dtype=np.int32)
    a = JobSampler(Sampling(0.5, top_k=3, repetition_penalty=1.1, repetition_range=4), 1, 10)
    b, c = JobSampler(Sampling(0.7, min_p=0.2), 2, 10), JobSampler(Sampling(0.7, typical_p=0.5), 3, 10)
    greedy = JobSampler(GREEDY, 4, 10)
    for order in ([a, b, a], [b, a], [a], [b, b, b], [a, a, c], [greedy, a], [greedy]):
        rows.clear()
        for sampler in order:
            rows.add(sampler, tokens, 8)
        n, settings = rows.count, rows.settings
        assert n == len(order)
        # what stack.py draws needs no more than an argmax of the native call
        temperatures = [s.sampling.temperature if s.is_native else 0.0 for s in order]
        assert settings["temperature"][:n].tolist() == temperatures
        assert settings["top_k"][:n].tolist() == [s.sampling.top_k for s in order]
        assert settings["min_p"][:n].tolist() == [s.sampling.min_p for s in order]
        assert settings["seed"][:n].tolist() == [s.seed for s in order]
        assert settings["position"][:n].tolist() == [8] * n
        assert [h.tolist() for h in rows.histories] == [[4, 5, 6, 7] if s is a else [] for s in order]
