"""How well a model predicts a text, and how far two models are apart: perplexity and Kullback-Leibler divergence.

The text is cut into windows of `context` tokens that do not overlap, each begun with the tokenizer's BOS token where it
has one. Every position of a window but the last predicts its successor, and all of them count alike. Sums are float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from exllama.errors import NumericsError, UsageError

Ticker = Callable[[str, int, int], None]
_ROWS = 128  # rows whose float64 log-probabilities are held at a time


class Scored(Protocol):
    """What is used of engine.model.Model."""

    @property
    def vocab_size(self) -> int: ...

    def logits(self, token_ids: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True)
class Perplexity:
    """perplexity = exp(mean_loss); error: standard error of the mean loss, times perplexity. tokens: predicted ones."""

    perplexity: float
    error: float
    mean_loss: float
    tokens: int


@dataclass(frozen=True)
class Divergence:
    """KL(reference || model) in nats over all positions; same_top: share of positions with the same likeliest token."""

    mean: float
    median: float
    percentile_99_9: float
    maximum: float
    same_top: float
    tokens: int


def windows(token_ids: list[int], context: int, limit: int | None, bos_id: int | None = None) -> list[torch.Tensor]:
    """The text's tokens as windows of (context,) int64; the rest that fills no window is left out.

    limit: take at most so many windows as hold `limit` tokens, at least one. Raises UsageError if not one window fills.
    """
    head = [] if bos_id is None else [bos_id]
    body = context - len(head)
    if body < 2:
        raise UsageError(f"context is {context}, expected at least {2 + len(head)}")
    count = len(token_ids) // body
    if count == 0:
        found = f"the text has {len(token_ids)} tokens, and a window takes {body}"
        raise UsageError(f"{found}: use a longer text or a smaller context")
    if limit is not None:
        count = min(count, max(1, limit // context))
    return [torch.tensor(head + token_ids[i * body : (i + 1) * body]) for i in range(count)]


def perplexity(model: Scored, texts: list[torch.Tensor], tick: Ticker | None = None) -> Perplexity:
    """exp of the mean negative log-likelihood of every token after the first of each window. Raises NumericsError."""
    losses = []
    for index, ids in enumerate(texts):
        for rows, begin in _blocks(model.logits(ids)[:-1]):
            targets = ids[begin + 1 : begin + 1 + len(rows)]
            losses.append(-_log_softmax(rows).gather(1, targets[:, None])[:, 0].numpy())
        if tick:
            tick("perplexity", index + 1, len(texts))
    loss = np.concatenate(losses)
    mean = float(loss.mean())
    error = float(loss.std(ddof=1) / math.sqrt(len(loss))) if len(loss) > 1 else 0.0
    return Perplexity(math.exp(mean), math.exp(mean) * error, mean, len(loss))


def divergence(model: Scored, reference: Scored, texts: list[torch.Tensor], tick: Ticker | None = None) -> Divergence:
    """KL(reference || model) at every position but each window's last. Raises UsageError for different vocabularies."""
    if model.vocab_size != reference.vocab_size:
        found = f"{model.vocab_size} tokens, and {reference.vocab_size} in the reference"
        raise UsageError(f"the vocabularies differ: {found}")
    values, same = [], 0
    for index, ids in enumerate(texts):
        truth = reference.logits(ids)[:-1]
        for rows, begin in _blocks(model.logits(ids)[:-1]):
            p, q = _log_softmax(truth[begin : begin + len(rows)]), _log_softmax(rows)
            terms = torch.where(p == -math.inf, 0.0, p.exp() * (p - q))
            values.append(terms.sum(1).numpy())
            same += int((p.argmax(1) == q.argmax(1)).sum())
        if tick:
            tick("divergence", index + 1, len(texts))
    kl = np.concatenate(values)
    return Divergence(
        mean=float(kl.mean()),
        median=float(np.median(kl)),
        percentile_99_9=float(np.percentile(kl, 99.9)),
        maximum=float(kl.max()),
        same_top=same / len(kl),
        tokens=len(kl),
    )


def _blocks(logits: torch.Tensor) -> Iterator[tuple[torch.Tensor, int]]:
    for begin in range(0, len(logits), _ROWS):
        yield logits[begin : begin + _ROWS], begin


def _log_softmax(rows: torch.Tensor) -> torch.Tensor:
    if torch.isnan(rows).any():
        raise NumericsError("the logits hold NaN: the model's weights are damaged, or this is a bug to report")
    return torch.log_softmax(rows.double(), dim=1)
