"""Guesses from a model: token by token, for all sequences at a time, drawn by the sampler that draws the real ones.

Random numbers are a function of seed and position, so where the model that guesses predicts nearly what the other one
does, it nearly always draws the same token, at any temperature.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from exllama.cache.page_table import PageTable
from exllama.cache.pages import PagePool
from exllama.engine.batch import Batch
from exllama.engine.rows import BatchRows
from exllama.generator.drafting.drafter import Guess
from exllama.generator.drafting.pace import StepCosts
from exllama.generator.drafting.rejection import allows, distribution_of
from exllama.generator.sampling.rows import SamplingRows
from exllama.generator.sampling.sampler import sample_rows
from exllama.generator.sequence import Sequence
from exllama.ops import PAGE_SIZE


class DraftCache(Protocol):
    """What is used of cache.storage.KVCache."""

    def copy_page(self, src: int, dst: int) -> None: ...


class DraftRunner(Protocol):
    """What is used of engine.runner.Runner."""

    max_rows: int
    max_sequences: int

    @property
    def cache(self) -> DraftCache: ...
    def forward(self, batch: Batch) -> torch.Tensor: ...


class ModelDrafter(ABC):
    """Runs a model ahead of the real one. Subclasses know which of its keys and values exist already."""

    priors: tuple[float, ...] = (0.6,)

    def __init__(self, runner: DraftRunner, limit: int, vocab_size: int, rejection: bool = False) -> None:
        """limit: tokens of the longest sequence. vocab_size: ids that both models know. rejection: see rejection.py."""
        self._rejection = rejection
        self._runner, self._limit, self._vocab_size = runner, limit, vocab_size
        table = np.zeros((runner.max_sequences, -(-limit // PAGE_SIZE)), np.int32)
        self._rows = BatchRows(runner.max_rows, table)
        self._sampling = SamplingRows(runner.max_sequences)
        self._costs = StepCosts()

    def guess_seconds(self, sequences: int) -> float:
        """Time of a pass with a row for each."""
        return float(self._costs.curve(sequences)[sequences]) if self._costs.known else 0.0

    def look(self, sequence: Sequence) -> Guess:
        """As many as the context of this model has room for."""
        return Guess(0, max(self._limit - sequence.num_tokens, 0))

    def write(self, sequences: list[Sequence], counts: list[int]) -> None:
        """A sequence whose prompt this model is still reading gets none yet."""
        for sequence in sequences:
            sequence.guessed_from.clear()
        begins = [self._prepare(sequence, count) for sequence, count in zip(sequences, counts, strict=True)]
        wanted = [(s, c, b) for s, c, b in zip(sequences, counts, begins, strict=True) if b is not None]
        while wanted:
            begun = time.perf_counter()
            ready = self._read(wanted)
            if not ready:
                return
            passes = self._rows.count
            drawn = self._draw([sequence for sequence, _ in ready])
            for (sequence, _), token, logits in zip(ready, drawn, self._logits, strict=True):
                if token >= 0:
                    self._add(sequence, token, logits)
            if passes == len(ready):
                self._costs.observe(passes, time.perf_counter() - begun)
            wanted = [(s, c, s.num_tokens + s.num_drafts - 1) for s, c in ready if self._goes_on(s, c)]

    @abstractmethod
    def _prepare(self, sequence: Sequence, count: int) -> int | None:
        """Where this model must begin to read; None: there is no room for `count` drafts more."""

    @abstractmethod
    def _computed(self, sequence: Sequence, count: int) -> None:
        """The first `count` tokens and drafts have been read."""

    def _add(self, sequence: Sequence, token: int, logits: torch.Tensor) -> None:
        """One more draft, drawn from logits (vocab_size,)."""
        end = sequence.num_tokens + sequence.num_drafts
        sequence.reserve(end + 1)
        if self._rejection and allows(sequence.sampler):
            sampler = sequence.sampler.guessing(self._vocab_size)
            sequence.guessed_from.append(distribution_of(logits, sampler, sequence.buffer[:end]))
        sequence.buffer[end] = token
        sequence.num_drafts += 1

    def _goes_on(self, sequence: Sequence, count: int) -> bool:
        last = sequence.num_tokens + sequence.num_drafts - 1
        return 0 < sequence.num_drafts < count and int(sequence.buffer[last]) < self._vocab_size

    def _read(self, wanted: list[tuple[Sequence, int, int]]) -> list[tuple[Sequence, int]]:
        """One pass over (sequence, drafts, begin); returns those that were read to the end, whose logits are kept."""
        self._rows.clear()
        asked, ready = [], []
        for sequence, count, begin in wanted:
            end = sequence.num_tokens + sequence.num_drafts
            stop = min(end, begin + self._rows.max_rows - self._rows.count)
            if stop > begin:
                self._rows.add(sequence.slot, sequence.buffer, begin, stop)
                self._computed(sequence, stop)
            if stop == end:
                asked.append(self._rows.count - 1)
                ready.append((sequence, count))
        self._logits = self._runner.forward(self._rows.batch(asked))[:, : self._vocab_size]
        return ready

    def _draw(self, sequences: list[Sequence]) -> list[int]:
        self._sampling.clear()
        for each in sequences:
            self._sampling.add(each.sampler.guessing(self._vocab_size), each.buffer, each.num_tokens + each.num_drafts)
        return sample_rows(self._logits.contiguous(), self._sampling)


class _Place:
    """The pages of one sequence in the drafter's own cache; tokens [0, computed) have been read."""

    def __init__(self, table: PageTable) -> None:
        self.table, self.computed = table, 0


