"""Perplexity and divergence against numpy in float64."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from exllama.cli.evaluate import read_text
from exllama.errors import NumericsError, SourceError, UsageError
from exllama.evaluation import divergence, perplexity, windows

VOCABULARY = 11


class Bigram:
    """A model whose logits depend on the last token alone."""

    vocab_size = VOCABULARY

    def __init__(self, seed: int, scale: float = 1.0) -> None:
        random = np.random.default_rng(seed)
        self.table = torch.from_numpy(random.standard_normal((VOCABULARY, VOCABULARY), dtype=np.float32) * scale)

    def logits(self, token_ids: torch.Tensor) -> torch.Tensor:
        return self.table[token_ids]


def log_softmax(table: np.ndarray) -> np.ndarray:
    table = table.astype(np.float64)
    return table - np.log(np.exp(table).sum(axis=-1, keepdims=True))


def text(count: int = 400) -> list[int]:
    return [int(value) for value in np.random.default_rng(5).integers(0, VOCABULARY, count)]


def test_windows_cut_and_begin_with_bos() -> None:
    found = windows(list(range(10)), context=4, limit=None, bos_id=99)
    assert [window.tolist() for window in found] == [[99, 0, 1, 2], [99, 3, 4, 5], [99, 6, 7, 8]]
    assert len(windows(list(range(100)), context=10, limit=25)) == 2
    assert len(windows(list(range(100)), context=10, limit=1)) == 1
    with pytest.raises(UsageError, match="longer text"):
        windows([1, 2], context=4, limit=None)
    with pytest.raises(UsageError, match="context is 1"):
        windows([1, 2], context=1, limit=None)


def test_perplexity_is_exp_of_the_mean_loss_of_all_predicted_tokens() -> None:
    model, texts = Bigram(0), windows(text(), 300, None) + windows(text()[300:], 50, None)
    table = log_softmax(model.table.numpy())
    losses = [-table[a, b] for ids in texts for a, b in zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True)]
    found = perplexity(model, texts)
    assert found.tokens == len(losses)
    assert found.perplexity == pytest.approx(math.exp(np.mean(losses)), rel=1e-12)
    assert found.error == pytest.approx(found.perplexity * np.std(losses, ddof=1) / math.sqrt(len(losses)), rel=1e-12)


def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity() -> None:
    assert perplexity(Bigram(0, scale=0.0), windows(text(), 50, None)).perplexity == pytest.approx(VOCABULARY)


def test_divergence_against_numpy() -> None:
    model, reference, texts = Bigram(1), Bigram(2), windows(text(), 150, None)
    p, q = log_softmax(reference.table.numpy()), log_softmax(model.table.numpy())
    rows = np.concatenate([ids[:-1].numpy() for ids in texts])
    kl = (np.exp(p) * (p - q)).sum(axis=1)[rows]
    found = divergence(model, reference, texts)
    assert found.tokens == len(rows)
    assert found.mean == pytest.approx(kl.mean(), rel=1e-12)
    assert found.median == pytest.approx(np.median(kl), rel=1e-12)
    assert found.percentile_99_9 == pytest.approx(np.percentile(kl, 99.9), rel=1e-12)
    assert found.same_top == pytest.approx(np.mean(p.argmax(1)[rows] == q.argmax(1)[rows]))


def test_a_model_does_not_diverge_from_itself() -> None:
    found = divergence(Bigram(3), Bigram(3), windows(text(), 100, None))
    assert (found.mean, found.maximum, found.same_top) == (0.0, 0.0, 1.0)


def test_impossible_tokens_of_the_reference_add_nothing() -> None:
    model, reference = Bigram(1), Bigram(2)
    reference.table[:, 3] = -math.inf
    assert math.isfinite(divergence(model, reference, windows(text(), 100, None)).mean)


def test_nan_and_unequal_vocabularies_are_errors() -> None:
    broken, other = Bigram(0), Bigram(0)
    broken.table[2, 2] = math.nan
    with pytest.raises(NumericsError):
        perplexity(broken, windows(text(), 100, None))
    other.vocab_size = 12
    with pytest.raises(UsageError, match="vocabularies differ"):
        divergence(broken, other, windows(text(), 100, None))


def test_progress_reaches_the_end() -> None:
    seen: list[tuple[str, int, int]] = []
    perplexity(Bigram(0), windows(text(), 100, None), lambda *where: seen.append(where))
    assert seen[-1] == ("perplexity", 4, 4)


def test_texts_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="No such file"):
        read_text(tmp_path / "missing.txt")
    (tmp_path / "latin.txt").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(SourceError, match="not UTF-8 at byte 2"):
        read_text(tmp_path / "latin.txt")
