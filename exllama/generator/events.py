"""What a step reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch

from exllama.errors import ExllamaError
from exllama.generator.sampling.logprobs import TokenLogprob

if TYPE_CHECKING:
    from exllama.generator.job import Job

Reason = Literal["stop_token", "stop_string", "length", "context", "deadline", "cancelled", "error"]


@dataclass(frozen=True)
class Times:
    """Seconds of wall time of one job. Time between a preemption and the first token after it counts as prefill."""

    queued: float = 0.0  # enqueued -> admitted
    prefill: float = 0.0  # admitted -> first token
    decode: float = 0.0  # first token -> end


@dataclass(frozen=True)
class Started:
    """The job has pages and a place in the batch. cached_tokens of its prompt_tokens need no computing."""

    job: Job
    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class Prefill:
    """`done` of `total` tokens are computed, and some are still missing before the next text."""

    job: Job
    done: int
    total: int


@dataclass(frozen=True)
class Text:
    """A piece of the answer and the tokens that begin in it.

    The texts of a job, one after the other, are what the tokens decode to, except that a stop string and what follows
    it are cut off, if need be inside of the last token. text is empty only where the last tokens stand for no text.
    logprobs: one per token. logits: (tokens, V) float32, the model's. Both only if the job asks for them.
    """

    job: Job
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    logits: torch.Tensor | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Finished:
    """The last event of a job.

    reason: "stop_token" or "stop_string" (`stop` says which), "length": max_new_tokens is reached, "context": neither
    the model's context nor the cache holds one token more, "deadline": the job's time is up, "cancelled", "error":
    `error` says what.
    text: the whole answer. prompt_tokens, new_tokens: counts, a stop token included. cached_tokens: prompt tokens that
    were found in the cache when the job started. accepted_drafts, rejected_drafts: tokens guessed by speculation
    that were drawn, and that were computed in vain. logprobs, logits: as in Text, of all new tokens, a stop included.
    """

    job: Job
    text: str
    reason: Reason
    prompt_tokens: int
    new_tokens: int
    cached_tokens: int
    accepted_drafts: int
    rejected_drafts: int
    times: Times
    stop: str | int | None = None
    error: ExllamaError | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    logits: torch.Tensor | None = field(default=None, compare=False, repr=False)


Event = Started | Prefill | Text | Finished
