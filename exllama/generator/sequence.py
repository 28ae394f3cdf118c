"""A job on its way through the scheduler: its tokens, its pages, and how far it is."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from exllama.cache.page_table import PageTable
from exllama.errors import ExllamaError
from exllama.generator.answer import Answer
from exllama.generator.constraints.constraint import Constraint
from exllama.generator.drafting.rejection import Distribution
from exllama.generator.events import Finished, Reason, Text, Times
from exllama.generator.job import Job
from exllama.generator.lane import Lane
from exllama.generator.sampling.job_sampler import JobSampler

_FIRST = -math.inf  # goes before every priority


class Sequence(Lane):
    """The lane that a job's prompt and answer make, and everything else about the job.

    In `buffer` `num_drafts` tokens may follow the others: guesses, valid during one step. Written by the scheduler and
    its drafter alone.
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
        guide: Lane | None = None,
    ) -> None:
        super().__init__(prompt, table)
        self.job, self.answer = job, answer
        self.sampler = sampler
        self._guide = guide
        self.stop_ids = stop_ids
        self.prompt_tokens = len(prompt)
        self.limit = limit  # tokens that model and cache can hold; the answer ends at `last`, for `end_reason`
        wanted = limit if job.max_new_tokens is None else len(prompt) + job.max_new_tokens
        self.last = min(limit, wanted)
        self.end_reason: Reason = "length" if job.max_new_tokens is not None and wanted <= limit else "context"
        self.endless_until = len(prompt) + job.min_new_tokens  # with fewer tokens, no end token is drawn
        self.num_drafts = self.accepted_drafts = self.rejected_drafts = 0
        self.guessed_from: list[Distribution] = []  # of each draft, if the rule of rejection.py is to be followed
        self.may_guess = True  # False: the keys of a draft could not be stored, so no more are tried
        self.constraint: Constraint | None = None  # what the answer may look like
        self.first_ids: list[int] = []  # the answer begins with one of these tokens, with any if there are none
        self.bans: dict[int, list[int]] = {}  # position -> tokens that are not drawn there; see banned_strings of Job
        self.cached_tokens = 0
        self.skipped = 0  # times that one which came later was admitted instead
        self.rank: tuple[float, float, int] = (0.0, 0.0, 0)  # who goes first: the smaller one; see `enqueue`
        self.enqueued = self.admitted = self.first_token = 0.0  # perf_counter; 0.0: has not happened
        self.expires = math.inf

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """Itself, and the one of the negative prompt if there is one.

        They get the same answer, enter and leave the batch together, and draw in the same step.
        """
        return (self,) if self._guide is None else (self, self._guide)

    @property
    def is_ready(self) -> bool:
        """It lacks nothing but its last token."""
        return self.missing == 1 and (self._guide is None or self._guide.missing == 1)

    @property
    def arrival(self) -> int:
        """Its place in the order of arrival."""
        return self.rank[2]

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
    def masks_natively(self) -> bool:
        """The native sampler sees what the constraint allows; else the logits have to say it."""
        return self.sampler.is_native and self.sampler.records is None and not self.follows_rule

    @property
    def follows_rule(self) -> bool:
        """The next draft is kept or replaced, instead of being compared with a draw."""
        return self.num_drafts > 0 and bool(self.guessed_from)

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
        if self._guide is not None:
            self._guide.append(token)
        return guessed

    def take_back(self, count: int, banned: int, copy_page: Callable[[int, int], None]) -> None:
        """The last `count` tokens were never there, and the first of them, `banned`, is not drawn there again."""
        self.drop_drafts()
        for lane in self.lanes:
            lane.cut(count, copy_page)
        if self.constraint is not None:
            self.constraint.rollback(count)
        if self.sampler.records:
            self.sampler.records.take_back(count)
        bans = {position: tokens for position, tokens in self.bans.items() if position <= self.num_tokens}
        self.bans = {**bans, self.num_tokens: [*bans.get(self.num_tokens, ()), banned]}

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