class OtherModelDrafter(ModelDrafter):
    """A smaller model of the same vocabulary with a cache of its own, in which prefixes are found again too.

    Invariant: settled, what has been read are tokens of the sequence and never drafts, so no draft is ever indexed.
    """

    def __init__(
        self,
        runner: DraftRunner,
        pool: PagePool,
        limit: int,
        vocab_size: int,
        close: Callable[[], None],
        rejection: bool = False,
    ) -> None:
        """close: called when it is not needed any more."""
        super().__init__(runner, limit, vocab_size, rejection)
        self._pool, self._close = pool, close
        self._places: dict[Sequence, _Place] = {}

    def settle(self, sequence: Sequence) -> None:
        """What was read of wrong drafts counts no more; pages that are complete can be found from now on."""
        place = self._places.get(sequence)
        if place is not None:
            place.computed = min(place.computed, sequence.num_tokens - 1)
            place.table.seal(sequence.tokens, place.computed)

    def drop(self, sequence: Sequence) -> None:
        """Gives the pages back."""
        self.settle(sequence)
        place = self._places.pop(sequence, None)
        if place is not None:
            place.table.release(sequence.tokens, place.computed)

    def close(self) -> None:
        """Gives the model back."""
        self._close()

    def check_integrity(self) -> None:
        """Raises AssertionError on a broken invariant."""
        self._pool.check_integrity(place.table.pages for place in self._places.values())

    def _prepare(self, sequence: Sequence, count: int) -> int | None:
        place = self._places.get(sequence)
        if place is None:
            place = self._places[sequence] = self._start(sequence)
        unread = sequence.buffer[place.computed : sequence.num_tokens]
        if int(unread.max()) >= self._vocab_size or not place.table.grow(sequence.num_tokens + count):
            return None
        return place.computed

    def _computed(self, sequence: Sequence, count: int) -> None:
        self._places[sequence].computed = count

    def _start(self, sequence: Sequence) -> _Place:
        place = _Place(PageTable(self._pool, sequence.job.salt))
        place.table.place(self._rows.page_table[sequence.slot])
        place.computed = place.table.reuse(sequence.tokens, 0)
        place.computed = place.table.copy_start(sequence.tokens, place.computed, self._runner.cache.copy_page)
        return place


class SkippingDrafter(ModelDrafter):
    """The model itself without some of its blocks, over the very pages of the sequence.

    For tokens that are known it reads the full model's keys and values, which is why it needs to read no prompt (Zhang
    et al. 2023, "Draft & Verify"). What it writes behind them for its drafts, verification overwrites.
    """

    def _prepare(self, sequence: Sequence, count: int) -> int | None:
        pages = sequence.table.pages
        self._rows.page_table[sequence.slot, : len(pages)] = pages
        return sequence.num_tokens - 1

    def _computed(self, sequence: Sequence, count: int) -> None:
        """Nothing to remember: verification computes all of it."""

    def settle(self, sequence: Sequence) -> None:
        """Nothing to remember."""

    def drop(self, sequence: Sequence) -> None:
        """Nothing to forget."""

    def close(self) -> None:
        """Weights and pages belong to the model."""

    def check_integrity(self) -> None:
        """Nothing that could break."""
