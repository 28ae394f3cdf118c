"""Speed of prefill and decode: the forward pass alone, with fixed tokens and no sampling, as llama-bench has it.

Every test runs once to warm up and then `runs` times; the median counts. `bytes` is what one step must read from
memory: all weights that a token passes through and the keys and values of its context. `roofline_fraction` compares
with what this machine was measured to do just before: decode with bytes over read bandwidth, prefill with the slower
of that and multiply-adds over the int8 peak. Decode above 1 means that weights stayed in the processor's cache.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from exllama import ops
from exllama.cache.storage import KVCache
from exllama.engine.batch import Batch
from exllama.engine.model import Model
from exllama.engine.runner import Runner
from exllama.errors import UsageError
from exllama.layers.embedding import Embedding
from exllama.ops import PAGE_SIZE

CHUNK = 512  # rows of one prefill step


@dataclass(frozen=True)
class Test:
    """One measurement: `prefill` or decode `tokens` per sequence, after `depth` tokens, with `batch` sequences."""

    prefill: bool
    tokens: int
    depth: int
    batch: int

    @property
    def name(self) -> str:
        """pp512, tg128, tg128@d4096, tg128@b16, tg128@d4096@b16."""
        depth = f"@d{self.depth}" if self.depth else ""
        batch = f"@b{self.batch}" if self.batch > 1 else ""
        return f"{'pp' if self.prefill else 'tg'}{self.tokens}{depth}{batch}"

    @property
    def pages(self) -> int:
        """Pages per sequence."""
        return -(-(self.depth + self.tokens) // PAGE_SIZE)


def tests(prefill: int, decode: int, depths: list[int], batches: list[int]) -> list[Test]:
    """Prefill alone per depth, decode per depth and batch size; a count of 0 leaves its kind out."""
    made = []
    for depth in depths:
        if prefill:
            made.append(Test(True, prefill, depth, 1))
        made.extend(Test(False, decode, depth, batch) for batch in batches if decode)
    if not made:
        raise UsageError("nothing to measure: -p and -n are both 0")
    return made


class Bench:
    """A loaded model over one cache that is large enough for all tests."""

    def __init__(self, model: Model, wanted: list[Test], cache: str, threads: int) -> None:
        longest = max(test.depth + test.tokens for test in wanted)
        if longest > model.context_length:
            raise UsageError(f"a test needs {longest} tokens of context, the model has {model.context_length}")
        self.model, self.threads = model, threads
        sequences = max(test.batch for test in wanted)
        pages = max(test.batch * test.pages for test in wanted)
        self.cache = KVCache(model.cache_layers, pages, cache)
        self.runner = Runner(model, self.cache, max(CHUNK, sequences), sequences)

    def measure(self, test: Test, runs: int, tick: Callable[[str, int, int], None] | None = None) -> dict[str, Any]:
        """The JSON object of one test."""
        seconds = []
        limits = ops.machine_limits(self.threads)
        self._fill(test)
        for index in range(runs + 1):
            begin = time.perf_counter()
            for batch in self._batches(test):
                self.runner.forward(batch)
            seconds.append(time.perf_counter() - begin)
            if tick:
                tick(test.name, index + 1, runs + 1)
        speeds = [test.tokens * test.batch / second for second in seconds[1:]]
        return {
            "test": test.name,
            "tokens_per_second": round(statistics.median(speeds), 3),
            "min": round(min(speeds), 3),
            "max": round(max(speeds), 3),
            "runs": runs,
            "threads": self.threads,
            "device": self.model.device,
            "bytes": self.step_bytes(test),
            "roofline_fraction": round(self.shortest_seconds(test, limits) / statistics.median(seconds[1:]), 4),
        }

    def step_bytes(self, test: Test) -> int:
        """Bytes that one forward pass of the test must read; for prefill, one chunk."""
        length = test.depth + test.tokens // 2  # in the middle of the run
        per_token = self.cache.nbytes // (self.cache.num_pages * PAGE_SIZE)
        return self.weight_bytes() + test.batch * length * per_token

    def weight_bytes(self) -> int:
        """Every module's tensors; of an embedding that is no head as well only single rows are read."""
        embeddings = sum(module.nbytes for module in self.model.modules if isinstance(module, Embedding))
        return self.model.nbytes - (0 if self.model.config.tied_head else embeddings)

    def shortest_seconds(self, test: Test, limits: Mapping[str, float]) -> float:
        """The time that the machine's own limits allow for a whole run."""
        steps = -(-test.tokens // CHUNK) if test.prefill else test.tokens
        reading = steps * self.step_bytes(test) / (limits["read_gb_per_s"] * 1e9)
        computing = self.operations(test) / (limits["int8_gops"] * 1e9)
        return max(reading, computing)

    def operations(self, test: Test) -> float:
        """Two per weight and token in the matrices, four per query feature and visible position in attention."""
        config = self.model.config
        heads = config.num_heads * config.head_dim
        groups = config.num_kv_heads * config.head_dim
        block = config.hidden_size * (2 * heads + 2 * groups + 3 * config.intermediate_size)
        attention = 2 * heads * (test.depth + test.tokens / 2)
        head = config.vocab_size * config.hidden_size * (1 / test.tokens if test.prefill else 1)
        return 2 * test.tokens * test.batch * (config.num_layers * (block + attention) + head)

    def _fill(self, test: Test) -> None:
        """Puts `depth` tokens into every sequence."""
        for sequence in range(test.batch):
            for begin in range(0, test.depth, CHUNK):
                self.runner.forward(self._chunk(test, sequence, begin, min(begin + CHUNK, test.depth)))

    def _batches(self, test: Test) -> Iterator[Batch]:
        if test.prefill:
            stop = test.depth + test.tokens
            for begin in range(test.depth, stop, CHUNK):
                yield self._chunk(test, 0, begin, min(begin + CHUNK, stop))
            return
        sequences = np.arange(test.batch, dtype=np.int32)
        for position in range(test.depth, test.depth + test.tokens):
            positions = np.full(test.batch, position, dtype=np.int32)
            yield Batch(self._tokens(positions + sequences), positions, sequences, self._table(test), sequences)

    def _chunk(self, test: Test, sequence: int, begin: int, stop: int) -> Batch:
        """Rows begin .. stop - 1 of one sequence; only the last one's logits are wanted."""
        positions = np.arange(begin, stop, dtype=np.int32)
        last = np.array([stop - begin - 1], dtype=np.int32)
        sequences = np.full_like(positions, sequence)
        return Batch(self._tokens(positions + np.int32(sequence)), positions, sequences, self._table(test), last)

    def _table(self, test: Test) -> np.ndarray[Any, np.dtype[np.int32]]:
        return np.arange(test.batch * test.pages, dtype=np.int32).reshape(test.batch, test.pages)

    def _tokens(self, index: np.ndarray[Any, np.dtype[np.int32]]) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Tokens spread over the vocabulary, so that embedding rows are not all in the processor's cache."""
        return (index.astype(np.int64) * 7919 % self.model.vocab_size).astype(np.int32)
