"""Who runs in the next step, with how many tokens, on which pages; and what the drawn tokens mean.

A step has a budget of rows. Every sequence that is about to draw a token gets its row first, so that streams never
wait for prompts; prompts share what is left. Pages are taken as sequences grow. When none is left the youngest sequence
gives its pages back and waits; later it continues from what it had, recomputing what the cache has forgotten, and
because results do not depend on that, nobody can tell.

Why this cannot get stuck: enqueue refuses what the pages cannot hold, so one sequence always fits alone. The oldest
sequence is never preempted for another one, and in every step some sequence draws or the oldest prompt advances.
"""

from __future__ import annotations

import heapq
import time
from bisect import insort
from collections.abc import Callable, Mapping

from exllama.cache.pages import PagePool
from exllama.errors import ExllamaError, NumericsError, cache_fault
from exllama.generator.events import Event, Prefill, Reason, Started, Text
from exllama.generator.sampling.sampler import NOT_A_TOKEN
from exllama.generator.sequence import Sequence
from exllama.generator.step import Step

MAX_SKIPS = 16  # times that a waiting sequence may be overtaken by ones that need fewer pages
LOOKAHEAD = 16  # waiting sequences that one step looks at
OLDEST_SHARE = 4  # the oldest prompt gets at least 1 / OLDEST_SHARE of the budget that prompts share


