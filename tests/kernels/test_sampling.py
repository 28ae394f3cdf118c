"""Sampling on the device against its definition in float64, on thousands of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from exllama.generator.sampling.philox import uniform
from tests.kernels import abi
from tests.kernels.library import KernelError, Library
from tests.kernels.pages import Array

# Weights are float32 with an error of 2 units in the last place, a few more where their logit is far below the largest;
# sums of them are exact. So a border between two tokens moves by less than this share of the sum.
EDGE = 2.0**-20
DTYPE = np.dtype(
    [
        ("temperature", "f8"), ("top_p", "f8"), ("min_p", "f8"), ("repetition_penalty", "f8"), ("seed", "u8"),
        ("position", "u8"), ("top_k", "i4"), ("history_length", "i4"), ("bias_count", "i4"), ("unused", "i4"),
    ]
)  # fmt: skip
ONE_ORDER = pytest.mark.parametrize(("warp_size", "order"), [(32, "random"), (64, "reverse")], indirect=True)


@dataclass
class Batch:
    """Rows with settings of their own; what is not given is neutral."""

    logits: Array  # (R, V) float32
    settings: list[dict[str, Any]]
    histories: list[list[int]] = field(default_factory=list)
    biases: list[dict[int, float]] = field(default_factory=list)
    allowed: Array | None = None  # (R, V) bool

    def rows(self) -> Array:
        rows = np.zeros(len(self.logits), DTYPE)
        rows["temperature"] = rows["top_p"] = rows["repetition_penalty"] = 1.0
        for r, settings in enumerate(self.settings):
            for name, value in settings.items():
                rows[name][r] = value
        for r, history in enumerate(self.histories):
            rows["history_length"][r] = len(history)
        for r, bias in enumerate(self.biases):
            rows["bias_count"][r] = len(bias)
        return rows

    def arguments(self, library: Library) -> tuple[abi.Sample, Any]:
        count, vocab = self.logits.shape
        history = np.zeros((count, max([1, *map(len, self.histories)])), np.int32)
        ids, values = (np.zeros((count, max([1, *map(len, self.biases)])), t) for t in (np.int32, np.float32))
        for r, tokens in enumerate(self.histories):
            history[r, : len(tokens)] = tokens
        for r, bias in enumerate(self.biases):
            ids[r, : len(bias)], values[r, : len(bias)] = list(bias), list(bias.values())
        words = -(-vocab // 32)
        mask = 0
        if self.allowed is not None:
            padded = np.pad(self.allowed, ((0, 0), (0, 32 * words - vocab)))
            mask = library.put(np.packbits(padded, axis=1, bitorder="little").view(np.uint32))
        tokens = library.empty(count, np.int32)
        made = abi.Sample(
            logits=library.put(self.logits), scratch=library.empty((count, vocab)), row=library.put(self.rows()),
            history=library.put(history) if self.histories else 0, bias_ids=library.put(ids) if self.biases else 0,
            biases=library.put(values) if self.biases else 0, mask=mask, tokens=tokens, logits_stride=vocab,
            history_stride=history.shape[1], bias_stride=ids.shape[1], mask_stride=words, rows=count, vocab=vocab,
        )  # fmt: skip
        return made, tokens

    def draw(self, library: Library) -> list[int]:
        arguments, tokens = self.arguments(library)
        abi.launch(library, "exl_sample", arguments)
        drawn: list[int] = library.get(tokens).tolist()
        return drawn

    def adjusted(self, r: int) -> Array:
        """The logits of a row after penalty, biases and mask; float64 of the kernel's float32."""
        x, raw = self.logits[r].copy(), self.logits[r].astype(np.float64)
        if self.histories and (penalty := self.settings[r].get("repetition_penalty", 1.0)) != 1.0:
            seen = np.array(self.histories[r], int)
            x[seen] = np.where(raw[seen] > 0, raw[seen] / penalty, raw[seen] * penalty)
        for token, bias in self.biases[r].items() if self.biases else ():
            x[token] += np.float32(bias)
        if self.allowed is not None:
            x[~self.allowed[r]] = -np.inf
        return x.astype(np.float64)

    def expected(self, r: int) -> tuple[int, float]:
        """The token by definition, and how far u and the filters' limits are from the nearest border."""
        settings, x = {"temperature": 1.0, "top_p": 1.0, "seed": 0, "position": 0, **self.settings[r]}, self.adjusted(r)
        order = np.argsort(-x, kind="stable")
        if settings["temperature"] == 0.0:
            return int(order[0]), np.inf
        order = order[x[order] > -np.inf]
        weights = np.exp((x[order] - x[order[0]]) / settings["temperature"])
        if k := settings.get("top_k", 0):
            weights = weights[:k]
        margin, sums = np.inf, np.cumsum(weights)
        if (p := settings["top_p"]) < 1.0:
            margin = float(np.abs(sums / sums[-1] - p).min())
            weights = weights[: int(np.searchsorted(sums, p * sums[-1])) + 1]
        if least := settings.get("min_p", 0.0):
            margin = min(margin, float(np.abs(weights - least).min()))
            weights = weights[weights >= least]
        sums = np.cumsum(weights)
        u = uniform(int(settings["seed"]), int(settings["position"]))
        margin = min(margin, float(np.abs(sums / sums[-1] - u).min()))
        return int(order[min(int(np.searchsorted(sums, u * sums[-1], side="right")), len(sums) - 1)]), margin


