"""Who runs in the next step, with how many tokens, on which pages; and what the drawn tokens mean.

A sequence may have two lanes (sequence.py), which it enters the batch with, draws with and leaves with.

A step has a budget of rows. Every sequence that is about to draw a token gets its row first, so that streams never
wait for prompts; prompts share what is left. Pages are taken as sequences grow. When none is left the last in rank
gives its pages back and waits; later it continues from what it had, recomputing what the cache has forgotten, and
because results do not depend on that, nobody can tell.

Ranks are a total order: priority, then deadline, then arrival. A waiting sequence that was overtaken MAX_SKIPS times by
ones that came later goes before all of them.

Why this cannot get stuck: enqueue refuses what the pages cannot hold, so one sequence always fits alone. The first in
rank is preempted only for one that goes before it, and in every step some sequence draws or the first prompt advances.
"""

from __future__ import annotations

import heapq
import time
from bisect import insort
from collections.abc import Callable, Mapping

import torch

from exllama.cache.pages import PagePool
from exllama.errors import ConstraintError, ExllamaError, QueueFull, cache_fault
from exllama.generator.drafting.speculation import Speculation
from exllama.generator.events import Event, Prefill, Reason, Started
from exllama.generator.lane import Lane
from exllama.generator.sampling.sampler import NO_TOKEN_LEFT, sampling_error
from exllama.generator.sequence import Sequence
from exllama.generator.step import Step

MAX_SKIPS = 16  # times that a waiting sequence may be overtaken by ones that came later
LOOKAHEAD = 16  # waiting sequences that one step looks at
FIRST_SHARE = 4  # the first prompt gets at least 1 / FIRST_SHARE of the budget that prompts share
MIXED_ROWS = 512  # prompt tokens in a step that streams wait for: enough for full speed, and a short pause
MAX_QUEUE = 512  # waiting sequences


