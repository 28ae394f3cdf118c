"""A job on its way through the scheduler: its tokens, its pages, and how far it is."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from exllama.cache.page_table import PageTable
from exllama.errors import ExllamaError
from exllama.generator.answer import Answer
from exllama.generator.constraints.constraint import Constraint
from exllama.generator.drafting.rejection import Distribution
from exllama.generator.events import Finished, Reason, Text, Times
from exllama.generator.job import Job
from exllama.generator.sampling.job_sampler import JobSampler

_ROOM = 256  # tokens by which the buffer grows at least
_FIRST = -math.inf  # goes before every priority


class Sequence:
    """Tokens [0, computed) have their keys and values in the pages; [computed, num_tokens) are still to be computed.

    Invariant: computed < num_tokens, so there is always something to run. `tokens` is valid until the next append.
    In `buffer` `num_drafts` tokens may follow them: guesses, valid during one step. Written by the scheduler and its
    drafter alone. slot is the row of the page table while the sequence runs, else -1.
    """

    def __init__(
        self,
        job: Job,
        prompt: NDArray[np.int32],
        limit: int,
        stop_ids: frozenset[int],
        answer: Answer,
        table: PageTable,
        sampler: JobSampler,
    ) -> None:
        self.job, self.answer, self.table = job, answer, table
        self.sampler = sampler
        self.stop_ids = stop_ids
        self.prompt_tokens = self.num_tokens = len(prompt)
        self.limit = limit  # tokens that model and cache can hold; the answer ends at `last`, for `end_reason`
        wanted = limit if job.max_new_tokens is None else len(prompt) + job.max_new_tokens
        self.last = min(limit, wanted)
        self.end_reason: Reason = "length" if job.max_new_tokens is not None and wanted <= limit else "context"
        self.endless_until = len(prompt) + job.min_new_tokens  # with fewer tokens, no end token is drawn
        self.buffer = prompt  # (capacity,) int32
        self.computed = 0
        self.num_drafts = self.accepted_drafts = self.rejected_drafts = 0
        self.guessed_from: list[Distribution] = []  # of each draft, if the rule of rejection.py is to be followed
        self.may_guess = True  # False: the keys of a draft could not be stored, so no more are tried
        self.constraint: Constraint | None = None  # what the answer may look like
        self.cached_tokens = 0
        self.slot = -1
        self.skipped = 0  # times that one which came later was admitted instead
        self.rank: tuple[float, float, int] = (0.0, 0.0, 0)  # who goes first: the smaller one; see `enqueue`
        self.enqueued = self.admitted = self.first_token = 0.0  # perf_counter; 0.0: has not happened
        self.expires = math.inf

    @property
    def arrival(self) -> int:
        """Its place in the order of arrival."""
        return self.rank[2]

    @property
    def tokens(self) -> NDArray[np.int32]:
        """All tokens so far, (num_tokens,) int32."""
        return self.buffer[: self.num_tokens]

    def enqueue(self, now: float, arrival: int) -> None:
        """It waits from now on, in the order of priority, then of deadlines, then of arrival."""
        self.enqueued = now
        if self.job.deadline is not None:
            self.expires = now + self.job.deadline
        self.rank = (-self.job.priority, self.expires, arrival)

    def promote(self) -> None:
        """It was overtaken often enough: it goes before all others, except for those that arrived before it."""
        self.rank = (_FIRST, 0.0, self.arrival)

    @property
    def follows_rule(self) -> bool:
        """The next draft is kept or replaced, instead of being compared with a draw."""
        return self.num_drafts > 0 and bool(self.guessed_from)

    def reserve(self, num_tokens: int) -> None:
        """Makes room in the buffer."""
        if num_tokens > len(self.buffer):
            more = max(num_tokens - len(self.buffer), self.num_tokens, _ROOM)
            self.buffer = np.concatenate([self.buffer, np.zeros(more, np.int32)])

    def append(self, token: int) -> None:
        """The token that follows."""
        n = self.num_tokens
        if n == len(self.buffer):
            self.reserve(n + 1)
        self.buffer[n] = token
        self.num_tokens = n + 1

    def append_drawn(self, token: int) -> bool:
        """The token that was drawn; True when it is what the next draft says, which is used up."""
        n, drafts = self.num_tokens, self.num_drafts
        guessed = drafts > 0 and int(self.buffer[n]) == token
        if guessed:
            self.num_tokens = n + 1
            self.num_drafts = drafts - 1
            self.accepted_drafts += 1
        else:
            self.drop_drafts()
            self.append(token)
        return guessed

    def drop_drafts(self) -> None:
        """What is left of the drafts was guessed wrong."""
        self.rejected_drafts += self.num_drafts
        self.num_drafts = 0

    def text_event(self, text: str, token_ids: tuple[int, ...]) -> Text:
        """The next piece of the answer and what the job wants to know of its tokens."""
        records = self.sampler.records
        logprobs, logits = records.take(len(token_ids)) if records else ((), None)
        return Text(self.job, text, token_ids, logprobs, logits)

    def times(self, now: float) -> Times:
        """How long each phase took until now."""
        admitted = self.admitted or now
        first = self.first_token or now
        return Times(admitted - self.enqueued, max(first - admitted, 0.0), now - first)

    def finished(
        self, reason: Reason, now: float, stop: str | int | None = None, error: ExllamaError | None = None
    ) -> Finished:
        """The event of the end, which the job keeps."""
        records = self.sampler.records
        learnt = records.all() if records else ((), None)
        self.job.finished = event = Finished(
            self.job, self.answer.text, reason, self.prompt_tokens, self.num_tokens - self.prompt_tokens,
            self.cached_tokens, self.accepted_drafts, self.rejected_drafts, self.times(now), stop, error, *learnt,
        )  # fmt: skip
        return event