def random_batch(random: np.random.Generator, count: int, vocab: int) -> Batch:
    scale = random.choice([0.1, 2.0, 8.0], (count, 1))
    logits = (random.standard_normal((count, vocab)) * scale).astype(np.float32)
    logits[::3] = np.round(logits[::3])  # many equal logits, and zeros of both signs
    logits[1::4, random.integers(0, vocab, vocab // 2)] = -np.inf
    logits[:, random.integers(vocab)] = 1.0
    choices = {
        "temperature": [0.0, 0.05, 0.5, 1.0, 1.7], "top_k": [0, 0, 1, 2, 40, 10_000],
        "top_p": [1.0, 1.0, 0.01, 0.5, 0.9],
        "min_p": [0.0, 0.0, 0.001, 0.1, 0.9], "repetition_penalty": [1.0, 0.7, 1.1, 5.0],
    }  # fmt: skip
    settings = [
        {name: random.choice(values).item() for name, values in choices.items()}
        | {"seed": int(random.integers(0, 2**63)), "position": int(random.integers(0, 2**40))}
        for _ in range(count)
    ]
    allowed = random.random((count, vocab)) < 0.7
    allowed[np.arange(count), np.isfinite(logits).argmax(1)] = True
    histories = [random.integers(0, vocab, random.integers(0, 12)).tolist() for _ in range(count)]
    biases = [{int(t): float(b) for t, b in zip(random.choice(vocab, 2, False), (-3.0, 2.5), strict=True)}
              for _ in range(count)] if vocab > 2 else []  # fmt: skip
    return Batch(logits, settings, histories, biases, allowed if random.random() < 0.5 else None)


@pytest.mark.parametrize(("vocab", "count", "batches"), [(1, 50, 2), (3, 300, 2), (64, 400, 3), (1000, 200, 4)])
@ONE_ORDER
def test_agrees_with_the_definition(kernels: Callable[..., Library], vocab: int, count: int, batches: int) -> None:
    library, near = kernels("sampling/sampling"), 0
    for seed in range(batches):
        batch = random_batch(np.random.default_rng(seed), count, vocab)
        for r, token in enumerate(batch.draw(library)):
            expected, margin = batch.expected(r)
            assert token == expected or margin < EDGE, (r, batch.settings[r], margin)
            near += margin < EDGE
        library.free()
    assert near <= 0.1 * count * batches  # many equal logits make borders such as 1 / 2


@pytest.mark.parametrize("vocab", [32_000, 2**18])
@ONE_ORDER
def test_large_vocabularies(kernels: Callable[..., Library], vocab: int) -> None:
    random = np.random.default_rng(vocab)
    logits = random.standard_normal((3, vocab)).astype(np.float32)
    logits[1] = 0.25  # all equal: in order of their ids
    logits[2] *= 6
    settings = [{"seed": 3, "position": 9}, {"seed": 4, "position": 2**33, "top_p": 0.75},
                {"seed": 5, "top_k": 1000, "temperature": 0.8}]  # fmt: skip
    batch = Batch(logits, settings)
    tokens = batch.draw(kernels("sampling/sampling"))
    assert [batch.expected(r)[1] > EDGE for r in (0, 2)] == [True, True]
    assert [tokens[0], tokens[2]] == [batch.expected(r)[0] for r in (0, 2)]
    assert tokens[1] == int(uniform(4, 2**33) * np.ceil(0.75 * vocab))


@ONE_ORDER
def test_no_number_is_no_token(kernels: Callable[..., Library]) -> None:
    logits = np.random.default_rng(0).standard_normal((8, 700)).astype(np.float32)
    logits[1, 0], logits[2, 699], logits[3, 65], logits[4] = np.nan, np.nan, np.inf, -np.inf
    allowed = np.ones(logits.shape, bool)
    allowed[6] = False
    settings: list[dict[str, Any]] = [{"temperature": float(r % 2)} for r in range(8)]
    tokens = Batch(logits, settings, allowed=allowed).draw(kernels("sampling/sampling"))
    assert [min(token, 0) for token in tokens] == [0, -1, -1, -1, -2, 0, -2, 0]


@ONE_ORDER
def test_rows_do_not_see_each_other(kernels: Callable[..., Library]) -> None:
    library, batch = kernels("sampling/sampling"), random_batch(np.random.default_rng(5), 16, 500)
    together = batch.draw(library)
    for r in range(16):
        mask = None if batch.allowed is None else batch.allowed[r : r + 1]
        part = slice(r, r + 1)
        alone = Batch(batch.logits[part], batch.settings[part], batch.histories[part], batch.biases[part], mask)
        assert alone.draw(library) == together[part]


@pytest.mark.parametrize(
    ("field", "value", "status", "argument"),
    [
        ("rows", 0, "bad_shape", "rows"), ("vocab", 2**18 + 1, "bad_shape", "vocab"),
        ("vocab", 0, "bad_shape", "vocab"),
        ("logits", 0, "bad_argument", "logits"), ("scratch", 0, "bad_argument", "scratch"),
        ("row", 4, "misaligned", "row"), ("tokens", 0, "bad_argument", "tokens"),
        ("logits_stride", 31, "bad_shape", "logits_stride"), ("mask_stride", 0, "bad_shape", "mask_stride"),
        ("biases", 0, "bad_argument", "biases"), ("history", 2, "misaligned", "history"),
    ],
)  # fmt: skip
@ONE_ORDER
def test_refused_arguments_are_named(
    kernels: Callable[..., Library], field: str, value: int, status: str, argument: str
) -> None:
    library = kernels("sampling/sampling")
    batch = Batch(np.zeros((1, 32), np.float32), [{}], [[1]], [{2: 1.0}], np.ones((1, 32), bool))
    arguments: Any = batch.arguments(library)[0]
    setattr(arguments, field, value)
    with pytest.raises(KernelError) as refused:
        abi.launch(library, "exl_sample", arguments)
    assert (refused.value.status, refused.value.argument) == (status, argument)
