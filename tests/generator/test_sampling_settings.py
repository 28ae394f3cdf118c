"""Sampling settings, and the random numbers against the published vectors."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from exllama.errors import UsageError
from exllama.generator.sampling import GREEDY, Sampling, filters
from exllama.generator.sampling.philox import philox4x32, uniform
from exllama.generator.sampling.rows import SamplingRows


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
    ids, shares = filters.candidates(logits, Sampling(), np.arange(50, dtype=np.int32))
    expected = np.exp(logits) / np.exp(logits).sum()
    assert len(ids) == 100
    np.testing.assert_allclose(shares, expected[ids], rtol=1e-12)
    assert Sampling(temperature=0) == GREEDY
    assert filters.sample(logits.astype(np.float32), GREEDY, 0, np.arange(9, dtype=np.int32)) == logits.argmax()


def test_steps_of_the_definition_by_hand() -> None:
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.05, 0.25]))
    none = np.empty(0, np.int32)

    def kept(**settings: float) -> dict[int, float]:
        ids, shares = filters.candidates(logits, Sampling(**settings), none)  # type: ignore[arg-type]
        return {int(i): round(float(s), 6) for i, s in zip(ids, shares, strict=True)}

    assert kept(top_k=2) == {1: round(0.4 / 0.65, 6), 4: round(0.25 / 0.65, 6)}
    assert list(kept(top_p=0.39)) == [1]
    assert list(kept(top_p=0.41)) == [1, 4]
    assert list(kept(top_k=2, top_p=0.62)) == [1, 4]  # 0.4 / 0.65 = 0.615: shares are taken after top-k
    assert list(kept(min_p=0.5)) == [1, 4, 2]
    assert list(kept(min_p=0.51)) == [1, 4]
    assert list(kept(temperature=0.5, min_p=0.5)) == [1]  # 0.25^2 / 0.4^2 = 0.39: after temperature
    assert list(kept(top_p=1e-9)) == list(kept(min_p=1.0)) == list(kept(top_k=1)) == [1]


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Sampling)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1, -0.5, True, "1", [1], 1e300])
def test_nonsense_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"^{name} is .*expected"):
        Sampling(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("top_p", 0), ("top_p", 1.1), ("min_p", 1.5), ("repetition_penalty", 0), ("top_k", 1.0), ("seed", 2**64),
     ("seed", 1.5), ("repetition_range", 2.0), ("temperature", None), ("top_k", None)],
)  # fmt: skip
def test_ranges(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=name):
        Sampling(**{name: value})


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
    a, b = Sampling(0.5, top_k=3, repetition_penalty=1.1, repetition_range=4), Sampling(0.7, min_p=0.2)
    for order in ([a, b, a], [b, a], [a], [b, b, b], [a, a, b], [GREEDY, a]):
        rows.clear()
        for sampling in order:
            rows.add(sampling, hash(sampling) % 100, tokens, 8)
        n = rows.count
        assert n == len(order)
        assert rows.temperature[:n].tolist() == [s.temperature for s in order]
        assert rows.top_k[:n].tolist() == [s.top_k for s in order]
        assert rows.min_p[:n].tolist() == [s.min_p for s in order]
        assert rows.seed[:n].tolist() == [hash(s) % 100 for s in order]
        ends = rows.history_offsets
        histories = [rows.history[ends[r] : ends[r + 1]].tolist() for r in range(n)]
        assert histories == [[4, 5, 6, 7] if s is a else [] for s in order]
        assert rows.argmax_only == all(s is GREEDY for s in order)