class Scheduler:
    """Owns every sequence from `add` to the Finished event.

    Invariants: a sequence is either running (it has a slot, in `_running` by age) or waiting (no slot, no pages, in
    `_waiting` by age); see check_integrity.
    """

    def __init__(
        self, pool: PagePool, max_batch_size: int, max_rows: int, limit: int, copy_page: Callable[[int, int], None]
    ) -> None:
        assert max_rows >= max_batch_size, "a step could not hold a row per sequence"
        assert limit <= pool.num_pages * pool.page_size, "a sequence could outgrow all pages together"
        self._pool, self._max_rows, self._copy_page = pool, max_rows, copy_page
        self._running: list[Sequence] = []
        self._waiting: list[Sequence] = []
        self._free_slots = list(range(max_batch_size))
        self._step = Step(max_rows, max_batch_size, -(-limit // pool.page_size))
        self._events: list[Event] = []
        self._arrivals = 0

    @property
    def num_running(self) -> int:
        """Sequences that have a place in the batch."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for one."""
        return len(self._waiting)

    @property
    def active(self) -> bool:
        """Something is left to compute or to tell."""
        return bool(self._running or self._waiting or self._events)

    def add(self, sequence: Sequence) -> None:
        """Puts a new sequence at the end of the queue."""
        sequence.arrival = self._arrivals
        sequence.enqueued = time.perf_counter()
        self._arrivals += 1
        self._waiting.append(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """Ends an unfinished sequence and frees its pages at once."""
        if sequence.slot < 0:
            self._waiting.remove(sequence)
            self._events.append(sequence.finished("cancelled", time.perf_counter()))
        else:
            self._end(sequence, "cancelled", time.perf_counter())

    def take_events(self) -> list[Event]:
        """What happened since the last call."""
        events, self._events = self._events, []
        return events

    def schedule(self) -> Step | None:
        """The next step, or None when nothing can run because nothing is there."""
        self._step.clear()
        self._add_draws()
        if self._waiting and self._free_slots:
            self._admit()
        if len(self._step.parts) < len(self._running):
            self._add_prompts()
        return self._step if self._step.rows else None

    def commit(self, tokens: list[int], faults: Mapping[int, str]) -> None:
        """The step has run; tokens: one per part that draws, NOT_A_TOKEN where the logits were no numbers.

        faults: rows whose key or value could not be stored, and the layer, the cause first; their sequences end.
        """
        now, size, drawn = time.perf_counter(), self._pool.page_size, iter(tokens)
        failed = self._failed(faults) if faults else {}
        for sequence, count, draws in self._step.parts:
            if sequence in failed:
                self._end(sequence, "error", now, error=failed[sequence])
                if draws:
                    next(drawn)
                continue
            sequence.computed += count
            if sequence.computed % size < count:  # a page was completed
                sequence.table.seal(sequence.tokens, sequence.computed)
            if draws:
                self._accept(sequence, next(drawn), now)
            else:
                self._events.append(Prefill(sequence.job, sequence.computed, sequence.num_tokens))

    def check_integrity(self) -> None:
        """Raises AssertionError on a broken invariant."""
        self._pool.check_integrity(sequence.table.pages for sequence in self._running)
        slots = sorted([sequence.slot for sequence in self._running] + self._free_slots)
        assert slots == list(range(len(self._step.page_table))), "a slot is lost or used twice"
        for group in (self._running, self._waiting):
            ages = [sequence.arrival for sequence in group]
            assert ages == sorted(set(ages)), "sequences are out of order"
        for sequence in self._running:
            assert sequence.computed < sequence.num_tokens <= sequence.limit, "a running sequence has nothing to run"
            assert sequence.computed <= sequence.table.capacity, "tokens were computed without pages"
            row = self._step.page_table[sequence.slot, : len(sequence.table.pages)]
            assert row.tolist() == sequence.table.pages, "the page table disagrees with the pages of its sequence"
        for sequence in self._waiting:
            held = (sequence.slot, sequence.computed, sequence.table.pages)
            assert held == (-1, 0, []), "a waiting sequence holds pages"

    def _add_draws(self) -> None:
        """One row for every running sequence that lacks nothing but its last token, the oldest first."""
        step, running, index = self._step, self._running, 0
        while index < len(running):
            sequence = running[index]
            if sequence.num_tokens - sequence.computed == 1:
                if sequence.computed == sequence.table.capacity and not self._make_room(sequence):
                    continue  # it was the youngest itself
                step.add(sequence, 1)
            index += 1

    def _make_room(self, sequence: Sequence) -> bool:
        """A page for the next token, if need be from the youngest; False when that is the sequence itself."""
        while not sequence.table.grow(sequence.computed + 1):
            youngest = self._running[-1]
            self._preempt(youngest)
            if youngest is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._leave_batch(sequence)
        sequence.computed = 0
        insort(self._waiting, sequence, key=_age)

    def _admit(self) -> None:
        """Moves waiting sequences to the batch, oldest first; a younger one that fits may overtake, but not for ever.

        All pages that its known tokens need must be there, and so must those that running prompts still need.
        """
        reserved = sum(self._missing_pages(sequence) for sequence in self._running)
        for sequence in self._waiting[:LOOKAHEAD]:
            found, unread = sequence.table.cached_pages(sequence.tokens)
            needed = self._missing_pages(sequence) - found + unread
            spare = 1 if self._running else 0  # else it would be preempted by the next page that somebody needs
            if needed + reserved + spare <= self._pool.num_available:
                self._start(sequence)
                reserved += self._missing_pages(sequence)
            elif sequence.skipped >= MAX_SKIPS:
                return
            if not self._free_slots:
                return

    def _missing_pages(self, sequence: Sequence) -> int:
        return -(-sequence.num_tokens // self._pool.page_size) - len(sequence.table.pages)

    def _start(self, sequence: Sequence) -> None:
        index = self._waiting.index(sequence)
        del self._waiting[index]
        for overtaken in self._waiting[:index]:
            overtaken.skipped += 1
        insort(self._running, sequence, key=_age)
        sequence.slot = heapq.heappop(self._free_slots)  # the lowest, so that the batch's page table stays short
        table = sequence.table
        table.place(self._step.page_table[sequence.slot])
        sequence.computed = table.reuse(sequence.tokens, 0)
        sequence.computed = table.copy_start(sequence.tokens, sequence.computed, self._copy_page)
        if not sequence.admitted:
            sequence.admitted = time.perf_counter()
            sequence.cached_tokens = sequence.computed
            self._events.append(Started(sequence.job, sequence.prompt_tokens, sequence.computed))

    def _add_prompts(self) -> None:
        """Rows for the sequences that lack more than one token, out of what is left of the budget."""
        scheduled = {id(part.sequence) for part in self._step.parts}
        prompts = [sequence for sequence in self._running if id(sequence) not in scheduled]
        for sequence in prompts:
            sequence.computed = sequence.table.reuse(sequence.tokens, sequence.computed)
        counts = share_budget([s.num_tokens - s.computed for s in prompts], self._max_rows - self._step.rows)
        for sequence, count in zip(prompts, counts, strict=True):
            if sequence.slot < 0 or count == 0:
                continue  # preempted for an older one, or no budget
            if self._step.rows == 0 and not self._make_room(sequence):
                continue
            sequence.table.grow(sequence.computed + count)
            count = min(count, sequence.table.capacity - sequence.computed)
            if count:
                self._step.add(sequence, count)

    def _failed(self, faults: Mapping[int, str]) -> dict[Sequence, NumericsError]:
        """The sequences that have faulty rows, and what to say of the first one."""
        found, begin = {}, 0
        for sequence, count, _ in self._step.parts:
            row = next((row for row in faults if begin <= row < begin + count), None)
            if row is not None:
                found[sequence] = cache_fault(sequence.computed + row - begin, faults[row])
            begin += count
        return found

    def _accept(self, sequence: Sequence, token: int, now: float) -> None:
        """What a drawn token means for its sequence."""
        if token == NOT_A_TOKEN:
            message = f"the logits at position {sequence.computed - 1} are not finite: this job ends, others go on"
            self._end(sequence, "error", now, error=NumericsError(message))
            return
        answer = sequence.answer
        sequence.append(token)
        if not sequence.first_token:
            sequence.first_token = now
        if token in sequence.stop_ids:
            self._finish_text(sequence, "stop_token", now, token)
            return
        text, token_ids = answer.add(token)
        if text or token_ids:
            self._events.append(Text(sequence.job, text, token_ids))
        if answer.stop is not None:
            self._end(sequence, "stop_string", now, answer.stop)
        elif sequence.num_tokens >= sequence.last:
            self._finish_text(sequence, sequence.end_reason, now)

    def _finish_text(self, sequence: Sequence, reason: Reason, now: float, stop: int | None = None) -> None:
        text, token_ids = sequence.answer.finish()
        if text or token_ids:
            self._events.append(Text(sequence.job, text, token_ids))
        if sequence.answer.stop is not None:
            self._end(sequence, "stop_string", now, sequence.answer.stop)
        else:
            self._end(sequence, reason, now, stop)

    def _end(
        self,
        sequence: Sequence,
        reason: Reason,
        now: float,
        stop: str | int | None = None,
        error: ExllamaError | None = None,
    ) -> None:
        self._running.remove(sequence)
        if error:
            sequence.table.discard()  # what made the logits wrong may stand in the pages
        self._leave_batch(sequence)
        self._events.append(sequence.finished(reason, now, stop, error))

    def _leave_batch(self, sequence: Sequence) -> None:
        sequence.table.release(sequence.tokens, sequence.computed)
        heapq.heappush(self._free_slots, sequence.slot)
        sequence.slot = -1


def share_budget(wanted: list[int], budget: int) -> list[int]:
    """Rows for each prompt, given what each lacks, the oldest first.

    A quarter goes to the oldest, so that a long prompt cannot starve; the rest to the shortest first, so that a short
    one does not wait for long ones.
    """
    if not wanted:
        return []
    counts = [0] * len(wanted)
    counts[0] = min(wanted[0], -(-budget // OLDEST_SHARE))
    budget -= counts[0]
    for index in sorted(range(len(wanted)), key=wanted.__getitem__):
        more = min(wanted[index] - counts[index], budget)
        counts[index] += more
        budget -= more
    return counts


def _age(sequence: Sequence) -> int:
    return sequence.arrival
