"""A job on its way through the scheduler: its tokens, its pages, and how far it is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from exllama.cache.page_table import PageTable
from exllama.errors import ExllamaError
from exllama.generator.answer import Answer
from exllama.generator.events import Finished, Reason, Times
from exllama.generator.job import Job

_ROOM = 256  # tokens by which the buffer grows at least


class Sequence:
    """Tokens [0, computed) have their keys and values in the pages; [computed, num_tokens) are still to be computed.

    Invariant: computed < num_tokens, so there is always something to run. `tokens` is valid until the next append.
    Written by the scheduler alone. slot is the row of the page table while the sequence runs, else -1.
    """

    def __init__(
        self,
        job: Job,
        prompt: NDArray[np.int32],
        limit: int,
        stop_ids: frozenset[int],
        answer: Answer,
        table: PageTable,
    ) -> None:
        self.job, self.answer, self.table = job, answer, table
        self.sampling, self.seed = job.sampling, job.fix_seed()
        self.stop_ids = stop_ids
        self.prompt_tokens = self.num_tokens = len(prompt)
        self.limit = limit  # tokens that model and cache can hold; the answer ends at `last`, for `end_reason`
        wanted = limit if job.max_new_tokens is None else len(prompt) + job.max_new_tokens
        self.last = min(limit, wanted)
        self.end_reason: Reason = "length" if job.max_new_tokens is not None and wanted <= limit else "context"
        self.buffer = prompt  # (capacity,) int32
        self.computed = 0
        self.cached_tokens = 0
        self.slot = -1
        self.arrival = 0  # order of age
        self.skipped = 0  # times that a younger one was admitted instead
        self.enqueued = self.admitted = self.first_token = 0.0  # perf_counter; 0.0: has not happened

    @property
    def tokens(self) -> NDArray[np.int32]:
        """All tokens so far, (num_tokens,) int32."""
        return self.buffer[: self.num_tokens]

    def append(self, token: int) -> None:
        """The token that follows."""
        n = self.num_tokens
        if n == len(self.buffer):
            self.buffer = np.concatenate([self.buffer, np.zeros(max(n, _ROOM), np.int32)])
        self.buffer[n] = token
        self.num_tokens = n + 1

    def times(self, now: float) -> Times:
        """How long each phase took until now."""
        admitted = self.admitted or now
        first = self.first_token or now
        return Times(admitted - self.enqueued, max(first - admitted, 0.0), now - first)

    def finished(
        self, reason: Reason, now: float, stop: str | int | None = None, error: ExllamaError | None = None
    ) -> Finished:
        """The event of the end, which the job keeps."""
        self.job.finished = event = Finished(
            self.job, self.answer.text, reason, self.prompt_tokens, self.num_tokens - self.prompt_tokens,
            self.cached_tokens, 0, 0, self.times(now), stop, error,
        )  # fmt: skip
        return event
