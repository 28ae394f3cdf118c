"""What a job can learn about its tokens beside their text: log-probabilities, alternatives, logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from exllama.generator.sampling.candidates import Candidates

Alternatives = tuple[tuple[int, float], ...]  # (token id, natural logarithm of its probability), most probable first


@dataclass(frozen=True)
class TokenLogprob:
    """A drawn token: its log-probability and the most probable tokens in its place, itself included.

    The model's own distribution, before any setting of Sampling; `filtered_...` are those of what the token was drawn
    from, if asked for.
    """

    token_id: int
    logprob: float
    top: Alternatives = ()
    filtered_logprob: float | None = None
    filtered_top: Alternatives = ()


@dataclass(frozen=True)
class Wish:
    """What a job wants to learn. logprobs: how many alternatives, None for no log-probabilities at all."""

    logprobs: int | None = None
    filtered: bool = False
    logits: bool = False


class Records:
    """What was learnt of the tokens of one job, in order. `take` hands them on with the text that they belong to."""

    def __init__(self, wish: Wish) -> None:
        self.wish = wish
        self.logprobs: list[TokenLogprob] = []
        self.logits: list[torch.Tensor] = []  # (V,) float32 each
        self._taken = 0

    def add(self, row: torch.Tensor, token: int, filtered: Candidates | None) -> None:
        """row: (V,) float32, the model's logits that `token` was drawn from."""
        if self.wish.logits:
            self.logits.append(row.clone())
        if self.wish.logprobs is not None:
            self.logprobs.append(token_logprob(row, token, self.wish.logprobs, filtered))

    def take(self, count: int) -> tuple[tuple[TokenLogprob, ...], torch.Tensor | None]:
        """Log-probabilities and logits (count, V) of the next `count` tokens, empty and None if not wished for."""
        begin, self._taken = self._taken, self._taken + count
        logits = self.logits[begin : self._taken]
        return tuple(self.logprobs[begin : self._taken]), torch.stack(logits) if logits else None

    def take_back(self, count: int) -> None:
        """The last `count` tokens, not handed on yet, were never there."""
        for records in (self.logprobs, self.logits):
            del records[max(len(records) - count, 0) :]

    def all(self) -> tuple[tuple[TokenLogprob, ...], torch.Tensor | None]:
        """Those of every token that was drawn."""
        return tuple(self.logprobs), torch.stack(self.logits) if self.logits else None


def token_logprob(row: torch.Tensor, token: int, count: int, filtered: Candidates | None) -> TokenLogprob:
    """row: (V,) float32 logits. count: alternatives. filtered: what the token was drawn from, logarithms of shares."""
    total = float(torch.logsumexp(row, 0))
    top = tuple((each, float(row[each]) - total) for each in largest(row, count))
    if filtered is None:
        return TokenLogprob(token, float(row[token]) - total, top)
    # adaptive-p changes the order of candidates
    order = np.lexsort((filtered.ids, -filtered.logits))[:count]
    filtered_top = tuple((int(filtered.ids[i]), float(filtered.logits[i])) for i in order)
    own = next((float(filtered.logits[i]) for i in np.flatnonzero(filtered.ids == token)), -np.inf)
    return TokenLogprob(token, float(row[token]) - total, top, own, filtered_top)


def largest(row: torch.Tensor, count: int) -> list[int]:
    """Places of the largest numbers of row (V,), equal ones in order of place."""
    if count == 0:
        return []
    last = torch.topk(row, min(count, len(row))).values[-1]
    places = torch.nonzero(row >= last)[:, 0]
    order = torch.sort(row[places], descending=True, stable=True).indices
    found: list[int] = places[order][:count].tolist()
    return found
