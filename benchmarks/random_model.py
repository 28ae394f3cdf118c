"""Models of real shapes with random weights, made without a file: for speed alone, on any device.

Weights of four blocks are made and shared by all others in turn: enough that a GPU's cache holds none of them from one
use to the next, and a 70B shape is ready in seconds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exllama import architectures, ops
from exllama.architectures.common.config import ConfigReader
from exllama.cache.storage import CacheLayer, KVCache
from exllama.engine.batch import Batch
from exllama.engine.runner import Runner
from exllama.layers.attention import Attention
from exllama.layers.module import Module

DISTINCT = 4
BLOCK = {"Q4_0": (32, 18), "Q8_0": (32, 34)}  # weights, bytes
ROWS_AT_ONCE = 4096


def shape(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocab: int, tied: bool) -> dict[str, Any]:
    """The configuration of a llama."""
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
    }


SHAPES = {
    "tiny": shape(64, 128, 2, 2, 1, 256, True),
    "1B": shape(2048, 8192, 16, 32, 8, 128256, True),
    "8B": shape(4096, 14336, 32, 32, 8, 128256, False),
    "70B": shape(8192, 28672, 80, 64, 8, 128256, False),
}


class RandomSource:
    """The TensorSource of layers/module.py. kind: Q4_0, Q8_0 or float16, of every matrix."""

    def __init__(self, device: str, kind: str) -> None:
        self._device, self._kind = device, kind
        self._made: dict[tuple[str, tuple[int, int]], ops.Weight] = {}
        self._random = np.random.default_rng(0)

    def weight(self, key: str, shape: tuple[int, int]) -> ops.Weight:
        role = re.sub(r"\d+", lambda found: str(int(found[0]) % DISTINCT), key)
        if (role, shape) not in self._made:
            self._made[role, shape] = self._make(shape)
        return self._made[role, shape]

    def vector(self, name: str, size: int) -> torch.Tensor:
        return torch.ones(size)

    def _make(self, shape: tuple[int, int]) -> ops.Weight:
        block = BLOCK.get(self._kind)
        if block:
            packer = ops.pack_blocks(self._kind, shape, self._device)
        else:
            packer = ops.pack_dense(self._kind, shape, self._device)
        rows = self._rows(min(shape[0], ROWS_AT_ONCE), shape[1])
        for start in range(0, shape[0], ROWS_AT_ONCE):
            packer.add_rows(start, rows[: min(ROWS_AT_ONCE, shape[0] - start)])
        return packer.finish()

    def _rows(self, rows: int, columns: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Rows as a file has them, values of about columns ** -0.5."""
        if self._kind not in BLOCK:
            values = self._random.standard_normal((rows, columns), np.float32) * columns**-0.5
            return values.astype(np.float16).view(np.uint8)
        weights, size = BLOCK[self._kind]
        raw = self._random.integers(0, 256, (rows, columns // weights, size), np.uint8)
        step = columns**-0.5 / (4.6 if self._kind == "Q4_0" else 74)  # a code's standard deviation
        raw[:, :, :2] = np.array([step], np.float16).view(np.uint8)
        return raw.reshape(rows, -1)


@dataclass
class RandomModel:
    """What a Runner needs of a model, and the bytes that a decode step reads."""

    name: str
    device: str
    kind: str
    threads: int | None = None
    modules: list[Module] = field(default_factory=list)

    def __post_init__(self) -> None:
        reader = ConfigReader(Path(self.name), SHAPES[self.name])
        architecture = architectures.find_architecture(reader)
        self.config = architecture.read_config(reader)
        self.modules = architecture.build(self.config, self.config.max_position)
        source = RandomSource(self.device, self.kind)
        for module in self.modules:
            module.load(source)

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size

    @property
    def step_bytes(self) -> int:
        """Of all weights that a token reads; a tied table is read once, as the head."""
        return sum(module.nbytes for module in self.modules[1:])

    @property
    def cache_layers(self) -> list[CacheLayer]:
        shapes = [module.shape for module in self.modules if isinstance(module, Attention)]
        return [CacheLayer(each.num_kv_heads, each.head_dim, self.device) for each in shapes]

    def runner(self, rows: int, sequences: int, tokens: int, cache: str = "fp16") -> Runner:
        """For batches of `rows` tokens of `sequences` sequences that hold `tokens` each."""
        pages = sequences * -(-tokens // ops.PAGE_SIZE)
        return Runner(self, KVCache(self.cache_layers, pages, cache), rows, sequences)


def step(runner: Runner, sequences: int, first: int, tokens: int, pages_each: int) -> None:
    """One forward pass: `tokens` tokens from position `first` on in every sequence; the last ones' logits."""
    count = sequences * tokens
    ids = (np.arange(count, dtype=np.int32) * 7919) % 200
    positions = np.tile(np.arange(first, first + tokens, dtype=np.int32), sequences)
    table = np.arange(sequences * pages_each, dtype=np.int32).reshape(sequences, pages_each)
    rows = np.repeat(np.arange(sequences, dtype=np.int32), tokens)
    last = np.arange(tokens - 1, count, tokens, dtype=np.int32)
    runner.forward(Batch(ids, positions, rows, table, last))