class Scheduler:
    """Owns every sequence from `add` to the Finished event.

    Invariants: a sequence is either running (it has a slot, in `_running` by rank) or waiting (no slot, no pages, in
    `_waiting` by rank); see check_integrity.
    """

    def __init__(
        self,
        pool: PagePool,
        max_batch_size: int,
        max_rows: int,
        limit: int,
        copy_page: Callable[[int, int], None],
        max_queue: int = MAX_QUEUE,
        speculation: Speculation | None = None,
    ) -> None:
        assert max_rows >= max_batch_size, "a step could not hold a row per sequence"
        assert limit <= pool.num_pages * pool.page_size, "a sequence could outgrow all pages together"
        self._pool, self._max_rows, self._copy_page, self._max_queue = pool, max_rows, copy_page, max_queue
        self._speculation = speculation
        self._running: list[Sequence] = []
        self._waiting: list[Sequence] = []
        self._expiring: list[tuple[float, int, Sequence]] = []  # heap of those with a deadline; may hold ended ones
        self._free_slots = list(range(max_batch_size))
        self._step = Step(max_rows, max_batch_size, -(-limit // pool.page_size))
        self._events: list[Event] = []
        self._arrivals = 0
        self._begun = 0.0  # perf_counter when the step was ready to run

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

    @property
    def has_room(self) -> bool:
        """`add` accepts one more."""
        return len(self._waiting) < self._max_queue

    def add(self, sequence: Sequence) -> None:
        """Puts a new sequence in the queue. Raises QueueFull when too many wait already."""
        if not self.has_room:
            raise QueueFull(len(self._waiting), len(self._running))
        sequence.enqueue(time.perf_counter(), self._arrivals)
        self._arrivals += 1
        insort(self._waiting, sequence, key=_rank)
        if sequence.job.deadline is not None:
            if len(self._expiring) > 2 * self._max_queue:  # mostly ended ones
                self._expiring = sorted(each for each in self._expiring if each[2].job.finished is None)
            heapq.heappush(self._expiring, (sequence.expires, sequence.arrival, sequence))

    def cancel(self, sequence: Sequence) -> None:
        """Ends an unfinished sequence and frees its pages at once."""
        self._end(sequence, "cancelled", time.perf_counter())

    def take_events(self) -> list[Event]:
        """What happened since the last call."""
        events, self._events = self._events, []
        return events

    def schedule(self) -> Step | None:
        """The next step, or None when nothing can run because nothing is there."""
        self._step.clear()
        if self._expiring:
            self._expire(time.perf_counter())
        if self._waiting and self._running:
            self._give_way(self._waiting[0])
        drawing = self._add_drawing()
        if self._waiting and self._free_slots:
            self._admit()
        if len(drawing) < len(self._running):
            self._add_prompts()
        if self._step.rows == 0:
            self._add_drawing()  # two lanes that were admitted just now, with nothing left to read
        self._begun = time.perf_counter()
        return self._step if self._step.rows else None

    def commit(self, logits: torch.Tensor, faults: Mapping[int, str]) -> None:
        """The step has run; logits: (rows asked for in its batch, V) float32.

        faults: rows whose key or value could not be stored, and the layer, the cause first; their sequences end.
        """
        step, now = self._step, time.perf_counter()
        failed = self._set_aside(faults, now) if faults else set()
        for sequence, lane, count, _, _, draws in step.parts:
            if draws or sequence in failed:
                continue
            self._advance(lane, count)
            if lane is sequence:
                self._events.append(Prefill(sequence.job, sequence.computed, sequence.num_tokens))
        step.draw_all(logits, failed, lambda sequence, token: self._accept(sequence, token, now))
        if self._speculation:
            seconds = time.perf_counter() - self._begun
            self._speculation.learn(step.rows, None if step.reads_prompts else seconds)

    def check_integrity(self) -> None:
        """Raises AssertionError on a broken invariant."""
        lanes = [lane for sequence in self._running for lane in sequence.lanes]
        self._pool.check_integrity(lane.table.pages for lane in lanes)
        slots = sorted([lane.slot for lane in lanes] + self._free_slots)
        assert slots == list(range(len(self._step.page_table))), "a slot is lost or used twice"
        for group in (self._running, self._waiting):
            ranks = [sequence.rank for sequence in group]
            assert ranks == sorted(set(ranks)), "sequences are out of order"
        for lane in lanes:
            assert lane.computed < lane.num_tokens, "a running sequence has nothing to run"
            assert lane.computed <= lane.table.capacity, "tokens were computed without pages"
            row = self._step.page_table[lane.slot, : len(lane.table.pages)]
            assert row.tolist() == lane.table.pages, "the page table disagrees with the pages of its sequence"
        for sequence in self._running:
            assert sequence.num_tokens <= sequence.limit, "a sequence is longer than its limit"
        if self._speculation:
            self._speculation.check_integrity(self._running)
        for lane in [lane for sequence in self._waiting for lane in sequence.lanes]:
            held = (lane.slot, lane.computed, lane.table.pages)
            assert held == (-1, 0, []), "a waiting sequence holds pages"

    def _expire(self, now: float) -> None:
        """Ends what has run out of time."""
        while self._expiring and self._expiring[0][0] <= now:
            _, _, sequence = heapq.heappop(self._expiring)
            if sequence.job.finished is None:
                self._finish_text(sequence, "deadline", now)

    def _give_way(self, sequence: Sequence) -> None:
        """Preempts sequences of lower priority if the waiting one could then run."""
        lower = [
            each for each in self._running if each.job.priority < sequence.job.priority and each.rank > sequence.rank
        ]
        if not lower or self._fits(sequence, self._reserved):
            return
        theirs = sum(len(lane.table.pages) for each in lower for lane in each.lanes)
        slots = len(self._free_slots) + sum(len(each.lanes) for each in lower)
        if slots >= len(sequence.lanes) and self._needed_pages(sequence) <= self._pool.num_available + theirs:
            while lower and not self._fits(sequence, self._reserved):
                self._preempt(lower.pop())

    def _add_drawing(self) -> list[Sequence]:
        """Rows for the sequences that are about to draw, and for their drafts."""
        drawing = self._find_drawing()
        if self._speculation and drawing:
            rows = sum(len(sequence.lanes) for sequence in drawing)
            self._speculation.propose(drawing, (self._max_rows - rows) // 2)
        for sequence in drawing:
            for lane in sequence.lanes:
                self._step.add(sequence, lane, 1)
        return drawing

    def _find_drawing(self) -> list[Sequence]:
        """The running sequences that lack nothing but their last token, and have room for it."""
        running, drawing, index = self._running, [], 0
        while index < len(running):
            sequence = running[index]
            if sequence.is_ready:
                if any(lane.needs_page and not self._make_room(sequence, lane) for lane in sequence.lanes):
                    continue  # it was the last itself
                drawing.append(sequence)
            index += 1
        return drawing

    def _make_room(self, sequence: Sequence, lane: Lane) -> bool:
        """A page for its next token, if need be from the last in rank; False when that is the sequence itself."""
        while not lane.table.grow(lane.computed + 1):
            last = self._running[-1]
            self._preempt(last)
            if last is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._leave_batch(sequence)
        insort(self._waiting, sequence, key=_rank)

    def _admit(self) -> None:
        """Moves waiting sequences to the batch, by rank; a later one that fits may overtake, but not for ever.

        All pages that its known tokens need must be there, and so must those that running prompts still need.
        """
        reserved = self._reserved
        for sequence in self._waiting[:LOOKAHEAD]:
            if self._fits(sequence, reserved):
                self._start(sequence)
                reserved += self._missing_pages(sequence)
            elif sequence.skipped >= MAX_SKIPS:
                return
            if not self._free_slots:
                return

    def _fits(self, sequence: Sequence, reserved: int) -> bool:
        """Whether a waiting sequence has slots and pages, `reserved` of which are for others."""
        spare = 1 if self._running else 0  # else it would be preempted by the next page that somebody needs
        needed = self._needed_pages(sequence) + reserved + spare
        return len(self._free_slots) >= len(sequence.lanes) and needed <= self._pool.num_available

    def _needed_pages(self, sequence: Sequence) -> int:
        """Pages that a waiting sequence would take from those that are available."""
        cached = [lane.table.cached_pages(lane.tokens) for lane in sequence.lanes]
        return self._missing_pages(sequence) - sum(found - unread for found, unread in cached)

    @property
    def _reserved(self) -> int:
        """Pages that running prompts still need."""
        return sum(self._missing_pages(sequence) for sequence in self._running)

    def _missing_pages(self, sequence: Sequence) -> int:
        size = self._pool.page_size
        return sum(-(-lane.num_tokens // size) - len(lane.table.pages) for lane in sequence.lanes)

    def _start(self, sequence: Sequence) -> None:
        self._waiting.remove(sequence)
        self._count_skips(sequence)
        insort(self._running, sequence, key=_rank)
        for lane in sequence.lanes:
            lane.slot = heapq.heappop(self._free_slots)  # the lowest, so that the batch's page table stays short
            lane.table.place(self._step.page_table[lane.slot])
            lane.computed = lane.table.reuse(lane.tokens, 0)
            lane.computed = lane.table.copy_start(lane.tokens, lane.computed, self._copy_page)
        if not sequence.admitted:
            sequence.admitted = time.perf_counter()
            sequence.cached_tokens = sequence.computed
            self._events.append(Started(sequence.job, sequence.prompt_tokens, sequence.computed))

    def _count_skips(self, started: Sequence) -> None:
        """Those that came before `started` were overtaken; who was too often goes to the front."""
        for sequence in self._waiting:
            if sequence.arrival < started.arrival:
                sequence.skipped += 1
                if sequence.skipped == MAX_SKIPS:
                    sequence.promote()
        self._waiting.sort(key=_rank)

    def _add_prompts(self) -> None:
        """Rows for the sequences that lack more than one token, out of what is left of the budget."""
        scheduled = {id(part.sequence) for part in self._step.parts}
        unread = [(each, lane) for each in self._running if id(each) not in scheduled for lane in each.lanes]
        for _, lane in unread:
            lane.computed = lane.table.reuse(lane.tokens, lane.computed)
        budget = self._max_rows - self._step.rows
        if scheduled:
            budget = min(budget, MIXED_ROWS)
        prompts = [(each, lane, wanted) for each, lane in unread if (wanted := _readable(each, lane))]
        counts = share_budget([wanted for _, _, wanted in prompts], budget)
        for (sequence, lane, _), count in zip(prompts, counts, strict=True):
            if lane.slot < 0 or count == 0:
                continue  # preempted for one before it, or no budget
            if self._step.rows == 0 and not self._make_room(sequence, lane):
                continue
            lane.table.grow(lane.computed + count)
            count = min(count, lane.table.capacity - lane.computed)
            if count:
                self._step.add(sequence, lane, count)

    def _set_aside(self, faults: Mapping[int, str], now: float) -> set[Sequence]:
        """The sequences that have faulty rows: they end, except that one whose drafts are to blame tries without."""
        found, begin = set(), 0
        for sequence, lane, count, drafts, _, _ in self._step.parts:
            end = begin + count + drafts
            row = next((row for row in faults if begin <= row < end), None)
            if row is not None and sequence.slot >= 0:
                found.add(sequence)
                if row - begin < count:
                    self._end(sequence, "error", now, error=cache_fault(lane.computed + row - begin, faults[row]))
                else:
                    sequence.drop_drafts()
                    sequence.may_guess = False
            begin = end
        return found

    def _advance(self, lane: Lane, count: int) -> None:
        """`count` more tokens have keys and values."""
        lane.computed += count
        if lane.computed % self._pool.page_size < count:  # a page was completed
            lane.table.seal(lane.tokens, lane.computed)

    def _accept(self, sequence: Sequence, token: int, now: float) -> bool:
        """What a drawn token means for its sequence; True: it goes on, and the token is its next draft."""
        for lane in sequence.lanes:
            self._advance(lane, lane.missing)
        constraint = sequence.constraint
        if token < 0 and constraint is not None and constraint.error:
            self._end(sequence, "error", now, error=ConstraintError(constraint.error))
            return False
        if token == NO_TOKEN_LEFT and sequence.num_tokens in sequence.bans:
            error = ConstraintError("every token that may come next is the beginning of a banned string")
            self._end(sequence, "error", now, error=error)
            return False
        if token < 0:
            self._end(sequence, "error", now, error=sampling_error(token, sequence.computed - 1))
            return False
        guessed = sequence.append_drawn(token)
        if not sequence.first_token:
            sequence.first_token = now
        if token in sequence.stop_ids and sequence.num_tokens > sequence.endless_until:
            self._finish_text(sequence, "stop_token", now, token)
            return False
        if constraint is not None:
            constraint.accept(token)
        answer = sequence.answer
        text, token_ids = answer.add(token)
        if text or token_ids:
            self._events.append(sequence.text_event(text, token_ids))
        if answer.taken_back:
            self._take_back(sequence)
            return False
        if answer.stop is not None:
            self._end(sequence, "stop_string", now, answer.stop)
        elif sequence.num_tokens >= sequence.last:
            self._finish_text(sequence, sequence.end_reason, now)
        else:
            return guessed
        return False

    def _take_back(self, sequence: Sequence) -> None:
        """The end of the answer is a banned string: another one is drawn from where that began."""
        sequence.take_back(sequence.answer.taken_back, sequence.answer.banned_token, self._copy_page)
        if self._speculation:
            self._speculation.drop(sequence)

    def _finish_text(self, sequence: Sequence, reason: Reason, now: float, stop: int | None = None) -> None:
        text, token_ids = sequence.answer.finish()
        if text or token_ids:
            self._events.append(sequence.text_event(text, token_ids))
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
        if sequence.slot < 0:
            self._waiting.remove(sequence)
        else:
            self._running.remove(sequence)
            if error:
                for lane in sequence.lanes:
                    lane.table.discard()  # what made the logits wrong may stand in the pages
            self._leave_batch(sequence)
        self._events.append(sequence.finished(reason, now, stop, error))

    def _leave_batch(self, sequence: Sequence) -> None:
        sequence.drop_drafts()
        if self._speculation:
            self._speculation.drop(sequence)
        for lane in sequence.lanes:
            lane.table.release(lane.tokens, lane.computed)
            heapq.heappush(self._free_slots, lane.slot)
            lane.slot, lane.computed = -1, 0


def share_budget(wanted: list[int], budget: int) -> list[int]:
    """Rows for each prompt, given what each lacks, the first in rank first.

    A quarter goes to the first, so that a long prompt cannot starve; the rest to the shortest first, so that a short
    one does not wait for long ones.
    """
    if not wanted:
        return []
    counts = [0] * len(wanted)
    counts[0] = min(wanted[0], -(-budget // FIRST_SHARE))
    budget -= counts[0]
    for index in sorted(range(len(wanted)), key=wanted.__getitem__):
        more = min(wanted[index] - counts[index], budget)
        counts[index] += more
        budget -= more
    return counts


def _readable(sequence: Sequence, lane: Lane) -> int:
    """Tokens of a lane that can be computed before the sequence draws: lanes that draw together wait with the last."""
    return lane.missing - (len(sequence.lanes) > 1)


def _rank(sequence: Sequence) -> tuple[float, float, int]:
    return sequence.rank
