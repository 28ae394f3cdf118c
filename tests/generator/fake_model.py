"""A model that is a pure function of the token history, but computes it the way a real one does: through the cache.

For every row it stores in the row's page slot a number made from the token and from the number of the position before,
read through the page table. Logits are made from the numbers of all positions. So whoever runs a sequence over a wrong
page, a stale slot or in a wrong order gets wrong logits, and `logits_of` says which are right.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from exllama.cache.spill import Spill, Tier
from exllama.engine.batch import Batch
from exllama.generator import Generator
from exllama.generator.drafting.drafter import Drafter
from exllama.ops import PAGE_SIZE

MASK = 2**64 - 1
POISON = 2**64 - 1  # is in no slot that was written
VOCAB = 128  # ASCII
EOS = (0, 1, 2)


def mix(x: int) -> int:
    """The finalizer of splitmix64: every input bit changes every output bit."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def logits_from(total: int, ends: bool) -> np.ndarray:
    """(VOCAB,) float32 in [0, 8), different for every sum of states; without `ends` no end token is ever drawn."""
    x = (np.arange(VOCAB, dtype=np.uint64) + np.uint64(1)) * np.uint64(mix(total))
    x ^= x >> np.uint64(29)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    logits = ((x >> np.uint64(40)).astype(np.float32)) / np.float32(2**21)
    if not ends:
        logits[list(EOS)] = -np.inf
    return logits


def logits_of(tokens: list[int], ends: bool = False) -> np.ndarray:
    """What the model says after these tokens."""
    state = total = 0
    for token in tokens:
        state = mix(state ^ (token + 1))
        total = (total + state) & MASK
    return logits_from(total, ends)


class FakeCache:
    """num_pages pages; `states` starts as noise, as memory does."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.states = np.random.default_rng(0).integers(0, 2**63, (num_pages, PAGE_SIZE)).astype(np.uint64)
        self.copies = 0

    def copy_page(self, src: int, dst: int) -> None:
        self.states[dst] = self.states[src]
        self.copies += 1

    page_nbytes = PAGE_SIZE * 8
    geometry: ClassVar[dict[str, int]] = {"page_size": PAGE_SIZE}

    def read_page(self, page: int) -> np.ndarray:
        return self.states[page].view(np.uint8).copy()

    def write_page(self, page: int, data: np.ndarray) -> None:
        self.states[page] = data.view(np.uint64)

    def poison_page(self, page: int) -> None:
        self.states[page] = POISON


class FakeRunner:
    """Counts what it is asked to do; logits of the token `poison` are NaN, keys of `unstorable` a fault."""

    def __init__(self, num_pages: int, max_rows: int, max_sequences: int, ends: bool = False) -> None:
        self.cache, self.max_rows, self.max_sequences = FakeCache(num_pages), max_rows, max_sequences
        self.ends = ends
        self.poison: int | None = None
        self.unstorable: int | None = None
        self.faults: dict[int, str] = {}
        self.rows: list[int] = []  # per step
        self.fail = False

    def forward(self, batch: Batch) -> torch.Tensor:
        if self.fail:
            raise MemoryError("the runner fails")
        self._check(batch)
        self.rows.append(len(batch.token_ids))
        self.faults = {row: "layer 7" for row, token in enumerate(batch.token_ids) if token == self.unstorable}
        seen: dict[int, int] = {}
        for token, position, sequence in zip(batch.token_ids, batch.positions, batch.sequences, strict=True):
            assert seen.get(int(sequence), int(position) - 1) == position - 1, "rows of a sequence are out of order"
            seen[int(sequence)] = int(position)
            pages = batch.page_table[sequence]
            before = self._state(pages, position - 1) if position else 0
            self.cache.states[pages[position // PAGE_SIZE], position % PAGE_SIZE] = mix(before ^ (int(token) + 1))
        logits = [self._logits(batch, row) for row in batch.logit_rows]
        return torch.from_numpy(np.stack(logits) if logits else np.empty((0, VOCAB), np.float32))

    def _check(self, batch: Batch) -> None:
        """What native code refuses, and more sequences than this runner has."""
        rows = len(batch.token_ids)
        assert 0 < rows <= self.max_rows
        assert len(batch.page_table) <= self.max_sequences
        limits = {"token_ids": VOCAB, "sequences": len(batch.page_table), "logit_rows": rows}
        for name, limit in limits.items():
            column = getattr(batch, name)
            assert column.dtype == np.int32, name
            assert all(0 <= value < limit for value in column), name
        used = batch.page_table[batch.sequences, batch.positions // PAGE_SIZE]
        assert 0 <= used.min() <= used.max() < self.cache.num_pages

    def _state(self, pages: np.ndarray, position: int) -> int:
        state = int(self.cache.states[pages[position // PAGE_SIZE], position % PAGE_SIZE])
        assert state != POISON, "a page that holds nothing was read"
        return state

    def _logits(self, batch: Batch, row: int) -> np.ndarray:
        end = int(batch.positions[row]) + 1
        states = self.cache.states[batch.page_table[batch.sequences[row], : -(-end // PAGE_SIZE)]].reshape(-1)[:end]
        if self.poison is not None and self.poison == batch.token_ids[row]:
            return np.full(VOCAB, np.nan, np.float32)
        return logits_from(int(states.sum(dtype=np.uint64)), self.ends)


class FakeTokenizer:
    """ASCII: a token is a character; ids 0, 1 and 2 end a text."""

    vocab_size = VOCAB
    eos_ids = EOS
    control_ids = frozenset(EOS)

    def encode(self, text: str, add_special_tokens: bool = True, parse_special: bool = False) -> list[int]:
        return list(text.encode("ascii"))

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("ascii")

    def id_to_piece(self, token_id: int) -> bytes:
        return bytes([token_id])


class FakeModel:
    """Holds what a Generator asks a model for."""

    vocab_size = VOCAB
    fingerprint = "fake"

    def __init__(self, context_length: int) -> None:
        self.context_length = context_length
        self.tokenizer = FakeTokenizer()
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def make(
    pages: int = 64,
    batch: int = 16,
    rows: int = 512,
    context: int = 8192,
    ends: bool = False,
    drafter: Drafter | None = None,
    tier: Tier | None = None,
) -> tuple[Generator, FakeRunner]:
    """A generator over a fresh fake, whose pages are poisoned while they hold nothing."""
    runner = FakeRunner(pages, rows, batch, ends)
    spill = Spill(runner.cache, tier, poison=True)
    return Generator(FakeModel(context), runner, drafter=drafter, spill=spill), runner  # type: ignore[arg-type]
